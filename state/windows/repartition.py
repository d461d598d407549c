"""Windows laid out anew: the keys of several states as one, or some keys of one by themselves.

When the number of workers changes between one and several, windows move between one place for all
keys and a place per shard. Records are copied as they are, running sums included, and only
numbered anew, so that no feature changes in any bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I32, I64, kernel
from anabranch.state.store.delta import Delta, Items, Rows
from anabranch.state.windows.distinct import DistinctState
from anabranch.state.windows.entity_state import AggregateState, EntityState
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
from anabranch.state.windows.sliding import WindowState

Part = tuple[EntityState, list[str]]
"""A state, and those of its keys that are meant."""


@kernel
def count_chunks(slots: I64, slot: I32, link: I32) -> int:
    """How many chunks the chains of `slots` have."""
    found = 0
    for s in slots:
        if slot[s, COUNT] > 0:
            found += 1
            chunk = slot[s, HEAD] >> 3
            while chunk != slot[s, TAIL] >> 3:
                chunk = link[chunk, NEXT]
                found += 1
    return found


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


def assemble(parts: Sequence[Part]) -> Delta:
    """An image of the keys of all parts, for `EntityState.restore`.

    The states are of the same specs; a key is named once. The count of late rows is the sum over
    the parts.
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
        image.put(str(number), _assemble(aggregates, slots))
    return image


def _assemble(aggregates: list[AggregateState], slots: list[I64]) -> Delta:
    pieces = []
    chunk_offset = hot_offset = 0
    for aggregate, own in zip(aggregates, slots, strict=True):
        piece, chunks, hots = _renumbered(aggregate, own, chunk_offset, hot_offset)
        chunk_offset += chunks
        hot_offset += hots
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


Tables = dict[str, dict[str, NDArray[np.generic]]]


def _renumbered(
    aggregate: AggregateState, slots: I64, chunk_offset: int, hot_offset: int
) -> tuple[Tables, int, int]:
    """The rows of some slots, numbered from the offsets on; how many chunks and hot ones."""
    log = aggregate.log
    chunks = np.empty(count_chunks(slots, log.slot, log.link), np.int64)
    list_chunks(slots, log.slot, log.link, chunks)
    number = np.full(log.link.shape[0] + 1, -1)  # a link of -1 finds the last cell
    number[chunks] = np.arange(len(chunks)) + chunk_offset
    rows = log.slot[slots, :SLOT_COLUMNS].copy()
    held = rows[:, COUNT] > 0
    for column in (HEAD, TAIL):
        rows[held, column] = _moved(rows[held, column].astype(np.int64), number)
    hot = held & (rows[:, HOT] >= 0)
    hots = rows[hot, HOT].astype(np.int64)
    rows[hot, HOT] = np.arange(len(hots)) + hot_offset
    links = log.link[chunks, :LINK_COLUMNS].copy()
    for column in (PREVIOUS, NEXT, JUMP):
        # What points out of the chain is never followed.
        links[:, column] = np.maximum(number[links[:, column]], 0)
    size = log.link.shape[0]
    tables: Tables = {
        "slots": {"row": rows},
        "chunks": {
            "ts": log.ts.reshape(size, CHUNK)[chunks],
            "val": log.val.reshape(size, CHUNK, log.val.shape[1])[chunks],
            "link": links,
        },
    }
    if isinstance(aggregate, WindowState | DistinctState):
        cells = aggregate.hoti[hots]
        for start in aggregate.starts:
            cells[:, start] = np.where(cells[:, start] < 0, -1, _moved(cells[:, start], number))
        tables["hots"] = {"hoti": cells}
    if isinstance(aggregate, WindowState):
        tables["chunks"]["agg"] = aggregate.agg[chunks]
        tables["hots"]["hotf"] = aggregate.hotf[hots]
    return tables, len(chunks), len(hots)


def _moved(positions: I64, number: I64) -> I64:
    """Positions after their chunks were numbered anew."""
    moved: I64 = number[positions >> 3] * CHUNK + (positions & 7)
    return moved
