"""Reads the messages of a topic or file into typed columns, with what is needed to order them.

Invalid messages, of which the pipeline makes dead letters, are counted and left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import RawRows
from anabranch.dataflows.batch.columns import joined_column
from anabranch.dataflows.batch.dead_letters import Fault
from anabranch.dataflows.batch.placed_fields import PlacedFields
from anabranch.dataflows.bus import Bus, TopicPartition, UnreachableError
from anabranch.dataflows.bus.headers import Headers
from anabranch.dataflows.bus.merge_times import MergeTimes, tolerance_ms
from anabranch.dataflows.bus.read_to_end import read_to_end
from anabranch.dataflows.codec import CODECS, Codec, codec_of
from anabranch.dataflows.codec.protocol import Filtered
from anabranch.dataflows.declaration.casts import text_of
from anabranch.dataflows.declaration.message_places import reads_headers
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.declaration.schema import JOINED
from anabranch.dataflows.declaration.shape import Shape, with_field_type
from anabranch.dataflows.files.file_rows import FileTable
from anabranch.dataflows.files.file_topic import FileTopic
from anabranch.dataflows.messages.event_time import parse_times_ms
from anabranch.dataflows.messages.inputs import Delayed, Inline
from anabranch.dataflows.skew.progress import OnProgress
from anabranch.dataflows.skew.row_features import TIME
from anabranch.dataflows.skew.sources import format_of, no_messages, offsets_of
from anabranch.state.durations import parse_duration_ms

I64 = NDArray[np.int64]
MAX_NUMBER = 1e100
"""Events with a number beyond it are dead letters, as the README's limits say."""

ID, PARTITION, OFFSET, PUBLISHED = "event id", "event partition", "event offset", "publishing time"
LABEL = "label value"
"""Columns beside the message's own; the names can't clash with fields, as they have a space."""


@dataclass(frozen=True, slots=True)
class MessageKind:
    """Which fields of one type of message to read.

    Attributes:
        type: the message type.
        name: "events" or "labels".
        id, time: names of its fields for id and event time.
        columns: column → the field that fills it, and whether that is text; else it is a number.
        checked: fields whose numbers must not exceed `MAX_NUMBER`.
        may_be_empty: whether there may be no messages.
    """

    type: type[msgspec.Struct]
    name: str
    id: str
    time: str
    columns: Mapping[str, tuple[str, bool]]
    checked: Sequence[str]
    may_be_empty: bool = False


def event_kind(pipeline: Pipeline) -> MessageKind:
    """The events of a pipeline: the fields of its features, and the field of an inline `LABEL`."""
    fields, label = pipeline.schema.fields, pipeline.label
    texts = pipeline.text_fields
    columns = {
        name: (name, name in texts or fields[name].kind == "text") for name in pipeline.used_fields
    }
    if isinstance(label, Inline) and pipeline.label_windows:
        columns[LABEL] = (label.field, False)
    checked = [
        name
        for name in pipeline.read_fields
        if name not in texts and (fields[name].integer or fields[name].is_decimal)
    ]
    if isinstance(label, Inline) and pipeline.target_kind == "number":
        checked.append(label.field)
    return MessageKind(pipeline.event, "events", pipeline.id, pipeline.time, columns, checked)


def label_kind(pipeline: Pipeline) -> MessageKind:
    """The delayed labels of a pipeline, with their `LABEL`."""
    label = pipeline.label
    assert isinstance(label, Delayed)
    checked = [label.field] if pipeline.target_kind == "number" else []
    columns = {LABEL: (label.field, False)}
    return MessageKind(label.type, "labels", label.id, label.time, columns, checked, True)


@dataclass(slots=True)
class Piece:
    """Messages of one partition in order; ``times`` are publishing times, epoch ms."""

    partition: int
    offsets: I64
    times: I64
    values: Sequence[bytes]
    topic: str = ""
    keys: Sequence[bytes | None] | None = None
    headers: Headers | None = None

    @property
    def rows(self) -> RawRows:
        """The messages as the source reads them."""
        places = np.full(len(self.values), self.partition)
        return RawRows(
            self.topic, self.values, places, self.offsets, self.times, self.partition, self.keys,
            self.headers,
        )  # fmt: skip


def topic_pieces(
    bus: Bus, topic: str, starts: list[int], ends: list[int], headers: bool = False
) -> Iterator[Piece]:
    """Read the messages of a topic between two offsets of each partition, in order."""
    positions = {TopicPartition(topic, number): start for number, start in enumerate(starts)}
    reader = bus.reader(positions, headers=True) if headers else bus.reader(positions)
    try:
        for each in read_to_end(reader, {at: ends[at.partition] for at in positions}):
            yield Piece(
                each.partition, each.offsets, each.times, each.values, topic, each.keys,
                each.headers,
            )  # fmt: skip
    finally:
        reader.close()


@dataclass(slots=True)
class Messages:
    """The messages of a topic or file.

    Attributes:
        source: name of the topic or file, for error messages.
        topic: the topic to which the offsets refer; of a file, the topic that it stands for.
        frame: a row per valid message, sorted by `PUBLISHED`, partition and offset: the columns of
            its kind (text, or float64 with null), and `ID`, `PARTITION`, `OFFSET`, `TIME` and
            `PUBLISHED`, the merge time made non-decreasing within its partition.
        read: number of messages read, valid or not.
        starts: the first offset of each partition.
        first_error: what is wrong with the first invalid message.
    """

    source: str
    topic: str
    frame: pl.DataFrame
    read: int
    starts: list[int]
    first_error: str

    @property
    def from_start(self) -> bool:
        """Whether no earlier messages have been deleted."""
        return not any(self.starts)


def messages_from_topic(
    pipeline: Pipeline,
    kind: MessageKind,
    bus: Bus,
    topic: str,
    on_progress: OnProgress,
    until: Sequence[int] | None = None,
) -> Messages:
    """Read all messages that are on a topic now, or those before ``until``, by partition.

    Raises:
        BusError: the topic does not exist, or can't be read.
        InputError: it is empty, unless the kind allows that.
    """
    starts, ends = offsets_of(bus, topic, kind.may_be_empty)
    if until is not None:
        ends = [min(end, last) for end, last in zip(ends, until, strict=False)]
    reader = _Reader(pipeline, kind)
    for piece in topic_pieces(bus, topic, starts, ends, reads_headers(kind.type)):
        reader.add(piece)
        on_progress(f"reading {kind.name}", reader.read, sum(ends) - sum(starts))
    if not reader.read and not kind.may_be_empty:  # its offsets hold no message
        raise no_messages(bus, topic)
    return reader.messages(f"topic {topic!r}", topic, starts)


def messages_from_file(
    pipeline: Pipeline, kind: MessageKind, path: Path, topic: str, on_progress: OnProgress
) -> Messages:
    """Read the messages of a Parquet, JSONL or CSV file, with the offsets that `replay` gives them.

    Those follow the file's order, unless it has the columns partition and offset.

    Raises:
        InputError: the file is missing, damaged or empty.
    """
    format_of(path)
    unit, zone = pipeline.time_unit, pipeline.zone
    table = FileTable.open(path, kind.type, kind.time, unit, kind.id, zone)
    file = FileTopic(topic, table)
    reader = _Reader(pipeline, kind, CODECS["json"])  # rows of files are the fields themselves
    for rows in table.rows():
        for number in np.unique(rows.partitions).tolist():
            own = rows.take(rows.partitions == number)
            reader.add(Piece(number, own.offsets, own.times, own.values, topic))
        on_progress(f"reading {kind.name}", reader.read, sum(file.counts))
    return reader.messages(str(path), file.name, file.starts)


class _Reader:
    """Decodes messages into frames."""

    def __init__(self, pipeline: Pipeline, kind: MessageKind, codec: Codec | None = None) -> None:
        self.read = 0
        self._kind = kind
        self._frames: list[pl.DataFrame] = []
        self._stamps: dict[int, list[I64]] = {}  # by partition, of all messages
        self._first_error = ""
        self._max_future_ms = parse_duration_ms(pipeline.max_clock_skew)
        self._tolerance_ms = tolerance_ms(pipeline.max_clock_skew)
        self._time_scale, self._zone = pipeline.time_scale, pipeline.zone
        time_field = next(each for each in Shape.of(kind.type).fields if each.name == kind.time)
        wire = with_field_type(kind.type, time_field, int | float | str)
        self._placed = PlacedFields(kind.type, kind.time)
        wire = self._placed.optional(wire)
        topics = pipeline.topics
        if codec is None:
            is_label = kind.name != "events"
            codec = codec_of(pipeline, topics.labels if is_label else topics.events, is_label)
        self._decode = codec.decoder(wire)
        has_own_code = hasattr(wire, "__post_init__")
        self._undecodable = (Exception,) if has_own_code else codec.errors

    def add(self, piece: Piece) -> None:
        """Append a frame of the valid messages of a piece."""
        self.read += len(piece.values)
        stamps = self._stamps.setdefault(piece.partition, [])
        before = sum(map(len, stamps))
        stamps.append(piece.times)
        messages, rows = self._decoded(piece.values)
        if self._placed and messages:
            messages, rows = self._filled(piece, messages, rows)
        if messages:
            self._frames.append(self._frame(piece, before, messages, rows))

    def messages(self, source: str, topic: str, starts: list[int]) -> Messages:
        """The messages added so far, sorted by publishing time."""
        frame = pl.concat(self._frames) if self._frames else pl.DataFrame()
        if len(frame):
            frame = self._with_merge_times(frame).sort(PUBLISHED, PARTITION, OFFSET)
        return Messages(source, topic, frame, self.read, starts, self._first_error)

    def _with_merge_times(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with rising merge times in place of the messages' numbers in `PUBLISHED`."""
        partitions, numbers = frame[PARTITION].to_numpy(), frame[PUBLISHED].to_numpy()
        published = np.zeros(len(frame), np.int64)
        newest = int(time.time() * 1000) + self._tolerance_ms
        for partition, stamps in self._stamps.items():
            times, _ = MergeTimes(self._tolerance_ms).determine(
                np.concatenate(stamps), True, newest
            )
            own = partitions == partition
            published[own] = np.maximum.accumulate(times)[numbers[own]]
        return frame.with_columns(pl.Series(PUBLISHED, published))

    def _frame(self, piece: Piece, before: int, messages: list[Any], rows: I64) -> pl.DataFrame:
        kind = self._kind
        times, bad = parse_times_ms(
            [getattr(message, kind.time) for message in messages], self._time_scale, self._zone
        )
        latest = np.minimum(piece.times[rows], int(time.time() * 1000)) + self._max_future_ms
        valid = (times <= latest) & self._within_limits(messages)
        valid[list(bad)] = False
        if not valid.all() and not self._first_error:
            self._first_error = "its time or a number is out of range"
        columns: dict[str, Any] = {
            ID: _column([getattr(message, kind.id) for message in messages], True),
            PARTITION: np.full(len(rows), piece.partition),
            OFFSET: piece.offsets[rows],
            PUBLISHED: before + rows,
            TIME: times,
        }
        for name, (source, is_text) in kind.columns.items():
            if JOINED in source:
                parts = [
                    _column(_values(messages, part), True).to_list()
                    for part in source.split(JOINED)
                ]
                columns[name] = pl.Series(joined_column(parts), dtype=pl.String)
            else:
                columns[name] = _column(_values(messages, source), is_text)
        return pl.DataFrame(columns).filter(pl.Series(valid))

    def _decoded(self, values: Sequence[bytes]) -> tuple[list[Any], I64]:
        messages: list[Any] = []
        rows: list[int] = []
        decode = self._decode
        for row, value in enumerate(values):
            try:
                messages.append(decode(value))
            except Filtered:  # none of the pipeline's
                continue
            except UnreachableError:
                raise
            except self._undecodable as error:
                self._first_error = self._first_error or str(error)
            else:
                rows.append(row)
        return messages, np.array(rows, np.int64)

    def _filled(self, piece: Piece, messages: list[Any], rows: I64) -> tuple[list[Any], I64]:
        """The messages with the fields that are not in their payload, without the invalid ones."""
        faults: dict[int, Fault | None] = {}
        self._placed.fill(piece.rows.take(rows), messages, faults)
        for fault in faults.values():
            self._first_error = self._first_error or ("" if fault is None else fault[1])
        kept = [row for row in range(len(messages)) if row not in faults]
        return [messages[row] for row in kept], rows[kept]

    def _within_limits(self, messages: list[Any]) -> NDArray[np.bool_]:
        valid = np.ones(len(messages), np.bool_)
        for name in self._kind.checked:
            for row, message in enumerate(messages):
                value = getattr(message, name)
                valid[row] &= value is None or abs(_as_float(value)) <= MAX_NUMBER
        return valid


def _values(messages: list[Any], field: str) -> list[Any]:
    return [getattr(message, field) for message in messages]


def _column(values: list[Any], is_text: bool) -> pl.Series:
    if is_text:
        return pl.Series([None if v is None else text_of(v) for v in values], dtype=pl.String)
    return pl.Series([None if v is None else _as_float(v) for v in values], dtype=pl.Float64)


def _as_float(value: Any) -> float:
    """An integer beyond the range of floats becomes infinite; its row is dropped."""
    try:
        return float(value.value if isinstance(value, Enum) else value)
    except OverflowError:
        return float("inf")
