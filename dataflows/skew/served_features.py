"""Reads features that were served or trained on: from predictions, or from a table.

Predictions are a topic, or the same messages as JSONL. A table is Parquet, CSV, or JSONL with one
field per feature. Rows can be in any order.
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

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.codec import CODECS, Codec
from anabranch.dataflows.skew.message_reader import topic_pieces
from anabranch.dataflows.skew.progress import OnProgress
from anabranch.dataflows.skew.sources import format_of, offsets_of
from anabranch.producers.files.csv_files import csv_frames
from anabranch.producers.files.fields import ColumnKind, FileFields
from anabranch.state.errors import InputError

F64 = NDArray[np.float64]

EVENT_KEY = ("id", "topic", "partition", "offset")
"""Columns by which a row can refer to its event."""

_KEY_TYPES: tuple[Any, ...] = (str | None, str | None, int | None, int | None)
_KEY_COLUMNS = dict(zip(EVENT_KEY, (pl.String, pl.String, pl.Int64, pl.Int64), strict=True))
_POLL_LIMIT = 10_000
_TASK = "reading features"


@dataclass(slots=True)
class ServedFeatures:
    """Rows of features as they were served or trained on.

    Attributes:
        source: name of the topic or file, for messages.
        keys: the columns of `EVENT_KEY` that every row has: ``id``, ``topic`` text, others int64.
        features: name → ``(n,) float64``, NaN for null.
    """

    source: str
    keys: pl.DataFrame
    features: dict[str, F64]

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))


def served_from_topic(
    pipeline: str,
    names: Sequence[str],
    bus: Bus,
    topic: str,
    on_progress: OnProgress,
    codec: Codec = CODECS["json"],
) -> ServedFeatures:
    """Read the features of a topic of predictions.

    Args:
        pipeline: name of the pipeline, for error messages.
        names: the features that the predictions must have, exactly.
        bus, topic: where the predictions are.
        on_progress: called after every poll.
        codec: the format of the topic.

    Raises:
        BusError: the topic does not exist, or can't be read.
        InputError: the topic is empty, or a message has other features.
    """
    starts, ends = offsets_of(bus, topic)
    reader = _RowReader(f"topic {topic!r}", pipeline, names, codec)
    total = sum(ends) - sum(starts)
    for piece in topic_pieces(bus, topic, starts, ends):
        first = int(piece.offsets[0])
        reader.add(piece.values, f"partition {piece.partition}, offset", first)
        on_progress(_TASK, reader.rows, total)
    return reader.served()


def served_from_file(
    pipeline: str, names: Sequence[str], path: Path, on_progress: OnProgress
) -> ServedFeatures:
    """Read the features of a file, see `served_from_topic`. A table may have further columns.

    Raises:
        InputError: the file is missing, empty or damaged, or has other features.
    """
    kind = format_of(path)
    if kind != "jsonl":
        on_progress(_TASK, 0, None)
        frame = _parquet(path, names) if kind == "parquet" else _csv(path, names)
        return _from_table(path, pipeline, names, frame)
    reader = _RowReader(str(path), pipeline, names, CODECS["json"])
    size, done, line = path.stat().st_size, 0, 1
    for lines in _lines(path):
        reader.add(lines, "line", line)
        done += sum(map(len, lines)) + len(lines)
        line += len(lines)
        on_progress(_TASK, min(done, size), size)
    return reader.served()


class _RowReader:
    """Collects JSON rows, with features in an object of their own (predictions) or as fields."""

    def __init__(self, source: str, pipeline: str, names: Sequence[str], codec: Codec) -> None:
        self._codec = codec
        self._decode_any = codec.decoder(dict)
        self._no_object = f"this is not a {codec.name.upper()} object"
        self._source = source
        self._pipeline = pipeline
        self._names = list(names)
        self._decode: Any = None
        self._nested = False
        self._keys: list[tuple[Any, ...]] = []
        self._features: list[F64] = []
        self.rows = 0

    def add(self, values: Sequence[bytes], unit: str, first: int) -> None:
        """Append rows; ``unit`` and ``first`` locate the first of them in error messages."""
        keys: list[tuple[Any, ...]] = []
        features: list[Any] = []
        for number, value in enumerate(values, first):
            if value.isspace() or not value:
                continue
            if self._decode is None:
                self._choose_layout(value, f"{unit} {number}")
            try:
                row = self._decode(value)
            except self._codec.errors as error:
                raise InputError(self._error(value, f"{unit} {number}", error)) from None
            keys.append((row.id, row.topic, row.partition, row.offset))
            features.append(msgspec.structs.astuple(row.features if self._nested else row))
        if keys:
            count = len(self._names)
            self._keys += keys
            self._features.append(np.array([each[-count:] for each in features], np.float64))
            self.rows += len(keys)

    def served(self) -> ServedFeatures:
        """The rows added so far, of which there must be one."""
        if not self.rows:
            raise InputError(f"{self._source} has no rows: there is nothing to check")
        table = np.concatenate(self._features)
        keys = pl.DataFrame(self._keys, schema=_KEY_COLUMNS, orient="row")
        complete = [name for name in EVENT_KEY if keys[name].null_count() == 0]
        columns = {name: table[:, i].copy() for i, name in enumerate(self._names)}
        return ServedFeatures(self._source, keys.select(complete), columns)

    def _choose_layout(self, value: bytes, at: str) -> None:
        """Detect the layout of the rows from the first one, and make a decoder for it."""
        row = self._fields(value)
        if row is None:
            raise InputError(f"{self._source}, {at}: {self._no_object}")
        self._nested = isinstance(row.get("features"), dict)
        if not self._nested and not set(self._names) & row.keys():
            raise InputError(
                f"{self._source}, {at}: this row has no features; declare "
                f"with_features=True in pipeline {self._pipeline!r}, or replay to a Parquet file"
            )
        features = [(f"f{i}", float | None) for i in range(len(self._names))]
        renamed = {f"f{i}": name for i, name in enumerate(self._names)}
        keys = [(name, kind, None) for name, kind in zip(EVENT_KEY, _KEY_TYPES, strict=True)]
        if self._nested:
            inner = msgspec.defstruct(
                "Features", features, rename=renamed, forbid_unknown_fields=True
            )
            row_type = msgspec.defstruct("Row", [("features", inner), *keys], kw_only=True)
        else:
            taken = {name: f" {name}" for name in EVENT_KEY if name in self._names}
            row_type = msgspec.defstruct(
                "Row", [*keys, *features], rename=renamed | taken, kw_only=True
            )
        self._decode = self._codec.decoder(row_type)

    def _fields(self, value: bytes) -> dict[str, Any] | None:
        """The fields of a row, whatever they are; None if it is no message with fields."""
        try:
            return self._decode_any(value)
        except self._codec.errors:
            return None

    def _error(self, value: bytes, at: str, error: Exception) -> str:
        row = self._fields(value)
        if row is None:
            return f"{self._source}, {at}: {self._no_object}"
        features = row.get("features") if self._nested else row
        if not isinstance(features, dict):
            return f"{self._source}, {at}: this row has no features, unlike those before it"
        other = _other_names(self._names, features, table=not self._nested)
        if other:
            return f"{self._source}, {at}: {_wrong_version(self._pipeline, other)}"
        return f"{self._source}, {at}: {error}"


def _lines(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as file:
        while lines := list(islice(file, _POLL_LIMIT)):
            yield [line.rstrip(b"\r\n") for line in lines]


def _parquet(path: Path, names: Sequence[str]) -> pl.DataFrame:
    try:
        lazy = pl.scan_parquet(path)
        present = lazy.collect_schema().names()
        keys = [_column_name(name, names) for name in EVENT_KEY]
        wanted = [name for name in present if name in {*names, *keys}]
        # If features are missing, the error message lists the columns that there are.
        return lazy.select(wanted).collect() if {*names} <= {*present} else lazy.limit(0).collect()
    except (pl.exceptions.PolarsError, OSError):
        raise InputError(f"{path} is damaged: create it again") from None


def _csv(path: Path, names: Sequence[str]) -> pl.DataFrame:
    numbers: dict[str, ColumnKind] = dict.fromkeys(names, "number")
    positions: dict[str, ColumnKind] = {"partition": "integer", "offset": "integer"}
    fields = FileFields(time="", id="id", text=("topic",), kinds=positions | numbers)
    try:
        return pl.concat(csv_frames(path, fields), how="vertical_relaxed")
    except (pl.exceptions.PolarsError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path} can't be read as CSV: {reason}") from None


def _from_table(
    path: Path, pipeline: str, names: Sequence[str], frame: pl.DataFrame
) -> ServedFeatures:
    other = _other_names(names, frame.columns, table=True)
    if other:
        raise InputError(f"{path}: {_wrong_version(pipeline, other)}")
    if not len(frame):
        raise InputError(f"{path} has no rows: there is nothing to check")
    features = {name: _numbers(path, frame[name]) for name in names}
    columns = [
        pl.col(_column_name(name, names)).cast(kind).alias(name)
        for name, kind in _KEY_COLUMNS.items()
        if _column_name(name, names) in frame.columns
    ]
    try:
        keys = frame.select(columns)
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path}: {', '.join(EVENT_KEY)} can't be read: {reason}") from None
    return ServedFeatures(str(path), keys.select(c for c in keys if not c.null_count()), features)


def _column_name(name: str, features: Sequence[str]) -> str:
    """The name that `replay` gives to the column ``name``, which a feature may be called too."""
    while name in features:
        name += "_"
    return name


def _numbers(path: Path, column: pl.Series) -> F64:
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise InputError(
            f"column {column.name!r} of {path} has type {column.dtype}, but features are numbers"
        )
    numbers: F64 = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return numbers


def _other_names(names: Sequence[str], present: Any, table: bool) -> str:
    """How the features ``present`` differ from the expected ``names``; empty if they don't."""
    missing = [name for name in names if name not in present]
    more = [name for name in present if name not in names]
    if not missing and (table or not more):
        return ""
    differences = []
    if missing:
        differences.append(f"it lacks {_listed(missing)}")
    if more and (not table or missing):
        differences.append(f"it has {_listed(more)}")
    return " and ".join(differences)


def _wrong_version(pipeline: str, other: str) -> str:
    return (
        f"these features are not those of pipeline {pipeline!r}, but of another version of it: "
        f"{other}; use the declaration that wrote them"
    )


def _listed(names: Sequence[str], limit: int = 5) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
