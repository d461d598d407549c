"""Exact sliding windows: the features of an event as of its own time, in any order of arrival.

::

    arrival      1   2   3   5   6   4 (late)
    time    ─────●───●───●───●───●──▶
                         ▲ 4 belongs here
    4 is given   └───────┤           (t - w, t]: 1 2 3 and itself, not 5 and 6
    next event       └───────────────┤  sees 4, in its place

In order an event costs amortised O(1) (`running`); min and max take O(log n) when the extreme
itself leaves a window, and nothing otherwise (`extremes`). A late event costs O(d + e), with d the
events of its key after its time, and e those between the left edges of its windows and of the
latest ones.
"""

from __future__ import annotations

import math

import numpy as np

from state.aggregates import WindowSpec
from state.compile import F64, I32, I64, U8, inlined, kernel
from state.delta import Delta
from state.double_double import dd_add, value_sums
from state.extremes import LAST_SEQUENCE, range_extreme, renumber, seal_from
from state.log import (
    CHUNKS_LEFT,
    COLUMN,
    COUNT,
    EMPTIED,
    HAND,
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
    SlottedLog,
    after,
    before,
    drop_first,
    larger,
    locate,
    open_gap,
    touch_chunk,
    touch_slot,
    watch,
)
from state.log_changes import (
    chain_free_hots,
    changes_of,
    hots_needed,
    restore_by_chunk,
    restore_log,
)
from state.panes import (
    PANE_COLUMNS,
    merge_record,
    record_extreme,
    record_first,
    record_last,
    record_sums,
    start_record,
)
from state.running import (
    BEST,
    COLD,
    COOLED,
    EDGE,
    ENDS,
    EVENTS,
    EXTREMES,
    FIRST,
    HOT_FREE,
    HOTS_LEFT,
    HOTS_USED,
    HUGES,
    PER_WIDTH,
    PLAN,
    RESOLUTION,
    S1H,
    S1L,
    S2H,
    S2L,
    SIGN,
    START,
    STATISTICS,
    SUMS,
    WIDTHS,
    enter,
    free_hot,
    heat,
    late_sums,
    move_edge,
    slide_call,
    sum_last,
)
from state.statistic import CODES, S_EXTREME, emit


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


@inlined
def expire(
    s: int, slot: I32, ts: I64, val: F64, link: I32, agg: F64, hotf: F64, hoti: I64, meta: I64
) -> None:
    """Drop what no timely row can ask for any more; a key with few records left turns cold.

    The outcome depends on the rows that came before, not on how often it was called in between: so
    it is the same whether a key was swept or not.
    """
    low = meta[MAX_SEEN] - meta[LATENESS]
    if meta[RESOLUTION] > 0:
        low //= meta[RESOLUTION]
    low -= meta[RETENTION]
    if slot[s, COUNT] <= 0 or ts[slot[s, HEAD]] > low:
        return
    hot = slot[s, HOT]
    if hot >= 0:
        for w in range(meta[WIDTHS]):
            start = hoti[hot, FIRST + PER_WIDTH * w + START]
            if start >= 0 and ts[start] <= low:
                slide_call(hot, w, low, s, slot, ts, val, link, agg, hotf, hoti, meta)
    while slot[s, COUNT] > 0 and ts[slot[s, HEAD]] <= low:
        drop_first(s, slot, link, meta)
    if hot >= 0 and slot[s, COUNT] <= COOLED:
        free_hot(hot, hoti, meta)
        slot[s, HOT] = -1


@inlined
def insert(
    time: int, offset: int, value: float, later: int, last: int, s: int, slot: I32, ts: I64,
    val: F64, link: I32, agg: F64, hotf: F64, hoti: I64, meta: I64,
) -> int:  # fmt: skip
    """Put an event into the log and into the windows as of the edge; returns its position."""
    hot = slot[s, HOT] if slot[s, COUNT] > 0 else -1
    merged = val.shape[1] == PANE_COLUMNS and last >= 0 and ts[last] == time
    if merged:
        at = last
        merge_record(val, at, value, offset)
        touch_chunk(at >> 3, link, meta)
    else:
        at = open_gap(later, s, slot, ts, val, link, meta)
        ts[at] = time
        start_record(val, at, value, offset)
    chunk = at >> 3
    if link[slot[s, TAIL] >> 3, SEQUENCE] > LAST_SEQUENCE:
        renumber(s, slot, link, meta)
        chunk = slot[s, HEAD] >> 3
    if hot >= 0:
        if agg.shape[1] > 0:
            if at & 7 == 0 and chunk != slot[s, HEAD] >> 3:
                chunk = link[chunk, PREVIOUS]
            seal_from(chunk, s, meta[SIGN : SIGN + 2], slot, val, link, agg, meta)
        sums = value_sums(value)
        for w in range(meta[WIDTHS]):
            start = FIRST + PER_WIDTH * w + START
            if time > hoti[hot, EDGE] - meta[PLAN + w]:
                # An event right before the start has taken its place: the start stays.
                enter(hot, w, at, sums, value, hotf, hoti, meta)
            elif not merged and hoti[hot, start] >= 0:
                hoti[hot, start] = after(link, hoti[hot, start])
    elif slot[s, COUNT] > COLD:
        if agg.shape[1] > 0:
            first = slot[s, HEAD] >> 3
            seal_from(first, s, meta[SIGN : SIGN + 2], slot, val, link, agg, meta)
        heat(s, slot, ts, val, link, agg, hotf, hoti, meta)
    return at


@kernel
def update_windows(
    row: int, slots: I64, times: I64, values: F64, mode: U8, out: F64, slot: I32, ts: I64,
    val: F64, link: I32, agg: F64, hotf: F64, hoti: I64, meta: I64,
) -> int:  # fmt: skip
    """Work through the rows from `row` on, in order, then sweep some idle keys.

    Returns the row at which an array was full, to be called again from there; or the number of
    rows, plus the number of slots that the sweep found emptied.
    """
    rows = len(slots)
    while row < rows:
        if meta[CHUNKS_LEFT] < 1 or meta[HOTS_LEFT] < 1:
            return row
        s = slots[row]
        time = watch(times[row], mode[row], meta)
        offset = 0
        if meta[RESOLUTION] > 0:
            pane = time // meta[RESOLUTION]
            offset = time - pane * meta[RESOLUTION]
            time = pane
        later, last = 0, -1
        if s >= 0:
            if slot[s, COUNT] > 0 and slot[s, HOT] >= 0:
                touch_slot(s, slot, meta)
                move_edge(slot[s, HOT], time, s, slot, ts, val, link, agg, hotf, hoti, meta)
            expire(s, slot, ts, val, link, agg, hotf, hoti, meta)
            later, last = locate(time, s, slot, ts, link)
        if mode[row] != QUERY_ONLY:
            last = insert(
                time, offset, values[row], later, last, s, slot, ts, val, link, agg, hotf, hoti,
                meta,
            )  # fmt: skip
        if mode[row] != INSERT_ONLY:
            if s < 0 or slot[s, COUNT] <= 0 or slot[s, HOT] < 0:
                head = slot[s, HEAD] if last >= 0 else -1
                answer_cold(row, time, last, head, out, ts, val, link, meta)
            elif time == hoti[slot[s, HOT], EDGE]:
                answer_edge(row, s, out, slot, val, hotf, hoti, meta)
            else:
                answer_late(
                    row, time, last, later, s, out, slot, ts, val, link, agg, hotf, hoti, meta
                )
        row += 1
    return rows + sweep_windows(rows, slot, ts, val, link, agg, hotf, hoti, meta)


@kernel
def sweep_windows(
    rows: int, slot: I32, ts: I64, val: F64, link: I32, agg: F64, hotf: F64, hoti: I64, meta: I64
) -> int:
    """Expire the next `2 * rows + 1` slots under the clock hand; how many are emptied."""
    steps = min(2 * rows + 1, slot.shape[0])
    s = meta[HAND]
    emptied = 0
    for _ in range(steps):
        if s >= slot.shape[0]:
            s = 0
        if slot[s, COUNT] > 0:
            expire(s, slot, ts, val, link, agg, hotf, hoti, meta)
        if slot[s, COUNT] == EMPTIED:
            emptied += 1
        s += 1
    meta[HAND] = s
    return emptied


class WindowState:
    """The windows of all keys of a shard, for one `WindowSpec`.

    Args:
        spec: what to compute.
        lateness_ms: how far behind the latest time a row may come and still be exact.
        column: of the output, where this aggregate's features begin.
    """

    dtype = np.float64

    def __init__(self, spec: WindowSpec, lateness_ms: int, column: int) -> None:
        self.value = spec.value
        resolution = spec.resolution_ms
        widths = [-(-w // resolution) if resolution else w for w in spec.widths_ms]
        order = sorted(range(len(widths)), key=widths.__getitem__)
        signs = [sign for stat, sign in (("max", 1), ("min", -1)) if stat in spec.stats]
        extremes = {"max": 0, "min": len(signs) - 1}
        stats = [
            S_EXTREME + extremes[stat] if stat in extremes else CODES.index(stat)
            for stat in spec.stats
        ]
        plan = [widths[w] for w in order] + order + stats
        columns = PANE_COLUMNS if resolution else int(spec.value != "")
        self.log = SlottedLog(columns, np.float64, lateness_ms, max(widths), PLAN + len(plan))
        self.agg: F64 = np.zeros((0, len(signs)))
        self.hotf: F64 = np.zeros((0, len(widths), BEST + len(signs)))
        self.hoti: I64 = np.zeros((0, FIRST + PER_WIDTH * len(widths)), np.int64)
        meta = self.log.meta
        meta[PLAN:] = plan
        meta[COLUMN], meta[HOT_FREE], meta[RESOLUTION] = column, -1, resolution
        meta[WIDTHS], meta[STATISTICS], meta[EXTREMES] = len(widths), len(stats), len(signs)
        meta[SUMS] = bool({"sum", "mean", "std", "var"} & set(spec.stats))
        meta[ENDS] = bool({"first", "last"} & set(spec.stats))
        meta[SIGN : SIGN + len(signs)] = signs

    @property
    def starts(self) -> range:
        """The columns of `hoti` that are positions in the log."""
        return range(FIRST + START, self.hoti.shape[1], PER_WIDTH)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.log.nbytes + self.agg.nbytes + self.hotf.nbytes + self.hoti.nbytes

    def update(self, slots: I64, times: I64, values: F64, mode: U8, out: F64) -> int:
        """Work through rows; returns how many emptied slots the sweep has seen."""
        log, rows, row = self.log, len(slots), 0
        while True:
            row = update_windows(
                row, slots, times, values, mode, out, log.slot, log.ts, log.val, log.link,
                self.agg, self.hotf, self.hoti, log.meta,
            )  # fmt: skip
            if row >= rows:
                return row - rows
            self._grow()

    def sweep(self, rows: int) -> int:
        """Sweep `2 * rows + 1` slots; returns how many are emptied."""
        log = self.log
        return sweep_windows(
            rows, log.slot, log.ts, log.val, log.link, self.agg, self.hotf, self.hoti, log.meta
        )

    def changes(self) -> Delta:
        """What was touched since the last call."""
        by_hot = {"hotf": self.hotf, "hoti": self.hoti}
        return changes_of(self.log, {"agg": self.agg}, by_hot)

    def restore(self, image: Delta) -> None:
        """Read back into a fresh state what all calls of `changes` gave."""
        restore_log(self.log, image)
        self.agg.resize((self.log.link.shape[0], self.agg.shape[1]), refcheck=False)
        restore_by_chunk(self.agg, "agg", image)
        self._reserve_hots(hots_needed(image))
        hots = image.rows["hots"]
        self.hotf[hots.index], self.hoti[hots.index] = hots.columns["hotf"], hots.columns["hoti"]
        chain_free_hots(self.log, self.hoti, (HOT_FREE, HOTS_LEFT, HOTS_USED))

    def _grow(self) -> None:
        meta = self.log.meta
        if meta[CHUNKS_LEFT] < 1:
            self.agg.resize((self.log.grow(), self.agg.shape[1]), refcheck=False)
        if meta[HOTS_LEFT] < 1:
            self._reserve_hots(self.hoti.shape[0] + 1)

    def _reserve_hots(self, needed: int) -> None:
        """Have at least so many hot records."""
        hots = self.hoti.shape[0]
        while hots < needed:
            hots = larger(hots)
        self.log.meta[HOTS_LEFT] += hots - self.hoti.shape[0]
        self.hotf.resize((hots, *self.hotf.shape[1:]), refcheck=False)
        self.hoti.resize((hots, self.hoti.shape[1]), refcheck=False)
