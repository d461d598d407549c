"""Cost of windows, and their accuracy: drift, extreme values, memory, late events, eviction."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from anabranch.state.windows.entity_state import EntityState, warm
from anabranch.state.windows.specs import DecayedSpec, DistinctSpec, SinceLastSpec, Spec, WindowSpec

STATS = ("count", "sum", "mean", "std", "var", "min", "max")
COST_STATS = ("count", "mean", "std", "max")


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    warm()


def feed(
    state: EntityState, key: str, times: NDArray[np.int64], values: NDArray[np.float64], cut: int
) -> NDArray[np.float64]:
    """Feed one key in calls of `cut` rows; the features of the last call."""
    got = np.zeros((0, 0))
    for start in range(0, len(times), cut):
        part = slice(start, start + cut)
        got = state.update([key] * len(times[part]), times[part], {"value": values[part]})
    return got


def exactly(values: NDArray[np.float64]) -> list[float]:
    """The statistics of STATS, summed without rounding error."""
    n = len(values)
    mean = math.fsum(values) / n
    var = (math.fsum((values - mean) ** 2) - math.fsum(values - mean) ** 2 / n) / (n - 1)
    total = math.fsum(values)
    return [n, total, mean, math.sqrt(var), var, values.min(), values.max()]


@pytest.mark.parametrize("resolution", [0, 100])
def test_nothing_drifts_in_two_million_events(resolution: int) -> None:
    n, widths = 2_000_000, (100, 10_000)
    rng = np.random.default_rng(3)
    values = 1e6 + rng.choice([-1.0, 0.0, 1.0], n) + rng.random(n)
    state = EntityState([WindowSpec("value", widths, STATS, resolution)], 0)
    got = feed(state, "a", np.arange(n), values, 10_000)[-1]
    want = [x for width in widths for x in exactly(values[-width:])]
    np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize("resolution", [0, 5])
@pytest.mark.parametrize("extreme", [1e30, 1e100, -1e100, 1e200, 1e308])
def test_an_extreme_value_leaves_no_error_behind(extreme: float, resolution: int) -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(3, 1, 3_000)
    values[[500, 505, 1_500]] = extreme
    state = EntityState([WindowSpec("value", (50, 1_000), STATS, resolution)], 0)
    got = feed(state, "a", np.arange(3_000), values, 7)[-1]
    want = exactly(values[-50:]) + exactly(values[-1_000:])
    if resolution:
        assert len(values) % resolution == 0  # the last pane is full: its windows are exact
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_sums_are_right_while_huge_values_are_in_the_window() -> None:
    state = EntityState([WindowSpec("value", (30,), ("sum", "mean", "max", "std"))], 0)
    values = np.where(np.arange(100) % 2 == 0, 1.5e308, -1.5e308)
    got = feed(state, "a", np.arange(100), values, 1000)
    np.testing.assert_array_equal(got[98], [0.0, 0.0, 1.5e308, math.inf])
    got = feed(state, "b", np.arange(100), np.full(100, 1.5e308), 1000)
    np.testing.assert_allclose(got[99], [math.inf, 1.5e308, 1.5e308, math.inf])


def test_a_late_event_before_an_extreme_one_is_exact() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(3, 1, 200)
    values[-1] = 1e100
    state = EntityState([WindowSpec("value", (100,), STATS)], 1_000)
    feed(state, "a", 10 * np.arange(200), values, 1_000)
    got = state.update(["a"], np.array([1_985]), {"value": np.array([2.0])})[0]
    np.testing.assert_allclose(got, exactly(np.append(values[189:199], 2.0)), rtol=1e-9)


def test_steadily_shrinking_values_stay_exact() -> None:
    n = 4_000
    values = 1e100 * 0.93 ** np.arange(n)
    state = EntityState([WindowSpec("value", (64,), STATS)], 0)
    got = feed(state, "a", np.arange(n), values, 1_000)[-1]
    np.testing.assert_allclose(got, exactly(values[-64:]), rtol=1e-9)


def test_a_constant_has_no_deviation() -> None:
    state = EntityState([WindowSpec("value", (5, 300), ("std", "var"))], 0)
    for value in (0.1, 1e6 / 3, -7.7e-5):
        got = feed(state, str(value), np.arange(1_000), np.full(1_000, value), 100)
        assert not got.any()


def test_extreme_times_corrupt_nothing() -> None:
    ends = [-(2**63), 2**63 - 1, -(2**61), 2**61, 0, -1, 1]
    specs: list[Spec] = [
        WindowSpec("value", (10, 2**53), STATS),
        WindowSpec("value", (20,), STATS, 3),
        DistinctSpec("code", (10, 2**40)),
        SinceLastSpec(100),
        DecayedSpec("value", 10),
    ]
    state = EntityState(specs, 5)
    rng = np.random.default_rng(6)
    times = np.array(rng.choice(ends, 5_000), np.int64)
    keys = [f"k{i}" for i in rng.integers(0, 20, 5_000)]
    columns = {"value": rng.normal(size=5_000), "code": rng.integers(0, 9, 5_000)}
    assert np.isfinite(state.update(keys, times, columns)).all()
    state.update(["x"], np.array([2**62]), {"value": np.ones(1), "code": np.ones(1, np.int64)})
    state.evict()
    at_the_end = np.isin(times, [2**61, 2**63 - 1])
    assert state.keys == len({key for key, last in zip(keys, at_the_end, strict=True) if last}) + 1
    assert state.events >= 2 * (at_the_end.sum() + 1)


def best(run: Callable[[], object], times: int = 5) -> float:
    """Seconds of processor time of the fastest of some runs."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def seconds_per_call(window: int, late_ms: int, values: NDArray[np.float64]) -> float:
    """Seconds per 1,000 rows that are `late_ms` late, with that many events in the window."""
    state = EntityState([WindowSpec("value", (window,), COST_STATS)], 10_000)
    feed(state, "a", np.arange(len(values)), values, 10_000)
    now = np.arange(len(values), len(values) + 1_000)

    def run() -> None:
        nonlocal now
        state.update(["a"] * 1_000, now - late_ms, {"value": values[:1_000].copy()})
        now = now + 1_000 if late_ms == 0 else now

    return best(run)


@pytest.mark.parametrize("shape", ["random", "rising", "falling"])
@pytest.mark.parametrize("late_ms", [0, 20])
def test_cost_does_not_grow_with_the_window(shape: str, late_ms: int) -> None:
    """Also for a falling sequence, in which each event that leaves was the maximum."""
    values = np.random.default_rng(7).random(120_000)
    if shape != "random":
        values = np.sort(values)[:: 1 if shape == "rising" else -1].copy()
    # A hundred times the events may cost cache misses, and levels of a tree.
    small = seconds_per_call(1_000, late_ms, values)
    large = seconds_per_call(100_000, late_ms, values)
    assert large < 5 * small


def test_memory_per_key_and_per_event() -> None:
    spec = WindowSpec("value", (60_000, 600_000, 3_600_000), COST_STATS)
    single = EntityState([spec], 0)
    for start in range(0, 100_000, 1_000):
        keys = [f"k{i}" for i in range(start, start + 1_000)]
        single.update(keys, np.full(1_000, 5), {"value": np.ones(1_000)})
    assert single.nbytes / single.keys <= 256
    busy = EntityState([spec], 0)
    for start in range(0, 1_000_000, 10_000):
        times = 3 * np.arange(start, start + 10_000)
        keys = [f"k{i % 1_000}" for i in range(10_000)]
        busy.update(keys, times, {"value": np.sin(times)})
    assert busy.events == 1_000_000
    assert busy.nbytes <= 256 * busy.keys + 24 * busy.events


def test_memory_stays_while_events_pass() -> None:
    specs: list[Spec] = [
        WindowSpec("value", (100,), COST_STATS),
        DistinctSpec("code", (100,)),
        SinceLastSpec(100),
        DecayedSpec("value", 2),
    ]
    state = EntityState(specs, 10)
    rng = np.random.default_rng(8)
    seen = []
    for i in range(60):
        times = np.sort(rng.integers(i * 1_000, i * 1_000 + 1_000, 4_000))
        times -= rng.integers(0, 10, 4_000)
        keys = [f"k{j}" for j in rng.zipf(1.3, 4_000)]  # few hot keys, and always new ones
        code = rng.integers(0, 2**62, 4_000)
        state.update(keys, times, {"value": rng.random(4_000), "code": code})
        seen.append(state.nbytes)
    assert max(seen) <= 1.3 * max(seen[:15])


def test_panes_bound_the_records_of_a_key() -> None:
    state = EntityState([WindowSpec("value", (1_000,), COST_STATS, 100)], 300)
    for start in range(0, 20_000, 1_000):
        times = np.arange(start, start + 1_000) - np.random.default_rng(9).integers(0, 300, 1_000)
        state.update(["a"] * 1_000, times, {"value": np.ones(1_000)})
        assert state.events <= (1_000 + 300) // 100 + 1


def test_idle_keys_are_evicted_by_the_traffic_of_others() -> None:
    specs: list[Spec] = [
        WindowSpec("value", (1_000,), ("mean", "max")),
        DistinctSpec("code", (500,)),
        SinceLastSpec(800),
        DecayedSpec("value", 10),
    ]
    state = EntityState(specs, 50)
    rows = 2_000
    columns = {"value": np.ones(rows), "code": np.arange(rows)}
    state.update([f"k{i % 1_000}" for i in range(rows)], np.arange(rows) % 100, columns)
    assert state.keys == 1_000
    for i in range(700):
        state.update(
            ["busy"], np.array([2_000 + i]), {"value": np.ones(1), "code": np.ones(1, np.int64)}
        )
    assert state.keys == 1
    assert state.events < 3_000
    state.update(["busy"], np.array([10**6]), {"value": np.ones(1), "code": np.ones(1, np.int64)})
    state.evict()
    assert (state.keys, state.events) == (1, 4)


def test_a_reused_slot_has_nothing_of_its_last_key() -> None:
    specs: list[Spec] = [
        WindowSpec("value", (1_000,), STATS),
        DistinctSpec("code", (1_000,)),
        SinceLastSpec(1_000),
        DecayedSpec("value", 10),
    ]
    state, fresh = EntityState(specs, 0), EntityState(specs, 0)
    columns = {"value": np.arange(50.0), "code": np.arange(50)}
    state.update(["old"] * 50, np.arange(50), columns)
    state.update(["other"], np.array([5_000]), {"value": np.ones(1), "code": np.ones(1, np.int64)})
    state.evict()
    assert state.keys == 1
    times = 5_000 + np.arange(50)
    got = state.update(["new"] * 50, times, columns)
    assert state.keys == 2
    assert got.tobytes() == fresh.update(["new"] * 50, times, columns).tobytes()
