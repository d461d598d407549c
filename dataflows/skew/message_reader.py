"""Messages of a topic or a file as columns: typed, checked, with the times that make their order.

What can't be read is left out and counted, as the pipeline makes dead letters of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.codec import codec_of
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.files.file_rows import FileTable
from anabranch.dataflows.files.file_topic import FileTopic
from anabranch.dataflows.messages.event_time import parse_times_ms
from anabranch.dataflows.messages.inputs import Delayed, Inline
from anabranch.dataflows.skew.progress import Watch
from anabranch.dataflows.skew.row_features import TIME
from anabranch.dataflows.skew.sources import format_of, offsets_of
from anabranch.state.durations import parse_duration_ms

I64 = NDArray[np.int64]
LARGEST = 1e100
"""A number beyond it is a dead letter, as the README's limits say."""

ID, PARTITION, OFFSET, RISING = "event id", "event partition", "event offset", "rising time"
LABEL = "label value"
"""Columns beside the message's own; no field can be called so."""

_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class MessageKind:
    """What to read of one type of message.

    Attributes:
        type: the type; ``what`` is for people.
        id, time: its fields.
        columns: column → the field that fills it, and whether that is text; else it is a number.
        checked: fields whose numbers must be representable, see `LARGEST`.
        may_be_missing: whether there may be none.
    """

    type: type[msgspec.Struct]
    what: str
    id: str
    time: str
    columns: Mapping[str, tuple[str, bool]]
    checked: Sequence[str]
    may_be_missing: bool = False


def events_of(pipeline: Pipeline) -> MessageKind:
    """The events of a pipeline: the fields that features are made of, and an inline `LABEL`."""
    fields, label = pipeline.schema.fields, pipeline.label
    columns = {name: (name, fields[name].kind == "text") for name in pipeline.used_fields}
    if isinstance(label, Inline) and pipeline.label_windows:
        columns[LABEL] = (label.field, False)
    checked = [name for name in pipeline.read_fields if fields[name].integer]
    if isinstance(label, Inline) and pipeline.target_kind == "number":
        checked.append(label.field)
    return MessageKind(pipeline.event, "events", pipeline.id, pipeline.time, columns, checked)


def labels_of(pipeline: Pipeline) -> MessageKind:
    """The labels of a pipeline that come on their own, with their `LABEL`."""
    label = pipeline.label
    assert isinstance(label, Delayed)
    checked = [label.field] if pipeline.target_kind == "number" else []
    columns = {LABEL: (label.field, False)}
    return MessageKind(label.type, "labels", label.id, label.time, columns, checked, True)


@dataclass(slots=True)
class Piece:
    """Messages of one partition, oldest first: ``times`` are those of publishing, epoch ms."""

    partition: int
    offsets: I64
    times: I64
    values: Sequence[bytes]


def topic_pieces(bus: Bus, topic: str, starts: list[int], ends: list[int]) -> Iterator[Piece]:
    """The messages of a topic between these offsets, each partition in its order."""
    places = {TopicPartition(topic, number): start for number, start in enumerate(starts)}
    reader = bus.reader(places)
    try:
        while any(at < ends[where.partition] for where, at in reader.positions().items()):
            for piece in reader.poll(_AT_ONCE, timeout_s=0.1):
                stop = int(np.searchsorted(piece.offsets, ends[piece.partition]))
                if stop:
                    cut = slice(0, stop)
                    yield Piece(
                        piece.partition, piece.offsets[cut], piece.times[cut], piece.values[cut]
                    )
    finally:
        reader.close()


@dataclass(slots=True)
class Messages:
    """What was read.

    Attributes:
        source: the topic or file, for people.
        topic: where the coordinates count; of a file, the topic that it stands for.
        frame: a row per message that could be used, by `RISING` time, partition and offset: the
            columns of its kind (text, else float64 with null), and `ID`, `PARTITION`, `OFFSET`,
            `RISING`, `TIME`.
        read: how many messages there were.
        from_start: whether nothing was before them.
        complaint: what is wrong with one that could not be used.
    """

    source: str
    topic: str
    frame: pl.DataFrame
    read: int
    from_start: bool
    complaint: str


def messages_of_topic(
    pipeline: Pipeline, kind: MessageKind, bus: Bus, topic: str, watch: Watch
) -> Messages:
    """All that are on a topic now.

    Raises:
        BusError: the topic does not exist, or can't be read.
        InputError: it is empty, and must not be.
    """
    starts, ends = offsets_of(bus, topic, kind.may_be_missing)
    reader = _Reader(pipeline, kind)
    for piece in topic_pieces(bus, topic, starts, ends):
        reader.add(piece)
        watch(f"reading {kind.what}", reader.read, sum(ends) - sum(starts))
    return reader.messages(f"topic {topic!r}", topic, not any(starts))


def messages_of_file(
    pipeline: Pipeline, kind: MessageKind, path: Path, topic: str, watch: Watch
) -> Messages:
    """Those of a Parquet, JSONL or CSV file, with the places that `replay` gives them.

    That is the file's order, unless it says itself of which partition each row is.

    Raises:
        InputError: the file is missing, damaged or empty.
    """
    format_of(path)
    table = FileTable.open(path, kind.type, kind.time, pipeline.time_unit, kind.id)
    found = FileTopic(topic, table)
    reader = _Reader(pipeline, kind)
    for rows in table.rows():
        for number in np.unique(rows.partitions).tolist():
            own = rows.take(rows.partitions == number)
            reader.add(Piece(number, own.offsets, own.times, own.values))
        watch(f"reading {kind.what}", reader.read, sum(found.counts))
    return reader.messages(str(path), found.name, not any(found.starts))


class _Reader:
    """Makes columns of messages."""

    def __init__(self, pipeline: Pipeline, kind: MessageKind) -> None:
        self.read = 0
        self._kind = kind
        self._frames: list[pl.DataFrame] = []
        self._rising: dict[int, int] = {}
        self._complaint = ""
        self._ahead_ms = parse_duration_ms(pipeline.max_clock_skew)
        self._time_scale = pipeline.time_scale
        wire = msgspec.defstruct(
            kind.type.__name__, [(kind.time, int | float | str)], bases=(kind.type,), kw_only=True
        )
        topics = pipeline.topics
        codec = codec_of(pipeline, topics.events if kind.what == "events" else topics.labels)
        self._decode = codec.decoder(wire)
        has_own_code = hasattr(wire, "__post_init__")
        self._undecodable = (Exception,) if has_own_code else codec.errors

    def add(self, piece: Piece) -> None:
        """The usable messages of a piece become a frame."""
        self.read += len(piece.values)
        before = self._rising.get(piece.partition, int(np.iinfo(np.int64).min))
        rising = np.maximum(np.maximum.accumulate(piece.times), before)
        self._rising[piece.partition] = int(rising[-1])
        messages, rows = self._decoded(piece.values)
        if messages:
            self._frames.append(self._frame(piece, rising, messages, rows))

    def messages(self, source: str, topic: str, from_start: bool) -> Messages:
        """All that was added, merged in time."""
        frame = pl.concat(self._frames) if self._frames else pl.DataFrame()
        if len(frame):
            frame = frame.sort(RISING, PARTITION, OFFSET)
        return Messages(source, topic, frame, self.read, from_start, self._complaint)

    def _frame(self, piece: Piece, rising: I64, messages: list[Any], rows: I64) -> pl.DataFrame:
        kind = self._kind
        times, bad = parse_times_ms(
            [getattr(message, kind.time) for message in messages], self._time_scale
        )
        latest = np.minimum(piece.times[rows], int(time.time() * 1000)) + self._ahead_ms
        usable = (times <= latest) & self._representable(messages)
        usable[list(bad)] = False
        if not usable.all() and not self._complaint:
            self._complaint = "its time or a number is out of range"
        columns: dict[str, Any] = {
            ID: pl.Series([getattr(message, kind.id) for message in messages], dtype=pl.String),
            PARTITION: np.full(len(rows), piece.partition),
            OFFSET: piece.offsets[rows],
            RISING: rising[rows],
            TIME: times,
        }
        for name, (source, is_text) in kind.columns.items():
            columns[name] = _column([getattr(message, source) for message in messages], is_text)
        return pl.DataFrame(columns).filter(pl.Series(usable))

    def _decoded(self, values: Sequence[bytes]) -> tuple[list[Any], I64]:
        messages: list[Any] = []
        rows: list[int] = []
        decode = self._decode
        for row, value in enumerate(values):
            try:
                messages.append(decode(value))
            except self._undecodable as error:
                self._complaint = self._complaint or str(error)
            else:
                rows.append(row)
        return messages, np.array(rows, np.int64)

    def _representable(self, messages: list[Any]) -> NDArray[np.bool_]:
        good = np.ones(len(messages), np.bool_)
        for name in self._kind.checked:
            for row, message in enumerate(messages):
                value = getattr(message, name)
                good[row] &= value is None or abs(value) <= LARGEST
        return good


def _column(values: list[Any], is_text: bool) -> pl.Series:
    if is_text:
        return pl.Series(values, dtype=pl.String)
    return pl.Series([None if v is None else _as_float(v) for v in values], dtype=pl.Float64)


def _as_float(value: float) -> float:
    """A number beyond what a float holds is infinite; its row is left out."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")
