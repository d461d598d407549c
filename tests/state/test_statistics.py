"""Every window statistic equals its definition, for cold and hot keys, late rows and panes."""

from __future__ import annotations

import math
from bisect import insort

import numpy as np
import pytest

from anabranch.state.store.delta import decode, encode
from anabranch.state.windows.entity_state import EntityState
from anabranch.state.windows.event_log import QUERY_ONLY
from anabranch.state.windows.specs import STATS, WindowSpec
from anabranch.state.windows.statistics import STATISTICS

WIDTHS = (40, 900)
ROWS = 300


def spec(resolution: int, stats: tuple[str, ...] = STATS) -> WindowSpec:
    return WindowSpec("value", WIDTHS, stats, resolution)


def stream(seed: int) -> list[tuple[str, int, float, int]]:
    """Rows of two keys, some late, some that only query: key, time, value, mode."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.choice([0, 1, 5, 300], ROWS, p=[0.2, 0.5, 0.29, 0.01]))
    late = np.where(rng.random(ROWS) < 0.3, rng.integers(0, 200, ROWS), 0)
    modes = np.where((rng.random(ROWS) < 0.2) & (late > 0), QUERY_ONLY, 0)
    values = rng.normal(0, 1, ROWS) * 10.0 ** rng.integers(-2, 4, ROWS)
    keys = rng.choice(["hot", "cold"], ROWS, p=[0.96, 0.04]).tolist()
    rows = zip(keys, (times - late).tolist(), values.tolist(), modes.tolist(), strict=True)
    return list(rows)


def update(state: EntityState, rows: list[tuple[str, int, float, int]]) -> np.ndarray:
    keys, times, values, modes = zip(*rows, strict=True)
    return state.update(
        list(keys), np.array(times), {"value": np.array(values)}, np.array(modes, np.uint8)
    )


def defined(rows: list[tuple[str, int, float, int]], resolution: int) -> np.ndarray:
    """The features by definition, from all that has arrived before each row."""
    pane = max(resolution, 1)
    seen: list[tuple[int, int, str, float]] = []
    out = []
    for number, (key, time, value, mode) in enumerate(rows):
        if mode != QUERY_ONLY:
            insort(seen, (time, number, key, value))
        features = []
        for width in WIDTHS:
            low = time // pane - -(-width // pane)
            window = [x for t, _, k, x in seen if k == key and low < t // pane <= time // pane]
            for name in STATS:
                statistic = STATISTICS[name]
                features.append(
                    statistic.definition(np.array(window)) if window else statistic.empty
                )
        out.append(features)
    return np.array(out)


@pytest.mark.parametrize("resolution", [0, 10])
@pytest.mark.parametrize("seed", range(3))
def test_statistics_equal_their_definitions(resolution: int, seed: int) -> None:
    rows = stream(seed)
    got = np.concatenate(
        [update(state, rows[at : at + 7]) for state in [EntityState([spec(resolution)], 10**6)]
         for at in range(0, ROWS, 7)]
    )  # fmt: skip
    np.testing.assert_allclose(got, defined(rows, resolution), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("resolution", [0, 10])
def test_restored_statistics_continue_bit_for_bit(resolution: int) -> None:
    rows = stream(9)
    whole = EntityState([spec(resolution)], 10**6)
    update(whole, rows[:200])
    restored = EntityState([spec(resolution)], 10**6)
    restored.restore(decode(encode(whole.changes())))
    assert update(restored, rows[200:]).tobytes() == update(whole, rows[200:]).tobytes()


@pytest.mark.parametrize("name", STATS)
def test_a_statistic_is_the_same_alone_and_with_all_others(name: str) -> None:
    rows = stream(4)
    every = update(EntityState([spec(0)], 10**6), rows)
    alone = update(EntityState([spec(0, (name,))], 10**6), rows)
    at = STATS.index(name)
    np.testing.assert_array_equal(alone, every[:, [at, len(STATS) + at]])


def test_each_is_described_and_finite_when_empty() -> None:
    for name, statistic in STATISTICS.items():
        assert statistic.name == name
        assert statistic.description
        assert math.isfinite(statistic.empty)
