"""The events of each key in order of event time, and which of them each event could see on arrival.

::

    position    0    1    2    3    4    5       sorted by key, time, arrival
    arrival     0    1    5    2    3    4       5 arrived last, with an earlier time: out of order
                     └─────────────┤             the window of arrival 3 is positions 1 to 4
                     [1]     [3   4]             without 2, which had not arrived: two pieces

If the events of a key arrive in order, their windows have one piece, whose left edge is found by
one search. An event that arrives out of order is cut out of the windows of those that arrived
before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from anabranch.state.errors import InputError

I64 = NDArray[np.int64]
CHUNK = 4_000_000
"""Candidate pairs that are examined at a time when out-of-order events are cut out."""

MAX_CUTS = 20_000_000
"""Maximum number of pairs of an out-of-order event and a row that misses it; about 3 GB."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """One window per row, each as one or more runs of positions.

    Attributes:
        first: ``(n,) int64``: start of the last run of each row's window, which ends at the row.
        owner, cut_first, cut_last: ``(cuts,) int64``: the earlier runs of rows that miss events,
            sorted by owner (the row) and time. A run whose first is greater than its last is empty.
    """

    first: I64
    owner: I64
    cut_first: I64
    cut_last: I64


class Timeline:
    """Rows sorted by key and time. Arrays are by position, except those by order of arrival.

    Args:
        keys: ``(n,) int64`` codes of the keys, in order of arrival.
        times: ``(n,) int64`` times in ms, or numbers of panes, in order of arrival.
        max_lateness: the most by which an event can arrive behind an event of a later time.

    Raises:
        InputError: too many events are missing in too many windows, see `MAX_CUTS`.

    Attributes:
        order: ``(n,) int64``, the row (in order of arrival) at each position.
        position: ``(n,) int64``, the position of each row (in order of arrival).
        begin: ``(n,) int64``, the first position of the same key.
        times: ``(n,) int64``.

    >>> one_key = Timeline(np.zeros(4, np.int64), np.array([10, 20, 40, 30]), max_lateness=60)
    >>> one_key.order, one_key.starts(25)
    (array([0, 1, 3, 2]), array([0, 0, 0, 1]))
    >>> one_key.pieces(one_key.starts(25))
    Pieces(first=array([0, 0, 0, 3]), owner=array([3]), cut_first=array([1]), cut_last=array([1]))
    """

    def __init__(self, keys: I64, times: I64, max_lateness: int) -> None:
        self.order: I64 = np.lexsort((times, keys))  # stable: equal times stay in order of arrival
        self.position: I64 = np.empty_like(self.order)
        self.position[self.order] = np.arange(len(keys))
        self.times: I64 = times[self.order]
        sorted_keys = keys[self.order]
        is_first = np.ones(len(keys), np.bool_)
        is_first[1:] = sorted_keys[1:] != sorted_keys[:-1]
        self._key: I64 = np.cumsum(is_first) - 1
        self.begin: I64 = np.flatnonzero(is_first)[self._key]
        # Times are replaced by their rank, so that key and time fit into one integer.
        self._distinct_times = np.unique(self.times)
        self._step = len(self._distinct_times) + 1
        self._rank = self._key * self._step + np.searchsorted(self._distinct_times, self.times)
        self._late_owner, self._late = self._cuts(max_lateness)

    def starts(self, width: int) -> I64:
        """``(n,) int64``: the first position of the same key with time > own - ``width``."""
        behind = np.searchsorted(self._distinct_times, self.times - width, side="right")
        return np.searchsorted(self._rank, self._key * self._step + behind)

    def stops(self, width: int) -> I64:
        """``(n,) int64``: after the last position of the same key with time < own + ``width``."""
        ahead = np.searchsorted(self._distinct_times, self.times + width, side="left")
        return np.searchsorted(self._rank, self._key * self._step + ahead)

    def previous(self) -> I64:
        """``(n,) int64``: the position of the key's latest event that had arrived, or -1."""
        previous = np.arange(len(self.order)) - 1
        missing = np.arange(len(self.order))
        while len(missing):
            missing = missing[previous[missing] >= self.begin[missing]]
            missing = missing[self.order[previous[missing]] > self.order[missing]]
            previous[missing] -= 1
        return np.where(previous >= self.begin, previous, -1)

    def pieces(self, first: I64) -> Pieces:
        """The windows that start at ``first``, ``(n,) int64``, without what had not arrived."""
        inside = self._late >= first[self._late_owner]
        owner, late = self._late_owner[inside], self._late[inside]
        cut_first = first[owner]
        again = np.flatnonzero(owner[1:] == owner[:-1]) + 1
        cut_first[again] = late[again - 1] + 1
        last_run = first.copy()
        last_run[owner] = late + 1  # the last assignment per owner wins
        return Pieces(last_run, owner, cut_first, late - 1)

    def _cuts(self, max_lateness: int) -> tuple[I64, I64]:
        """Pairs of a row and an out-of-order event that it misses, sorted by row and time."""
        arrival, rows = self.order, len(self.order)
        falling = (arrival + self._key * rows)[::-1]
        earliest_behind = np.minimum.accumulate(falling)[::-1] - self._key * rows
        late = np.flatnonzero(earliest_behind < arrival)
        ahead = self.stops(max_lateness + 1)[late] - late - 1
        owners, lates = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for some in _portions(ahead):
            count = ahead[some]
            event = np.repeat(late[some], count)
            offset = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
            row = event + 1 + offset
            earlier = arrival[row] < arrival[event]
            owners.append(row[earlier])
            lates.append(event[earlier])
            if sum(map(len, owners)) > MAX_CUTS:
                raise InputError(
                    f"more than {MAX_CUTS:,} pairs of events of one entity arrived out of order, "
                    "more than fit into memory: check a shorter part of the history"
                )
        owner, event = np.concatenate(owners), np.concatenate(lates)
        by_owner = np.lexsort((event, owner))
        return owner[by_owner], event[by_owner]


def _portions(sizes: I64) -> list[slice]:
    """Split ``sizes`` into slices whose sums are not much larger than `CHUNK`."""
    if not len(sizes):
        return []
    edges = np.flatnonzero(np.diff(np.cumsum(sizes) // CHUNK)) + 1
    bounds = [0, *edges.tolist(), len(sizes)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]
