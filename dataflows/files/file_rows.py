"""A file's rows as messages with their positions: payload, time, partition and offset.

A file that was exported from a topic may hold the position of each row: integers in ``partition``
and ``offset``, and in ``published`` the publishing time (epoch ms). They are removed from the
message, and so is ``topic``. A name that the message type itself declares is a field of it. Without
positions row *n* is offset *n* of partition 0, and its publishing time is the event time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.dataflows.batch.columns import take_rows
from anabranch.dataflows.batch.typed_rows import as_json
from anabranch.dataflows.files.declared_fields import column_names, file_fields
from anabranch.dataflows.files.typed_frames import TypedFrames
from anabranch.dataflows.messages.similar_names import similar_name
from anabranch.producers.files.csv_files import csv_frames
from anabranch.producers.files.fields import NOT_IN_PAYLOAD, FileFields
from anabranch.producers.files.formats import format_of
from anabranch.producers.files.jsonl import jsonl_messages
from anabranch.producers.files.tables import (
    PARQUET_ROWS,
    frame_messages,
    has_column,
    parquet_frames,
    parquet_rows,
    prepare_frame,
)
from anabranch.state.errors import InputError

LOG = logging.getLogger("anabranch")
I64 = NDArray[np.int64]

POSITION_COLUMNS = ("partition", "offset")
_OTHER_COLUMNS = ("topic", "published")
_PLAIN = (pl.String, pl.Boolean, pl.Null)
_NUMBERS = (
    *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64),
    *(pl.Float32, pl.Float64),
)  # without those of 128 bits, which a column of very long digits gets
_LINES = 8192
_NAMES_SHOWN = 20
_LARGEST_INT = 2**53

Piece = tuple[Sequence[bytes], I64, tuple[I64, I64] | None]
"""Messages, their publishing times (epoch ms), and partitions and offsets if the file has them."""


@dataclass(slots=True)
class FileRows:
    """Consecutive rows of a file; arrays are ``(n,) int64``, ``times`` epoch ms."""

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
        metadata: the columns with positions, which are not part of the message; empty if the file
            has none.
        typed: makes rows of data frames that need no decoding.
    """

    path: Path
    message: type[msgspec.Struct]
    fields: FileFields
    kind: str
    metadata: tuple[str, ...]
    typed: TypedFrames

    @classmethod
    def open(
        cls,
        path: Path,
        message: type[msgspec.Struct],
        time: str,
        time_unit: str,
        id: str,
        zone: tzinfo = UTC,
    ) -> FileTable:
        """Open a file and compare its columns with the type; see `FileFields` for the others.

        Raises:
            InputError: it is missing, empty or damaged, lacks a required field, or has columns that
                are no fields of the type.
        """
        fields = file_fields(message, id=id, time=time, time_unit=time_unit, zone=zone)
        kind = format_of(path)
        first = _first_rows(path, kind, fields)
        names = first.columns
        declared = column_names(message).values()
        extra = [name for name in names if name not in declared]
        metadata: tuple[str, ...] = ()
        if set(POSITION_COLUMNS) <= set(extra):
            metadata = tuple(n for n in (*POSITION_COLUMNS, *_OTHER_COLUMNS) if n in extra)
        if kind != "jsonl":
            _check_names(path, message, fields, first.drop(metadata))
        return cls(path, message, fields, kind, metadata, TypedFrames(message, id, time))

    @property
    def has_positions(self) -> bool:
        """Whether the file holds the partition and offset of each row."""
        return bool(self.metadata)

    def rows(self) -> Iterator[FileRows]:
        """All rows, a few thousand at a time.

        Raises:
            InputError: the file is damaged, or a row has no position though others have.
        """
        done = 0
        for values, times, positions in self._pieces():
            if positions is None:
                offsets = np.arange(done, done + len(values))
                positions = np.zeros(len(values), np.int64), offsets
            done += len(values)
            yield FileRows(values, times, *positions)

    def positions(self) -> Iterator[tuple[I64, I64]]:
        """Partitions and offsets of all rows, in the file's order; cheaper than `rows`.

        Raises:
            InputError: as `rows`, but not for everything that is wrong with a message.
        """
        if self.has_positions and self.kind == "jsonl":
            yield from ((rows.partitions, rows.offsets) for rows in self.rows())
            return
        done = 0
        for count, frame in self._counted():
            partitions, offsets = np.zeros(count, np.int64), np.arange(done, done + count)
            if self.has_positions and frame is not None:
                partitions, offsets = (
                    self.integers(frame, name, done) for name in POSITION_COLUMNS
                )
            done += count
            yield partitions, offsets

    def _counted(self) -> Iterator[tuple[int, pl.DataFrame | None]]:
        """The number of rows of each piece, and its columns if the file is a table."""
        if self.kind == "jsonl":
            next(self.rows())  # raises what is wrong with all of them
            with self.path.open("rb") as file:
                while lines := list(islice(file, _LINES)):
                    yield sum(not line.isspace() for line in lines), None
        elif self.kind == "csv":
            for frame in csv_frames(self.path, self.fields):
                yield len(frame), frame
        else:
            rows = parquet_rows(self.path)
            for start in range(0, rows, PARQUET_ROWS):
                count = min(PARQUET_ROWS, rows - start)
                yield count, self._read_positions(start) if self.has_positions else None

    def _read_positions(self, start: int) -> pl.DataFrame:
        try:
            scan = pl.scan_parquet(self.path).select(POSITION_COLUMNS)
            return scan.slice(start, PARQUET_ROWS).collect()
        except (pl.exceptions.PolarsError, OSError):
            raise InputError(f"{self.path} is damaged after row {start}: create it again") from None

    def _pieces(self) -> Iterator[Piece]:
        if self.kind == "jsonl":
            yield from self._lines()
            return
        csv = self.kind == "csv"
        frames = csv_frames(self.path, self.fields) if csv else parquet_frames(self.path)
        done = 0
        for frame in frames:
            yield self._frame(frame, done)
            done += len(frame)

    def _frame(self, frame: pl.DataFrame, done: int) -> Piece:
        positions, times = None, None
        if self.metadata:
            partitions, offsets = (self.integers(frame, name, done) for name in POSITION_COLUMNS)
            positions = partitions, offsets
            if "published" in self.metadata:
                times = self.integers(frame, "published", done)
            frame = frame.drop(self.metadata)
        values, event_times = self._messages(frame)
        return values, event_times if times is None else times, positions

    def _messages(self, frame: pl.DataFrame) -> tuple[Sequence[bytes], I64]:
        """The rows, typed or as JSON, and their event times; fast if all types are plain."""
        frame = prepare_frame(self.path, frame, self.fields)
        times = _plain_times(frame, self.fields)
        if times is None or self.fields.nested.keys() & set(frame.columns):
            batches = list(
                frame_messages(self.path, iter([frame]), self.fields, "events", len(frame))
            )
            return batches[0].values, batches[0].times
        typed = self.typed.rows(frame, times)
        return as_json(frame) if typed is None else typed, times

    def integers(self, frame: pl.DataFrame, name: str, done: int) -> I64:
        """A column with positions, ``(n,) int64``; ``done`` rows precede it.

        Raises:
            InputError: a value is not an integer.
        """
        column = frame[name]
        if not column.dtype.is_integer() or column.null_count():
            raise InputError(
                f"column {name!r} of {self.path} is not an integer in every row after row {done}: "
                f"correct it, or remove {' and '.join(POSITION_COLUMNS)}"
            )
        return column.cast(pl.Int64).to_numpy()

    def _lines(self) -> Iterator[Piece]:
        done = 0
        for batch in jsonl_messages(self.path, self.fields, "events", _LINES):
            if not self.metadata:
                yield batch.values, batch.times, None
                continue
            values, numbers = self._split_metadata(batch.values, done)
            done += len(values)
            times = numbers[2] if "published" in self.metadata else batch.times
            yield values, times, (numbers[0], numbers[1])

    def _split_metadata(self, lines: Sequence[bytes], done: int) -> tuple[list[bytes], list[I64]]:
        """The lines without their positions, and partitions, offsets and publishing times."""
        decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
        encode = msgspec.json.encode
        wanted = [name for name in (*POSITION_COLUMNS, "published") if name in self.metadata]
        values, numbers = [], np.zeros((len(wanted), len(lines)), np.int64)
        for row, line in enumerate(lines):
            try:
                parts = decode(line)
                removed = {name: parts.pop(name, None) for name in self.metadata}
                for index, name in enumerate(wanted):
                    number = msgspec.json.decode(removed[name] or b"null", type=int)
                    numbers[index, row] = number
            except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError):
                raise InputError(
                    f"line {done + row + 1} of {self.path} does not have integers in "
                    f"{', '.join(wanted)}, as its first line has: correct it, or remove them all"
                ) from None
            values.append(encode(parts))
        return values, list(numbers)


def _plain_times(frame: pl.DataFrame, fields: FileFields) -> I64 | None:
    """The event times of a frame with plain types, ``(n,) int64`` epoch ms; None of any other."""
    kinds = frame.schema.values()
    if not all(kind in _NUMBERS or kind in _PLAIN for kind in kinds):
        return None
    if fields.time not in frame.columns:
        return None  # the general path raises
    column = frame[fields.time]
    if not len(frame) or not column.dtype.is_integer() or column.null_count():
        return None
    column = column.cast(pl.Int64, strict=False)
    if column.null_count():  # beyond int64
        return None
    times = column.to_numpy()
    if fields.scale == 1.0:
        return times
    if times.max() >= _LARGEST_INT or times.min() <= -_LARGEST_INT:
        return None
    return np.rint(times * fields.scale).astype(np.int64)


def _first_rows(path: Path, kind: str, fields: FileFields) -> pl.DataFrame:
    """Some rows of a table, or the names of the first line that is a JSON object."""
    if kind == "parquet":
        for frame in parquet_frames(path):
            return frame[:1]
        raise InputError(f"{path} has columns but no rows: there is nothing to replay")
    if kind == "csv":
        for frame in csv_frames(path, fields):
            return frame[:1]
        raise InputError(f"{path} has a header but no rows: there is nothing to replay")
    with path.open("rb") as file:
        for line in file:
            try:
                row: Any = msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf"))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            if isinstance(row, dict):
                return pl.DataFrame(schema=dict.fromkeys(row, pl.Null))
    return pl.DataFrame()


def _check_names(
    path: Path, message: type[msgspec.Struct], fields: FileFields, first: pl.DataFrame
) -> None:
    """Raise unless the columns fit the type, as otherwise every row would be a dead letter."""
    names = first.columns
    columns = column_names(message)
    required = {columns[field.name]: field.required for field in msgspec.structs.fields(message)}
    fields.check_id(str(path), names, may_be_numbered=True)  # says more of a missing id
    for name, is_required in required.items():
        if name.startswith(NOT_IN_PAYLOAD) and name not in fields.paths:
            continue
        if is_required and not has_column(first, name, fields.paths_of(name)):
            similar = similar_name(name, [each for each in names if each not in required])
            hint = "" if similar is None else f" ({similar!r} is there)"
            raise InputError(
                f"no column {name!r} in {path}{hint}, which {message.__name__} requires: it has "
                f"{', '.join(names)}"
            )
    paths = [each for name in required for each in fields.paths_of(name)]
    read = {*required, *map(str, paths), *(str(each.steps[0]) for each in paths)}
    unknown = [name for name in names if name not in read]
    if not unknown:
        return
    similar = similar_name(unknown[0], [each for each in required if each not in names])
    hint = "" if similar is None else f"; {similar!r} is"
    if message.__struct_config__.forbid_unknown_fields:
        raise InputError(
            f"{path} has a column {unknown[0]!r}, which is no field of {message.__name__} "
            f"({', '.join(required)}){hint}: remove it from the file, or declare "
            f"{message.__name__} with forbid_unknown_fields=False"
        )
    LOG.info(
        "%s has columns that %s does not declare, and they are ignored: %s%s",
        *(path, message.__name__, ", ".join(unknown[:_NAMES_SHOWN])),
        "" if similar is None else f"; is {unknown[0]} what is declared as {similar}?",
    )
