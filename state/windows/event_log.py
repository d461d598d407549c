"""The log: every key's events in order of time, in one set of arrays.

Each key has a chain of chunks of 8 records; all chains share the arrays, and a freed chunk is used
by whichever key needs one next. A *position* is `chunk * 8 + offset`. ::

    slot row   head ──┐                                          ┌── tail
                      ▼                                          ▼
    chunks     [ . . a b c d e f ] ⇄ [ g h i j k l m n ] ⇄ [ o p q . . . . . ]
                 dropped                                         ▲     free
    time       ──────────────────────────────────────────────────▶

Records are sorted by time, equal times by arrival. Appending is O(1). A late record is put where it
belongs by moving the `d` records after it one place to the right: O(d), whatever the window.

A kernel can't enlarge an array. It stops before a row for which room could be short, and returns
that row; Python enlarges, and calls it again from there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I32, I64, inlined, kernel

CHUNK = 8

# Columns of a slot row. COUNT is 0 for a slot without key, EMPTIED for a key without records.
HEAD, TAIL, COUNT, HOT = 0, 1, 2, 3
SLOT_COLUMNS = 4
EMPTIED = -1
# Columns of a chunk's links. SEQUENCE numbers a chain's chunks; JUMP belongs to `extremes`.
PREVIOUS, NEXT, SEQUENCE, JUMP = 0, 1, 2, 3
LINK_COLUMNS = 4
# The last column of both: 0 if not touched since the last commit, else 2 + the next touched one.
TOUCHED = 4
# Cells of `meta`, the int64 array in which a kernel finds its counters and its constants.
FREE, CHUNKS_LEFT, CHUNKS_USED, RECORDS = 0, 1, 2, 3
MAX_SEEN, LATE_ROWS, LATENESS, RETENTION = 4, 5, 6, 7
HAND, COLUMN, HELD = 8, 9, 10
# The slot and the chunk that were touched last, or -1.
TOUCHED_SLOTS, TOUCHED_CHUNKS = 11, 12
META = 13

# Whose times say how far time has come (the cell HELD): of rows that insert, of none, as others
# tell it, or of rows that only look.
BY_INSERTS, BY_OTHERS, BY_LOOKS = 0, 1, 2

# What a row does, in the `mode` array.
INSERT, QUERY_ONLY, INSERT_ONLY = 0, 1, 2

# Times are clamped to this, and durations are below half of it: no difference can wrap around.
TIME_LIMIT = 2**61


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
def touch_slot(s: int, slot: I32, meta: I64) -> None:
    """Note that slot `s` is no longer as it was committed."""
    if slot[s, TOUCHED] == 0:
        slot[s, TOUCHED] = meta[TOUCHED_SLOTS] + 2
        meta[TOUCHED_SLOTS] = s


@inlined
def touch_chunk(chunk: int, link: I32, meta: I64) -> None:
    """Note that a chunk is no longer as it was committed."""
    if link[chunk, TOUCHED] == 0:
        link[chunk, TOUCHED] = meta[TOUCHED_CHUNKS] + 2
        meta[TOUCHED_CHUNKS] = chunk


@inlined
def take_chunk(link: I32, meta: I64) -> int:
    """A free chunk; there must be one."""
    chunk = meta[FREE]
    if chunk >= 0:
        meta[FREE] = link[chunk, NEXT]
    else:
        chunk = meta[CHUNKS_USED]
        meta[CHUNKS_USED] += 1
    meta[CHUNKS_LEFT] -= 1
    touch_chunk(chunk, link, meta)
    return chunk  # type: ignore[no-any-return]


@inlined
def free_chunk(chunk: int, link: I32, meta: I64) -> None:
    """Hand a chunk back."""
    link[chunk, NEXT] = meta[FREE]
    meta[FREE] = chunk
    meta[CHUNKS_LEFT] += 1


@inlined
def open_gap(
    moved: int, s: int, slot: I32, ts: I64, val: NDArray[Any], link: I32, meta: I64
) -> int:
    """Make room for a record before the last `moved` ones of slot `s`; returns its position."""
    meta[RECORDS] += 1
    touch_slot(s, slot, meta)
    if slot[s, COUNT] <= 0:
        chunk = take_chunk(link, meta)
        link[chunk, SEQUENCE] = 1
        slot[s, HEAD] = slot[s, TAIL] = chunk * 8
        slot[s, COUNT] = 1
        slot[s, HOT] = -1
        return chunk * 8
    at = slot[s, TAIL] + 1
    if at & 7 == 0:
        last = slot[s, TAIL] >> 3
        chunk = take_chunk(link, meta)
        link[last, NEXT] = chunk
        touch_chunk(last, link, meta)
        link[chunk, PREVIOUS] = last
        link[chunk, SEQUENCE] = link[last, SEQUENCE] + 1
        at = chunk * 8
    slot[s, TAIL] = at
    slot[s, COUNT] += 1
    touch_chunk(at >> 3, link, meta)
    for _ in range(moved):
        source = before(link, at)
        ts[at] = ts[source]
        for column in range(val.shape[1]):
            val[at, column] = val[source, column]
        at = source
        touch_chunk(at >> 3, link, meta)
    return at  # type: ignore[no-any-return]


@inlined
def drop_first(s: int, slot: I32, link: I32, meta: I64) -> None:
    """Forget the oldest record of slot `s`, which must have one."""
    meta[RECORDS] -= 1
    touch_slot(s, slot, meta)
    head = slot[s, HEAD]
    if slot[s, COUNT] == 1:
        free_chunk(head >> 3, link, meta)
        slot[s, COUNT] = EMPTIED
        return
    slot[s, COUNT] -= 1
    slot[s, HEAD] = after(link, head)
    if head & 7 == 7:
        free_chunk(head >> 3, link, meta)


@inlined
def locate(time: int, s: int, slot: I32, ts: I64, link: I32) -> tuple[int, int]:
    """How many records of slot `s` are later than `time`, and the position of the one before them.

    The position is -1 when all are later, or when there is no record.
    """
    count = slot[s, COUNT]
    if count <= 0:
        return 0, -1
    at = slot[s, TAIL]
    later = 0
    while ts[at] > time:
        later += 1
        if later == count:
            return later, -1
        at = before(link, at)
    return later, at


@inlined
def watch(time: int, mode: int, meta: I64) -> int:
    """Take note of a row's time, and return it clamped; counts rows beyond the lateness.

    Where the log is held back, it is told by others how far time has come, or by rows that look.
    """
    time = min(max(time, -TIME_LIMIT), TIME_LIMIT)
    tells = BY_LOOKS if mode == QUERY_ONLY else BY_INSERTS
    if meta[HELD] == tells and time > meta[MAX_SEEN]:
        meta[MAX_SEEN] = time
    if time < meta[MAX_SEEN] - meta[LATENESS]:
        meta[LATE_ROWS] += 1
    return time


@inlined
def keep_latest(s: int, slot: I32, ts: I64, link: I32, meta: I64) -> None:
    """Drop the records of slot `s` that no timely row can ask for, when it asks for the latest one.

    That is: those with a successor that is before every timely row, and those beyond retention.
    """
    timely = meta[MAX_SEEN] - meta[LATENESS]
    while slot[s, COUNT] > 1 and ts[after(link, slot[s, HEAD])] <= timely:
        drop_first(s, slot, link, meta)
    while slot[s, COUNT] > 0 and ts[slot[s, HEAD]] <= timely - meta[RETENTION]:
        drop_first(s, slot, link, meta)


@kernel
def sweep_latest(rows: int, slot: I32, ts: I64, link: I32, meta: I64) -> int:
    """`keep_latest` for the next `2 * rows + 1` slots under the clock hand; how many are emptied.

    The two slots per row make the hand pass over all slots before the keys can have doubled.
    """
    steps = min(2 * rows + 1, slot.shape[0])
    s = meta[HAND]
    emptied = 0
    for _ in range(steps):
        if s >= slot.shape[0]:
            s = 0
        if slot[s, COUNT] > 0:
            keep_latest(s, slot, ts, link, meta)
        if slot[s, COUNT] == EMPTIED:
            emptied += 1
        s += 1
    meta[HAND] = s
    return emptied


class SlottedLog:
    """The arrays of a log, and their growth.

    Args:
        columns: values per record.
        dtype: of the values.
        lateness_ms: how far behind the latest time a row may come and still be exact.
        retention: how far back a timely row looks, in units of the log's times.
        meta_size: cells of `meta`, of which the first `META` are the log's.

    Attributes:
        slot: `(slots, 5) int32`: head, tail, count of records, index of the hot record or -1, and
            the chain of touched ones.
        ts: `(chunks * 8,) int64`, times.
        val: `(chunks * 8, columns)`, values.
        link: `(chunks, 5) int32`: previous chunk, next chunk, sequence number, jump, touched.
        meta: `(meta_size,) int64`, counters and constants.
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
        self._columns = columns

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(a.nbytes for a in (self.slot, self.ts, self.val, self.link, self.meta))

    def reserve_slots(self, slots: int) -> None:
        """Have at least `slots` slot rows; the number is the caller's, all logs have the same."""
        if slots > self.slot.shape[0]:
            self.slot.resize((slots, SLOT_COLUMNS + 1), refcheck=False)

    def grow(self) -> int:
        """Add a sixteenth to the chunks, in place; returns how many there are."""
        chunks = larger(self.link.shape[0])
        self.meta[CHUNKS_LEFT] += chunks - self.link.shape[0]
        self.ts.resize(chunks * CHUNK, refcheck=False)
        self.val.resize((chunks * CHUNK, self._columns), refcheck=False)
        self.link.resize((chunks, LINK_COLUMNS + 1), refcheck=False)
        return chunks


def larger(size: int) -> int:
    """The size to which a pool of `size` grows: small steps, since enlarging moves no memory.

    >>> larger(0), larger(1600)
    (64, 1700)
    """
    return size + max(64, size // 16)
