"""The event log: every key's events in order of time, in one set of arrays.

Each key has a chain of chunks of 8 records; all chains share the arrays, and a freed chunk is
reused by whichever key needs one next. A *position* is `chunk * 8 + offset`. ::

    slot row   head ──┐                                          ┌── tail
                      ▼                                          ▼
    chunks     [ . . a b c d e f ] ⇄ [ g h i j k l m n ] ⇄ [ o p q . . . . . ]
                 expired                                         ▲     free
    time       ──────────────────────────────────────────────────▶

Records are sorted by time, equal times by arrival. Appending is O(1). A late record is inserted by
moving the `d` records after it one place to the right: O(d), whatever the window.

A kernel can't enlarge an array. It stops before a row for which space could run out and returns
that row; Python enlarges the arrays and calls it again from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anabranch.state.arrays import larger
from anabranch.state.compile import I32, I64, inlined, kernel

CHUNK = 8

# Columns of a slot row. COUNT is 0 for a slot without key, EMPTIED for a key without records.
HEAD, TAIL, COUNT, HOT = 0, 1, 2, 3
SLOT_COLUMNS = 4
EMPTIED = -1
# Columns of a chunk's links. SEQUENCE numbers a chain's chunks; JUMP belongs to `range_extremes`.
PREVIOUS, NEXT, SEQUENCE, JUMP = 0, 1, 2, 3
LINK_COLUMNS = 4
# The last column of both: 0 if unchanged since the last commit, else 2 + the next changed row.
TOUCHED = 4
# Cells of `meta`, the int64 array with the counters and constants of a kernel.
FREE, CHUNKS_LEFT, CHUNKS_USED, RECORDS = 0, 1, 2, 3
MAX_SEEN, LATE_ROWS, LATENESS, RETENTION = 4, 5, 6, 7
HAND, COLUMN, CLOCK = 8, 9, 10
# The slot and the chunk that were changed last, or -1.
TOUCHED_SLOTS, TOUCHED_CHUNKS = 11, 12
META = 13

# What advances event time (the cell CLOCK): rows that insert, a watermark set from outside, or
# rows that only query.
INSERT_CLOCK, WATERMARK_CLOCK, QUERY_CLOCK = 0, 1, 2

# What a row does, in the `mode` array.
INSERT, QUERY_ONLY, INSERT_ONLY = 0, 1, 2

# Times are clamped to this, and durations are below half of it: no difference can wrap around.
TIME_LIMIT = 2**61


class LogArrays(NamedTuple):
    """The arrays of a log, as kernels take them."""

    slot: I32
    """`(slots, 5)`: head, tail, count of records, index of the hot record or -1, touched."""
    ts: I64
    """`(chunks * 8,)`: times."""
    val: NDArray[Any]
    """`(chunks * 8, columns) float64` or int64: values."""
    link: I32
    """`(chunks, 5)`: previous chunk, next chunk, sequence number, jump, touched."""
    meta: I64
    """Counters and constants."""


@inlined
def before(link: I32, at: int) -> int:
    """The position before `at`, which must not be the head."""
    if at & 7:
        return at - 1
    return link[at >> 3, PREVIOUS] * 8 + 7  # type: ignore[no-any-return]


@inlined
def after(link: I32, at: int) -> int:
    """The position after `at`, which must not be the tail."""
    if at & 7 != 7:
        return at + 1
    return link[at >> 3, NEXT] * 8  # type: ignore[no-any-return]


@inlined
def touch_slot(s: int, log: LogArrays) -> None:
    """Mark slot `s` as changed since the last commit."""
    if log.slot[s, TOUCHED] == 0:
        log.slot[s, TOUCHED] = log.meta[TOUCHED_SLOTS] + 2
        log.meta[TOUCHED_SLOTS] = s


@inlined
def touch_chunk(chunk: int, log: LogArrays) -> None:
    """Mark a chunk as changed since the last commit."""
    if log.link[chunk, TOUCHED] == 0:
        log.link[chunk, TOUCHED] = log.meta[TOUCHED_CHUNKS] + 2
        log.meta[TOUCHED_CHUNKS] = chunk


@inlined
def allocate_chunk(log: LogArrays) -> int:
    """A free chunk; there must be one."""
    meta = log.meta
    chunk = meta[FREE]
    if chunk >= 0:
        meta[FREE] = log.link[chunk, NEXT]
    else:
        chunk = meta[CHUNKS_USED]
        meta[CHUNKS_USED] += 1
    meta[CHUNKS_LEFT] -= 1
    touch_chunk(chunk, log)
    return chunk  # type: ignore[no-any-return]


@inlined
def free_chunk(chunk: int, log: LogArrays) -> None:
    """Return a chunk to the free list."""
    log.link[chunk, NEXT] = log.meta[FREE]
    log.meta[FREE] = chunk
    log.meta[CHUNKS_LEFT] += 1


@inlined
def open_gap(moved: int, s: int, log: LogArrays) -> int:
    """Make space for a record before the last `moved` ones of slot `s`; returns its position."""
    slot, ts, val, link = log.slot, log.ts, log.val, log.link
    log.meta[RECORDS] += 1
    touch_slot(s, log)
    if slot[s, COUNT] <= 0:
        chunk = allocate_chunk(log)
        link[chunk, SEQUENCE] = 1
        slot[s, HEAD] = slot[s, TAIL] = chunk * 8
        slot[s, COUNT] = 1
        slot[s, HOT] = -1
        return chunk * 8
    at = slot[s, TAIL] + 1
    if at & 7 == 0:
        last = slot[s, TAIL] >> 3
        chunk = allocate_chunk(log)
        link[last, NEXT] = chunk
        touch_chunk(last, log)
        link[chunk, PREVIOUS] = last
        link[chunk, SEQUENCE] = link[last, SEQUENCE] + 1
        at = chunk * 8
    slot[s, TAIL] = at
    slot[s, COUNT] += 1
    touch_chunk(at >> 3, log)
    for _ in range(moved):
        source = before(link, at)
        ts[at] = ts[source]
        for column in range(val.shape[1]):
            val[at, column] = val[source, column]
        at = source
        touch_chunk(at >> 3, log)
    return at  # type: ignore[no-any-return]


@inlined
def drop_oldest(s: int, log: LogArrays) -> None:
    """Drop the oldest record of slot `s`, which must have one."""
    slot = log.slot
    log.meta[RECORDS] -= 1
    touch_slot(s, log)
    head = slot[s, HEAD]
    if slot[s, COUNT] == 1:
        free_chunk(head >> 3, log)
        slot[s, COUNT] = EMPTIED
        return
    slot[s, COUNT] -= 1
    slot[s, HEAD] = after(log.link, head)
    if head & 7 == 7:
        free_chunk(head >> 3, log)


@inlined
def locate(time: int, s: int, log: LogArrays) -> tuple[int, int]:
    """How many records of slot `s` are later than `time`, and the position of the one before them.

    The position is -1 when all are later, or when there is no record.
    """
    count = log.slot[s, COUNT]
    if count <= 0:
        return 0, -1
    at = log.slot[s, TAIL]
    later = 0
    while log.ts[at] > time:
        later += 1
        if later == count:
            return later, -1
        at = before(log.link, at)
    return later, at


@inlined
def observe_time(time: int, mode: int, log: LogArrays) -> int:
    """Clamp a row's time, advance event time by it if its kind of rows does (see `CLOCK`).

    Counts rows beyond the allowed lateness.
    """
    meta = log.meta
    time = min(max(time, -TIME_LIMIT), TIME_LIMIT)
    advances = QUERY_CLOCK if mode == QUERY_ONLY else INSERT_CLOCK
    if meta[CLOCK] == advances and time > meta[MAX_SEEN]:
        meta[MAX_SEEN] = time
    if time < meta[MAX_SEEN] - meta[LATENESS]:
        meta[LATE_ROWS] += 1
    return time


@inlined
def expire_all_but_latest(s: int, log: LogArrays) -> None:
    """Drop the records of slot `s` that no timely row needs, where a row needs only the latest.

    That is: those with a successor that is before every timely row, and those beyond retention.
    """
    timely = log.meta[MAX_SEEN] - log.meta[LATENESS]
    while log.slot[s, COUNT] > 1 and log.ts[after(log.link, log.slot[s, HEAD])] <= timely:
        drop_oldest(s, log)
    while log.slot[s, COUNT] > 0 and log.ts[log.slot[s, HEAD]] <= timely - log.meta[RETENTION]:
        drop_oldest(s, log)


def sweeping(visit: Callable[[int, Any], None]) -> Callable[[int, LogArrays, Any], int]:
    """An inlined kernel `(rows, log, state)` that sweeps idle keys, a few slots per call.

    It calls `visit(s, state)`, which expires old records, for the next `2 * rows + 1` slots under
    the clock hand, and returns how many of these are emptied. Two slots per row make the hand pass
    over all slots before the keys can have doubled.
    """

    @inlined
    def sweep(rows: int, log: LogArrays, state: Any) -> int:
        steps = min(2 * rows + 1, log.slot.shape[0])
        s = log.meta[HAND]
        emptied = 0
        for _ in range(steps):
            if s >= log.slot.shape[0]:
                s = 0
            visit(s, state)
            if log.slot[s, COUNT] == EMPTIED:
                emptied += 1
            s += 1
        log.meta[HAND] = s
        return emptied

    return sweep


@inlined
def _visit_latest(s: int, log: LogArrays) -> None:
    if log.slot[s, COUNT] > 0:
        expire_all_but_latest(s, log)


_sweep_latest = sweeping(_visit_latest)


@kernel
def sweep_latest(rows: int, log: LogArrays) -> int:
    """Sweep a log of which rows need only the latest record; see `sweeping`."""
    return _sweep_latest(rows, log, log)


class EventLog:
    """The arrays of a log, and their growth.

    Args:
        columns: values per record.
        dtype: of the values.
        lateness_ms: how far behind the latest time a row may arrive and still be exact.
        retention: how far back a timely row looks, in units of the log's times.
        meta_size: cells of `meta`, of which the first `META` are the log's.

    Attributes:
        arrays: what kernels take. They are enlarged in place, so it stays valid.
        slot, ts, val, link, meta: see `LogArrays`.
    """

    def __init__(
        self,
        columns: int,
        dtype: type[np.float64] | type[np.int64],
        lateness_ms: int,
        retention: int,
        meta_size: int = META,
    ) -> None:
        self.slot: I32 = np.zeros((0, SLOT_COLUMNS + 1), np.int32)
        self.ts: I64 = np.zeros(0, np.int64)
        self.val: NDArray[Any] = np.zeros((0, columns), dtype)
        self.link: I32 = np.zeros((0, LINK_COLUMNS + 1), np.int32)
        self.meta: I64 = np.zeros(meta_size, np.int64)
        self.meta[[FREE, TOUCHED_SLOTS, TOUCHED_CHUNKS]] = -1
        self.meta[MAX_SEEN] = -TIME_LIMIT
        self.meta[LATENESS] = lateness_ms
        self.meta[RETENTION] = retention
        self.arrays = LogArrays(self.slot, self.ts, self.val, self.link, self.meta)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(array.nbytes for array in self.arrays)

    def reserve_slots(self, slots: int) -> None:
        """Have at least `slots` slot rows, the same number as all other logs of the entity."""
        if slots > self.slot.shape[0]:
            self.slot.resize((slots, SLOT_COLUMNS + 1), refcheck=False)

    def grow(self) -> int:
        """Add a sixteenth to the chunks, in place; returns how many there are."""
        chunks = larger(self.link.shape[0])
        self.meta[CHUNKS_LEFT] += chunks - self.link.shape[0]
        self.ts.resize(chunks * CHUNK, refcheck=False)
        self.val.resize((chunks * CHUNK, self.val.shape[1]), refcheck=False)
        self.link.resize((chunks, LINK_COLUMNS + 1), refcheck=False)
        return chunks
