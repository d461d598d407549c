"""How often each code occurs in a hot key's windows, and how a key turns hot and cold.

The counters of a key's codes (`state.windows.value_counts`) have a column per width, one for the
whole log, and a spare one that is zero between rows.
"""

from __future__ import annotations

from anabranch.state.compile import I32, I64, inlined, kernel
from anabranch.state.windows.event_log import COUNT, HEAD, HOT, TAIL, after
from anabranch.state.windows.hot_keys import COLD, EDGE, HOTS_META, free_hot, take_hot
from anabranch.state.windows.value_counts import claim, find, remove

# Further cells of `meta`; from PLAN on the widths and their columns.
ENTRIES, WIDTHS, PLAN = HOTS_META, HOTS_META + 1, HOTS_META + 2
# A hot record: the edge, then per width start position (or -1) and number of distinct codes.
FIRST, PER_WIDTH, START, DISTINCT = 1, 2, 0, 1


@inlined
def count(hot: int, w: int, code: int, step: int, keys: I64, counts: I32, hoti: I64) -> None:
    """Count one occurrence of `code` into width `w` (step 1), or out of it (step -1)."""
    at = find(hot, code, keys)
    known = counts[at, w]
    counts[at, w] = known + step
    if known == 0:
        hoti[hot, FIRST + PER_WIDTH * w + DISTINCT] += 1
    elif known + step == 0:
        hoti[hot, FIRST + PER_WIDTH * w + DISTINCT] -= 1


@kernel
def slide(
    w: int, low: int, s: int, slot: I32, ts: I64, val: I64, link: I32, keys: I64, counts: I32,
    hoti: I64,
) -> None:  # fmt: skip
    """Let the records of width `w` with time up to `low` leave its window."""
    hot = slot[s, HOT]
    cell = FIRST + PER_WIDTH * w + START
    at = hoti[hot, cell]
    while at >= 0 and ts[at] <= low:
        count(hot, w, val[at, 0], -1, keys, counts, hoti)
        at = -1 if at == slot[s, TAIL] else after(link, at)
    hoti[hot, cell] = at


@inlined
def move_edge(
    edge: int, s: int, slot: I32, ts: I64, val: I64, link: I32, keys: I64, counts: I32,
    hoti: I64, meta: I64,
) -> None:  # fmt: skip
    """Move the right edge of all windows forward to `edge`."""
    hot = slot[s, HOT]
    if edge > hoti[hot, EDGE]:
        hoti[hot, EDGE] = edge
        for w in range(meta[WIDTHS]):
            start = hoti[hot, FIRST + PER_WIDTH * w + START]
            if start >= 0 and ts[start] <= edge - meta[PLAN + w]:
                slide(w, edge - meta[PLAN + w], s, slot, ts, val, link, keys, counts, hoti)


@kernel
def forget_code(hot: int, code: int, keys: I64, counts: I32, meta: I64) -> None:
    """One occurrence of `code` has left the log."""
    whole = counts.shape[1] - 1
    at = find(hot, code, keys)
    counts[at, whole] -= 1
    if counts[at, whole] == 0:
        remove(at, keys, counts)
        meta[ENTRIES] -= 1


@kernel
def remember_code(hot: int, code: int, keys: I64, counts: I32, meta: I64) -> None:
    """One occurrence of `code` has entered the log."""
    whole = counts.shape[1] - 1
    at = claim(hot, code, keys, counts)
    meta[ENTRIES] += counts[at, whole] == 0
    counts[at, whole] += 1


@kernel
def cool(
    s: int, slot: I32, val: I64, link: I32, keys: I64, counts: I32, hoti: I64, meta: I64
) -> None:
    """Make a hot slot cold: its entries are removed."""
    hot = slot[s, HOT]
    at = slot[s, HEAD]
    for left in range(slot[s, COUNT], 0, -1):
        forget_code(hot, val[at, 0], keys, counts, meta)
        if left > 1:
            at = after(link, at)
    free_hot(hot, hoti, meta)
    slot[s, HOT] = -1


@kernel
def heat(
    s: int, slot: I32, ts: I64, val: I64, link: I32, keys: I64, counts: I32, hoti: I64, meta: I64
) -> None:
    """Make a cold slot hot: count its records as of the last one."""
    hot = take_hot(hoti, meta)
    slot[s, HOT] = hot
    edge = ts[slot[s, TAIL]]
    hoti[hot, EDGE] = edge
    for w in range(meta[WIDTHS]):
        hoti[hot, FIRST + PER_WIDTH * w + START] = -1
        hoti[hot, FIRST + PER_WIDTH * w + DISTINCT] = 0
    at = slot[s, HEAD]
    for left in range(slot[s, COUNT], 0, -1):
        remember_code(hot, val[at, 0], keys, counts, meta)
        for w in range(meta[WIDTHS]):
            if ts[at] > edge - meta[PLAN + w]:
                if hoti[hot, FIRST + PER_WIDTH * w + START] < 0:
                    hoti[hot, FIRST + PER_WIDTH * w + START] = at
                count(hot, w, val[at, 0], 1, keys, counts, hoti)
        if left > 1:
            at = after(link, at)


@kernel
def recount(
    s: int, slot: I32, val: I64, link: I32, keys: I64, counts: I32, hoti: I64, meta: I64
) -> int:
    """Fill the counters of hot slots from their logs, from slot `s` on.

    Returns the slot for which room could be short, to be called again from there, or the number of
    slots.
    """
    while s < slot.shape[0]:
        if slot[s, COUNT] > 0 and slot[s, HOT] >= 0:
            if 2 * (meta[ENTRIES] + slot[s, COUNT] + COLD + 2) >= keys.shape[0]:
                return s
            hot, at = slot[s, HOT], slot[s, HEAD]
            for left in range(slot[s, COUNT], 0, -1):
                remember_code(hot, val[at, 0], keys, counts, meta)
                if left > 1:
                    at = after(link, at)
            for w in range(meta[WIDTHS]):
                at = hoti[hot, FIRST + PER_WIDTH * w + START]
                while at >= 0:
                    counts[find(hot, val[at, 0], keys), w] += 1
                    at = -1 if at == slot[s, TAIL] else after(link, at)
        s += 1
    return s
