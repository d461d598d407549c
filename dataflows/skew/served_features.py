"""The features that were served or trained on, from a log of predictions or from a table.

A log is a topic of predictions, or the same as JSONL; a table is Parquet, CSV, or JSONL with the
features side by side. Rows may stand in any order.
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
from anabranch.dataflows.skew.progress import Watch
from anabranch.dataflows.skew.sources import format_of, offsets_of
from anabranch.state.errors import InputError

F64 = NDArray[np.float64]

WHERE = ("id", "topic", "partition", "offset")
"""What a row may say of the event that it is about."""

_WHERE_KINDS: tuple[Any, ...] = (str | None, str | None, int | None, int | None)
_WHERE_COLUMNS = dict(zip(WHERE, (pl.String, pl.String, pl.Int64, pl.Int64), strict=True))
_AT_ONCE = 10_000
_READING = "reading features"


@dataclass(slots=True)
class Served:
    """Rows of features as they were written.

    Attributes:
        source: the topic or file, for people.
        where: those of `WHERE` that every row has: ``id`` and ``topic`` text, the others int64.
        features: name → ``(n,) float64``, NaN for null.
    """

    source: str
    where: pl.DataFrame
    features: dict[str, F64]

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))


def served_on_topic(
    pipeline: str,
    names: Sequence[str],
    bus: Bus,
    topic: str,
    watch: Watch,
    codec: Codec = CODECS["json"],
) -> Served:
    """The features of a topic of predictions.

    Args:
        pipeline: its name, for complaints.
        names: the features that must be there, and no others.
        codec: the format of the topic.

    Raises:
        BusError: the topic does not exist, or can't be read.
        InputError: it is empty, or a message has other features.
    """
    starts, ends = offsets_of(bus, topic)
    reader = _RowReader(f"topic {topic!r}", pipeline, names, codec)
    total = sum(ends) - sum(starts)
    for piece in topic_pieces(bus, topic, starts, ends):
        first = int(piece.offsets[0])
        reader.add(piece.values, f"partition {piece.partition}, offset", first)
        watch(_READING, reader.rows, total)
    return reader.served()


def served_in_file(pipeline: str, names: Sequence[str], path: Path, watch: Watch) -> Served:
    """The features of a file; see `served_on_topic`. A table may have further columns.

    Raises:
        InputError: the file is missing, empty or damaged, or its features are others.
    """
    kind = format_of(path)
    if kind != "jsonl":
        watch(_READING, 0, None)
        frame = _parquet(path, names) if kind == "parquet" else _csv(path)
        return _of_table(path, pipeline, names, frame)
    reader = _RowReader(str(path), pipeline, names, CODECS["json"])
    size, done, line = path.stat().st_size, 0, 1
    for lines in _lines(path):
        reader.add(lines, "line", line)
        done += sum(map(len, lines)) + len(lines)
        line += len(lines)
        watch(_READING, min(done, size), size)
    return reader.served()


class _RowReader:
    """Collects rows whose features are a field of their own (predictions) or one field each."""

    def __init__(self, source: str, pipeline: str, names: Sequence[str], codec: Codec) -> None:
        self._codec = codec
        self._decode_any = codec.decoder(dict)
        self._no_object = f"this is no {codec.name.upper()} object"
        self._source = source
        self._pipeline = pipeline
        self._names = list(names)
        self._decode: Any = None
        self._apart = False
        self._where: list[tuple[Any, ...]] = []
        self._features: list[F64] = []
        self.rows = 0

    def add(self, values: Sequence[bytes], unit: str, first: int) -> None:
        """Rows; where the first of them stands is for complaints."""
        where: list[tuple[Any, ...]] = []
        features: list[Any] = []
        for number, value in enumerate(values, first):
            if value.isspace() or not value:
                continue
            if self._decode is None:
                self._begin(value, f"{unit} {number}")
            try:
                row = self._decode(value)
            except self._codec.errors as error:
                raise InputError(self._complaint(value, f"{unit} {number}", error)) from None
            where.append((row.id, row.topic, row.partition, row.offset))
            features.append(msgspec.structs.astuple(row.features if self._apart else row))
        if where:
            count = len(self._names)
            self._where += where
            self._features.append(np.array([each[-count:] for each in features], np.float64))
            self.rows += len(where)

    def served(self) -> Served:
        """All that was added."""
        if not self.rows:
            raise InputError(f"{self._source} has no rows: there is nothing to check")
        table = np.concatenate(self._features)
        where = pl.DataFrame(self._where, schema=_WHERE_COLUMNS, orient="row")
        kept = [name for name in WHERE if where[name].null_count() == 0]
        columns = {name: table[:, i].copy() for i, name in enumerate(self._names)}
        return Served(self._source, where.select(kept), columns)

    def _begin(self, value: bytes, at: str) -> None:
        """Find out from the first row how they are written."""
        row = self._fields(value)
        if row is None:
            raise InputError(f"{self._source}, {at}: {self._no_object}")
        self._apart = isinstance(row.get("features"), dict)
        if not self._apart and not set(self._names) & row.keys():
            raise InputError(
                f"{self._source}, {at}: this row has no features; declare "
                f"with_features=True in pipeline {self._pipeline!r}, or replay to a Parquet file"
            )
        features = [(f"f{i}", float | None) for i in range(len(self._names))]
        renamed = {f"f{i}": name for i, name in enumerate(self._names)}
        where = [(name, kind, None) for name, kind in zip(WHERE, _WHERE_KINDS, strict=True)]
        if self._apart:
            inner = msgspec.defstruct(
                "Features", features, rename=renamed, forbid_unknown_fields=True
            )
            row_type = msgspec.defstruct("Row", [("features", inner), *where], kw_only=True)
        else:
            taken = {name: f" {name}" for name in WHERE if name in self._names}
            row_type = msgspec.defstruct(
                "Row", [*where, *features], rename=renamed | taken, kw_only=True
            )
        self._decode = self._codec.decoder(row_type)

    def _fields(self, value: bytes) -> dict[str, Any] | None:
        """The fields of a row, whatever they are; None if it is no message with fields."""
        try:
            return self._decode_any(value)
        except self._codec.errors:
            return None

    def _complaint(self, value: bytes, at: str, error: Exception) -> str:
        row = self._fields(value)
        if row is None:
            return f"{self._source}, {at}: {self._no_object}"
        features = row.get("features") if self._apart else row
        if not isinstance(features, dict):
            return f"{self._source}, {at}: this row has no features, as those before it have"
        other = _other_names(self._names, features, table=not self._apart)
        if other:
            return f"{self._source}, {at}: {_another_version(self._pipeline, other)}"
        return f"{self._source}, {at}: {error}"


def _lines(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as file:
        while lines := list(islice(file, _AT_ONCE)):
            yield [line.rstrip(b"\r\n") for line in lines]


def _parquet(path: Path, names: Sequence[str]) -> pl.DataFrame:
    try:
        found = pl.scan_parquet(path)
        there = found.collect_schema().names()
        said = [_free(name, names) for name in WHERE]
        wanted = [name for name in there if name in {*names, *said}]
        # Without a single feature the complaint says what there is instead.
        return found.select(wanted).collect() if {*names} <= {*there} else found.limit(0).collect()
    except (pl.exceptions.PolarsError, OSError):
        raise InputError(f"{path} is damaged: make it again") from None


def _csv(path: Path) -> pl.DataFrame:
    try:
        return pl.read_csv(
            path, infer_schema_length=None, schema_overrides={"id": pl.String, "topic": pl.String}
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path} can't be read as CSV: {reason}") from None


def _of_table(path: Path, pipeline: str, names: Sequence[str], frame: pl.DataFrame) -> Served:
    other = _other_names(names, frame.columns, table=True)
    if other:
        raise InputError(f"{path}: {_another_version(pipeline, other)}")
    if not len(frame):
        raise InputError(f"{path} has no rows: there is nothing to check")
    features = {name: _numbers(path, frame[name]) for name in names}
    where = [
        pl.col(_free(name, names)).cast(kind).alias(name)
        for name, kind in _WHERE_COLUMNS.items()
        if _free(name, names) in frame.columns
    ]
    try:
        found = frame.select(where)
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path}: {', '.join(WHERE)} say no event: {reason}") from None
    return Served(str(path), found.select(c for c in found if not c.null_count()), features)


def _free(name: str, features: Sequence[str]) -> str:
    """What a column is called that a feature might be called as well: as `replay` writes it."""
    while name in features:
        name += "_"
    return name


def _numbers(path: Path, column: pl.Series) -> F64:
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise InputError(
            f"column {column.name!r} of {path} holds {column.dtype}, but a feature is a number: "
            "write it as one"
        )
    numbers: F64 = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return numbers


def _other_names(names: Sequence[str], there: Any, table: bool) -> str:
    """How the features that are there differ from those that should be; empty if they don't."""
    missing = [name for name in names if name not in there]
    more = [name for name in there if name not in names]
    if not missing and (table or not more):
        return ""
    said = []
    if missing:
        said.append(f"it lacks {_listed(missing)}")
    if more and (not table or missing):
        said.append(f"it has {_listed(more)}")
    return " and ".join(said)


def _another_version(pipeline: str, other: str) -> str:
    return (
        f"these are not the features of pipeline {pipeline!r}, but of another version of it: "
        f"{other}; name the declaration that wrote them"
    )


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
