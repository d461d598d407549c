"""Records of the log: one event each, or a pane that merges many.

With `resolution_ms=0` a record is an event and holds its value (no value at all when only counts
are needed). Otherwise the events of a key within the same pane merge into one record, and the
log's times are pane numbers::

    resolution 10 s     pane 0         pane 1         pane 2         pane 3
    events           a    b        c             ├── none ──┤    d    e    f
    log              [ab]          [c]                           [def]
    window of 20 s, as of f:                     (panes 2 and 3) ─────────▶

A window of width w at time t aggregates the panes p with
`floor(t/res) - ceil(w/res) < p <= floor(t/res)`: its left edge is approximated by at most one pane,
and a late event sees the whole of its own pane, with what is later in it. A record keeps its sums
in double-double, so that merging loses nothing, and a key has at most
`ceil((longest + lateness) / res) + 1` records however many events it has.
"""

from __future__ import annotations

from anabranch.state.compile import F64, inlined, numbered
from anabranch.state.windows.double_double import Sums, add_sums, dd_add, value_sums
from anabranch.state.windows.event_log import LogArrays
from anabranch.state.windows.statistics import STATISTICS
from anabranch.state.windows.window_arrays import PLAN, WIDTHS
from anabranch.state.windows.window_arrays import STATISTICS as STATISTIC_COUNT

# Columns of a pane's record, before two per term; an event's record has only one column, or none.
P_COUNT, P_S1H, P_S1L, P_S2H, P_S2L, P_HUGE = 0, 1, 2, 3, 4, 5
P_MAX, P_MIN, P_FIRST_AT, P_FIRST, P_LAST_AT, P_LAST = 6, 7, 8, 9, 10, 11
PANE_COLUMNS = 12

ALL_TERMS = [term for statistic in STATISTICS.values() for term in statistic.terms]
"""The terms of all statistics. Kernels know them by their place in this list."""

_value_term = numbered(ALL_TERMS)


@inlined
def term_number(t: int, log: LogArrays) -> int:
    """The place in `ALL_TERMS` of the term `t` of these windows."""
    meta = log.meta
    return meta[PLAN + 2 * (meta[WIDTHS] + meta[STATISTIC_COUNT]) + t]  # type: ignore[no-any-return]


@inlined
def value_term(value: float, t: int, log: LogArrays) -> float:
    """What one value adds to the sum of the term `t`."""
    return _value_term(term_number(t, log), value)


@inlined
def record_sums(at: int, sums: int, log: LogArrays) -> Sums:
    """The sums of the record `at`; only the count when `sums` is 0."""
    val = log.val
    if val.shape[1] >= PANE_COLUMNS:
        return Sums(
            int(val[at, P_COUNT]),
            val[at, P_S1H],
            val[at, P_S1L],
            val[at, P_S2H],
            val[at, P_S2L],
            int(val[at, P_HUGE]),
        )
    if sums == 0:
        return Sums(1, 0.0, 0.0, 0.0, 0.0, 0)
    return value_sums(val[at, 0])


@inlined
def record_term(at: int, t: int, log: LogArrays) -> tuple[float, float]:
    """What the record `at` adds to the sum of the term `t`: high and low part."""
    if log.val.shape[1] >= PANE_COLUMNS:
        return log.val[at, PANE_COLUMNS + 2 * t], log.val[at, PANE_COLUMNS + 2 * t + 1]
    return value_term(log.val[at, 0], t, log), 0.0


@inlined
def record_extreme(val: F64, at: int, sign: int) -> float:
    """The maximum of the record `at` for sign 1, the negated minimum for sign -1."""
    if val.shape[1] >= PANE_COLUMNS:
        if sign > 0:
            return val[at, P_MAX]  # type: ignore[no-any-return]
        return -val[at, P_MIN]  # type: ignore[no-any-return]
    return sign * val[at, 0]  # type: ignore[no-any-return]


@inlined
def record_first(val: F64, at: int) -> float:
    """The earliest value of the record `at`."""
    if val.shape[1] >= PANE_COLUMNS:
        return val[at, P_FIRST]  # type: ignore[no-any-return]
    return val[at, 0] if val.shape[1] > 0 else 0.0


@inlined
def record_last(val: F64, at: int) -> float:
    """The latest value of the record `at`; among equal times the one that arrived last."""
    if val.shape[1] >= PANE_COLUMNS:
        return val[at, P_LAST]  # type: ignore[no-any-return]
    return val[at, 0] if val.shape[1] > 0 else 0.0


@inlined
def start_record(at: int, value: float, offset: int, terms: int, log: LogArrays) -> None:
    """Write a new record at `at` with one value, `offset` ms after the start of its pane."""
    val = log.val
    if val.shape[1] == 1:
        val[at, 0] = value
    elif val.shape[1] >= PANE_COLUMNS:
        _write_sums(at, value_sums(value), log)
        val[at, P_MAX] = val[at, P_MIN] = val[at, P_FIRST] = val[at, P_LAST] = value
        val[at, P_FIRST_AT] = val[at, P_LAST_AT] = offset
        for t in range(terms):
            val[at, PANE_COLUMNS + 2 * t] = value_term(value, t, log)
            val[at, PANE_COLUMNS + 2 * t + 1] = 0.0


@inlined
def merge_record(at: int, value: float, offset: int, terms: int, log: LogArrays) -> None:
    """Merge one value into the pane's record at `at`."""
    val = log.val
    _write_sums(at, add_sums(record_sums(at, 1, log), value_sums(value)), log)
    val[at, P_MAX] = max(val[at, P_MAX], value)
    val[at, P_MIN] = min(val[at, P_MIN], value)
    if offset < val[at, P_FIRST_AT]:
        val[at, P_FIRST_AT] = offset
        val[at, P_FIRST] = value
    if offset >= val[at, P_LAST_AT]:
        val[at, P_LAST_AT] = offset
        val[at, P_LAST] = value
    for t in range(terms):
        cell = PANE_COLUMNS + 2 * t
        val[at, cell], val[at, cell + 1] = dd_add(
            val[at, cell], val[at, cell + 1], value_term(value, t, log), 0.0
        )


@inlined
def _write_sums(at: int, sums: Sums, log: LogArrays) -> None:
    val = log.val
    val[at, P_COUNT] = sums.events
    val[at, P_S1H], val[at, P_S1L] = sums.total, sums.total_low
    val[at, P_S2H], val[at, P_S2L] = sums.squares, sums.squares_low
    val[at, P_HUGE] = sums.huge
