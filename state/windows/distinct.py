"""Number of distinct values in sliding windows, exactly, in any order of arrival.

Each key has a log of codes; a cold key's few records are compared with each other. For a hot key
each code is counted once per width, over `(edge - width, edge]`, and once for the whole log::

    log          a  b  a  c  b  b  d       counters    a  b  c  d
    whole log   └────────────────────                  2  3  1  1
    width               └────────────┤ edge            1  2  1  1   ▶ 4 distinct

For a late event the later events are counted out and the earlier ones in, and back again. The
counter of the whole log ensures that there is an entry for each of them.
"""

from __future__ import annotations

import numpy as np

from anabranch.state.compile import F64, I32, I64, U8, inlined, kernel
from anabranch.state.store.delta import Delta
from anabranch.state.windows.aggregate_state import AggregateState
from anabranch.state.windows.distinct_counts import (
    DISTINCT,
    ENTRIES,
    FIRST,
    PER_WIDTH,
    PLAN,
    START,
    WIDTHS,
    DistinctArrays,
    add_to_log,
    count,
    make_cold,
    make_hot,
    move_edge,
    recount,
    remove_from_log,
    slide,
)
from anabranch.state.windows.event_log import (
    CHUNKS_LEFT,
    COLUMN,
    COUNT,
    HEAD,
    HOT,
    INSERT_ONLY,
    LATENESS,
    MAX_SEEN,
    QUERY_ONLY,
    RETENTION,
    TAIL,
    EventLog,
    LogArrays,
    after,
    before,
    drop_oldest,
    locate,
    observe_time,
    open_gap,
    sweeping,
    touch_slot,
)
from anabranch.state.windows.hot_keys import COLD, COOLED, EDGE, HOT_FREE, HOTS_LEFT
from anabranch.state.windows.specs import DistinctSpec
from anabranch.state.windows.value_counts import find, rehash


@kernel
def expire(s: int, distinct: DistinctArrays) -> None:
    """Drop what no timely row can need any more; a key with few records left turns cold."""
    log, meta = distinct.log, distinct.log.meta
    low = meta[MAX_SEEN] - meta[LATENESS] - meta[RETENTION]
    if log.slot[s, COUNT] <= 0 or log.ts[log.slot[s, HEAD]] > low:
        return
    hot = log.slot[s, HOT]
    if hot >= 0:
        for w in range(meta[WIDTHS]):
            slide(w, low, s, distinct)
    while log.slot[s, COUNT] > 0 and log.ts[log.slot[s, HEAD]] <= low:
        if hot >= 0:
            if log.slot[s, COUNT] <= COOLED:
                make_cold(s, distinct)
                hot = -1
            else:
                code = log.val[log.slot[s, HEAD], 0]
                remove_from_log(hot, code, distinct.keys, distinct.counts, meta)
        drop_oldest(s, log)
    if hot >= 0 and log.slot[s, COUNT] <= COOLED:
        make_cold(s, distinct)


@kernel
def query_cold(row: int, time: int, last: int, head: int, out: F64, log: LogArrays) -> None:
    """Count as of `time` by comparing each record with those after it, back from `last`."""
    meta, val = log.meta, log.val
    for w in range(meta[WIDTHS]):
        different = 0
        at = last
        while at >= 0 and log.ts[at] > time - meta[PLAN + w]:
            other = last
            while other != at and val[other, 0] != val[at, 0]:
                other = before(log.link, other)
            different += other == at
            at = -1 if at == head else before(log.link, at)
        out[row, meta[COLUMN] + meta[PLAN + meta[WIDTHS] + w]] = different


@kernel
def shift_window(
    w: int, time: int, later: int, direction: int, s: int, distinct: DistinctArrays
) -> None:
    """Turn width `w` from the edge back to `time` (direction 1), or undo that (direction -1)."""
    log, meta = distinct.log, distinct.log.meta
    hot, head = log.slot[s, HOT], log.slot[s, HEAD]
    start = distinct.hoti[hot, FIRST + PER_WIDTH * w + START]
    at = log.slot[s, TAIL]
    for _ in range(later):
        count(hot, w, log.val[at, 0], -direction, distinct)
        at = before(log.link, at)
    at = -1 if start == head else before(log.link, start)
    while at >= 0 and log.ts[at] > time - meta[PLAN + w]:
        count(hot, w, log.val[at, 0], direction, distinct)
        at = -1 if at == head else before(log.link, at)


@kernel
def query_late(
    row: int, time: int, last: int, later: int, s: int, out: F64, distinct: DistinctArrays
) -> None:
    """Count as of `time` before the edge; `last` is the last record up to it, `later` follow."""
    log, hoti, meta = distinct.log, distinct.hoti, distinct.log.meta
    hot = log.slot[s, HOT]
    spare = meta[WIDTHS]
    for w in range(meta[WIDTHS]):
        cell = FIRST + PER_WIDTH * w
        column = meta[COLUMN] + meta[PLAN + meta[WIDTHS] + w]
        start = hoti[hot, cell + START]
        if start >= 0 and log.ts[start] <= time:
            shift_window(w, time, later, 1, s, distinct)
            out[row, column] = hoti[hot, cell + DISTINCT]
            shift_window(w, time, later, -1, s, distinct)
            continue
        # The windows do not overlap: count again, in a column that is zero in between.
        different = 0
        for step in (1, -1):
            at = last
            while at >= 0 and log.ts[at] > time - meta[PLAN + w]:
                entry = find(hot, log.val[at, 0], distinct.keys)
                different += step == 1 and distinct.counts[entry, spare] == 0
                distinct.counts[entry, spare] += step
                at = -1 if at == log.slot[s, HEAD] else before(log.link, at)
        out[row, column] = different


@inlined
def insert(time: int, code: int, later: int, s: int, distinct: DistinctArrays) -> int:
    """Insert an event into the log and into the windows as of the edge; returns its position."""
    log, hoti, meta = distinct.log, distinct.hoti, distinct.log.meta
    hot = log.slot[s, HOT] if log.slot[s, COUNT] > 0 else -1
    at = open_gap(later, s, log)
    log.ts[at] = time
    log.val[at, 0] = code
    if hot >= 0:
        add_to_log(hot, code, distinct.keys, distinct.counts, meta)
        for w in range(meta[WIDTHS]):
            cell = FIRST + PER_WIDTH * w + START
            if time > hoti[hot, EDGE] - meta[PLAN + w]:
                if hoti[hot, cell] < 0:
                    hoti[hot, cell] = at
                count(hot, w, code, 1, distinct)
            elif hoti[hot, cell] >= 0:
                hoti[hot, cell] = after(log.link, hoti[hot, cell])
    elif log.slot[s, COUNT] > COLD:
        make_hot(s, distinct)
    return at


@inlined
def _visit(s: int, distinct: DistinctArrays) -> None:
    if distinct.log.slot[s, COUNT] > 0:
        expire(s, distinct)


_sweep = sweeping(_visit)


@kernel
def update_distinct(
    row: int, slots: I64, times: I64, codes: I64, mode: U8, out: F64, distinct: DistinctArrays
) -> int:
    """Process rows, see `AggregateState`."""
    log, hoti, meta = distinct.log, distinct.hoti, distinct.log.meta
    slot = log.slot
    rows = len(slots)
    while row < rows:
        fits = 2 * (meta[ENTRIES] + COLD + 2) < distinct.keys.shape[0]
        if meta[CHUNKS_LEFT] < 1 or meta[HOTS_LEFT] < 1 or not fits:
            return row
        s = slots[row]
        time = observe_time(times[row], mode[row], log)
        later, last = 0, -1
        if s >= 0:
            if slot[s, COUNT] > 0 and slot[s, HOT] >= 0:
                touch_slot(s, log)
                move_edge(time, s, distinct)
            expire(s, distinct)
            later, last = locate(time, s, log)
        if mode[row] != QUERY_ONLY:
            last = insert(time, codes[row], later, s, distinct)
        if mode[row] != INSERT_ONLY:
            if s < 0 or slot[s, COUNT] <= 0 or slot[s, HOT] < 0:
                head = slot[s, HEAD] if last >= 0 else -1
                query_cold(row, time, last, head, out, log)
            elif time == hoti[slot[s, HOT], EDGE]:
                for w in range(meta[WIDTHS]):
                    column = meta[COLUMN] + meta[PLAN + meta[WIDTHS] + w]
                    out[row, column] = hoti[slot[s, HOT], FIRST + PER_WIDTH * w + DISTINCT]
            else:
                query_late(row, time, last, later, s, out, distinct)
        row += 1
    return rows + sweep_distinct(rows, distinct)


@kernel
def sweep_distinct(rows: int, distinct: DistinctArrays) -> int:
    """Sweep idle keys, see `sweeping`."""
    return _sweep(rows, distinct.log, distinct)


class DistinctState(AggregateState):
    """The distinct counts of all keys of a shard, for one `DistinctSpec`.

    Args:
        spec: what to count.
        lateness_ms: how far behind the latest time a row may arrive and still be exact.
        column: of the output, where this aggregate's features begin.
    """

    def __init__(self, spec: DistinctSpec, lateness_ms: int, column: int) -> None:
        widths = len(spec.widths_ms)
        log = EventLog(1, np.int64, lateness_ms, spec.retention_ms, PLAN + 2 * widths)
        log.meta[COLUMN], log.meta[HOT_FREE], log.meta[WIDTHS] = column, -1, widths
        log.meta[PLAN:] = [*spec.widths_ms, *range(widths)]
        hoti: I64 = np.zeros((0, FIRST + PER_WIDTH * widths), np.int64)
        starts = range(FIRST + START, hoti.shape[1], PER_WIDTH)
        super().__init__(log, spec.value, by_hot={"hoti": hoti}, starts=starts)
        keys: I64 = np.zeros((64, 2), np.int64)
        counts: I32 = np.zeros((64, widths + 2), np.int32)
        arrays = DistinctArrays(log.arrays, hoti, keys, counts)
        self.use(update_distinct, sweep_distinct, arrays, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        counters: DistinctArrays = self.arrays
        return super().nbytes + counters.keys.nbytes + counters.counts.nbytes

    def restore(self, image: Delta) -> None:
        """Restore into a new state what all calls of `changes` returned; counters are rebuilt."""
        super().restore(image)
        s, slots = 0, self.log.slot.shape[0]
        while s < slots:
            s = recount(s, self.arrays)
            if s < slots:
                self._grow_counters()

    def grow(self) -> None:
        """Enlarge the arrays that are full."""
        super().grow()
        if 2 * (self.log.meta[ENTRIES] + COLD + 2) >= len(self.arrays.keys):
            self._grow_counters()

    def _grow_counters(self) -> None:
        old = self.arrays
        keys = np.zeros((2 * len(old.keys), 2), np.int64)
        counts = np.zeros((len(keys), old.counts.shape[1]), np.int32)
        rehash(old.keys, old.counts, keys, counts)
        self.arrays = old._replace(keys=keys, counts=counts)
