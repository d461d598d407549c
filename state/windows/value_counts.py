"""Counters of values per hot key: a hash table for kernels.

Open addressing with linear probing; an entry is removed by shifting back what follows it (Knuth,
*The Art of Computer Programming*, vol. 3, 6.4, algorithm R), so nothing is left behind. An entry is
`keys[i] = (owner + 1, code)`, zero when free, and a row of counters `counts[i]`.
"""

from __future__ import annotations

import numpy as np

from anabranch.state.compile import I32, I64, inlined, kernel

_MIX = np.uint64(0x9E3779B97F4A7C15)
_TURN = np.uint64(0xBF58476D1CE4E5B9)
_HALF = np.uint64(32)


@inlined
def home(owner: int, code: int, mask: int) -> int:
    """Where the entry would be if the table were empty."""
    mixed = np.uint64(code) ^ (np.uint64(owner) * _MIX)
    mixed = (mixed ^ (mixed >> _HALF)) * _TURN
    mixed = (mixed ^ (mixed >> _HALF)) * _MIX
    return np.int64(mixed >> _HALF) & mask  # type: ignore[return-value]


@inlined
def find(owner: int, code: int, keys: I64) -> int:
    """The entry, or the free place where it belongs. There must be a free place."""
    mask = keys.shape[0] - 1
    at = home(owner, code, mask)
    while keys[at, 0] != 0 and (keys[at, 0] != owner + 1 or keys[at, 1] != code):
        at = (at + 1) & mask
    return at


@inlined
def add_entry(owner: int, code: int, keys: I64, counts: I32) -> int:
    """The entry; it is added with zero counters when there is none."""
    at = find(owner, code, keys)
    if keys[at, 0] == 0:
        keys[at, 0] = owner + 1
        keys[at, 1] = code
        counts[at] = 0
    return at


@inlined
def copy_entry(at: int, keys: I64, counts: I32, to: int, to_keys: I64, to_counts: I32) -> None:
    """Copy the entry at `at` to the place `to`, of the same table or another."""
    to_keys[to, 0] = keys[at, 0]
    to_keys[to, 1] = keys[at, 1]
    for column in range(counts.shape[1]):
        to_counts[to, column] = counts[at, column]


@kernel
def remove(at: int, keys: I64, counts: I32) -> None:
    """Remove the entry at `at`."""
    mask = keys.shape[0] - 1
    free = at
    while True:
        at = (at + 1) & mask
        if keys[at, 0] == 0:
            break
        distance = (at - home(keys[at, 0] - 1, keys[at, 1], mask)) & mask
        if distance >= (at - free) & mask:
            copy_entry(at, keys, counts, free, keys, counts)
            free = at
    keys[free, 0] = 0


@kernel
def rehash(keys: I64, counts: I32, new_keys: I64, new_counts: I32) -> None:
    """Copy all entries into an empty larger table."""
    for i in range(keys.shape[0]):
        if keys[i, 0] != 0:
            at = find(keys[i, 0] - 1, keys[i, 1], new_keys)
            copy_entry(i, keys, counts, at, new_keys, new_counts)
