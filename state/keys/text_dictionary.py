"""Dictionary encoding of texts, a whole column in one kernel call.

A column of texts arrives as in the Arrow format: the bytes of all, concatenated, and the length of
each. Different texts never share a code, even if their hashes are equal: bytes are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I32, I64, U8, kernel
from anabranch.state.keys.hashing import U64, HashedTexts, hash_pieces

_CAPACITY, _BYTES, _TEXTS = 0, 1, 2  # cells of `meta`: capacity in texts, bytes used, texts
_FREE: Final = np.int32(-1)


# Called through the dispatcher, for which named tuples are slow: its arrays come one by one.
@kernel
def _encode(
    row: int, data: bytes, lengths: I64, hashes: U64, codes: I32, table: I32, hash_of: U64,
    starts: I64, pool: U8, meta: I64,
) -> int:  # fmt: skip
    """Encode the rows from `row` on; returns the row for which there was no space."""
    at = 0
    for i in range(row):
        at += lengths[i]
    mask = np.uint64(table.size - 1)
    while row < hashes.size:
        h, size = hashes[row], lengths[row]
        place = h & mask
        code = table[place]
        while code != _FREE:
            same = hash_of[code] == h and starts[code + 1] - starts[code] == size
            if same:
                start = starts[code]
                for i in range(size):
                    if pool[start + i] != data[at + i]:
                        same = False
                        break
            if same:
                break
            place = (place + np.uint64(1)) & mask
            code = table[place]
        if code == _FREE:
            used = meta[_BYTES]
            if meta[_TEXTS] == meta[_CAPACITY] or used + size > pool.size:
                return row
            code = np.int32(meta[_TEXTS])
            for i in range(size):
                pool[used + i] = data[at + i]
            table[place] = code
            hash_of[code] = h
            meta[_BYTES] = starts[code + 1] = used + size
            meta[_TEXTS] += 1
        codes[row] = code
        at += size
        row += 1
    return row


@kernel
def _fill_table(hash_of: U64, count: int, table: I32) -> None:
    """Add the first `count` codes to an empty table."""
    mask = np.uint64(table.size - 1)
    for code in range(count):
        place = hash_of[code] & mask
        while table[place] != _FREE:
            place = (place + np.uint64(1)) & mask
        table[place] = code


class TextDictionary:
    """Different texts, numbered in order of first use.

    >>> words = TextDictionary()
    >>> coded = words.code(b"anabobana", np.array([3, 3, 3]))
    >>> coded.codes, list(coded), len(words)
    (array([0, 1, 0], dtype=int32), ['ana', 'bob', 'ana'], 2)
    """

    def __init__(self) -> None:
        self._table: I32 = np.full(2048, _FREE, np.int32)
        self._hash_of: U64 = np.zeros(1024, np.uint64)
        self._starts: I64 = np.zeros(1025, np.int64)
        self._pool: U8 = np.zeros(1 << 14, np.uint8)
        self._meta: I64 = np.array([1024, 0, 0])

    def __len__(self) -> int:
        return int(self._meta[_TEXTS])

    def code(self, data: bytes, lengths: I64) -> CodedTexts:
        """The codes of texts in UTF-8, concatenated in ``data``, of these lengths in bytes."""
        hashes = hash_pieces(data, lengths)
        codes = np.empty(len(lengths), np.int32)
        row = 0
        while True:
            row = _encode(
                row, data, lengths, hashes, codes, self._table, self._hash_of, self._starts,
                self._pool, self._meta,
            )  # fmt: skip
            if row == len(lengths):
                return CodedTexts(self, codes)
            self._grow(int(lengths[row]))

    def text(self, code: int) -> str:
        """The text of ``code``."""
        start, end = self._starts[code : code + 2].tolist()
        return self._pool[start:end].tobytes().decode()

    def hashes_of(self, codes: I32) -> U64:
        """XXH64 of each, ``(rows,) uint64``."""
        return self._hash_of[codes]

    def _grow(self, more: int) -> None:
        meta = self._meta
        if meta[_TEXTS] == meta[_CAPACITY]:
            capacity = meta[_CAPACITY] = 2 * int(meta[_CAPACITY])
            self._hash_of = np.append(
                self._hash_of, np.zeros(capacity - len(self._hash_of), np.uint64)
            )
            self._starts = np.append(
                self._starts, np.zeros(capacity + 1 - len(self._starts), np.int64)
            )
            self._table = np.full(2 * capacity, _FREE, np.int32)
            _fill_table(self._hash_of, len(self), self._table)
        if meta[_BYTES] + more > len(self._pool):
            self._pool = np.append(self._pool, np.zeros(len(self._pool) + more, np.uint8))


class CodedTexts(HashedTexts):
    """A dictionary-encoded column of texts: ``codes``, ``(rows,) int32``, of a ``dictionary``."""

    def __init__(self, dictionary: TextDictionary, codes: I32) -> None:
        self.dictionary = dictionary
        self.codes = codes

    @property
    def hashes(self) -> U64:
        return self.dictionary.hashes_of(self.codes)

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> CodedTexts: ...
    def __getitem__(self, row: int | slice) -> str | CodedTexts:
        if isinstance(row, slice):
            return CodedTexts(self.dictionary, self.codes[row])
        return self.dictionary.text(int(self.codes[row]))

    def __iter__(self) -> Iterator[str]:
        distinct, index = self.distinct()
        return iter(np.array(distinct, object)[index].tolist() if len(self) else [])

    def __contains__(self, text: object) -> bool:
        return text is not None and text in self.distinct()[0]

    def take(self, rows: NDArray[np.int64]) -> CodedTexts:
        """Only these rows, in this order."""
        return CodedTexts(self.dictionary, self.codes[rows])

    def distinct(self) -> tuple[list[str], I64]:
        """The distinct texts, and the index of each row's text among them."""
        unique, inverse = np.unique(self.codes, return_inverse=True)
        return [self.dictionary.text(code) for code in unique.tolist()], inverse

    @classmethod
    def joined(cls, pieces: Sequence[CodedTexts]) -> CodedTexts:
        """The pieces concatenated."""
        dictionary = pieces[0].dictionary
        if any(piece.dictionary is not dictionary for piece in pieces):
            dictionary = TextDictionary()
            pieces = [_recoded(piece, dictionary) for piece in pieces]
        return cls(dictionary, np.concatenate([piece.codes for piece in pieces]))


def _recoded(piece: CodedTexts, dictionary: TextDictionary) -> CodedTexts:
    distinct, index = piece.distinct()
    parts = [text.encode() for text in distinct]
    codes = dictionary.code(b"".join(parts), np.array([len(p) for p in parts], np.int64)).codes
    return CodedTexts(dictionary, codes[index])
