"""What a record of the log stands for: one event, or a pane of many.

With `resolution_ms=0` a record is an event and holds its value (no value at all when only counts
are asked for). Otherwise the events of a key within the same pane merge into one record, and the
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

from anabranch.state.compile import F64, inlined
from anabranch.state.windows.double_double import dd_add, value_sums

# Columns of a pane's record; an event's record has only one column, or none.
P_COUNT, P_S1H, P_S1L, P_S2H, P_S2L, P_HUGE = 0, 1, 2, 3, 4, 5
P_MAX, P_MIN, P_FIRST_AT, P_FIRST, P_LAST_AT, P_LAST = 6, 7, 8, 9, 10, 11
PANE_COLUMNS = 12


@inlined
def record_sums(val: F64, at: int, sums: int) -> tuple[int, float, float, float, float, int]:
    """Count, scaled sum (high, low), sum of squares (high, low), huge values of the record `at`.

    Only the count when `sums` is 0.
    """
    if val.shape[1] == PANE_COLUMNS:
        return (
            int(val[at, P_COUNT]),
            val[at, P_S1H],
            val[at, P_S1L],
            val[at, P_S2H],
            val[at, P_S2L],
            int(val[at, P_HUGE]),
        )
    if sums == 0:
        return 1, 0.0, 0.0, 0.0, 0.0, 0
    return value_sums(val[at, 0])


@inlined
def record_extreme(val: F64, at: int, sign: int) -> float:
    """The maximum of the record `at` for sign 1, the negated minimum for sign -1."""
    if val.shape[1] == PANE_COLUMNS:
        if sign > 0:
            return val[at, P_MAX]  # type: ignore[no-any-return]
        return -val[at, P_MIN]  # type: ignore[no-any-return]
    return sign * val[at, 0]  # type: ignore[no-any-return]


@inlined
def record_first(val: F64, at: int) -> float:
    """The earliest value of the record `at`."""
    if val.shape[1] == PANE_COLUMNS:
        return val[at, P_FIRST]  # type: ignore[no-any-return]
    return val[at, 0] if val.shape[1] > 0 else 0.0


@inlined
def record_last(val: F64, at: int) -> float:
    """The latest value of the record `at`; among equal times the one that arrived last."""
    if val.shape[1] == PANE_COLUMNS:
        return val[at, P_LAST]  # type: ignore[no-any-return]
    return val[at, 0] if val.shape[1] > 0 else 0.0


@inlined
def start_record(val: F64, at: int, value: float, offset: int) -> None:
    """Write a new record at `at` with one value, `offset` ms after the start of its pane."""
    if val.shape[1] == 1:
        val[at, 0] = value
    elif val.shape[1] == PANE_COLUMNS:
        count, s1h, s1l, s2h, s2l, huge = value_sums(value)
        val[at, P_COUNT] = count
        val[at, P_S1H] = s1h
        val[at, P_S1L] = s1l
        val[at, P_S2H] = s2h
        val[at, P_S2L] = s2l
        val[at, P_HUGE] = huge
        val[at, P_MAX] = val[at, P_MIN] = val[at, P_FIRST] = val[at, P_LAST] = value
        val[at, P_FIRST_AT] = val[at, P_LAST_AT] = offset


@inlined
def merge_record(val: F64, at: int, value: float, offset: int) -> None:
    """Merge one value into the pane's record at `at`."""
    count, s1h, s1l, s2h, s2l, huge = value_sums(value)
    val[at, P_COUNT] += count
    val[at, P_S1H], val[at, P_S1L] = dd_add(val[at, P_S1H], val[at, P_S1L], s1h, s1l)
    val[at, P_S2H], val[at, P_S2L] = dd_add(val[at, P_S2H], val[at, P_S2L], s2h, s2l)
    val[at, P_HUGE] += huge
    val[at, P_MAX] = max(val[at, P_MAX], value)
    val[at, P_MIN] = min(val[at, P_MIN], value)
    if offset < val[at, P_FIRST_AT]:
        val[at, P_FIRST_AT] = offset
        val[at, P_FIRST] = value
    if offset >= val[at, P_LAST_AT]:
        val[at, P_LAST_AT] = offset
        val[at, P_LAST] = value
