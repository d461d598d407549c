"""A column of texts in one byte string; Python strings are created only on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I64


class Texts(Sequence[str]):
    """Texts in UTF-8 with their hashes; a sequence of strings.

    Args:
        blob: contains the bytes of all.
        spans: `(2, texts) int64`, C-contiguous: start and end of each in `blob`.
        hashes: `(texts,) uint64`, as by `state.keys.hashing.hash64`.
        plain: whether none needs an escape in JSON.

    >>> names = Texts(b"anna", np.array([[0, 2], [2, 4]]), np.zeros(2, np.uint64))
    >>> names[1], list(names), len(names)
    ('na', ['an', 'na'], 2)
    """

    __slots__ = ("_strings", "blob", "hashes", "plain", "spans")

    def __init__(
        self, blob: bytes, spans: I64, hashes: NDArray[np.uint64], plain: bool = False
    ) -> None:
        self.blob, self.spans, self.hashes, self.plain = blob, spans, hashes, plain
        self._strings: list[str] | None = None

    def __len__(self) -> int:
        return len(self.hashes)

    def __getitem__(self, row: Any) -> Any:
        return self.tolist()[row]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def tolist(self) -> list[str]:
        """The strings; decoded once."""
        if self._strings is None:
            blob, (starts, stops) = self.blob, self.spans.tolist()
            pieces = [blob[start:stop] for start, stop in zip(starts, stops, strict=True)]
            self._strings = [piece.decode("utf-8", "surrogatepass") for piece in pieces]
        return self._strings
