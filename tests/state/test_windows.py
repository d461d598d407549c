"""Features equal a recomputation from all events so far, for any order and any cuts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anabranch.state.errors import DeclarationError
from anabranch.state.windows.entity_state import EntityState
from anabranch.state.windows.specs import (
    STATS,
    DecayedSpec,
    DistinctSpec,
    SinceLastSpec,
    Spec,
    WindowSpec,
)
from tests.support.window_reference import Reference

SPECS: dict[str, list[Spec]] = {
    "windows": [WindowSpec("value", (40, 5, 300), STATS)],
    "counts": [WindowSpec("", (7, 100), ("count",)), WindowSpec("value", (60,), ("min",))],
    "panes": [WindowSpec("value", (40, 10, 200), STATS, resolution_ms=10)],
    "pane counts": [WindowSpec("", (25, 100), ("count",), resolution_ms=7)],
    "distinct": [DistinctSpec("code", (50, 8, 200))],
    "since last": [SinceLastSpec(60)],
    "decayed": [DecayedSpec("value", 3)],
    "together": [
        WindowSpec("value", (10, 90), ("mean", "max", "min")),
        DistinctSpec("code", (30,)),
        SinceLastSpec(200),
        DecayedSpec("value", 1, ("sum",)),
    ],
}

Rows = list[tuple[str, int, float, int, int]]  # key, time, value, code, mode


def values() -> st.SearchStrategy[float]:
    plain = st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda x: x if abs(x) > 1e-6 else 0.0)
    small = st.integers(-3, 3).map(float)
    return st.one_of(small, plain, st.integers(-1, 1).map(lambda x: 1e6 + x), st.just(1e30))


@st.composite
def streams(draw: st.DrawFn, modes: bool = False) -> Rows:
    """Rows of a few keys, in an order of arrival drawn at random.

    The bulk comes from a seed, so that examples are long enough to make keys hot; what matters
    (pace, jitter, number of keys, values) is drawn, and shrinks.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, 120))
    pace = draw(st.sampled_from([0, 1, 3, 20, 150]))
    jitter = draw(st.sampled_from([0, 0, 2, 30, 400]))
    keys = draw(st.integers(1, 3))
    pool = draw(st.lists(values(), min_size=1, max_size=6))
    times = np.cumsum(rng.integers(0, pace + 1, n)) - rng.integers(0, jitter + 1, n) - 100
    if draw(st.booleans()):
        times = -times  # backwards: every event is late
    kinds = rng.choice(3, n, p=[0.6, 0.25, 0.15]) if modes else np.zeros(n, int)
    return [
        (
            "abc"[rng.integers(keys)],
            int(time),
            float(pool[rng.integers(len(pool))] * rng.choice([1.0, 1.0, -1.0, rng.random()])),
            int(rng.integers(-4, 5)),
            int(kind),
        )
        for time, kind in zip(times, kinds, strict=True)
    ]


def feed(
    state: EntityState, rows: Rows, cuts: list[int] | None = None, evict: int = 0
) -> NDArray[np.float64]:
    """The features of `rows`, cut into calls; with a sweep of everything after some of them."""
    out = []
    bounds = [0, *sorted(cuts or []), len(rows)]
    for i, (start, stop) in enumerate(pairwise(bounds)):
        part = rows[start:stop]
        columns = {
            "value": np.array([row[2] for row in part], np.float64),
            "code": np.array([row[3] for row in part], np.int64),
        }
        mode = np.array([row[4] for row in part], np.uint8)
        times = np.array([row[1] for row in part], np.int64)
        plain = i % 2 == 0 and not mode.any()
        out.append(state.update([row[0] for row in part], times, columns, None if plain else mode))
        if evict and i % evict == 0:
            state.evict()
    return np.concatenate(out)


def assert_close(
    got: NDArray[np.float64], want: NDArray[np.float64], rows: Rows, specs: list[Spec]
) -> None:
    """Equal to 1e-9, down to the rounding of the sums: 32 digits, and 16 of the decayed ones."""
    largest = max(abs(row[2]) for row in rows)
    decayed = np.array(["decay" in name for spec in specs for name in spec.columns()])
    scale = np.where(decayed, 1e-14 * largest, 1e-26 * largest * (1 + largest)) * len(rows)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    bad = np.abs(got - want) > 1e-9 * np.abs(want) + scale
    bad &= ~np.isnan(want)
    assert not bad.any(), (np.argwhere(bad)[:5], got[bad][:5], want[bad][:5])


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=streams(modes=True))
def test_features_equal_a_recomputation(name: str, rows: Rows) -> None:
    reference = Reference(SPECS[name])
    want = np.array([reference.update(*row) for row in rows], np.float64)
    assert_close(feed(EntityState(SPECS[name], 10**6), rows), want, rows, SPECS[name])


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=streams(modes=True),
    lateness=st.sampled_from([0, 5, 1000]),
    cuts=st.lists(st.integers(0, 120), max_size=30),
    evict=st.integers(0, 3),
)
def test_neither_cuts_nor_sweeps_change_a_bit(
    name: str, rows: Rows, lateness: int, cuts: list[int], evict: int
) -> None:
    """Also beyond the lateness, where features may lack events: they lack the same ones."""
    whole = feed(EntityState(SPECS[name], lateness), rows)
    cut = feed(EntityState(SPECS[name], lateness), rows, [c for c in cuts if c < len(rows)], evict)
    single = feed(EntityState(SPECS[name], lateness), rows, list(range(1, len(rows))), evict)
    assert whole.tobytes() == cut.tobytes() == single.tobytes()


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=streams())
def test_timely_rows_are_exact_with_the_smallest_lateness(name: str, rows: Rows) -> None:
    latest, behind = -(10**9), 0
    for row in rows:
        latest = max(latest, row[1])
        behind = max(behind, latest - row[1])
    state = EntityState(SPECS[name], behind)
    reference = Reference(SPECS[name])
    want = np.array([reference.update(*row) for row in rows], np.float64)
    assert_close(feed(state, rows, list(range(1, len(rows), 2)), 2), want, rows, SPECS[name])
    assert state.late_rows == 0


def payments(n: int, keys: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "key": rng.choice([f"k{i}" for i in range(keys)], n),
            "time": np.sort(rng.integers(0, 20 * n, n)),
            "value": rng.lognormal(3, 1, n),
        }
    )


def rolling(frame: pd.DataFrame, width: int, stats: tuple[str, ...]) -> NDArray[np.float64]:
    """The statistics of pandas' `groupby().rolling()`, in the order of the rows."""
    frame = frame.reset_index(drop=True)
    frame.index = pd.to_datetime(frame["time"], unit="ms")
    frame["row"] = np.arange(len(frame))
    parts = []
    for _, group in frame.groupby("key"):
        windows = group["value"].rolling(pd.Timedelta(width, "ms"))
        part = pd.DataFrame({stat: getattr(windows, stat)() for stat in stats})
        parts.append(part.set_index(group["row"].to_numpy()))
    return pd.concat(parts).sort_index().fillna(0.0).to_numpy()


PANDAS_STATS = ("count", "sum", "mean", "std", "var", "min", "max", "first", "last")


def test_sorted_data_equals_pandas() -> None:
    frame = payments(4_000, 7)
    widths = (500, 20_000)
    state = EntityState([WindowSpec("value", widths, PANDAS_STATS)], 0)
    got = state.update(
        frame["key"].tolist(), frame["time"].to_numpy(), {"value": frame["value"].to_numpy()}
    )
    want = np.hstack([rolling(frame, width, PANDAS_STATS) for width in widths])
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-6)


def test_shuffled_data_equals_pandas_once_all_has_arrived() -> None:
    frame = payments(4_000, 7).drop_duplicates(["key", "time"])
    state = EntityState([WindowSpec("value", (500, 20_000), PANDAS_STATS)], 10**9)
    arrived = frame.sample(frac=1.0, random_state=1)
    state.update(
        arrived["key"].tolist(), arrived["time"].to_numpy(), {"value": arrived["value"].to_numpy()}
    )
    probe = frame.sample(frac=1.0, random_state=2)
    order = np.argsort(probe["time"].to_numpy(), kind="stable")
    got = state.update(
        probe["key"].tolist(),
        probe["time"].to_numpy(),
        {"value": probe["value"].to_numpy()},
        np.ones(len(probe), np.uint8),
    )[order]
    probe = probe.iloc[order]
    want = np.hstack([rolling(probe, width, PANDAS_STATS) for width in (500, 20_000)])
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-6)


def test_of_equal_times_the_earlier_arrived_are_included() -> None:
    state = EntityState([WindowSpec("value", (10,), ("count", "first", "last"))], 0)
    got = state.update(["a"] * 3, np.array([5, 5, 5]), {"value": np.array([1.0, 2.0, 3.0])})
    np.testing.assert_array_equal(got, [[1, 1, 1], [2, 1, 2], [3, 1, 3]])


def test_the_left_edge_is_open_and_the_right_edge_closed() -> None:
    state = EntityState([WindowSpec("", (10,), ("count",))], 0)
    assert state.update(["a"] * 3, np.array([0, 9, 10]), {}).ravel().tolist() == [1, 2, 2]


def test_a_query_of_an_unknown_key_gets_empty_values_and_leaves_nothing() -> None:
    specs: list[Spec] = [
        WindowSpec("value", (10,), STATS),
        DistinctSpec("code", (10,)),
        SinceLastSpec(5_000),
        DecayedSpec("value", 10),
    ]
    state = EntityState(specs, 0)
    columns = {"value": np.ones(1), "code": np.ones(1, np.int64)}
    got = state.update(["unknown"], np.array([7]), columns, np.array([1], np.uint8))
    assert got.ravel().tolist() == [0.0] * len(STATS) + [0.0] + [5.0] + [0.0] * 3
    assert state.keys == state.events == 0


def test_columns_are_named_for_value_width_and_statistic() -> None:
    specs: list[Spec] = [
        WindowSpec("amount", (3_600_000, 60_000), ("std", "max")),
        WindowSpec("", (60_000,), ("count",)),
        DistinctSpec("merchant", (86_400_000,)),
        SinceLastSpec(3_600_000),
        DecayedSpec("amount", 60_000, ("count",)),
    ]
    assert EntityState(specs, 0).columns() == [
        "amount_1h_std",
        "amount_1h_max",
        "amount_1m_std",
        "amount_1m_max",
        "1m_count",
        "merchant_1d_distinct",
        "since_last_1h",
        "amount_decay1m_count",
    ]


def test_rows_beyond_the_lateness_are_counted() -> None:
    state = EntityState([WindowSpec("", (10,), ("count",))], lateness_ms=5)
    state.update(["a", "a", "b", "b"], np.array([100, 95, 94, 101]), {})
    assert state.late_rows == 1


@pytest.mark.parametrize(
    "declare",
    [
        lambda: WindowSpec("value", (10,), ("median",)),
        lambda: WindowSpec("value", (10, 10), ("mean",)),
        lambda: WindowSpec("value", (0,), ("mean",)),
        lambda: WindowSpec("", (10,), ("mean",)),
        lambda: DecayedSpec("value", 10, ()),
        lambda: SinceLastSpec(-1),
        lambda: DistinctSpec("", (10,)),
        lambda: EntityState([SinceLastSpec(5), SinceLastSpec(5)], 0),
        lambda: EntityState([], 0),
        lambda: EntityState([SinceLastSpec(5)], -1),
    ],
)
def test_invalid_declarations_are_rejected(declare: object) -> None:
    with pytest.raises(DeclarationError):
        declare()  # type: ignore[operator]


def test_a_wrong_column_leaves_the_state_untouched() -> None:
    state = EntityState([WindowSpec("value", (10,), ("mean",))], 0)
    with pytest.raises(ValueError, match="value has shape"):
        state.update(["a"], np.array([1]), {"value": np.ones(2)})
    with pytest.raises(KeyError, match="value"):
        state.update(["a"], np.array([1]), {})
    assert state.keys == 0


def test_a_late_event_that_bridges_a_gap_undoes_a_reset() -> None:
    """Gaps of 50 half-lives reset a key; a late event in one makes two shorter gaps of it."""
    specs: list[Spec] = [DecayedSpec("value", 10)]
    rows: Rows = [
        ("a", 0, 1e300, 0, 0),
        ("a", 600, 1.0, 0, 0),  # resets
        ("a", 610, 2.0, 0, 0),
        ("a", 300, 3.0, 0, 0),  # late: now 0, 300 and 600 are one chain
        ("a", 605, 4.0, 0, 1),
        ("a", 610, 0.0, 0, 1),
        ("a", 620, 5.0, 0, 0),
    ]
    reference = Reference(specs)
    want = np.array([reference.update(*row) for row in rows], np.float64)
    np.testing.assert_allclose(feed(EntityState(specs, 1_000), rows), want, rtol=1e-9)
