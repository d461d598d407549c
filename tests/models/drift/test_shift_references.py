"""References of distribution monitors: the start of a stream, its recent past, the same hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anabranch.models.drift.declarations import PIECES, Distributions, Seasonal, Sliding
from anabranch.models.drift.distribution_shift import DistributionMonitor, DistributionShift
from anabranch.models.drift.references import reference_of
from anabranch.state.errors import DeclarationError
from anabranch.state.store.delta import decode, encode, merge

F64 = NDArray[np.float64]
HOUR = 3_600_000
DAY = 4320  # rows, one every 20 s
EVERY_MS = 20_000
DAILY = Seasonal(period="1d", slot="1h", periods=4)


def declared(reference: str | Sliding | Seasonal) -> Distributions:
    return Distributions(window=200, reference=reference)


def shifts_of(
    values: F64, how: Distributions, cuts: Sequence[int] = (), kept: Sequence[int] = ()
) -> list[DistributionShift]:
    """All shifts, with rows counted from the start; restored at the cuts `kept`."""
    columns = values.shape[1]
    shifts, deltas, found = DistributionMonitor(how, columns, columns), [], []
    times = np.arange(len(values)) * EVERY_MS
    for number, (low, high) in enumerate(pairwise([0, *cuts, len(values)])):
        some = shifts.update(values[low:high], times[low:high])
        found += [replace(each, row=each.row + low) for each in some]
        deltas.append(decode(encode(shifts.changes())))
        if number in kept:
            shifts = DistributionMonitor(how, columns, columns)
            shifts.restore(merge(deltas))
    return found


def daily_cycle(days: int, seed: int, weekend: float = 0.0) -> F64:
    """Two columns, the first of which has a daily cycle, and another level on weekends."""
    rows = np.arange(days * DAY)
    values = np.random.default_rng(seed).normal(size=(len(rows), 2))
    values[:, 0] += 3 * np.sin(rows / DAY * 2 * np.pi) + weekend * (rows // DAY % 7 >= 5)
    return values


def lasting(found: list[DistributionShift]) -> list[tuple[int, str]]:
    """Drift and its resolution, without warnings that were not followed by drift."""
    reported, drifting = [], set()
    for each in found:
        if each.severity == "drift" or (each.severity == "resolved" and each.column in drifting):
            reported.append((each.column, each.severity))
            drifting ^= {each.column}
    return reported


def test_a_lasting_change_becomes_the_baseline_of_a_sliding_reference():
    values = np.random.default_rng(1).normal(size=(12 * DAY, 3))
    values[6 * DAY :, 1] += 2
    fixed, sliding = (shifts_of(values, declared(how)) for how in ("3d", Sliding("3d")))
    assert lasting(fixed) == [(1, "drift")]
    assert lasting(sliding) == [(1, "drift"), (1, "resolved")]
    began, ended = (each.row for each in sliding if each.severity != "warning")
    assert began < 6 * DAY + 500
    assert 7 * DAY < ended < 9.5 * DAY


def test_a_sliding_reference_follows_slow_changes():
    values = np.random.default_rng(2).normal(size=(40 * DAY, 1))
    values[:, 0] += np.arange(len(values)) / len(values)  # a deviation in forty days
    assert (0, "drift") in lasting(shifts_of(values, declared("3d")))
    assert shifts_of(values, declared(Sliding("2d"))) == []


def test_a_sliding_reference_is_that_of_the_last_windows():
    """Against one that is counted again for each window."""
    span_ms, rng = PIECES * 10_000, np.random.default_rng(3)
    reference = reference_of(Sliding(f"{span_ms // 1000}s"), 2, 4)
    windows: list[tuple[int, F64]] = []
    time = 5_000_000
    for _ in range(300):
        last = time + int(rng.integers(1, 30_000))
        known = reference.statistics_at(time)
        newest = windows[-1][0] // 10_000 if windows else 0
        first = windows[0][0] // 10_000 if windows else 0
        within = [c for at, c in windows if newest - PIECES <= at // 10_000 < newest]
        if newest - first < PIECES or len(within) < 10:
            assert known is None
        else:
            assert known is not None
            np.testing.assert_array_equal(known.counts, np.sum(within, axis=0))
        counts = rng.multinomial(50, [0.4, 0.3, 0.2, 0.1], 2).astype(np.float64)
        reference.add(counts, 50, time, last, None)
        windows.append((last, counts))
        time = last
    assert reference.statistics_at(time) is not None


@pytest.mark.parametrize("seed", range(3))
def test_a_weekly_cycle_is_no_drift_and_a_deviation_from_it_is(seed):
    weekly = declared(Seasonal(period="7d", slot="1h", periods=3))
    values = daily_cycle(35, seed, weekend=2.0)
    assert lasting(shifts_of(values, weekly)) == []
    # Sunday's level on a Wednesday is usual for a week, but not for a Wednesday.
    values[30 * DAY : 31 * DAY, 0] += 2
    found = shifts_of(values, weekly)
    assert lasting(found) == [(0, "drift"), (0, "resolved")]
    rows = [each.row for each in found if each.severity == "drift"]
    assert 30 * DAY < rows[0] < 30 * DAY + 700
    # A reference that knows no hours has to let all of that pass.
    assert lasting(shifts_of(values, declared("14d"))) == []


@pytest.mark.parametrize("between", [0.0, 0.5])
def test_variation_between_days_is_no_drift(between):
    """Each hour of each day has a level of its own beside that of the hour."""
    rng = np.random.default_rng(7)
    values = daily_cycle(60, 5)
    hours = np.arange(len(values)) // (DAY // 24)
    values[:, 0] += between * rng.normal(size=hours[-1] + 1)[hours]
    how = replace(declared(Seasonal(period="1d", slot="1h", periods=10)), psi=0.01)
    assert len(lasting(shifts_of(values, how))) <= 2
    by_default = shifts_of(values, replace(how, psi=0.1))
    assert lasting(by_default) == []
    warned = sum(each.severity == "warning" for each in by_default)
    assert warned <= (2 if not between else 30)  # of 2,350 windows


def test_a_window_with_few_rows_continues_in_the_next_slots(caplog):
    values = np.random.default_rng(1).normal(size=(60 * 48, 1))
    times = np.arange(len(values)) * HOUR // 2
    shifts = DistributionMonitor(declared(DAILY), 1, 1)
    shifts.update(values, times)
    assert shifts.rows == len(values)
    assert "were visited twice" in caplog.text  # four windows a week are in no slot twice
    values[1800:] += 3
    daily = replace(DAILY, slot="12h", periods=8)
    found = DistributionMonitor(declared(daily), 1, 1).update(values, times)
    assert [each.severity for each in found][:2] == ["warning", "drift"]


@given(
    seed=st.integers(0, 99),
    how=st.sampled_from(["2d", Sliding("1d"), DAILY]),
    cuts=st.sets(st.integers(1, 6 * DAY - 1), max_size=12),
    kept=st.sets(st.integers(0, 12)),
)
@settings(max_examples=30, deadline=None)
def test_shifts_depend_neither_on_calls_nor_on_restarts(seed, how, cuts, kept):
    values = daily_cycle(6, seed)
    values[np.random.default_rng(seed).random(values.shape) < 0.1] = np.nan
    values[5 * DAY :] += 2
    whole = shifts_of(values, declared(how))
    assert whole
    assert shifts_of(values, declared(how), sorted(cuts), sorted(kept)) == whole


def test_a_reference_has_ten_windows_at_least():
    values = np.random.default_rng(1).normal(size=(20_000, 1))
    values[10_000:] += 2
    found = shifts_of(values, declared(Sliding("1h")))  # less than a window
    assert lasting(found)[:1] == [(0, "drift")]
    assert 10_000 < found[1].row < 10_500


def test_another_reference_starts_from_scratch():
    values = daily_cycle(6, 1)
    times = np.arange(len(values)) * EVERY_MS
    old = DistributionMonitor(declared("1d"), 2, 2)
    old.update(values, times)
    deltas = [decode(encode(old.changes()))]
    new = DistributionMonitor(declared(DAILY), 2, 2)
    new.restore(merge(deltas))
    assert new.rows == 0
    deltas.append(decode(encode(new.changes())))
    for low in range(0, len(values), 5000):
        new.update(values[low : low + 5000], times[low : low + 5000])
        deltas.append(decode(encode(new.changes())))
    again = DistributionMonitor(declared(DAILY), 2, 2)
    again.restore(merge(deltas))
    values[:, 1] += 3
    later = times + 6 * 24 * HOUR
    assert again.update(values, later) == new.update(values, later) != []


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Sliding("10s"), "span='10s' of reference= of a pipeline must be 24s or more"),
        (Seasonal(period="1d", slot="7h"), "must be 2 to 2,000 times its slot='7h'"),
        (Seasonal(period="1d", slot="1s"), "must be 2 to 2,000 times"),
        (Seasonal(periods=1), "periods=1 of .* must be 2 or more"),
        (3, "must be a duration, Sliding"),
    ],
)
def test_an_impossible_reference_is_refused_in_one_sentence(how, words):
    with pytest.raises(DeclarationError, match=words):
        Distributions(reference=how).check("a pipeline")


def test_references_in_words():
    said = [Distributions(reference=how).reference_text for how in ("36h", Sliding(), Seasonal())]
    assert said == ["the first 1d12h", "the last 7d", "the same 1h in the first 2 × 7d"]


@pytest.mark.parametrize(("how", "days"), [("1d", 1), ("3d", 3), (Sliding("2d"), 2), (DAILY, 5)])
def test_reference_ready(how, days):
    shifts, values = DistributionMonitor(declared(how), 2, 2), daily_cycle(7, 1)
    for day in range(7):
        part = slice(day * DAY, (day + 1) * DAY)
        shifts.update(values[part], np.arange(len(values))[part] * EVERY_MS)
        if day + 1 < days:
            assert not shifts.reference_ready
        elif day > days:
            assert shifts.reference_ready


def test_values_with_a_long_memory_need_a_long_reference():
    """A value that a day's window shares with the one before wanders; a true change is larger."""
    rng = np.random.default_rng(5)
    steps = np.repeat(rng.normal(size=12 * 24), DAY // 24)  # hour by hour
    memory = np.exp(-np.arange(4 * DAY) / DAY)
    slow = np.convolve(steps, memory)[: len(steps)] / np.sqrt(np.square(memory).sum() * DAY / 24)
    values = np.column_stack([slow, rng.normal(size=len(slow))])
    times = np.arange(len(values)) * EVERY_MS
    without = DistributionMonitor(declared("1d"), 2, 2).update(values, times)
    assert (0, "drift") in lasting(without)
    knowing = DistributionMonitor(declared("1d"), 2, 2, [24 * HOUR, 0])
    assert lasting(knowing.update(values, times)) == []
    values[8 * DAY :, 1] += 1
    again = DistributionMonitor(declared("1d"), 2, 2, [24 * HOUR, 0])
    assert lasting(again.update(values, times)) == [(1, "drift")]
    values[:, 0] = np.where(np.arange(len(values)) < 8 * DAY, rng.normal(size=len(values)), 99.0)
    longer = DistributionMonitor(declared("6d"), 2, 2, [24 * HOUR, 0])
    assert (0, "drift") in lasting(longer.update(values, times))
