"""The rows of the pending store, in four parts, and the heap that those which wait are kept in.

`rows` is a permutation of all rows; `places` tells where in it a row that waits or is kept stands::

    [0, WAITING)    a heap of those that wait, earliest event first
    [WAITING, FREE) left during this call: they keep their content until it ends
    [FREE, KEPT)    free
    [KEPT, …)       kept after their label, because another one may correct it
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from state.compile import I32, I64, kernel
from state.id_table import erase, find

U32 = NDArray[np.uint32]

WAITING, FREE, KEPT, ARRIVALS, WATERMARK = 0, 1, 2, 3, 4
"""Fields of the counters."""

TOUCHED, CAME = 1, 2
"""Flags of a row since the last `changes`: it came or left; there is new content in it."""

_WRAP: Final = 1 << 31
_ALL: Final = (1 << 32) - 1


@kernel
def _earlier(a: int, b: int, times: I64, arrivals: U32) -> bool:
    """By time, then by arrival, whose numbers go round after 2**32."""
    if times[a] != times[b]:
        return bool(times[a] < times[b])
    ahead = (np.int64(arrivals[b]) - np.int64(arrivals[a])) & _ALL
    return bool(0 < ahead < _WRAP)


@kernel
def rise(at: int, rows: I32, places: I32, times: I64, arrivals: U32) -> None:
    """Move the row at `at` up to where it belongs."""
    row = rows[at]
    while at > 0:
        parent = (at - 1) >> 1
        if not _earlier(row, rows[parent], times, arrivals):
            break
        rows[at] = rows[parent]
        places[rows[at]] = at
        at = parent
    rows[at] = row
    places[row] = at


@kernel
def _sink(at: int, size: int, rows: I32, places: I32, times: I64, arrivals: U32) -> None:
    row = rows[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _earlier(rows[child + 1], rows[child], times, arrivals):
            child += 1
        if not _earlier(rows[child], row, times, arrivals):
            break
        rows[at] = rows[child]
        places[rows[at]] = at
        at = child
    rows[at] = row
    places[row] = at


@kernel
def leave(row: int, pending: Any) -> None:
    """Take `row` out of the table and of the heap; its content stays until the call ends."""
    counters, table, keys, times, arrivals, rows, places, flags, _, _ = pending
    erase(find(keys[row], table, keys), table, keys)
    flags[row] |= TOUCHED
    counters[WAITING] -= 1
    last = counters[WAITING]
    at, moved = places[row], rows[last]
    rows[last] = row
    places[row] = last
    if at < last:
        rows[at] = moved
        places[moved] = at
        rise(at, rows, places, times, arrivals)
        _sink(places[moved], last, rows, places, times, arrivals)


@kernel
def keep(row: int, pending: Any) -> None:
    """Keep a row that has just left."""
    counters, _, _, _, _, rows, places, _, _, _ = pending
    left, free, kept = places[row], counters[FREE] - 1, counters[KEPT] - 1
    rows[left] = rows[free]
    places[rows[left]] = left
    rows[free] = rows[kept]
    rows[kept] = row
    places[row] = kept
    counters[FREE], counters[KEPT] = free, kept


@kernel
def release(row: int, pending: Any) -> None:
    """Let go a row that was kept; its content stays until the call ends."""
    counters, _, _, _, _, rows, places, flags, _, _ = pending
    free, kept, at = counters[FREE], counters[KEPT], places[row]
    flags[row] |= TOUCHED
    rows[at] = rows[kept]
    places[rows[at]] = at
    rows[kept] = rows[free]
    rows[free] = row
    counters[FREE], counters[KEPT] = free + 1, kept + 1
