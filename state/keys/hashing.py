"""A 64-bit hash of strings that is the same in every process, on every machine, in every version.

It is XXH64 (Yann Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md) with seed
0 over the UTF-8 bytes, so other programs can compute it too. Python's own `hash` differs between
processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I64, kernel
from anabranch.state.keys.text_column import Texts

U64 = NDArray[np.uint64]

_UINT64, _INT64 = np.dtype(np.uint64), np.dtype(np.int64)  # creating a dtype from a type is slow
_P1: Final = np.uint64(0x9E3779B185EBCA87)
_P2: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_P3: Final = np.uint64(0x165667B19E3779F9)
_P4: Final = np.uint64(0x85EBCA77C2B2AE63)
_P5: Final = np.uint64(0x27D4EB2F165667C5)
_BITS: Final = np.uint64(64)
_BYTE: Final = np.uint64(8)


@kernel
def _word(data: bytes, at: int, size: int) -> np.uint64:
    """`size` bytes of `data` as a little-endian number, whatever the machine's byte order."""
    value = np.uint64(0)
    for i in range(size):
        value |= np.uint64(data[at + i]) << (_BYTE * np.uint64(i))
    return value


@kernel
def _rotate(value: np.uint64, by: int) -> np.uint64:
    return (value << np.uint64(by)) | (value >> (_BITS - np.uint64(by)))


@kernel
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(lane + word * _P2, 31) * _P1


@kernel
def _merge(digest: np.uint64, lane: np.uint64) -> np.uint64:
    return (digest ^ _round(np.uint64(0), lane)) * _P1 + _P4


@kernel
def xxh64(data: bytes, start: int, end: int) -> np.uint64:
    """XXH64 of `data[start:end]`, seed 0."""
    at = start
    if end - start >= 32:
        a, b, c, d = _P1 + _P2, _P2, np.uint64(0), np.uint64(0) - _P1
        while end - at >= 32:
            a = _round(a, _word(data, at, 8))
            b = _round(b, _word(data, at + 8, 8))
            c = _round(c, _word(data, at + 16, 8))
            d = _round(d, _word(data, at + 24, 8))
            at += 32
        digest = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        digest = _merge(_merge(_merge(_merge(digest, a), b), c), d)
    else:
        digest = _P5
    digest += np.uint64(end - start)
    while end - at >= 8:
        digest = _rotate(digest ^ _round(np.uint64(0), _word(data, at, 8)), 27) * _P1 + _P4
        at += 8
    if end - at >= 4:
        digest = _rotate(digest ^ (_word(data, at, 4) * _P1), 23) * _P2 + _P3
        at += 4
    while at < end:
        digest = _rotate(digest ^ (np.uint64(data[at]) * _P5), 11) * _P1
        at += 1
    digest = (digest ^ (digest >> np.uint64(33))) * _P2
    digest = (digest ^ (digest >> np.uint64(29))) * _P3
    return digest ^ (digest >> np.uint64(32))


@kernel
def _hash_spans(data: bytes, spans: I64, out: U64) -> None:
    for i in range(out.size):
        out[i] = xxh64(data, spans[0, i], spans[1, i])


@kernel
def _hash_ended(data: bytes, spans: I64, out: U64) -> int:
    """Hash texts that each end with a zero byte; returns their number, which may exceed `out`'s."""
    count = at = 0
    for end in range(len(data)):
        if data[end] == 0:
            if count < out.size:
                spans[0, count], spans[1, count] = at, end
                out[count] = xxh64(data, at, end)
            count += 1
            at = end + 1
    return count


NO_KEY: Final = "\0no key\0"
"""Stands for the key of a row without an entity, which enters no windows."""


class HashedTexts(Sequence[str]):
    """A column of texts with known hashes, which `hash64` returns."""

    @property
    def hashes(self) -> U64:
        """XXH64 of each text, `(texts,) uint64`."""
        raise NotImplementedError


def hash_pieces(data: bytes, lengths: I64) -> U64:
    """XXH64 of each of the texts, `(texts,) uint64`, that are concatenated in `data`.

    >>> [hex(h) for h in hash_pieces(b"aabc", np.array([1, 3])).tolist()]
    ['0xd24ec4f1a98c6e5b', '0x44bc2cf5ad770999']
    """
    hashes, spans = np.empty(len(lengths), _UINT64), _side_by_side(lengths)
    _hash_spans(data or b"\0", spans, hashes)
    return hashes


def _side_by_side(sizes: I64) -> I64:
    """`(2, texts) int64`: start and end of each of the concatenated texts."""
    spans = np.empty((2, len(sizes)), _INT64)
    np.cumsum(sizes, out=spans[1])
    np.subtract(spans[1], sizes, out=spans[0])
    return spans


def texts_of(texts: Sequence[str]) -> Texts:
    """The strings as a column of bytes with their hashes; they may contain any characters."""
    if type(texts) is Texts:
        return texts
    hashes = np.empty(len(texts), _UINT64)
    spans = np.empty((2, len(texts)), _INT64)
    try:
        ended = ("\0".join(texts) + "\0").encode()
    except UnicodeEncodeError:
        pass
    else:
        if _hash_ended(ended, spans, hashes) == len(texts):
            return Texts(ended, spans, hashes)
    # Keys with zero bytes or lone surrogates are unusual, but must not stop the stream.
    return texts_of_parts([text.encode("utf-8", "surrogatepass") for text in texts])


def texts_of_parts(parts: list[bytes]) -> Texts:
    """A column of texts from their UTF-8 bytes."""
    hashes = np.empty(len(parts), _UINT64)
    spans = _side_by_side(np.fromiter(map(len, parts), np.int64, len(parts)))
    blob = b"".join(parts)
    _hash_spans(blob, spans, hashes)
    return Texts(blob, spans, hashes)


def hash64(texts: Sequence[str]) -> U64:
    """XXH64 of each string: `(texts,) uint64`.

    Among n different strings two have the same hash with a probability of about n² / 3.7e19: for a
    hundred million, 3 in 10,000.

    >>> [hex(h) for h in hash64(["", "a", "abc"]).tolist()]
    ['0xef46db3751d8e999', '0xd24ec4f1a98c6e5b', '0x44bc2cf5ad770999']
    """
    if type(texts) is not list and isinstance(texts, HashedTexts):
        return texts.hashes
    return texts_of(texts).hashes


NO_KEY_HASH: Final = hash64([NO_KEY])[0]


def keys_of(column: Sequence[str | None]) -> Sequence[str]:
    """A column of keys that may be null, with `NO_KEY` for null.

    >>> keys_of(["a", None]) == ["a", NO_KEY]
    True
    """
    if type(column) is Texts or isinstance(column, HashedTexts) or None not in column:
        return column  # type: ignore[return-value]
    return [NO_KEY if key is None else key for key in column]
