"""Persistence of a log: what a commit writes, and how it is restored.

Kernels link the slots and chunks that they change into lists (`state.windows.event_log.TOUCHED`),
so the cost of a commit is proportional to what changed::

    slots    head, tail, count, hot record      of every touched slot
    chunks   times, values, links, extremes     of every touched chunk
    hots     running sums                       of every touched slot that is hot

Rows are restored to their old places, so that all positions stay valid. Chunks that no chain
reaches are free; free lists and counters are rebuilt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I32, I64, U8, kernel
from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta, Rows
from anabranch.state.windows.event_log import (
    CHUNK,
    CHUNKS_LEFT,
    CHUNKS_USED,
    COUNT,
    FREE,
    HAND,
    HEAD,
    HOT,
    LATE_ROWS,
    LINK_COLUMNS,
    MAX_SEEN,
    NEXT,
    RECORDS,
    SLOT_COLUMNS,
    TAIL,
    TOUCHED,
    TOUCHED_CHUNKS,
    TOUCHED_SLOTS,
    EventLog,
    LogArrays,
    touch_slot,
)

_PERSISTENT = [MAX_SEEN, LATE_ROWS, HAND]
# Following a list waits for memory at each step, as long as a scan takes for so many rows.
_ROWS_PER_STEP = 64
Columns = Mapping[str, NDArray[Any]]


@kernel
def count_touched(first: int, table: I32, most: int) -> int:
    """Length of the list of touched rows that starts at `first`; above `most`, `most` + 1."""
    count = 0
    while first >= 0 and count <= most:
        first = table[first, TOUCHED] - 2
        count += 1
    return count


@kernel
def collect_touched(first: int, table: I32, out: I64) -> None:
    """Write the list of touched rows to `out`, and clear it."""
    for i in range(out.shape[0]):
        out[i] = first
        following = table[first, TOUCHED] - 2
        table[first, TOUCHED] = 0
        first = following


@kernel
def mark_reachable(slot: I32, link: I32, used: U8) -> int:
    """Set `used` for all chunks in a chain; returns the records, -1 if one is broken."""
    records = 0
    for s in range(slot.shape[0]):
        if slot[s, COUNT] <= 0:
            continue
        records += slot[s, COUNT]
        chunk, last = slot[s, HEAD] >> 3, slot[s, TAIL] >> 3
        while True:
            if chunk < 0 or chunk >= used.shape[0] or used[chunk]:
                return -1
            used[chunk] = 1
            if chunk == last:
                break
            chunk = link[chunk, NEXT]
    return records


@kernel
def list_free_chunks(link: I32, used: U8, meta: I64) -> None:
    """Rebuild the free list from the chunks that are not used, the lowest first."""
    meta[FREE] = -1
    for chunk in range(used.shape[0] - 1, -1, -1):
        if not used[chunk]:
            link[chunk, NEXT] = meta[FREE]
            meta[FREE] = chunk


@kernel
def clear_slots(slots: I64, log: LogArrays) -> None:
    """Mark slots as without a key."""
    for s in slots:
        log.slot[s, COUNT] = 0
        touch_slot(s, log)


def changes_of(log: EventLog, by_chunk: Columns, by_hot: Columns) -> Delta:
    """The touched rows of a log, and of arrays that have a row per chunk or per hot record."""
    slots = _collect(log.slot, TOUCHED_SLOTS, log.meta)
    chunks = _collect(log.link, TOUCHED_CHUNKS, log.meta)
    rows = log.slot[slots, :SLOT_COLUMNS]
    hot = rows[(rows[:, COUNT] > 0) & (rows[:, HOT] >= 0), HOT].astype(np.int64)
    size = log.link.shape[0]
    columns = {
        "ts": log.ts.reshape(size, CHUNK)[chunks],
        "val": log.val.reshape(size, CHUNK, log.val.shape[1])[chunks],
        "link": log.link[chunks, :LINK_COLUMNS],
    }
    columns |= {name: array[chunks] for name, array in by_chunk.items()}
    delta = Delta(blobs={"meta": log.meta[_PERSISTENT].tobytes()})
    delta.rows["slots"] = Rows(slots, {"row": rows})
    delta.rows["chunks"] = Rows(chunks, columns)
    if by_hot:
        delta.rows["hots"] = Rows(hot, {name: array[hot] for name, array in by_hot.items()})
    return delta


def restore_log(log: EventLog, image: Delta) -> None:
    """Restore slots and chunks into a new log whose slots are reserved already.

    Raises:
        StateError: the chains are broken.
    """
    meta = log.meta
    meta[_PERSISTENT] = np.frombuffer(image.blobs["meta"], np.int64)
    slots, chunks = image.rows["slots"], image.rows["chunks"]
    if len(slots) and int(slots.index.max()) >= log.slot.shape[0]:
        raise StateError(
            "the state is damaged: it has windows of an unknown key; restore a copy, or replay"
        )
    log.slot[slots.index, :SLOT_COLUMNS] = slots.columns["row"]
    high = int(chunks.index.max()) + 1 if len(chunks) else 0
    while log.link.shape[0] < high:
        log.grow()
    size = log.link.shape[0]
    log.ts.reshape(size, CHUNK)[chunks.index] = chunks.columns["ts"]
    shape = (size, CHUNK, log.val.shape[1])
    log.val.reshape(shape)[chunks.index] = chunks.columns["val"]
    log.link[chunks.index, :LINK_COLUMNS] = chunks.columns["link"]
    used = np.zeros(high, np.uint8)
    meta[RECORDS] = mark_reachable(log.slot, log.link, used)
    if meta[RECORDS] < 0:
        raise StateError(
            "the state is damaged: a chain of events is broken; restore a copy, or replay"
        )
    list_free_chunks(log.link, used, meta)
    meta[CHUNKS_USED] = high
    meta[CHUNKS_LEFT] = size - int(used.sum())


def restore_by_chunk(array: NDArray[Any], name: str, image: Delta) -> None:
    """Restore an array that has a row per chunk, and is large enough."""
    chunks = image.rows["chunks"]
    array[chunks.index] = chunks.columns[name]


def _collect(table: I32, cell: int, meta: I64) -> I64:
    """The touched rows of a table, in ascending order; clears the list."""
    first, most = int(meta[cell]), table.shape[0] // _ROWS_PER_STEP
    meta[cell] = -1
    count = count_touched(first, table, most)
    if count > most:
        rows = np.flatnonzero(table[:, TOUCHED])
        table[rows, TOUCHED] = 0
        return rows
    rows = np.empty(count, np.int64)
    collect_touched(first, table, rows)
    rows.sort()
    return rows
