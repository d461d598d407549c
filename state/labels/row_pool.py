"""The rows of the pending store: which are free, which wait, and which are kept.

A row that waits is in the table of ids and in the order of times. One that leaves keeps its content
until the call ends: it goes into the chain of those that left, which becomes free with the next
call. Chains run through the second of a row's two links.
"""

from __future__ import annotations

from typing import Any, Final

from anabranch.state.compile import I32, inlined, kernel
from anabranch.state.keys.id_table import erase, find
from anabranch.state.labels.timeout_queue import take_out

WAITING, KEPT, FREE, LEFT, LEFT_END, ARRIVALS, WATERMARK = range(7)
"""Fields of the counters: how many wait and are kept; the first free row, the first and the last of
those that left; arrivals so far, and the latest time seen."""

TOUCHED, CAME, WAITS, KEEPS = 1, 2, 4, 8
"""Flags of a row. Since the last `changes`: it came or left; there is new content in it. Now: it
waits; it is kept."""

NONE: Final = -1


@inlined
def take_free(counters: Any, links: I32) -> int:
    """A free row, for which there must be room."""
    row = int(counters[FREE])
    counters[FREE] = links[row, 1]
    return row


@inlined
def let_go(row: int, counters: Any, links: I32) -> None:
    """The row becomes free with the next call."""
    if counters[LEFT] == NONE:
        counters[LEFT_END] = row
    links[row, 1] = counters[LEFT]
    counters[LEFT] = row


@kernel
def leave(row: int, pending: Any) -> None:
    """Take a row out of the table and of the order; it has to be kept or let go then."""
    counters, table, keys, _, _, (_, ends, links), flags, _, _ = pending
    erase(find(keys[row], table, keys), table, keys)
    take_out(row, ends, links)
    flags[row] = (flags[row] | TOUCHED) & ~WAITS
    counters[WAITING] -= 1


@inlined
def keep(row: int, pending: Any) -> None:
    """Keep a row that has left."""
    pending[0][KEPT] += 1
    pending[6][row] |= KEEPS


@inlined
def release(row: int, pending: Any) -> None:
    """Let go a row that was kept."""
    counters, flags = pending[0], pending[6]
    counters[KEPT] -= 1
    flags[row] = (flags[row] | TOUCHED) & ~KEEPS
    let_go(row, counters, pending[5][2])


def become_free(counters: Any, links: I32) -> None:
    """What left during the last call is free from now on."""
    if counters[LEFT] != NONE:
        links[counters[LEFT_END], 1] = counters[FREE]
        counters[FREE], counters[LEFT] = counters[LEFT], NONE


def chain(rows: Any, counters: Any, links: I32) -> None:
    """Make `rows` free, the first to be taken first."""
    if len(rows):
        links[rows[:-1], 1] = rows[1:]
        links[rows[-1], 1] = counters[FREE]
        counters[FREE] = rows[0]
