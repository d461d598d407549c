"""How often each code occurs in a hot key's windows, and how a key turns hot and cold.

The counters of a key's codes (`state.windows.value_counts`) have a column per width, one for the
whole log, and a spare one that is zero between rows.
"""

from __future__ import annotations

from typing import NamedTuple

from anabranch.state.compile import I32, I64, inlined, kernel
from anabranch.state.windows.event_log import COUNT, HEAD, HOT, TAIL, LogArrays, after
from anabranch.state.windows.hot_keys import COLD, EDGE, HOTS_META, allocate_hot, free_hot
from anabranch.state.windows.value_counts import add_entry, find, remove

# Further cells of `meta`; from PLAN on the widths and their columns.
ENTRIES, WIDTHS, PLAN = HOTS_META, HOTS_META + 1, HOTS_META + 2
# A hot record: the edge, then per width start position (or -1) and number of distinct codes.
FIRST, PER_WIDTH, START, DISTINCT = 1, 2, 0, 1


class DistinctArrays(NamedTuple):
    """All that the kernels of one `DistinctSpec` work on."""

    log: LogArrays
    hoti: I64
    """`(hot records, cells)`: running counts and positions."""
    keys: I64
    """`(entries, 2)`: hot record and code of each counter, see `value_counts`."""
    counts: I32
    """`(entries, widths + 2)`: occurrences per width, in a spare column, in the whole log."""


@inlined
def count(hot: int, w: int, code: int, step: int, distinct: DistinctArrays) -> None:
    """Count one occurrence of `code` into width `w` (step 1), or out of it (step -1)."""
    counts, hoti = distinct.counts, distinct.hoti
    at = find(hot, code, distinct.keys)
    previous = counts[at, w]
    counts[at, w] = previous + step
    if previous == 0:
        hoti[hot, FIRST + PER_WIDTH * w + DISTINCT] += 1
    elif previous + step == 0:
        hoti[hot, FIRST + PER_WIDTH * w + DISTINCT] -= 1


@kernel
def slide(w: int, low: int, s: int, distinct: DistinctArrays) -> None:
    """Let the records of width `w` with time up to `low` leave its window."""
    log = distinct.log
    hot = log.slot[s, HOT]
    cell = FIRST + PER_WIDTH * w + START
    at = distinct.hoti[hot, cell]
    while at >= 0 and log.ts[at] <= low:
        count(hot, w, log.val[at, 0], -1, distinct)
        at = -1 if at == log.slot[s, TAIL] else after(log.link, at)
    distinct.hoti[hot, cell] = at


@inlined
def move_edge(edge: int, s: int, distinct: DistinctArrays) -> None:
    """Move the right edge of all windows forward to `edge`."""
    log, hoti, meta = distinct.log, distinct.hoti, distinct.log.meta
    hot = log.slot[s, HOT]
    if edge > hoti[hot, EDGE]:
        hoti[hot, EDGE] = edge
        for w in range(meta[WIDTHS]):
            start = hoti[hot, FIRST + PER_WIDTH * w + START]
            if start >= 0 and log.ts[start] <= edge - meta[PLAN + w]:
                slide(w, edge - meta[PLAN + w], s, distinct)


# Called for every event: a call passes each array as seven words, so these take only what they use.
@kernel
def remove_from_log(hot: int, code: int, keys: I64, counts: I32, meta: I64) -> None:
    """Count one occurrence of `code` out of the whole log."""
    whole = counts.shape[1] - 1
    at = find(hot, code, keys)
    counts[at, whole] -= 1
    if counts[at, whole] == 0:
        remove(at, keys, counts)
        meta[ENTRIES] -= 1


@kernel
def add_to_log(hot: int, code: int, keys: I64, counts: I32, meta: I64) -> None:
    """Count one occurrence of `code` into the whole log."""
    whole = counts.shape[1] - 1
    at = add_entry(hot, code, keys, counts)
    meta[ENTRIES] += counts[at, whole] == 0
    counts[at, whole] += 1


@kernel
def make_cold(s: int, distinct: DistinctArrays) -> None:
    """Free the hot record of a slot, and its counters."""
    log = distinct.log
    hot = log.slot[s, HOT]
    at = log.slot[s, HEAD]
    for left in range(log.slot[s, COUNT], 0, -1):
        remove_from_log(hot, log.val[at, 0], distinct.keys, distinct.counts, log.meta)
        if left > 1:
            at = after(log.link, at)
    free_hot(hot, distinct.hoti, log.meta)
    log.slot[s, HOT] = -1


@kernel
def make_hot(s: int, distinct: DistinctArrays) -> None:
    """Give a cold slot a hot record: count its records as of the last one."""
    log, hoti, meta = distinct.log, distinct.hoti, distinct.log.meta
    hot = allocate_hot(hoti, meta)
    log.slot[s, HOT] = hot
    edge = log.ts[log.slot[s, TAIL]]
    hoti[hot, EDGE] = edge
    for w in range(meta[WIDTHS]):
        hoti[hot, FIRST + PER_WIDTH * w + START] = -1
        hoti[hot, FIRST + PER_WIDTH * w + DISTINCT] = 0
    at = log.slot[s, HEAD]
    for left in range(log.slot[s, COUNT], 0, -1):
        add_to_log(hot, log.val[at, 0], distinct.keys, distinct.counts, log.meta)
        for w in range(meta[WIDTHS]):
            if log.ts[at] > edge - meta[PLAN + w]:
                if hoti[hot, FIRST + PER_WIDTH * w + START] < 0:
                    hoti[hot, FIRST + PER_WIDTH * w + START] = at
                count(hot, w, log.val[at, 0], 1, distinct)
        if left > 1:
            at = after(log.link, at)


@kernel
def recount(s: int, distinct: DistinctArrays) -> int:
    """Rebuild the counters of hot slots from their logs, from slot `s` on.

    Returns the slot for which space could run out, to be called again from there, or the number of
    slots.
    """
    log, meta = distinct.log, distinct.log.meta
    slot, counts = log.slot, distinct.counts
    while s < slot.shape[0]:
        if slot[s, COUNT] > 0 and slot[s, HOT] >= 0:
            if 2 * (meta[ENTRIES] + slot[s, COUNT] + COLD + 2) >= counts.shape[0]:
                return s
            hot, at = slot[s, HOT], slot[s, HEAD]
            for left in range(slot[s, COUNT], 0, -1):
                add_to_log(hot, log.val[at, 0], distinct.keys, distinct.counts, log.meta)
                if left > 1:
                    at = after(log.link, at)
            for w in range(meta[WIDTHS]):
                at = distinct.hoti[hot, FIRST + PER_WIDTH * w + START]
                while at >= 0:
                    counts[find(hot, log.val[at, 0], distinct.keys), w] += 1
                    at = -1 if at == slot[s, TAIL] else after(log.link, at)
        s += 1
    return s
