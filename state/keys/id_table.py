"""A hash table from 64-bit ids to rows of arrays, for kernels: open addressing, any size.

A cell holds `EMPTY` or the number of a row, whose id is in the rows' own array of keys. The ids are
hashes already (`state.keys.hashing`), so their high half alone determines the cell.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I32, I64, inlined, kernel

U64 = NDArray[np.uint64]

EMPTY: Final = -1
_HALF: Final = np.uint64(32)


def make_table(rows: int) -> I32:
    """An empty table for `rows` rows: 6.8 bytes for each, at most 59 % full."""
    return np.full(rows * 17 // 10 + 1, EMPTY, np.int32)


@inlined
def find_home(key: np.uint64, table: I32) -> np.int64:
    """The first cell to look for `key`: its high half, scaled to the size (Lemire 2016)."""
    cells = table.size
    return np.int64(((key >> _HALF) * np.uint64(cells)) >> _HALF)


@inlined
def find(key: np.uint64, table: I32, keys: U64) -> np.int64:
    """The cell of `key`, or the empty one where it would be added."""
    at = find_home(key, table)
    while table[at] != EMPTY and keys[table[at]] != key:
        at += 1
        if at == table.size:
            at = np.int64(0)
    return at


@kernel
def erase(at: np.int64, table: I32, keys: U64) -> None:
    """Empty a cell and close the gap (Knuth 6.4, algorithm R), so that there are no tombstones."""
    cells = table.size
    gap = at
    while True:
        table[gap] = EMPTY
        while True:
            at += 1
            if at == cells:
                at = np.int64(0)
            if table[at] == EMPTY:
                return
            from_home = at - find_home(keys[table[at]], table)
            from_gap = at - gap
            # The entry may fill the gap unless its home lies cyclically in (gap, at].
            if from_home < 0:
                from_home += cells
            if from_gap < 0:
                from_gap += cells
            if from_home >= from_gap:
                break
        table[gap] = table[at]
        gap = at


@kernel
def refill(table: I32, keys: U64, rows: I64) -> None:
    """Add rows to an empty table."""
    for i in range(rows.size):
        table[find(keys[rows[i]], table, keys)] = rows[i]
