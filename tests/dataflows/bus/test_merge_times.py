"""One wrong clock moves nothing but its own messages; a jump of the whole log is no wrong clock."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.dataflows.bus.merge_times import NEVER, MergeTimes

TOLERANCE = 5
HOURS = 60
Clocks = list[int]


def determined(times: Clocks, **arguments: int) -> Clocks:
    """The merge times of a whole log, in minutes."""
    return MergeTimes(TOLERANCE).determine(np.array(times), True, **arguments)[0].tolist()


def steady(count: int = 120, start: int = 1000, every: int = 1) -> Clocks:
    return [start + every * n for n in range(count)]


def with_offset(times: Clocks, rows: list[int], offset: int) -> Clocks:
    wrong = set(rows)
    return [time + offset * (row in wrong) for row, time in enumerate(times)]


def assert_near(found: Clocks, right: Clocks, within: int = TOLERANCE) -> None:
    """No row is merged far from where it would be by a right clock."""
    assert max(abs(a - b) for a, b in zip(np.maximum.accumulate(found), right, strict=True)) <= (
        within
    )


FAST = {
    "one": [50],
    "the first": [0],
    "the first two": [0, 1],
    "the second": [1],
    "the last but one": [118],
    "several in a row": list(range(40, 45)),
    "every other of a minute": list(range(40, 100, 2)),
    "two of three of a minute": [n for n in range(40, 100) if n % 3],
    "one of ten, always": list(range(4, 120, 10)),
}


@pytest.mark.parametrize("rows", FAST.values(), ids=FAST.keys())
@pytest.mark.parametrize("ahead", [30, 50, 50 * HOURS])
def test_messages_of_a_fast_clock_move_no_other(rows, ahead):
    right = steady()
    assert_near(determined(with_offset(right, rows, ahead)), right)


@pytest.mark.parametrize("ahead", [200, 500, 10_000])
def test_many_in_a_row_are_recognised_where_they_come_fast(ahead):
    right = steady(400)
    times = with_offset(right, list(range(100, 145)), ahead)
    found, _ = MergeTimes(50).determine(np.array(times), True)
    assert_near(found.tolist(), right, 45)


@pytest.mark.parametrize("every", [7, 10, 30])
def test_a_fast_clock_is_recognised_where_messages_are_rare_too(every):
    right = steady(every=every)
    assert_near(determined(with_offset(right, [50], 5 * every)), right, every)


SLOW = {
    "one": [50],
    "the first": [0],
    "the second, too": [0, 1],
    "a third": list(range(0, 120, 3)),
    "every other": list(range(1, 120, 2)),
    "two of three": [n for n in range(120) if n % 3 < 2],
    "a long time all": list(range(20, 110)),
}


@pytest.mark.parametrize("rows", SLOW.values(), ids=SLOW.keys())
@pytest.mark.parametrize("behind", [8, 50, 50 * HOURS])
def test_messages_of_a_slow_clock_move_nothing(rows, behind):
    times = with_offset(steady(), rows, -behind)
    assert determined(times) == times


@pytest.mark.parametrize("gap", [6, 90, 10 * HOURS])
@pytest.mark.parametrize("share", [0, 2, 3])
def test_a_night_without_traffic_is_no_wrong_clock(gap, share):
    times = steady(60) + steady(60, 1060 + gap)
    slow = [n for n in range(120) if share and n % share == 0]
    times = with_offset(times, slow, -50)
    assert determined(times) == times


def test_the_first_message_after_a_night_may_be_fast():
    right = steady(60) + steady(60, 1000 + 10 * HOURS)
    assert_near(determined(with_offset(right, [60], 50)), right)


def test_a_slow_message_after_the_first_of_a_night_does_not_hold_up_the_others():
    times = [*steady(60), 2000, 1950, *steady(60, 2001)]
    assert determined(times) == times


def test_a_time_of_the_future_never_counts_however_often_it_comes():
    times = [*steady(60), *([10**9] * 200), *steady(60, 1060)]
    found = determined(times, latest_ms=1500)
    assert found[:60] == times[:60]
    assert set(found[60:196]) == {1059}
    assert found[260:] == times[260:]
    assert max(found) == times[-1]


def test_more_in_a_row_than_are_looked_at_count():
    """The log can't be told from one that has jumped; those after it are merged by their times."""
    right = steady(60)
    times = [*right[:10], *(time + 500 for time in range(1010, 1110)), *right[10:]]
    assert determined(times) == times


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=60).map(np.cumsum),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_times_that_fall_by_the_tolerance_at_most_are_all_merge_times(rising, data):
    falls = data.draw(
        st.lists(st.integers(0, TOLERANCE), min_size=len(rising), max_size=len(rising))
    )
    times = (rising - np.array(falls)).tolist()
    assert determined(times) == times
    cut = data.draw(st.integers(0, len(times)))
    of_parts = MergeTimes(TOLERANCE)
    parts = [
        of_parts.determine(np.array(part, np.int64), True) for part in (times[:cut], times[cut:])
    ]
    assert [time for merge, _ in parts for time in merge.tolist()] == times


@given(
    st.lists(st.sampled_from([0, 1, 2, 9, 50, -50]), max_size=200),
    st.lists(st.integers(1, 90), min_size=1),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_merge_times_do_not_depend_on_what_was_read_when(steps, pieces, data):
    """Not even across restarts with the time reached, as long as more is to come."""
    times = np.cumsum(np.array([0, *steps, *([1] * 70)]))
    whole = MergeTimes(TOLERANCE)
    expected, reached = whole.determine(times, False)
    part = MergeTimes(TOLERANCE)
    found: Clocks = []
    end = 0
    while len(found) < len(expected):
        end = min(end + pieces[len(found) % len(pieces)], len(times))
        merge, _ = part.determine(times[len(found) : end], False)
        taken = data.draw(
            st.integers(min(len(merge), 1), len(merge)), label="handed over before a restart"
        )
        found += merge[:taken].tolist()
        part = MergeTimes(TOLERANCE, int(reached[len(found) - 1]) if found else NEVER)
    assert found == expected.tolist()


def test_a_jump_that_came_live_is_confirmed_or_not_by_what_follows():
    live = MergeTimes(TOLERANCE)
    for time, reached in ((1000, NEVER), (1001, 1001), (1090, 1001), (1002, 1002), (1003, 1003)):
        live.determine(np.array([time]), True)
        assert live.reached == reached
    for time, reached in ((2000, 1003), (3000, 2000), (3001, 3001)):
        live.determine(np.array([time]), True)
        assert live.reached == reached
