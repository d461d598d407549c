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

import numpy as np

from anabranch.state.compile import F64, I32, I64, U8, entry, inlined, kernel
from anabranch.state.store.delta import Delta
from anabranch.state.windows.double_double import value_sums
from anabranch.state.windows.event_log import (
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
    drop_first,
    locate,
    open_gap,
    touch_chunk,
    touch_slot,
    watch,
)
from anabranch.state.windows.event_log_delta import changes_of, restore_by_chunk, restore_log
from anabranch.state.windows.hot_keys import (
    COLD,
    COOLED,
    EDGE,
    HOT_FREE,
    HOTS_LEFT,
    free_hot,
    reserve_hots,
    restore_hots,
)
from anabranch.state.windows.panes import (
    PANE_COLUMNS,
    merge_record,
    start_record,
)
from anabranch.state.windows.range_extremes import LAST_SEQUENCE, renumber, seal_from
from anabranch.state.windows.running_sums import (
    BEST,
    ENDS,
    EXTREMES,
    FIRST,
    PER_WIDTH,
    PLAN,
    RESOLUTION,
    SIGN,
    START,
    STATISTICS,
    SUMS,
    WIDTHS,
    enter,
    heat,
    move_edge,
    slide_call,
)
from anabranch.state.windows.specs import WindowSpec
from anabranch.state.windows.statistics import CODES, S_EXTREME
from anabranch.state.windows.window_ahead import look_ahead, sweep_ahead
from anabranch.state.windows.window_queries import answer_cold, answer_edge, answer_late


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
        look_ahead(row, slots, slot, ts, val, link, hotf, hoti, meta)
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
        sweep_ahead(s, slot, ts)
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
        # They are enlarged in place, so these stay what the kernel works on.
        log = self.log
        self._arrays = (
            log.slot, log.ts, log.val, log.link, self.agg, self.hotf, self.hoti, meta,
        )  # fmt: skip
        rows = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.uint8)
        self._update = entry(update_windows, 0, *rows, np.zeros((0, 0)), *self._arrays)

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
        rows = len(slots)
        row = self._update(0, slots, times, values, mode, out, *self._arrays)
        while row < rows:
            self._grow()
            row = self._update(row, slots, times, values, mode, out, *self._arrays)
        return row - rows

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
        restore_hots(self.log, image, hoti=self.hoti, hotf=self.hotf)

    def _grow(self) -> None:
        meta = self.log.meta
        if meta[CHUNKS_LEFT] < 1:
            self.agg.resize((self.log.grow(), self.agg.shape[1]), refcheck=False)
        if meta[HOTS_LEFT] < 1:
            reserve_hots(self.hoti.shape[0] + 1, meta, self.hoti, self.hotf)
