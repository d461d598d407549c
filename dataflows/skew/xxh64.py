"""XXH64 of many texts at once, in plain numpy: the hash function of hashed features.

Texts of equal length are hashed together, word by word, by the specification with seed 0 (Yann
Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_P1 = np.uint64(11400714785074694791)
_P2 = np.uint64(14029467366897019727)
_P3 = np.uint64(1609587929392839161)
_P4 = np.uint64(9650029242287828579)
_P5 = np.uint64(2870177450012600261)


def xxh64(texts: Sequence[str]) -> U64:
    """``(texts,) uint64`` hashes of their UTF-8 bytes.

    >>> [hex(h) for h in xxh64(["", "a", "abc"]).tolist()]
    ['0xef46db3751d8e999', '0xd24ec4f1a98c6e5b', '0x44bc2cf5ad770999']
    """
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.array([len(each) for each in encoded], np.int64)
    hashes = np.zeros(len(texts), np.uint64)
    with np.errstate(over="ignore"):
        for length in np.unique(lengths).tolist():
            rows = np.flatnonzero(lengths == length)
            joined = b"".join(encoded[row] for row in rows.tolist())
            hashes[rows] = _hash(np.frombuffer(joined, np.uint8).reshape(len(rows), length))
    return hashes


def _hash(data: NDArray[np.uint8]) -> U64:
    """The hash of each row of ``(rows, bytes) uint8``."""
    rows, length = data.shape
    at = 0
    if length >= 32:
        lanes = [
            np.full(rows, start) for start in (_P1 + _P2, _P2, np.uint64(0), np.uint64(0) - _P1)
        ]
        for at in range(0, length - 31, 32):
            lanes = [_round(lane, _word(data, at + 8 * i, 8)) for i, lane in enumerate(lanes)]
        at += 32
        digest = sum(
            (_rotate(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)),
            np.zeros(rows, np.uint64),
        )
        for lane in lanes:
            digest = (digest ^ _round(np.zeros(rows, np.uint64), lane)) * _P1 + _P4
    else:
        digest = np.full(rows, _P5)
    digest = digest + np.uint64(length)
    while at + 8 <= length:
        word = _round(np.zeros(rows, np.uint64), _word(data, at, 8))
        digest = _rotate(digest ^ word, 27) * _P1 + _P4
        at += 8
    if at + 4 <= length:
        digest = _rotate(digest ^ (_word(data, at, 4) * _P1), 23) * _P2 + _P3
        at += 4
    for last in range(at, length):
        digest = _rotate(digest ^ (_word(data, last, 1) * _P5), 11) * _P1
    digest = (digest ^ (digest >> np.uint64(33))) * _P2
    digest = (digest ^ (digest >> np.uint64(29))) * _P3
    return digest ^ (digest >> np.uint64(32))


def _word(data: NDArray[np.uint8], at: int, size: int) -> U64:
    """``size`` bytes of each row as a little-endian number."""
    value = np.zeros(len(data), np.uint64)
    for i in range(size):
        value |= data[:, at + i].astype(np.uint64) << np.uint64(8 * i)
    return value


def _rotate(value: U64, by: int) -> U64:
    return (value << np.uint64(by)) | (value >> np.uint64(64 - by))


def _round(lane: U64, word: U64) -> U64:
    return _rotate(lane + word * _P2, 31) * _P1
