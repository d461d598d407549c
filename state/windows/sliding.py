"""Exact sliding windows: the features of an event as of its own time, in any order of arrival.

::

    arrival      1   2   3   5   6   4 (late)
    time    ─────●───●───●───●───●──▶
                         ▲ 4 belongs here
    4 is given   └───────┤           (t - w, t]: 1 2 3 and itself, not 5 and 6
    next event       └───────────────┤  sees 4, in its place

In order an event costs amortised O(1) (`running_sums`); min and max take O(log n) when the extreme
itself leaves a window, and nothing otherwise (`range_extremes`). A late event costs O(d + e), with
d the events of its key after its time, and e those between the left edges of its windows and of the
latest ones.
"""

from __future__ import annotations

import numpy as np

from anabranch.state.compile import F64, I64, U8, inlined, kernel
from anabranch.state.windows.aggregate_state import AggregateState
from anabranch.state.windows.double_double import value_sums
from anabranch.state.windows.event_log import (
    CHUNKS_LEFT,
    COLUMN,
    COUNT,
    HEAD,
    HOT,
    INSERT_ONLY,
    LATENESS,
    MAX_SEEN,
    PREVIOUS,
    QUERY_ONLY,
    RETENTION,
    SEQUENCE,
    TAIL,
    EventLog,
    after,
    drop_oldest,
    locate,
    observe_time,
    open_gap,
    sweeping,
    touch_chunk,
    touch_slot,
)
from anabranch.state.windows.hot_keys import COLD, COOLED, EDGE, HOT_FREE, HOTS_LEFT, free_hot
from anabranch.state.windows.panes import ALL_TERMS, PANE_COLUMNS, merge_record, start_record
from anabranch.state.windows.prefetch import prefetch_rows, prefetch_slot
from anabranch.state.windows.range_extremes import LAST_SEQUENCE, index_from, renumber
from anabranch.state.windows.running_sums import enter, make_hot, move_edge, slide_call
from anabranch.state.windows.specs import WindowSpec
from anabranch.state.windows.statistics import STATISTICS
from anabranch.state.windows.window_arrays import (
    BEST,
    ENDS,
    FIRST,
    PER_TERM,
    PER_WIDTH,
    PLAN,
    RESOLUTION,
    SIGN,
    START,
    SUMS,
    WIDTHS,
    WindowArrays,
)
from anabranch.state.windows.window_arrays import STATISTICS as STATISTIC_COUNT
from anabranch.state.windows.window_queries import query_cold, query_edge, query_late


@inlined
def expire(s: int, windows: WindowArrays) -> None:
    """Drop what no timely row can need any more; a key with few records left turns cold.

    The outcome depends on the rows before, not on how often it was called in between: so
    it is the same whether a key was swept or not.
    """
    log, meta = windows.log, windows.log.meta
    low = meta[MAX_SEEN] - meta[LATENESS]
    if meta[RESOLUTION] > 0:
        low //= meta[RESOLUTION]
    low -= meta[RETENTION]
    if log.slot[s, COUNT] <= 0 or log.ts[log.slot[s, HEAD]] > low:
        return
    hot = log.slot[s, HOT]
    if hot >= 0:
        for w in range(meta[WIDTHS]):
            start = windows.hoti[hot, FIRST + PER_WIDTH * w + START]
            if start >= 0 and log.ts[start] <= low:
                slide_call(hot, w, low, s, windows)
    while log.slot[s, COUNT] > 0 and log.ts[log.slot[s, HEAD]] <= low:
        drop_oldest(s, log)
    if hot >= 0 and log.slot[s, COUNT] <= COOLED:
        free_hot(hot, windows.hoti, meta)
        log.slot[s, HOT] = -1


@inlined
def insert(
    time: int, offset: int, value: float, later: int, last: int, s: int, windows: WindowArrays
) -> int:
    """Insert an event into the log and into the windows as of the edge; returns its position."""
    log, meta = windows.log, windows.log.meta
    slot, link, hoti = log.slot, log.link, windows.hoti
    hot = slot[s, HOT] if slot[s, COUNT] > 0 else -1
    merged = log.val.shape[1] >= PANE_COLUMNS and last >= 0 and log.ts[last] == time
    if merged:
        at = last
        merge_record(at, value, offset, len(windows.term_indices), log)
        touch_chunk(at >> 3, log)
    else:
        at = open_gap(later, s, log)
        log.ts[at] = time
        start_record(at, value, offset, len(windows.term_indices), log)
    chunk = at >> 3
    if link[slot[s, TAIL] >> 3, SEQUENCE] > LAST_SEQUENCE:
        renumber(s, log)
        chunk = slot[s, HEAD] >> 3
    if hot >= 0:
        if windows.tree.shape[1] > 0:
            if at & 7 == 0 and chunk != slot[s, HEAD] >> 3:
                chunk = link[chunk, PREVIOUS]
            if chunk != slot[s, TAIL] >> 3:
                index_from(chunk, s, meta[SIGN : SIGN + 2], log, windows.tree)
        sums = value_sums(value)
        for w in range(meta[WIDTHS]):
            start = FIRST + PER_WIDTH * w + START
            if time > hoti[hot, EDGE] - meta[PLAN + w]:
                # An event right before the start has taken its place: the start stays.
                enter(hot, w, at, sums, value, windows)
            elif not merged and hoti[hot, start] >= 0:
                hoti[hot, start] = after(link, hoti[hot, start])
    elif slot[s, COUNT] > COLD:
        if windows.tree.shape[1] > 0:
            index_from(slot[s, HEAD] >> 3, s, meta[SIGN : SIGN + 2], log, windows.tree)
        make_hot(s, windows)
    return at


@inlined
def _visit(s: int, windows: WindowArrays) -> None:
    prefetch_slot(s, windows.log)
    if windows.log.slot[s, COUNT] > 0:
        expire(s, windows)


_sweep = sweeping(_visit)


@kernel
def update_windows(
    row: int, slots: I64, times: I64, values: F64, mode: U8, out: F64, windows: WindowArrays
) -> int:
    """Process rows, see `AggregateState`."""
    log, meta = windows.log, windows.log.meta
    slot = log.slot
    rows = len(slots)
    while row < rows:
        if meta[CHUNKS_LEFT] < 1 or meta[HOTS_LEFT] < 1:
            return row
        prefetch_rows(row, slots, windows)
        s = slots[row]
        time = observe_time(times[row], mode[row], log)
        offset = 0
        if meta[RESOLUTION] > 0:
            pane = time // meta[RESOLUTION]
            offset = time - pane * meta[RESOLUTION]
            time = pane
        later, last = 0, -1
        if s >= 0:
            if slot[s, COUNT] > 0 and slot[s, HOT] >= 0:
                touch_slot(s, log)
                move_edge(slot[s, HOT], time, s, windows)
            expire(s, windows)
            later, last = locate(time, s, log)
        if mode[row] != QUERY_ONLY:
            last = insert(time, offset, values[row], later, last, s, windows)
        if mode[row] != INSERT_ONLY:
            if s < 0 or slot[s, COUNT] <= 0 or slot[s, HOT] < 0:
                head = slot[s, HEAD] if last >= 0 else -1
                query_cold(row, time, last, head, out, windows)
            elif time == windows.hoti[slot[s, HOT], EDGE]:
                query_edge(row, s, out, windows)
            else:
                query_late(row, time, last, later, s, out, windows)
        row += 1
    return rows + sweep_windows(rows, windows)


@kernel
def sweep_windows(rows: int, windows: WindowArrays) -> int:
    """Sweep idle keys, see `sweeping`."""
    return _sweep(rows, windows.log, windows)


class WindowState(AggregateState):
    """The windows of all keys of a shard, for one `WindowSpec`.

    Args:
        spec: what to compute.
        lateness_ms: how far behind the latest time a row may arrive and still be exact.
        column: of the output, where this aggregate's features begin.
    """

    def __init__(self, spec: WindowSpec, lateness_ms: int, column: int) -> None:
        resolution = spec.resolution_ms
        widths = [-(-w // resolution) if resolution else w for w in spec.widths_ms]
        statistics = [STATISTICS[stat] for stat in spec.stats]
        needs = frozenset().union(*(statistic.needs for statistic in statistics))
        signs = [sign for extreme, sign in (("max", 1), ("min", -1)) if extreme in needs]
        terms = [term for statistic in statistics for term in statistic.terms]
        plan = _plan(spec, widths)
        columns = PANE_COLUMNS + 2 * len(terms) if resolution else int(spec.value != "")
        log = EventLog(columns, np.float64, lateness_ms, max(widths), PLAN + len(plan))
        meta = log.meta
        meta[PLAN:] = plan
        meta[COLUMN], meta[HOT_FREE], meta[RESOLUTION] = column, -1, resolution
        meta[WIDTHS], meta[STATISTIC_COUNT] = len(widths), len(statistics)
        meta[SUMS], meta[ENDS] = "sums" in needs, "ends" in needs
        meta[SIGN : SIGN + len(signs)] = signs
        tree: F64 = np.zeros((0, len(signs)))
        cells = BEST + len(signs) + PER_TERM * len(terms)
        hotf: F64 = np.zeros((0, len(widths), cells))
        hoti: I64 = np.zeros((0, FIRST + PER_WIDTH * len(widths)), np.int64)
        super().__init__(
            log,
            spec.value,
            by_chunk={"agg": tree},
            by_hot={"hotf": hotf, "hoti": hoti},
            starts=range(FIRST + START, hoti.shape[1], PER_WIDTH),
        )
        scratch: F64 = np.zeros((2, len(terms)))
        arrays = WindowArrays(log.arrays, tree, hotf, hoti, scratch, tuple(range(len(terms))))
        self.use(update_windows, sweep_windows, arrays)


def _plan(spec: WindowSpec, widths: list[int]) -> list[int]:
    """The cells of `meta` from `PLAN` on, see `window_arrays`."""
    order = sorted(range(len(widths)), key=widths.__getitem__)
    names = list(STATISTICS)
    first_term: list[int] = []
    terms: list[int] = []
    for stat in spec.stats:
        first_term.append(len(terms))
        terms += [ALL_TERMS.index(term) for term in STATISTICS[stat].terms]
    numbers = [names.index(stat) for stat in spec.stats]
    return [widths[w] for w in order] + order + numbers + first_term + terms
