"""Running sums of a key's windows: every event enters once and leaves once, whatever the width.

A key with more than `COLD` records is *hot*: it has a hot record, in which each width keeps the
sums over `(edge - width, edge]`. The edge is the latest time at which the key was looked at. ::

    log      a  b  c  d  e  f  g  h  i  j
    1 h         └──────────────────────┤ edge     start of 1 h at b
    10 m                     └─────────┤          start of 10 m at g

    next event k:  the starts slide to the right, what they pass is subtracted, k is added

Subtracting is exact to 2**-104 of the largest sum that ever stood there (`PEAK`). When the sum of
squares falls below 1e-4 of its peak, the window is summed afresh from the log, so a 1e100 that
passed leaves nothing. It is amortised O(1): an event is summed again only when what left before it
weighs 1e4 times as much as what is left, itself included; the next time, 1e4 times more than that;
doubles end after some 150 such steps, and common data has hardly any.

A cold key needs none of this: its few records are scanned.
"""

from __future__ import annotations

import math

from anabranch.state.compile import F64, I32, I64, inlined, kernel
from anabranch.state.windows.double_double import dd_add
from anabranch.state.windows.event_log import HEAD, HOT, TAIL, after, before
from anabranch.state.windows.hot_keys import EDGE, HOTS_META, take_hot
from anabranch.state.windows.panes import record_extreme, record_sums
from anabranch.state.windows.range_extremes import range_extreme

# Further cells of `meta`: the declaration; from PLAN on the widths in ascending order, their places
# in the output, the statistics.
RESOLUTION, WIDTHS, STATISTICS, SUMS, ENDS, EXTREMES, SIGN = range(HOTS_META, HOTS_META + 7)
PLAN = HOTS_META + 8

# A hot record: `hoti[hot]` is the edge, then per width start position (or -1), events, huge values;
# `hotf[hot, width]` has the sums, then one cell per extreme.
FIRST = 1
PER_WIDTH, START, EVENTS, HUGES = 3, 0, 1, 2
S1H, S1L, S2H, S2L, PEAK, BEST = 0, 1, 2, 3, 4, 5

LOST = 1e-4
LOST_HUGE = 1e-6

Sums = tuple[int, float, float, float, float, int]


@inlined
def scan_back(
    last: int, low: int, head: int, sums: int, ts: I64, val: F64, link: I32
) -> tuple[int, int, float, float, float, float, int]:
    """First position (-1: none) and sums of the records from `last` back to those after `low`."""
    first, n, s1h, s1l, s2h, s2l, huge = -1, 0, 0.0, 0.0, 0.0, 0.0, 0
    at = last
    while at >= 0 and ts[at] > low:
        count, a, a_low, b, b_low, huge_more = record_sums(val, at, sums)
        n += count
        huge += huge_more
        s1h, s1l = dd_add(s1h, s1l, a, a_low)
        s2h, s2l = dd_add(s2h, s2l, b, b_low)
        first = at
        at = -1 if at == head else before(link, at)
    return first, n, s1h, s1l, s2h, s2l, huge


@kernel
def sum_afresh(
    hot: int, w: int, low: int, head: int, tail: int, ts: I64, val: F64, link: I32,
    hotf: F64, hoti: I64, meta: I64,
) -> None:  # fmt: skip
    """Sum width `w` from the log, from `tail` back to `head` or to the last record after `low`."""
    first, n, s1h, s1l, s2h, s2l, huge = scan_back(tail, low, head, meta[SUMS], ts, val, link)
    cell = FIRST + PER_WIDTH * w
    hoti[hot, cell + START] = first
    hoti[hot, cell + EVENTS] = n
    hoti[hot, cell + HUGES] = huge
    hotf[hot, w, S1H], hotf[hot, w, S1L] = s1h, s1l
    hotf[hot, w, S2H], hotf[hot, w, S2L] = s2h, s2l
    hotf[hot, w, PEAK] = s2h


@kernel
def find_extremes(
    hot: int, w: int, stale: int, s: int, slot: I32, val: F64, link: I32, agg: F64,
    hotf: F64, hoti: I64, meta: I64,
) -> None:  # fmt: skip
    """Look up those extremes of width `w` whose bit is set in `stale`."""
    start = hoti[hot, FIRST + PER_WIDTH * w + START]
    for which in range(meta[EXTREMES]):
        if stale >> which & 1:
            hotf[hot, w, BEST + which] = -math.inf
            if start >= 0:
                hotf[hot, w, BEST + which] = range_extreme(
                    start, slot[s, TAIL], which, meta[SIGN + which], val, link, agg
                )


@inlined
def slide(
    hot: int, w: int, low: int, s: int, slot: I32, ts: I64, val: F64, link: I32, agg: F64,
    hotf: F64, hoti: I64, meta: I64,
) -> None:  # fmt: skip
    """Let the records of width `w` with time up to `low` leave its window."""
    cell = FIRST + PER_WIDTH * w
    at = hoti[hot, cell + START]
    if at < 0 or ts[at] > low:
        return
    tail = slot[s, TAIL]
    stale = 0
    while at >= 0 and ts[at] <= low:
        n, s1h, s1l, s2h, s2l, huge = record_sums(val, at, meta[SUMS])
        for which in range(meta[EXTREMES]):
            if record_extreme(val, at, meta[SIGN + which]) >= hotf[hot, w, BEST + which]:
                stale |= 1 << which
        at = -1 if at == tail else after(link, at)
        hoti[hot, cell + START] = at
        hoti[hot, cell + EVENTS] -= n
        if at < 0:
            hoti[hot, cell + EVENTS] = hoti[hot, cell + HUGES] = 0
            hotf[hot, w, :BEST] = 0.0
            hotf[hot, w, BEST:] = -math.inf
            return
        if meta[SUMS]:
            hotf[hot, w, S1H], hotf[hot, w, S1L] = dd_add(
                hotf[hot, w, S1H], hotf[hot, w, S1L], -s1h, -s1l
            )
            hotf[hot, w, S2H], hotf[hot, w, S2L] = dd_add(
                hotf[hot, w, S2H], hotf[hot, w, S2L], -s2h, -s2l
            )
            lost = hotf[hot, w, S2H] < LOST * hotf[hot, w, PEAK]
            if huge:
                hoti[hot, cell + HUGES] -= huge
                left = math.fabs(hotf[hot, w, S1H])
                lost |= hoti[hot, cell + HUGES] == 0 or left < LOST_HUGE * math.fabs(s1h)
            if lost:
                sum_afresh(hot, w, ts[at] - 1, at, tail, ts, val, link, hotf, hoti, meta)
    if stale:
        find_extremes(hot, w, stale, s, slot, val, link, agg, hotf, hoti, meta)


@kernel
def slide_call(
    hot: int, w: int, low: int, s: int, slot: I32, ts: I64, val: F64, link: I32, agg: F64,
    hotf: F64, hoti: I64, meta: I64,
) -> None:  # fmt: skip
    """`slide` where it is rare."""
    slide(hot, w, low, s, slot, ts, val, link, agg, hotf, hoti, meta)


@inlined
def move_edge(
    hot: int, edge: int, s: int, slot: I32, ts: I64, val: F64, link: I32, agg: F64,
    hotf: F64, hoti: I64, meta: I64,
) -> None:  # fmt: skip
    """Move the right edge of all windows forward to `edge`."""
    if edge > hoti[hot, EDGE]:
        hoti[hot, EDGE] = edge
        for w in range(meta[WIDTHS]):
            low = edge - meta[PLAN + w]
            slide(hot, w, low, s, slot, ts, val, link, agg, hotf, hoti, meta)


@inlined
def enter(
    hot: int, w: int, at: int, sums: Sums, value: float, hotf: F64, hoti: I64, meta: I64
) -> None:
    """Let one event, in the record `at`, enter the window of width `w`."""
    cell = FIRST + PER_WIDTH * w
    n, s1h, s1l, s2h, s2l, huge = sums
    if hoti[hot, cell + START] < 0:
        hoti[hot, cell + START] = at
    hoti[hot, cell + EVENTS] += n
    if meta[SUMS]:
        hoti[hot, cell + HUGES] += huge
        hotf[hot, w, S1H], hotf[hot, w, S1L] = dd_add(
            hotf[hot, w, S1H], hotf[hot, w, S1L], s1h, s1l
        )
        hotf[hot, w, S2H], hotf[hot, w, S2L] = dd_add(
            hotf[hot, w, S2H], hotf[hot, w, S2L], s2h, s2l
        )
        hotf[hot, w, PEAK] = max(hotf[hot, w, PEAK], hotf[hot, w, S2H])
    for which in range(meta[EXTREMES]):
        best = max(hotf[hot, w, BEST + which], meta[SIGN + which] * value)
        hotf[hot, w, BEST + which] = best


@kernel
def heat(
    s: int, slot: I32, ts: I64, val: F64, link: I32, agg: F64, hotf: F64, hoti: I64, meta: I64
) -> None:
    """Make the cold slot `s` hot: build its windows as of its last record."""
    hot = take_hot(hoti, meta)
    slot[s, HOT] = hot
    hoti[hot, EDGE] = ts[slot[s, TAIL]]
    for w in range(meta[WIDTHS]):
        low = hoti[hot, EDGE] - meta[PLAN + w]
        sum_afresh(hot, w, low, slot[s, HEAD], slot[s, TAIL], ts, val, link, hotf, hoti, meta)
        find_extremes(hot, w, 3, s, slot, val, link, agg, hotf, hoti, meta)


@kernel
def late_sums(
    w: int, time: int, last: int, later: int, later_sums: Sums, s: int, slot: I32, ts: I64,
    val: F64, link: I32, hotf: F64, hoti: I64, meta: I64,
) -> tuple[int, int, float, float, float, float, int]:  # fmt: skip
    """First position and sums of width `w` as of `time`, which is before the edge.

    `last` is the last record up to `time`; the `later` records after it sum to `later_sums`. ::

        log         a  b  c  d  e  f  g  h  i  j
        the edge's           └────────────────┤
        as of g's      └───────────┤              add b c, subtract h i j

    Where the windows do not overlap, or the difference would cancel, the window is summed afresh.
    """
    hot, head, sums = slot[s, HOT], slot[s, HEAD], meta[SUMS]
    low = time - meta[PLAN + w]
    cell = FIRST + PER_WIDTH * w
    start = hoti[hot, cell + START]
    n, s1h, s1l, s2h, s2l, huge = later_sums
    if last < 0 or start < 0 or ts[start] > time or huge > 0:
        return scan_back(last, low, head, sums, ts, val, link)
    n = hoti[hot, cell + EVENTS] - n
    huge = hoti[hot, cell + HUGES]
    s1h, s1l = dd_add(hotf[hot, w, S1H], hotf[hot, w, S1L], -s1h, -s1l)
    s2h, s2l = dd_add(hotf[hot, w, S2H], hotf[hot, w, S2L], -s2h, -s2l)
    if sums and s2h < 10 * LOST * hotf[hot, w, S2H]:
        return scan_back(last, low, head, sums, ts, val, link)
    while start != head:
        at = before(link, start)
        if ts[at] <= low:
            break
        count, a, a_low, b, b_low, huge_more = record_sums(val, at, sums)
        n += count
        huge += huge_more
        s1h, s1l = dd_add(s1h, s1l, a, a_low)
        s2h, s2l = dd_add(s2h, s2l, b, b_low)
        start = at
    return start, n, s1h, s1l, s2h, s2l, huge


@inlined
def sum_last(records: int, s: int, sums: int, slot: I32, val: F64, link: I32) -> Sums:
    """Sums of the last `records` records of slot `s`."""
    n, s1h, s1l, s2h, s2l, huge = 0, 0.0, 0.0, 0.0, 0.0, 0
    at = slot[s, TAIL]
    for left in range(records, 0, -1):
        count, a, a_low, b, b_low, huge_more = record_sums(val, at, sums)
        n += count
        huge += huge_more
        s1h, s1l = dd_add(s1h, s1l, a, a_low)
        s2h, s2l = dd_add(s2h, s2l, b, b_low)
        if left > 1:
            at = before(link, at)
    return n, s1h, s1l, s2h, s2l, huge
