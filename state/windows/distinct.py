"""Number of distinct values in sliding windows, exactly, in any order of arrival.

A log of codes per key; a cold key's few records are compared with each other. A hot key counts
each code once per width, over `(edge - width, edge]`, and once for the whole log::

    log          a  b  a  c  b  b  d       counters    a  b  c  d
    whole log   └────────────────────                  2  3  1  1
    width               └────────────┤ edge            1  2  1  1   ▶ 4 distinct

A late event is answered by counting the later events out and the earlier ones in, and back again.
The counter of the whole log makes sure that there is an entry for each of them.
"""

from __future__ import annotations

import numpy as np

from anabranch.state.compile import F64, I32, I64, U8, inlined, kernel
from anabranch.state.store.delta import Delta
from anabranch.state.windows.distinct_counts import (
    DISTINCT,
    ENTRIES,
    FIRST,
    PER_WIDTH,
    PLAN,
    START,
    WIDTHS,
    cool,
    count,
    forget_code,
    heat,
    move_edge,
    recount,
    remember_code,
    slide,
)
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
    QUERY_ONLY,
    RETENTION,
    TAIL,
    SlottedLog,
    after,
    before,
    drop_first,
    locate,
    open_gap,
    touch_slot,
    watch,
)
from anabranch.state.windows.event_log_delta import changes_of, restore_log
from anabranch.state.windows.hot_keys import (
    COLD,
    COOLED,
    EDGE,
    HOT_FREE,
    HOTS_LEFT,
    reserve_hots,
    restore_hots,
)
from anabranch.state.windows.specs import DistinctSpec
from anabranch.state.windows.value_counts import find, rehash


@kernel
def expire(
    s: int, slot: I32, ts: I64, val: I64, link: I32, keys: I64, counts: I32, hoti: I64, meta: I64
) -> None:
    """Drop what no timely row can ask for any more; a key with few records left turns cold."""
    low = meta[MAX_SEEN] - meta[LATENESS] - meta[RETENTION]
    if slot[s, COUNT] <= 0 or ts[slot[s, HEAD]] > low:
        return
    hot = slot[s, HOT]
    if hot >= 0:
        for w in range(meta[WIDTHS]):
            slide(w, low, s, slot, ts, val, link, keys, counts, hoti)
    while slot[s, COUNT] > 0 and ts[slot[s, HEAD]] <= low:
        if hot >= 0:
            if slot[s, COUNT] <= COOLED:
                cool(s, slot, val, link, keys, counts, hoti, meta)
                hot = -1
            else:
                forget_code(hot, val[slot[s, HEAD], 0], keys, counts, meta)
        drop_first(s, slot, link, meta)
    if hot >= 0 and slot[s, COUNT] <= COOLED:
        cool(s, slot, val, link, keys, counts, hoti, meta)


@kernel
def answer_cold(
    row: int, time: int, last: int, head: int, out: F64, ts: I64, val: I64, link: I32, meta: I64
) -> None:
    """Answer as of `time` by comparing each record with those after it, back from `last`."""
    for w in range(meta[WIDTHS]):
        distinct = 0
        at = last
        while at >= 0 and ts[at] > time - meta[PLAN + w]:
            other = last
            while other != at and val[other, 0] != val[at, 0]:
                other = before(link, other)
            distinct += other == at
            at = -1 if at == head else before(link, at)
        out[row, meta[COLUMN] + meta[PLAN + meta[WIDTHS] + w]] = distinct


@kernel
def shift_window(
    w: int, time: int, later: int, direction: int, s: int, slot: I32, ts: I64,
    val: I64, link: I32, keys: I64, counts: I32, hoti: I64, meta: I64,
) -> None:  # fmt: skip
    """Turn width `w` from the edge back to `time` (direction 1), or undo that (direction -1)."""
    hot = slot[s, HOT]
    start = hoti[hot, FIRST + PER_WIDTH * w + START]
    at = slot[s, TAIL]
    for _ in range(later):
        count(hot, w, val[at, 0], -direction, keys, counts, hoti)
        at = before(link, at)
    at = -1 if start == slot[s, HEAD] else before(link, start)
    while at >= 0 and ts[at] > time - meta[PLAN + w]:
        count(hot, w, val[at, 0], direction, keys, counts, hoti)
        at = -1 if at == slot[s, HEAD] else before(link, at)


@kernel
def answer_late(
    row: int, time: int, last: int, later: int, s: int, out: F64, slot: I32, ts: I64, val: I64,
    link: I32, keys: I64, counts: I32, hoti: I64, meta: I64,
) -> None:  # fmt: skip
    """Answer as of `time` before the edge; `last` is the last record up to it, `later` follow."""
    hot = slot[s, HOT]
    spare = meta[WIDTHS]
    for w in range(meta[WIDTHS]):
        cell = FIRST + PER_WIDTH * w
        column = meta[COLUMN] + meta[PLAN + meta[WIDTHS] + w]
        start = hoti[hot, cell + START]
        if start >= 0 and ts[start] <= time:
            shift_window(w, time, later, 1, s, slot, ts, val, link, keys, counts, hoti, meta)
            out[row, column] = hoti[hot, cell + DISTINCT]
            shift_window(w, time, later, -1, s, slot, ts, val, link, keys, counts, hoti, meta)
            continue
        # The windows do not overlap: count afresh, in a column that is zero in between.
        distinct = 0
        for step in (1, -1):
            at = last
            while at >= 0 and ts[at] > time - meta[PLAN + w]:
                entry = find(hot, val[at, 0], keys)
                distinct += step == 1 and counts[entry, spare] == 0
                counts[entry, spare] += step
                at = -1 if at == slot[s, HEAD] else before(link, at)
        out[row, column] = distinct


@inlined
def insert(
    time: int, code: int, later: int, s: int, slot: I32, ts: I64, val: I64, link: I32, keys: I64,
    counts: I32, hoti: I64, meta: I64,
) -> int:  # fmt: skip
    """Put an event into the log and into the windows as of the edge; returns its position."""
    hot = slot[s, HOT] if slot[s, COUNT] > 0 else -1
    at = open_gap(later, s, slot, ts, val, link, meta)
    ts[at] = time
    val[at, 0] = code
    if hot >= 0:
        remember_code(hot, code, keys, counts, meta)
        for w in range(meta[WIDTHS]):
            cell = FIRST + PER_WIDTH * w + START
            if time > hoti[hot, EDGE] - meta[PLAN + w]:
                if hoti[hot, cell] < 0:
                    hoti[hot, cell] = at
                count(hot, w, code, 1, keys, counts, hoti)
            elif hoti[hot, cell] >= 0:
                hoti[hot, cell] = after(link, hoti[hot, cell])
    elif slot[s, COUNT] > COLD:
        heat(s, slot, ts, val, link, keys, counts, hoti, meta)
    return at


@kernel
def update_distinct(
    row: int, slots: I64, times: I64, codes: I64, mode: U8, out: F64, slot: I32, ts: I64,
    val: I64, link: I32, keys: I64, counts: I32, hoti: I64, meta: I64,
) -> int:  # fmt: skip
    """Work through the rows from `row` on; returns as `update_windows` does."""
    rows = len(slots)
    while row < rows:
        room = 2 * (meta[ENTRIES] + COLD + 2) < keys.shape[0]
        if meta[CHUNKS_LEFT] < 1 or meta[HOTS_LEFT] < 1 or not room:
            return row
        s = slots[row]
        time = watch(times[row], mode[row], meta)
        later, last = 0, -1
        if s >= 0:
            if slot[s, COUNT] > 0 and slot[s, HOT] >= 0:
                touch_slot(s, slot, meta)
                move_edge(time, s, slot, ts, val, link, keys, counts, hoti, meta)
            expire(s, slot, ts, val, link, keys, counts, hoti, meta)
            later, last = locate(time, s, slot, ts, link)
        if mode[row] != QUERY_ONLY:
            last = insert(time, codes[row], later, s, slot, ts, val, link, keys, counts, hoti, meta)
        if mode[row] != INSERT_ONLY:
            if s < 0 or slot[s, COUNT] <= 0 or slot[s, HOT] < 0:
                head = slot[s, HEAD] if last >= 0 else -1
                answer_cold(row, time, last, head, out, ts, val, link, meta)
            elif time == hoti[slot[s, HOT], EDGE]:
                for w in range(meta[WIDTHS]):
                    column = meta[COLUMN] + meta[PLAN + meta[WIDTHS] + w]
                    out[row, column] = hoti[slot[s, HOT], FIRST + PER_WIDTH * w + DISTINCT]
            else:
                answer_late(
                    row, time, last, later, s, out, slot, ts, val, link, keys, counts, hoti, meta
                )
        row += 1
    return rows + sweep_distinct(rows, slot, ts, val, link, keys, counts, hoti, meta)


@kernel
def sweep_distinct(
    rows: int, slot: I32, ts: I64, val: I64, link: I32, keys: I64, counts: I32, hoti: I64,
    meta: I64,
) -> int:  # fmt: skip
    """Expire the next `2 * rows + 1` slots under the clock hand; how many are emptied."""
    steps = min(2 * rows + 1, slot.shape[0])
    s = meta[HAND]
    emptied = 0
    for _ in range(steps):
        if s >= slot.shape[0]:
            s = 0
        if slot[s, COUNT] > 0:
            expire(s, slot, ts, val, link, keys, counts, hoti, meta)
        if slot[s, COUNT] == EMPTIED:
            emptied += 1
        s += 1
    meta[HAND] = s
    return emptied


class DistinctState:
    """The distinct counts of all keys of a shard, for one `DistinctSpec`.

    Args:
        spec: what to count.
        lateness_ms: how far behind the latest time a row may come and still be exact.
        column: of the output, where this aggregate's features begin.
    """

    dtype = np.int64

    def __init__(self, spec: DistinctSpec, lateness_ms: int, column: int) -> None:
        self.value = spec.value
        widths = len(spec.widths_ms)
        self.log = SlottedLog(1, np.int64, lateness_ms, spec.retention_ms, PLAN + 2 * widths)
        self.hoti: I64 = np.zeros((0, FIRST + PER_WIDTH * widths), np.int64)
        self.keys: I64 = np.zeros((64, 2), np.int64)
        self.counts: I32 = np.zeros((64, widths + 2), np.int32)
        meta = self.log.meta
        meta[COLUMN], meta[HOT_FREE], meta[WIDTHS] = column, -1, widths
        meta[PLAN:] = [*spec.widths_ms, *range(widths)]

    @property
    def starts(self) -> range:
        """The columns of `hoti` that are positions in the log."""
        return range(FIRST + START, self.hoti.shape[1], PER_WIDTH)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.log.nbytes + self.hoti.nbytes + self.keys.nbytes + self.counts.nbytes

    def update(self, slots: I64, times: I64, values: I64, mode: U8, out: F64) -> int:
        """Work through rows; returns how many emptied slots the sweep has seen."""
        log, rows, row = self.log, len(slots), 0
        while True:
            row = update_distinct(
                row, slots, times, values, mode, out, log.slot, log.ts, log.val, log.link,
                self.keys, self.counts, self.hoti, log.meta,
            )  # fmt: skip
            if row >= rows:
                return row - rows
            self._grow()

    def sweep(self, rows: int) -> int:
        """Sweep `2 * rows + 1` slots; returns how many are emptied."""
        log = self.log
        return sweep_distinct(
            rows, log.slot, log.ts, log.val, log.link, self.keys, self.counts, self.hoti, log.meta
        )

    def changes(self) -> Delta:
        """What was touched since the last call; the counters can be told from the log."""
        return changes_of(self.log, {}, {"hoti": self.hoti})

    def restore(self, image: Delta) -> None:
        """Read back into a fresh state what all calls of `changes` gave."""
        log = self.log
        restore_log(log, image)
        restore_hots(log, image, hoti=self.hoti)
        s = 0
        while s < log.slot.shape[0]:
            s = recount(s, log.slot, log.val, log.link, self.keys, self.counts, self.hoti, log.meta)
            if s < log.slot.shape[0]:
                self._grow_counters()

    def _grow(self) -> None:
        meta = self.log.meta
        if meta[CHUNKS_LEFT] < 1:
            self.log.grow()
        if meta[HOTS_LEFT] < 1:
            reserve_hots(self.hoti.shape[0] + 1, meta, self.hoti)
        if 2 * (meta[ENTRIES] + COLD + 2) >= len(self.keys):
            self._grow_counters()

    def _grow_counters(self) -> None:
        keys = np.zeros((2 * len(self.keys), 2), np.int64)
        counts = np.zeros((len(keys), self.counts.shape[1]), np.int32)
        rehash(self.keys, self.counts, keys, counts)
        self.keys, self.counts = keys, counts
