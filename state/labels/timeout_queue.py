"""Timeout queue: rows in order of their times, as a radix heap of linked lists.

After Ahuja, Mehlhorn, Orlin and Tarjan (1990), *Faster algorithms for the shortest path problem*,
with digits of eight bits. Only the earliest row is ever removed, and no row is added that is
earlier than those already removed; so rows are sorted only as far as necessary. A row is in the
list of the highest digit in which its time differs from `LAST`, which is never later than any row::

    level 2   differs in its third digit from the right: 256 lists, one for each value of it
    level 1   differs in its second digit
    level 0   differs in its last digit, or not at all: each list is of one time, so all is sorted

When level 0 is empty, the first list above it is spread over the levels below. So a row moves at
most once per level, and can be unlinked from anywhere in its list. Rows of one time stay in their
order of arrival, as they always share a list. A row that arrives too late for `LAST` goes to the
list `OVERDUE`; it must be removed before another row is added.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I32, I64, inlined, kernel

LAST, DUE = 0, 1
"""Cells of the marks; no row is earlier than `DUE`. Both are times, shifted as by `_key`."""

_BITS: Final = 8
_DIGIT: Final = (1 << _BITS) - 1
_LEVELS: Final = 64 // _BITS
OVERDUE: Final = _LEVELS << _BITS
_LISTS: Final = OVERDUE + 1
_EARLIEST: Final = 1 << 62
_NOTHING_DUE: Final = (1 << 63) - 1


def make_queue() -> tuple[I64, I32]:
    """An empty queue: `(2,) int64` marks and `(lists, 2) int32` ends of lists, 16 KB."""
    return np.array([0, _NOTHING_DUE], np.int64), np.full((_LISTS, 2), -1, np.int32)


@inlined
def _key(time: int) -> int:
    """A time shifted so that it is never negative, for times from -2**62 ms on."""
    return time + _EARLIEST


@inlined
def append(row: int, time: int, marks: I64, ends: I32, links: I32) -> None:
    """Add a row, as the last one of its list."""
    key = _key(time)
    if key < marks[LAST]:
        place = OVERDUE
    else:
        place = key & _DIGIT
        rest = (key ^ marks[LAST]) >> _BITS
        while rest != 0:
            rest >>= _BITS
            place = (place & ~_DIGIT) + (1 << _BITS)
            place |= (key >> (place >> _BITS) * _BITS) & _DIGIT
    if key < marks[DUE]:
        marks[DUE] = key
    tail = ends[place, 1]
    links[row, 0], links[row, 1] = tail, -1 - place
    ends[place, 1] = row
    if tail < 0:
        links[row, 0] = -1 - place
        ends[place, 0] = row
    else:
        links[tail, 1] = row


@inlined
def unlink(row: int, ends: I32, links: I32) -> None:
    """Remove a row from its list."""
    before, after = links[row, 0], links[row, 1]
    if before < 0:
        ends[-1 - before, 0] = after if after >= 0 else -1
    else:
        links[before, 1] = after
    if after < 0:
        ends[-1 - after, 1] = before if before >= 0 else -1
    else:
        links[after, 0] = before


@kernel
def _spread(place: int, bound: int, times: I64, marks: I64, ends: I32, links: I32) -> None:
    """Set `LAST` to the earliest of a list, or `bound`, and move its rows to the levels below."""
    first = int(ends[place, 0])
    last = bound
    row = first
    while row >= 0:
        last = min(last, _key(times[row]))
        row = int(links[row, 1])
    marks[LAST] = last
    ends[place, 0] = ends[place, 1] = -1
    row = first
    while row >= 0:
        after = int(links[row, 1])
        append(row, times[row], marks, ends, links)
        row = after


@kernel
def earliest_before(limit: int, times: I64, marks: I64, ends: I32, links: I32) -> int:
    """The earliest row whose time is less than `limit`, ms; -1 if there is none."""
    bound = _key(limit)
    if marks[DUE] >= bound:
        return -1
    if ends[OVERDUE, 0] >= 0:
        return int(ends[OVERDUE, 0])
    level = 0
    while level < _LEVELS:
        shift = level * _BITS
        above = marks[LAST] >> shift
        digit = above & _DIGIT
        while digit <= _DIGIT and ends[(level << _BITS) + digit, 0] < 0:
            digit += 1
        if digit > _DIGIT:
            level += 1
            continue
        low = ((above & ~_DIGIT) | digit) << shift
        marks[DUE] = low
        if low >= bound:
            return -1
        place = (level << _BITS) + digit
        if level == 0:
            marks[LAST] = low
            return int(ends[place, 0])
        _spread(place, bound, times, marks, ends, links)
        level = 0
    marks[DUE] = _NOTHING_DUE
    return -1


@kernel
def advance_empty(limit: int, marks: I64) -> None:
    """Of an empty queue: rows earlier than `limit` that are added from now on are overdue."""
    marks[LAST] = max(marks[LAST], _key(limit))


@kernel
def append_all(rows: NDArray[np.int64], times: I64, marks: I64, ends: I32, links: I32) -> None:
    """Add rows; those of one time must be in order of arrival."""
    for i in range(rows.size):
        append(rows[i], times[rows[i]], marks, ends, links)
