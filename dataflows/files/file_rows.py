"""A file's rows as messages with their places: payload, time, partition and offset.

A file that was made of a topic may say where each row was: whole numbers in ``partition`` and
``offset``, and ``published`` for when (epoch ms). They are taken out of the message, and so is a
``topic``. Names that the message type itself declares are its own. Without them row *n* is offset
*n* of partition 0, and its time is the event's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.dataflows.batch.columns import take_rows
from anabranch.dataflows.batch.typed_rows import as_json
from anabranch.dataflows.declaration.schema import Schema
from anabranch.dataflows.files.typed_frames import TypedFrames
from anabranch.producers.files.fields import FileFields
from anabranch.producers.files.formats import format_of
from anabranch.producers.files.jsonl import jsonl_messages
from anabranch.producers.files.tables import (
    PARQUET_ROWS,
    csv_frames,
    frame_messages,
    parquet_frames,
    parquet_rows,
    prepare_frame,
)
from anabranch.state.errors import InputError

I64 = NDArray[np.int64]

PLACE = ("partition", "offset")
_ALONG = ("topic", "published")
_PLAIN = (pl.String, pl.Boolean, pl.Null)
_LINES = 8192
_LARGEST_INT = 2**53

Piece = tuple[Sequence[bytes], I64, tuple[I64, I64] | None]
"""Messages, their times (epoch ms), and where the file says so, their partitions and offsets."""


@dataclass(slots=True)
class FileRows:
    """A run of rows in the file's order; arrays are ``(n,) int64``, ``times`` epoch ms."""

    values: Sequence[bytes]
    times: I64
    partitions: I64
    offsets: I64

    def __len__(self) -> int:
        return len(self.values)

    def take(self, keep: NDArray[np.bool_]) -> FileRows:
        """Only the rows where ``keep`` is true."""
        if keep.all():
            return self
        rows = np.flatnonzero(keep)
        values = take_rows(self.values, rows)
        return FileRows(values, self.times[rows], self.partitions[rows], self.offsets[rows])


@dataclass(frozen=True, slots=True)
class FileTable:
    """A JSONL, CSV or Parquet file with the messages of one type.

    Attributes:
        path: the file.
        message: the type, an `Event` or a `Label`.
        fields: which fields are id and time.
        kind: jsonl, csv or parquet.
        along: the columns that say where rows were, and are no part of the message; none when the
            file doesn't say.
        typed: makes rows of frames that need no decoding.
    """

    path: Path
    message: type[msgspec.Struct]
    fields: FileFields
    kind: str
    along: tuple[str, ...]
    typed: TypedFrames

    @classmethod
    def open(
        cls, path: Path, message: type[msgspec.Struct], time: str, time_unit: str, id: str
    ) -> FileTable:
        """Look at the file and compare its columns with the type.

        Raises:
            InputError: it is missing, empty or damaged, lacks a field that is needed, or has
                columns that the type does not know.
        """
        declared = Schema.of(message).fields
        text = tuple(name for name, field in declared.items() if field.kind == "text")
        fields = FileFields(time=time, time_unit=time_unit, id=id, text=text)
        kind = format_of(path)
        names = _first_names(path, kind, text)
        said = [name for name in PLACE if name in names and name not in declared]
        along: tuple[str, ...] = ()
        if len(said) == len(PLACE):
            along = tuple(n for n in (*PLACE, *_ALONG) if n in names and n not in declared)
        if kind != "jsonl":
            _check_names(path, message, [name for name in names if name not in along])
        return cls(path, message, fields, kind, along, TypedFrames(message, id, time))

    @property
    def placed(self) -> bool:
        """Whether the file itself says which partition and offset each row has."""
        return bool(self.along)

    def rows(self) -> Iterator[FileRows]:
        """All rows, some thousand at a time.

        Raises:
            InputError: the file is damaged further on, or a row has no place though others have.
        """
        done = 0
        for values, times, places in self._pieces():
            if places is None:
                offsets = np.arange(done, done + len(values))
                places = np.zeros(len(values), np.int64), offsets
            done += len(values)
            yield FileRows(values, times, *places)

    def places(self) -> Iterator[tuple[I64, I64]]:
        """Partitions and offsets of all rows in the file's order, as cheaply as it allows.

        Raises:
            InputError: as `rows`; but not all that is wrong with a message shows here.
        """
        if self.placed and self.kind == "jsonl":
            yield from ((rows.partitions, rows.offsets) for rows in self.rows())
            return
        done = 0
        for count, frame in self._counted():
            partitions, offsets = np.zeros(count, np.int64), np.arange(done, done + count)
            if self.placed and frame is not None:
                partitions, offsets = (self.whole_numbers(frame, name, done) for name in PLACE)
            done += count
            yield partitions, offsets

    def _counted(self) -> Iterator[tuple[int, pl.DataFrame | None]]:
        """How many rows each piece has, and where the file is a table, its columns."""
        if self.kind == "jsonl":
            next(self.rows())  # says what is wrong with all of them
            with self.path.open("rb") as file:
                while lines := list(islice(file, _LINES)):
                    yield sum(not line.isspace() for line in lines), None
        elif self.kind == "csv":
            for frame in csv_frames(self.path, self.fields.text_columns):
                yield len(frame), frame
        else:
            rows = parquet_rows(self.path)
            for start in range(0, rows, PARQUET_ROWS):
                count = min(PARQUET_ROWS, rows - start)
                yield count, self._only_places(start) if self.placed else None

    def _only_places(self, start: int) -> pl.DataFrame:
        try:
            scan = pl.scan_parquet(self.path).select(PLACE)
            return scan.slice(start, PARQUET_ROWS).collect()
        except (pl.exceptions.PolarsError, OSError):
            raise InputError(f"{self.path} is damaged behind row {start}: make it again") from None

    def _pieces(self) -> Iterator[Piece]:
        if self.kind == "jsonl":
            yield from self._lines()
            return
        texts = self.fields.text_columns
        csv = self.kind == "csv"
        frames = csv_frames(self.path, texts) if csv else parquet_frames(self.path)
        done = 0
        for frame in frames:
            yield self._frame(frame, done)
            done += len(frame)

    def _frame(self, frame: pl.DataFrame, done: int) -> Piece:
        places, times = None, None
        if self.along:
            partitions, offsets = (self.whole_numbers(frame, name, done) for name in PLACE)
            places = partitions, offsets
            if "published" in self.along:
                times = self.whole_numbers(frame, "published", done)
            frame = frame.drop(self.along)
        values, own = self._messages(frame)
        return values, own if times is None else times, places

    def _messages(self, frame: pl.DataFrame) -> tuple[Sequence[bytes], I64]:
        """Each row and its event time: typed or JSON; fast where the columns are of plain kinds."""
        frame = prepare_frame(self.path, frame, self.fields)
        times = _plain_times(frame, self.fields)
        if times is None:
            batches = list(
                frame_messages(self.path, iter([frame]), self.fields, "events", len(frame))
            )
            return batches[0].values, batches[0].times
        typed = self.typed.rows(frame, times)
        return as_json(frame) if typed is None else typed, times

    def whole_numbers(self, frame: pl.DataFrame, name: str, done: int) -> I64:
        """A column that says where rows were, ``(n,) int64``; ``done`` rows came before it.

        Raises:
            InputError: it is no whole number somewhere.
        """
        column = frame[name]
        if not column.dtype.is_integer() or column.null_count():
            raise InputError(
                f"column {name!r} of {self.path} says where rows were, but is not a whole number "
                f"in every row behind row {done}: mend it, or leave {' and '.join(PLACE)} out"
            )
        return column.cast(pl.Int64).to_numpy()

    def _lines(self) -> Iterator[Piece]:
        done = 0
        for batch in jsonl_messages(self.path, self.fields, "events", _LINES):
            if not self.along:
                yield batch.values, batch.times, None
                continue
            values, found = self._parted(batch.values, done)
            done += len(values)
            times = found[2] if "published" in self.along else batch.times
            yield values, times, (found[0], found[1])

    def _parted(self, lines: Sequence[bytes], done: int) -> tuple[list[bytes], list[I64]]:
        """The lines without what tells their places, and partitions, offsets and times."""
        decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
        encode = msgspec.json.encode
        wanted = [name for name in (*PLACE, "published") if name in self.along]
        values, found = [], np.zeros((len(wanted), len(lines)), np.int64)
        for row, line in enumerate(lines):
            try:
                parts = decode(line)
                taken = {name: parts.pop(name, None) for name in self.along}
                for place, name in enumerate(wanted):
                    found[place, row] = msgspec.json.decode(taken[name] or b"null", type=int)
            except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError):
                raise InputError(
                    f"line {done + row + 1} of {self.path} has no whole numbers in "
                    f"{', '.join(wanted)}, as its first line has: mend it, or leave them all out"
                ) from None
            values.append(encode(parts))
        return values, list(found)


def _plain_times(frame: pl.DataFrame, fields: FileFields) -> I64 | None:
    """Times of a frame whose JSON needs no care; None where it does."""
    kinds = frame.schema.values()
    if not all(kind.is_integer() or kind.is_float() or kind in _PLAIN for kind in kinds):
        return None
    if fields.time not in frame.columns:
        return None  # what makes messages says so
    column = frame[fields.time]
    if not len(frame) or not column.dtype.is_integer() or column.null_count():
        return None
    times = column.cast(pl.Int64).to_numpy()
    if fields.scale == 1.0:
        return times
    if np.abs(times).max() >= _LARGEST_INT:
        return None
    return np.rint(times * fields.scale).astype(np.int64)


def _first_names(path: Path, kind: str, text: Sequence[str]) -> list[str]:
    """The columns of a table, or the fields of the first line that is an object."""
    if kind == "parquet":
        for frame in parquet_frames(path):
            return frame.columns
        raise InputError(f"{path} has columns but no rows: there is nothing to replay")
    if kind == "csv":
        for frame in csv_frames(path, text):
            return frame.columns
        raise InputError(f"{path} has a header but no rows: there is nothing to replay")
    with path.open("rb") as file:
        for line in file:
            try:
                found: Any = msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf"))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            if isinstance(found, dict):
                return list(found)
    return []


def _check_names(path: Path, message: type[msgspec.Struct], names: list[str]) -> None:
    """Raise unless the columns are those of the type: else every row would be a dead letter."""
    known = {field.encode_name: field.required for field in msgspec.structs.fields(message)}
    missing = [name for name, required in known.items() if required and name not in names]
    if missing:
        raise InputError(
            f"no column {missing[0]!r} in {path}, which {message.__name__} needs: it has "
            f"{', '.join(names)}"
        )
    strange = [name for name in names if name not in known]
    if strange and message.__struct_config__.forbid_unknown_fields:
        raise InputError(
            f"{path} has a column {strange[0]!r} that {message.__name__} does not know "
            f"(it has {', '.join(known)}): leave it out of the file, or declare "
            f"{message.__name__} with forbid_unknown_fields=False"
        )
