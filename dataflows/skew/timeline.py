"""The events of each key in order of time, and which of them an event saw when it came.

::

    position    0    1    2    3    4    5       sorted by key, time, arrival
    arrival     0    1    5    2    3    4       5 came last, with an earlier time: it is late
                     └─────────────┤             the window of arrival 3 is positions 1 to 4
                     [1]     [3   4]             without 2, which was not there yet: two pieces

The rows of a key that came in order have windows of one piece, from a left edge that one search
finds. Where an event came late, it is cut out of the windows of those that were there before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from anabranch.state.errors import InputError

I64 = NDArray[np.int64]
AT_ONCE = 4_000_000
"""Candidates that are looked at together when late events are cut out."""

MOST_CUTS = 20_000_000
"""Late events times the rows that miss them: what fits into some 3 GB."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Windows as runs of positions, one window per row.

    Attributes:
        first: ``(n,) int64``: where the last run of a row's window begins; it ends with the row.
        owner, cut_first, cut_last: ``(cuts,) int64``: the runs before it, of rows that miss late
            events, by owner and then by time. A run that begins behind its end is empty.
    """

    first: I64
    owner: I64
    cut_first: I64
    cut_last: I64


class Timeline:
    """Rows by key and time; everything but ``order`` and ``place`` is by position.

    Args:
        keys: ``(n,) int64``, a code per key, in order of arrival.
        times: ``(n,) int64``, times in ms, or numbers of panes.
        reach: by how much an event that is there can be later than one that comes; the lateness.

    Raises:
        InputError: too many events are missing in too many windows, see `MOST_CUTS`.

    Attributes:
        order: ``(n,) int64``, the row (number of arrival) at each position.
        place: ``(n,) int64``, the position of each row.
        begin: ``(n,) int64``, the first position of the same key.
        times: ``(n,) int64``.

    >>> one_key = Timeline(np.zeros(4, np.int64), np.array([10, 20, 40, 30]), reach=60)
    >>> one_key.order, one_key.starts(25)
    (array([0, 1, 3, 2]), array([0, 0, 0, 1]))
    >>> one_key.pieces(one_key.starts(25))
    Pieces(first=array([0, 0, 0, 3]), owner=array([3]), cut_first=array([1]), cut_last=array([1]))
    """

    def __init__(self, keys: I64, times: I64, reach: int) -> None:
        self.order: I64 = np.lexsort((times, keys))  # stable: equal times as they arrived
        self.place: I64 = np.empty_like(self.order)
        self.place[self.order] = np.arange(len(keys))
        self.times: I64 = times[self.order]
        sorted_keys = keys[self.order]
        fresh = np.ones(len(keys), np.bool_)
        fresh[1:] = sorted_keys[1:] != sorted_keys[:-1]
        self._key: I64 = np.cumsum(fresh) - 1
        self.begin: I64 = np.flatnonzero(fresh)[self._key]
        # Times are compared by their rank, so that key and time are one number without overflow.
        self._moments = np.unique(self.times)
        self._step = len(self._moments) + 1
        self._rank = self._key * self._step + np.searchsorted(self._moments, self.times)
        self._late_owner, self._late = self._cuts(reach)

    def starts(self, width: int) -> I64:
        """``(n,) int64``: the first position of the same key with time > own - ``width``."""
        behind = np.searchsorted(self._moments, self.times - width, side="right")
        return np.searchsorted(self._rank, self._key * self._step + behind)

    def stops(self, width: int) -> I64:
        """``(n,) int64``: behind the last position of the same key with time < own + ``width``."""
        ahead = np.searchsorted(self._moments, self.times + width, side="left")
        return np.searchsorted(self._rank, self._key * self._step + ahead)

    def previous(self) -> I64:
        """``(n,) int64``: the position of the latest event of the key that was there, or -1."""
        found = np.arange(len(self.order)) - 1
        absent = np.arange(len(self.order))
        while len(absent):
            absent = absent[found[absent] >= self.begin[absent]]
            absent = absent[self.order[found[absent]] > self.order[absent]]
            found[absent] -= 1
        return np.where(found >= self.begin, found, -1)

    def pieces(self, first: I64) -> Pieces:
        """The windows that begin at ``first``, ``(n,) int64``, without what was not there yet."""
        inside = self._late >= first[self._late_owner]
        owner, late = self._late_owner[inside], self._late[inside]
        cut_first = first[owner]
        again = np.flatnonzero(owner[1:] == owner[:-1]) + 1
        cut_first[again] = late[again - 1] + 1
        last_run = first.copy()
        last_run[owner] = late + 1  # the last of an owner's stays
        return Pieces(last_run, owner, cut_first, late - 1)

    def _cuts(self, reach: int) -> tuple[I64, I64]:
        """Each late event with each row before whose arrival it was missing, by row, by time."""
        arrival, rows = self.order, len(self.order)
        falling = (arrival + self._key * rows)[::-1]
        earliest_behind = np.minimum.accumulate(falling)[::-1] - self._key * rows
        late = np.flatnonzero(earliest_behind < arrival)
        ahead = self.stops(reach + 1)[late] - late - 1
        owners, lates = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for some in _portions(ahead):
            count = ahead[some]
            event = np.repeat(late[some], count)
            offset = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
            row = event + 1 + offset
            earlier = arrival[row] < arrival[event]
            owners.append(row[earlier])
            lates.append(event[earlier])
            if sum(map(len, owners)) > MOST_CUTS:
                raise InputError(
                    f"of one entity more than {MOST_CUTS:,} pairs of events come in another order "
                    "than that of their times, more than fit into memory: check a shorter stretch"
                )
        owner, event = np.concatenate(owners), np.concatenate(lates)
        by_owner = np.lexsort((event, owner))
        return owner[by_owner], event[by_owner]


def _portions(sizes: I64) -> list[slice]:
    """Cuts ``sizes`` so that no part sums to much more than `AT_ONCE`."""
    if not len(sizes):
        return []
    edges = np.flatnonzero(np.diff(np.cumsum(sizes) // AT_ONCE)) + 1
    bounds = [0, *edges.tolist(), len(sizes)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]
