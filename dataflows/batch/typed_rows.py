"""Rows of a file in place of messages: their fields are typed already and need no decoding.

They can still be read as bytes, as JSON: the general decoder and dead letters need that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.dataflows.batch.columns import concat_rows, take_rows
from anabranch.state.keys.hashing import U64, HashedTexts


class FrameTexts(HashedTexts):
    """A text column of a data frame with the hashes of its values, ``(rows,) uint64``."""

    def __init__(self, series: pl.Series, hashes: U64) -> None:
        self.series = series
        self._hashes = hashes

    @property
    def hashes(self) -> U64:
        return self._hashes

    def __len__(self) -> int:
        return len(self._hashes)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> FrameTexts: ...
    def __getitem__(self, row: int | slice) -> str | FrameTexts:
        if isinstance(row, slice):
            return FrameTexts(self.series[row], self._hashes[row])
        return str(self.series[row])

    def __iter__(self) -> Iterator[str]:
        return iter(self.series.to_list())

    def take(self, rows: NDArray[np.int64]) -> FrameTexts:
        """Only these rows, in this order."""
        return FrameTexts(self.series.gather(rows), self._hashes[rows])

    @classmethod
    def joined(cls, pieces: Sequence[FrameTexts]) -> FrameTexts:
        """Concatenate columns."""
        return cls(
            pl.concat([piece.series for piece in pieces]),
            np.concatenate([piece.hashes for piece in pieces]),
        )


class TypedRows(Sequence[bytes]):
    """Rows of a data frame that read as a sequence of JSON messages.

    Attributes:
        frame: the rows as they would be published.
        times: event times, ``(rows,) int64`` epoch ms.
        valid: ``(rows,) bool``, whether a row certainly fits its message type. Any other row must
            be decoded from its bytes, which shows what is wrong with it, if anything.
        columns: field name → values of the ``valid`` rows: numbers as arrays (int64; float64 with
            NaN for null), texts with their hashes.
    """

    def __init__(
        self,
        frame: pl.DataFrame,
        times: NDArray[np.int64],
        valid: NDArray[np.bool_],
        columns: Mapping[str, Any],
    ) -> None:
        self.frame, self.times, self.valid, self.columns = frame, times, valid, columns

    def __len__(self) -> int:
        return len(self.times)

    @overload
    def __getitem__(self, row: int) -> bytes: ...
    @overload
    def __getitem__(self, row: slice) -> TypedRows: ...
    def __getitem__(self, row: int | slice) -> bytes | TypedRows:
        if not isinstance(row, slice):
            return as_json(self.frame[[row]])[0]
        if row.indices(len(self)) == (0, len(self), 1):
            return self
        columns = {name: values[row] for name, values in self.columns.items()}
        return TypedRows(self.frame[row], self.times[row], self.valid[row], columns)

    def __iter__(self) -> Iterator[bytes]:
        return iter(as_json(self.frame))

    def take(self, rows: NDArray[np.int64]) -> TypedRows:
        """Only these rows, in this order."""
        columns = {name: take_rows(values, rows) for name, values in self.columns.items()}
        return TypedRows(self.frame[rows], self.times[rows], self.valid[rows], columns)

    @classmethod
    def joined(cls, pieces: Sequence[TypedRows]) -> TypedRows:
        """Concatenate rows of one file."""
        columns = {
            name: concat_rows([piece.columns[name] for piece in pieces])
            for name in pieces[0].columns
        }
        return cls(
            pl.concat([piece.frame for piece in pieces]),
            np.concatenate([piece.times for piece in pieces]),
            np.concatenate([piece.valid for piece in pieces]),
            columns,
        )


def as_json(frame: pl.DataFrame) -> list[bytes]:
    """Each row, of numbers, booleans and texts, as a JSON object."""
    buffer = BytesIO()
    frame.write_ndjson(buffer)
    return buffer.getvalue().split(b"\n")[:-1]
