"""A hash table from keys to slots, for kernels: open addressing over the bytes of the keys.

A cell holds the number of a slot. A slot's key is a piece of `arena`; keys are compared by their
bytes, not by their hashes alone::

    table   ── · 2 · · 0 · 1 · ──▶ slot      places   0 │ 0, 3      arena   annbobcid
                                                      1 │ 3, 3
                                                      2 │ 6, 3
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I32, I64, U8, inlined, kernel
from anabranch.state.keys.id_table import EMPTY, erase, find_home

U64 = NDArray[np.uint64]

# Cells of `meta`. A free slot's START is the next free one; FREE is the first, or -1.
USED, FREE, LIVE, END, WASTE = 0, 1, 2, 3, 4
META: Final = 5

# Columns of `places`. SIZE is -1 for a slot that is free.
START, SIZE = 0, 1


class KeyArrays(NamedTuple):
    """The arrays of the keys of a shard, as kernels take them."""

    table: I32
    """Hash table from key to slot."""
    hash_of: U64
    """`(slots,)`: hash of the key of each."""
    places: I64
    """`(slots, 2)`: start and size of the key of each in the arena."""
    arena: U8
    """The bytes of the keys."""
    changed: U8
    """`(slots,)`: whether a slot was allocated or released since the last commit."""
    meta: I64


@inlined
def _is_key(slot: int, blob: bytes, start: int, size: int, keys: KeyArrays) -> bool:
    """Whether the key of `slot` equals this piece of `blob`."""
    if keys.places[slot, SIZE] != size:
        return False
    own = keys.places[slot, START]
    i = 0
    while i < size and keys.arena[own + i] == blob[start + i]:
        i += 1
    return i == size


@kernel
def find_slots(
    row: int, blob: bytes, spans: I64, hashes: U64, adds: int, out: I64, keys: KeyArrays
) -> int:
    """Write the slots of the keys from `row` on to `out`; new keys are added if `adds`, else -1.

    Returns the row for which there is no space, to be called again from there, or the number of
    rows.
    """
    table, hash_of, meta = keys.table, keys.hash_of, keys.meta
    while row < hashes.size:
        key, start = hashes[row], spans[0, row]
        size = spans[1, row] - start
        at = find_home(key, table)
        slot = table[at]
        while slot != EMPTY and not (
            hash_of[slot] == key and _is_key(slot, blob, start, size, keys)
        ):
            at += 1
            if at == table.size:
                at = np.int64(0)
            slot = table[at]
        if slot == EMPTY and adds != 0:
            slot = np.int32(meta[FREE])
            full = slot < 0 and meta[USED] == hash_of.size
            full |= meta[END] + size > keys.arena.size
            if full or (meta[LIVE] + 1) * 5 > table.size * 3:
                return row
            if slot >= 0:
                meta[FREE] = keys.places[slot, START]
            else:
                slot = np.int32(meta[USED])
                meta[USED] += 1
            table[at], hash_of[slot], keys.changed[slot] = slot, key, 1
            keys.places[slot, START], keys.places[slot, SIZE] = meta[END], size
            for i in range(size):
                keys.arena[meta[END] + i] = blob[start + i]
            meta[END] += size
            meta[LIVE] += 1
        out[row] = slot
        row += 1
    return row


@kernel
def release_all(slots: I64, table: I32, hash_of: U64, places: I64, changed: U8, meta: I64) -> None:
    """Remove the keys of slots, which must have one; the last slot is the first to be reused."""
    for slot in slots:
        at = find_home(hash_of[slot], table)
        while table[at] != slot:
            at += 1
            if at == table.size:
                at = np.int64(0)
        erase(at, table, hash_of)
        meta[WASTE] += places[slot, SIZE]
        meta[LIVE] -= 1
        places[slot, START], places[slot, SIZE] = meta[FREE], -1
        meta[FREE] = slot
        changed[slot] = 1


@kernel
def fill_table(table: I32, hash_of: U64, places: I64, meta: I64) -> None:
    """Add all slots that have a key to an empty table."""
    for slot in range(meta[USED]):
        if places[slot, SIZE] >= 0:
            at = find_home(hash_of[slot], table)
            while table[at] != EMPTY:
                at += 1
                if at == table.size:
                    at = np.int64(0)
            table[at] = slot


@kernel
def list_free(places: I64, meta: I64) -> None:
    """Rebuild the free list from the slots without a key, the lowest first."""
    meta[FREE] = -1
    for slot in range(meta[USED] - 1, -1, -1):
        if places[slot, SIZE] < 0:
            places[slot, START] = meta[FREE]
            meta[FREE] = slot


@kernel
def close_gaps(order: I64, places: I64, arena: U8, meta: I64) -> None:
    """Compact the arena; `order` are the slots by position of their keys."""
    end = 0
    for slot in order:
        start = places[slot, START]
        places[slot, START] = end
        for i in range(places[slot, SIZE]):
            arena[end] = arena[start + i]
            end += 1
    meta[END], meta[WASTE] = end, 0
