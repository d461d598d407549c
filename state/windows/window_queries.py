"""The answers of a key's windows: from its few records, from running sums, or as of before these.

A cold key's records are scanned. A hot key is answered from the running sums when it is asked as of
the edge, and from their difference to an earlier time otherwise.
"""

from __future__ import annotations

import math

from anabranch.state.compile import F64, I32, I64, inlined, kernel
from anabranch.state.windows.double_double import dd_add
from anabranch.state.windows.event_log import HOT, TAIL, before
from anabranch.state.windows.panes import record_extreme, record_first, record_last, record_sums
from anabranch.state.windows.range_extremes import range_extreme
from anabranch.state.windows.running_sums import (
    BEST,
    ENDS,
    EVENTS,
    EXTREMES,
    FIRST,
    HUGES,
    PER_WIDTH,
    PLAN,
    S1H,
    S1L,
    S2H,
    S2L,
    SIGN,
    START,
    SUMS,
    WIDTHS,
    late_sums,
    sum_last,
)
from anabranch.state.windows.statistics import emit


@inlined
def answer_cold(
    row: int, time: int, last: int, head: int, out: F64, ts: I64, val: F64, link: I32, meta: I64
) -> None:
    """Answer as of `time` by scanning back from `last`, once for all widths."""
    n, s1h, s1l, s2h, s2l, huge = 0, 0.0, 0.0, 0.0, 0.0, 0
    best, other, first = -math.inf, -math.inf, 0.0
    newest = record_last(val, last) if last >= 0 else 0.0
    at = last
    for w in range(meta[WIDTHS]):
        low = time - meta[PLAN + w]
        while at >= 0 and ts[at] > low:
            count, a, a_low, b, b_low, huge_more = record_sums(val, at, meta[SUMS])
            n += count
            if meta[SUMS]:
                huge += huge_more
                s1h, s1l = dd_add(s1h, s1l, a, a_low)
                s2h, s2l = dd_add(s2h, s2l, b, b_low)
            if meta[EXTREMES] > 0:
                best = max(best, record_extreme(val, at, meta[SIGN]))
            if meta[EXTREMES] > 1:
                other = max(other, record_extreme(val, at, meta[SIGN + 1]))
            first = record_first(val, at)
            at = -1 if at == head else before(link, at)
        emit(row, w, out, meta, n, s1h, s1l, s2h, s2l, huge, best, other, first, newest)


@inlined
def answer_edge(
    row: int, s: int, out: F64, slot: I32, val: F64, hotf: F64, hoti: I64, meta: I64
) -> None:
    """Answer as of the edge, from the running sums."""
    hot = slot[s, HOT]
    last = record_last(val, slot[s, TAIL]) if meta[ENDS] else 0.0
    for w in range(meta[WIDTHS]):
        cell = FIRST + PER_WIDTH * w
        n = hoti[hot, cell + EVENTS]
        best = hotf[hot, w, BEST] if meta[EXTREMES] > 0 else 0.0
        other = hotf[hot, w, BEST + 1] if meta[EXTREMES] > 1 else 0.0
        first = record_first(val, hoti[hot, cell + START]) if n > 0 and meta[ENDS] else 0.0
        emit(
            row, w, out, meta, n, hotf[hot, w, S1H], hotf[hot, w, S1L], hotf[hot, w, S2H],
            hotf[hot, w, S2L], hoti[hot, cell + HUGES], best, other, first, last,
        )  # fmt: skip


@kernel
def answer_late(
    row: int, time: int, last: int, later: int, s: int, out: F64, slot: I32, ts: I64, val: F64,
    link: I32, agg: F64, hotf: F64, hoti: I64, meta: I64,
) -> None:  # fmt: skip
    """Answer as of `time` before the edge; `last` is the last record up to it, `later` follow."""
    later_sums = sum_last(later, s, meta[SUMS], slot, val, link)
    newest = record_last(val, last) if last >= 0 else 0.0
    for w in range(meta[WIDTHS]):
        start, n, s1h, s1l, s2h, s2l, huge = late_sums(
            w, time, last, later, later_sums, s, slot, ts, val, link, hotf, hoti, meta
        )
        best = other = first = 0.0
        if n > 0:
            first = record_first(val, start)
            if meta[EXTREMES] > 0:
                best = range_extreme(start, last, 0, meta[SIGN], val, link, agg)
            if meta[EXTREMES] > 1:
                other = range_extreme(start, last, 1, meta[SIGN + 1], val, link, agg)
        emit(row, w, out, meta, n, s1h, s1l, s2h, s2l, huge, best, other, first, newest)
