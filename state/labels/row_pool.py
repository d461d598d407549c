"""The rows of the pending store: which are free, which wait for a label, which are kept.

A row that waits is in the table of ids and in the timeout queue. One that is freed keeps its
content until the call ends: it goes to a list of freed rows, which can be allocated from the next
call on. Lists run through the second of a row's two links.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import F64, I32, I64, U8, inlined, kernel
from anabranch.state.keys.id_table import erase, find
from anabranch.state.labels.timeout_queue import unlink

WAITING, KEPT, FREE, FREED, FREED_END, ARRIVALS, WATERMARK = range(7)
"""Cells of the counters: how many rows wait and are kept; the first free row; the first and the
last of the freed ones; arrivals so far, and the latest time seen."""

TOUCHED, NEW, WAITS, KEEPS = 1, 2, 4, 8
"""Flags of a row. Since the last `changes`: its status changed; its content is new. Now: it waits;
it is kept."""

NONE: Final = -1


class PendingArrays(NamedTuple):
    """The arrays of the pending store, as kernels take them."""

    counters: I64
    table: I32
    """Hash table from id to row, see `id_table`."""
    keys: NDArray[np.uint64]
    times: I64
    arrivals: NDArray[np.uint32]
    marks: I64
    """With `ends` and `links`: the timeout queue, see there."""
    ends: I32
    links: I32
    flags: U8
    features: F64
    tags: I32


@inlined
def allocate_row(pending: PendingArrays) -> int:
    """A free row; there must be one."""
    row = int(pending.counters[FREE])
    pending.counters[FREE] = pending.links[row, 1]
    return row


@inlined
def free_row(row: int, pending: PendingArrays) -> None:
    """Free the row from the next call on."""
    if pending.counters[FREED] == NONE:
        pending.counters[FREED_END] = row
    pending.links[row, 1] = pending.counters[FREED]
    pending.counters[FREED] = row


@kernel
def end_wait(row: int, pending: PendingArrays) -> None:
    """Take a row out of the table and the timeout queue; it must be kept or freed then."""
    erase(find(pending.keys[row], pending.table, pending.keys), pending.table, pending.keys)
    unlink(row, pending.ends, pending.links)
    pending.flags[row] = (pending.flags[row] | TOUCHED) & ~WAITS
    pending.counters[WAITING] -= 1


@inlined
def keep_row(row: int, pending: PendingArrays) -> None:
    """Keep a row that no longer waits, so that its label can be updated."""
    pending.counters[KEPT] += 1
    pending.flags[row] |= KEEPS


@inlined
def free_kept_row(row: int, pending: PendingArrays) -> None:
    """Free a row that was kept."""
    pending.counters[KEPT] -= 1
    pending.flags[row] = (pending.flags[row] | TOUCHED) & ~KEEPS
    free_row(row, pending)


def reclaim_freed(counters: Any, links: I32) -> None:
    """Make the rows that the last call freed available."""
    if counters[FREED] != NONE:
        links[counters[FREED_END], 1] = counters[FREE]
        counters[FREE], counters[FREED] = counters[FREED], NONE


def add_free(rows: Any, counters: Any, links: I32) -> None:
    """Make `rows` available, the first to be allocated first."""
    if len(rows):
        links[rows[:-1], 1] = rows[1:]
        links[rows[-1], 1] = counters[FREE]
        counters[FREE] = rows[0]
