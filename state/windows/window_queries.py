"""The features of a row: from a key's few records, its running sums, or its log before these.

A cold key's records are scanned. For a hot key the running sums are read when the
row is at the edge, and their difference to an earlier time otherwise.
"""

from __future__ import annotations

import math

from anabranch.state.compile import F64, I64, inlined, kernel, numbered
from anabranch.state.windows.double_double import Sums, add_sums, no_sums
from anabranch.state.windows.event_log import COLUMN, HOT, TAIL, before
from anabranch.state.windows.panes import record_extreme, record_first, record_last, record_sums
from anabranch.state.windows.range_extremes import range_extreme
from anabranch.state.windows.running_sums import (
    add_terms,
    clear_terms,
    hot_sums,
    late_sums,
    load_terms,
    sum_last,
)
from anabranch.state.windows.statistic import WindowSummary
from anabranch.state.windows.statistics import STATISTICS
from anabranch.state.windows.window_arrays import (
    BEST,
    ENDS,
    FIRST,
    PER_WIDTH,
    PLAN,
    SIGN,
    START,
    SUMS,
    WIDTHS,
    WindowArrays,
)
from anabranch.state.windows.window_arrays import STATISTICS as STATISTIC_COUNT

_read = numbered([statistic.read for statistic in STATISTICS.values()])
_EMPTY = tuple(statistic.empty for statistic in STATISTICS.values())


@kernel
def _write_empty(row: int, column: int, out: F64, meta: I64) -> None:
    # A call, and not a choice for each statistic, which would make all rows slower.
    for i in range(meta[STATISTIC_COUNT]):
        out[row, column + i] = _EMPTY[meta[PLAN + 2 * meta[WIDTHS] + i]]


@inlined
def write_statistics(
    row: int, w: int, sums: Sums, best: float, other: float, first: float, last: float, out: F64,
    windows: WindowArrays,
) -> None:  # fmt: skip
    """Write the statistics of width `w`; `best` and `other` are the extremes, by their signs."""
    meta = windows.log.meta
    plan = PLAN + 2 * meta[WIDTHS]
    statistics = meta[STATISTIC_COUNT]
    column = meta[COLUMN] + meta[PLAN + meta[WIDTHS] + w] * statistics
    if sums.events == 0:
        _write_empty(row, column, out, meta)
        return
    maximum, minimum = best, -best if meta[SIGN] < 0 else -other
    for i in range(statistics):
        summary = WindowSummary(
            sums, maximum, minimum, first, last, windows.terms, meta[plan + statistics + i]
        )
        out[row, column + i] = _read(meta[plan + i], summary)


@inlined
def query_cold(row: int, time: int, last: int, head: int, out: F64, windows: WindowArrays) -> None:
    """Statistics as of `time` by scanning back from `last`, once for all widths."""
    log, meta = windows.log, windows.log.meta
    sums = no_sums()
    best, other, first = -math.inf, -math.inf, 0.0
    newest = record_last(log.val, last) if last >= 0 else 0.0
    clear_terms(windows)
    at = last
    for w in range(meta[WIDTHS]):
        low = time - meta[PLAN + w]
        while at >= 0 and log.ts[at] > low:
            sums = add_sums(sums, record_sums(at, meta[SUMS], log))
            add_terms(at, 1.0, windows)
            if windows.tree.shape[1] > 0:
                best = max(best, record_extreme(log.val, at, meta[SIGN]))
            if windows.tree.shape[1] > 1:
                other = max(other, record_extreme(log.val, at, meta[SIGN + 1]))
            first = record_first(log.val, at)
            at = -1 if at == head else before(log.link, at)
        write_statistics(row, w, sums, best, other, first, newest, out, windows)


@inlined
def query_edge(row: int, s: int, out: F64, windows: WindowArrays) -> None:
    """Statistics as of the edge, from the running sums."""
    log, hotf, hoti, meta = windows.log, windows.hotf, windows.hoti, windows.log.meta
    hot = log.slot[s, HOT]
    last = record_last(log.val, log.slot[s, TAIL]) if meta[ENDS] else 0.0
    for w in range(meta[WIDTHS]):
        sums = hot_sums(hot, w, windows)
        best = hotf[hot, w, BEST] if windows.tree.shape[1] > 0 else 0.0
        other = hotf[hot, w, BEST + 1] if windows.tree.shape[1] > 1 else 0.0
        first = 0.0
        if sums.events > 0 and meta[ENDS]:
            first = record_first(log.val, hoti[hot, FIRST + PER_WIDTH * w + START])
        load_terms(hot, w, windows)
        write_statistics(row, w, sums, best, other, first, last, out, windows)


@kernel
def query_late(
    row: int, time: int, last: int, later: int, s: int, out: F64, windows: WindowArrays
) -> None:
    """Statistics as of `time` before the edge; `last` is its last record, `later` follow."""
    log, meta = windows.log, windows.log.meta
    later_sums = sum_last(later, s, log)
    newest = record_last(log.val, last) if last >= 0 else 0.0
    for w in range(meta[WIDTHS]):
        start, sums = late_sums(w, time, last, later, later_sums, s, windows)
        best = other = first = 0.0
        if sums.events > 0:
            first = record_first(log.val, start)
            if windows.tree.shape[1] > 0:
                best = range_extreme(start, last, 0, meta[SIGN], log, windows.tree)
            if windows.tree.shape[1] > 1:
                other = range_extreme(start, last, 1, meta[SIGN + 1], log, windows.tree)
        write_statistics(row, w, sums, best, other, first, newest, out, windows)
