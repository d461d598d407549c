"""Repartitioning of windows: the keys of several states as one state, or some keys of one.

When the number of workers changes between one and several, windows move between one partition for
all keys and one per shard. Records are copied as they are, running sums included, and only
renumbered, so that no feature changes in any bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I32, I64, kernel
from anabranch.state.store.delta import Delta, Items, Rows
from anabranch.state.windows.aggregate_state import AggregateState
from anabranch.state.windows.entity_state import EntityState
from anabranch.state.windows.event_log import (
    CHUNK,
    COUNT,
    HEAD,
    HOT,
    JUMP,
    LATE_ROWS,
    LINK_COLUMNS,
    MAX_SEEN,
    NEXT,
    PREVIOUS,
    SLOT_COLUMNS,
    TAIL,
)

Part = tuple[EntityState, list[str]]
"""A state, and the keys to take from it."""


@kernel
def count_chunks(slots: I64, slot: I32, link: I32) -> int:
    """How many chunks the chains of `slots` have."""
    chunks = 0
    for s in slots:
        if slot[s, COUNT] > 0:
            chunks += 1
            chunk = slot[s, HEAD] >> 3
            while chunk != slot[s, TAIL] >> 3:
                chunk = link[chunk, NEXT]
                chunks += 1
    return chunks


@kernel
def list_chunks(slots: I64, slot: I32, link: I32, out: I64) -> None:
    """Write the chunks of the chains of `slots` into `out`."""
    written = 0
    for s in slots:
        if slot[s, COUNT] > 0:
            chunk = slot[s, HEAD] >> 3
            out[written] = chunk
            written += 1
            while chunk != slot[s, TAIL] >> 3:
                chunk = link[chunk, NEXT]
                out[written] = chunk
                written += 1


def repartition(parts: Sequence[Part]) -> Delta:
    """An image of the keys of all parts, for `EntityState.restore`.

    All states must have the same specs, and a key must be in one part only. The count of late rows
    is the sum over the parts.
    """
    image = Delta()
    keys = [key for _, listed in parts for key in listed]
    values: list[bytes | None] = [key.encode("utf-8", "surrogatepass") for key in keys]
    image.items["keys"] = Items(np.arange(len(keys)), values)
    if not keys:
        return image
    slots = []
    for state, listed in parts:
        by_key = state.slots_by_key()
        slots.append(np.array([by_key[key] for key in listed], np.int64))
    for number in range(len(parts[0][0].aggregates)):
        aggregates = [state.aggregates[number] for state, _ in parts]
        image.put(str(number), _join(aggregates, slots))
    return image


def _join(aggregates: list[AggregateState], slots: list[I64]) -> Delta:
    pieces = []
    chunk_offset = hot_offset = 0
    for aggregate, own in zip(aggregates, slots, strict=True):
        piece, chunks, hot_records = _renumbered(aggregate, own, chunk_offset, hot_offset)
        chunk_offset += chunks
        hot_offset += hot_records
        pieces.append(piece)
    delta = Delta()
    for name in pieces[0]:
        columns = {
            column: np.concatenate([piece[name][column] for piece in pieces])
            for column in pieces[0][name]
        }
        delta.rows[name] = Rows(np.arange(len(next(iter(columns.values())))), columns)
    metas = [aggregate.log.meta for aggregate in aggregates]
    newest = max(int(meta[MAX_SEEN]) for meta in metas)
    late = sum(int(meta[LATE_ROWS]) for meta in metas)
    delta.blobs["meta"] = np.array([newest, late, 0], np.int64).tobytes()
    return delta


Tables = dict[str, dict[str, NDArray[Any]]]


def _renumbered(
    aggregate: AggregateState, slots: I64, chunk_offset: int, hot_offset: int
) -> tuple[Tables, int, int]:
    """The rows of some slots, renumbered from the offsets on; number of chunks and hot records."""
    log = aggregate.log
    chunks = np.empty(count_chunks(slots, log.slot, log.link), np.int64)
    list_chunks(slots, log.slot, log.link, chunks)
    number = np.full(log.link.shape[0] + 1, -1)  # a link of -1 reads the last cell
    number[chunks] = np.arange(len(chunks)) + chunk_offset
    rows = log.slot[slots, :SLOT_COLUMNS].copy()
    filled = rows[:, COUNT] > 0
    for column in (HEAD, TAIL):
        rows[filled, column] = _renumber(rows[filled, column].astype(np.int64), number)
    hot = filled & (rows[:, HOT] >= 0)
    hot_rows = rows[hot, HOT].astype(np.int64)
    rows[hot, HOT] = np.arange(len(hot_rows)) + hot_offset
    links = log.link[chunks, :LINK_COLUMNS].copy()
    for column in (PREVIOUS, NEXT, JUMP):
        # Links that leave the chain are never followed.
        links[:, column] = np.maximum(number[links[:, column]], 0)
    size = log.link.shape[0]
    tables: Tables = {
        "slots": {"row": rows},
        "chunks": {
            "ts": log.ts.reshape(size, CHUNK)[chunks],
            "val": log.val.reshape(size, CHUNK, log.val.shape[1])[chunks],
            "link": links,
            **{name: array[chunks] for name, array in aggregate.by_chunk.items()},
        },
    }
    if aggregate.by_hot:
        tables["hots"] = {name: array[hot_rows] for name, array in aggregate.by_hot.items()}
        cells = tables["hots"]["hoti"]
        for start in aggregate.starts:
            cells[:, start] = np.where(cells[:, start] < 0, -1, _renumber(cells[:, start], number))
    return tables, len(chunks), len(hot_rows)


def _renumber(positions: I64, number: I64) -> I64:
    """Positions after `number` gave their chunks new numbers."""
    renumbered: I64 = number[positions >> 3] * CHUNK + (positions & 7)
    return renumbered
