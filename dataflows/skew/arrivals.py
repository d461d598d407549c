"""The events in the order in which the pipeline met them, read from a topic or from a file.

What can't be read is left out and counted, as the pipeline makes dead letters of it. A topic with
several partitions is merged as a backlog is: by publishing time that never falls within a
partition, then by partition.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from dataflows.bus import Bus, TopicPartition
from dataflows.event_time import parse_times_ms
from dataflows.messages import Inline
from dataflows.pipeline import Pipeline
from dataflows.replay.file_rows import FileTable
from dataflows.replay.file_topic import FileTopic
from dataflows.skew.row_features import TIME
from dataflows.skew.sources import format_of, offsets_of
from dataflows.skew.watch import Watch
from state.durations import parse_duration_ms
from state.errors import InputError

I64 = NDArray[np.int64]
LARGEST = 1e100
"""A number beyond it is a dead letter, as the README's limits say."""

ID, PARTITION, OFFSET, RISING = "event id", "event partition", "event offset", "rising time"
"""Columns beside the event's own; no field can be called so."""

_AT_ONCE = 10_000


@dataclass(slots=True)
class Arrivals:
    """Events in order of arrival.

    Attributes:
        source: the topic or file, for people.
        topic: where the coordinates count; of a file, the topic that it stands for.
        frame: a row per event that could be read: the fields that features are made of, by their
            names (text, else float64 with null), and `ID`, `PARTITION`, `OFFSET`, `TIME`.
        read: how many messages there were.
        malformed: how many of them could not be used.
        from_start: whether nothing was before them.
    """

    source: str
    topic: str
    frame: pl.DataFrame
    read: int
    malformed: int
    from_start: bool

    @property
    def first_ms(self) -> int:
        """The earliest event time, epoch ms."""
        return int(self.frame[TIME].min())  # type: ignore[arg-type]


@dataclass(slots=True)
class _Piece:
    """Messages of one partition, oldest first: ``times`` are those of publishing, epoch ms."""

    partition: int
    offsets: I64
    times: I64
    values: Sequence[bytes]


def arrivals_of_topic(pipeline: Pipeline, bus: Bus, topic: str, watch: Watch) -> Arrivals:
    """All events that are on a topic now.

    Raises:
        BusError: the topic does not exist, or can't be read.
        InputError: it is empty, or no message fits the event type.
    """
    starts, ends = offsets_of(bus, topic)
    total = sum(ends) - sum(starts)
    pieces = topic_pieces(bus, topic, starts, ends)
    reader = _EventReader(pipeline)
    for done, piece in _counted(pieces):
        reader.add(piece)
        watch("reading events", done, total)
    return reader.arrivals(f"topic {topic!r}", topic, from_start=not any(starts))


def arrivals_of_file(pipeline: Pipeline, path: Path, watch: Watch) -> Arrivals:
    """The events of a Parquet, JSONL or CSV file, with the places that `replay` gives them.

    That is the file's order, unless it says itself of which partition each row is.

    Raises:
        InputError: the file is missing, damaged or empty, or no row fits the event type.
    """
    format_of(path)
    table = FileTable.open(path, pipeline.event, pipeline.time, pipeline.time_unit, pipeline.id)
    topic = FileTopic(pipeline.topics.events, table)
    total = sum(topic.counts)
    reader = _EventReader(pipeline)
    for rows in table.rows():
        for number in np.unique(rows.partitions).tolist():
            own = rows.take(rows.partitions == number)
            reader.add(_Piece(number, own.offsets, own.times, own.values))
        watch("reading events", reader.read, total)
    return reader.arrivals(str(path), topic.name, from_start=not any(topic.starts))


def topic_pieces(bus: Bus, topic: str, starts: list[int], ends: list[int]) -> Iterator[_Piece]:
    """The messages of a topic between these offsets, each partition in its order."""
    places = {TopicPartition(topic, number): start for number, start in enumerate(starts)}
    reader = bus.reader(places)
    try:
        while any(at < ends[where.partition] for where, at in reader.positions().items()):
            for piece in reader.poll(_AT_ONCE, timeout_s=0.1):
                stop = int(np.searchsorted(piece.offsets, ends[piece.partition]))
                if stop:
                    cut = slice(0, stop)
                    yield _Piece(
                        piece.partition, piece.offsets[cut], piece.times[cut], piece.values[cut]
                    )
    finally:
        reader.close()


def _counted(pieces: Iterator[_Piece]) -> Iterator[tuple[int, _Piece]]:
    done = 0
    for piece in pieces:
        done += len(piece.values)
        yield done, piece


@dataclass
class _EventReader:
    """Makes columns of messages."""

    pipeline: Pipeline
    read: int = 0
    frames: list[pl.DataFrame] = field(default_factory=list)
    rising: dict[int, int] = field(default_factory=dict)
    complaint: str = ""

    def __post_init__(self) -> None:
        pipeline = self.pipeline
        wire = msgspec.defstruct(
            pipeline.event.__name__,
            [(pipeline.time, int | float | str)],
            bases=(pipeline.event,),
            kw_only=True,
        )
        self._decode = msgspec.json.Decoder(wire).decode
        self._ahead_ms = parse_duration_ms(pipeline.ahead)
        label = pipeline.label
        self._checked = [
            name for name in pipeline.read_fields if pipeline.schema.fields[name].integer
        ]
        if isinstance(label, Inline) and pipeline.target_kind == "number":
            self._checked.append(label.field)

    def add(self, piece: _Piece) -> None:
        """The usable messages of a piece become a frame."""
        self.read += len(piece.values)
        before = self.rising.get(piece.partition, int(np.iinfo(np.int64).min))
        rising = np.maximum(np.maximum.accumulate(piece.times), before)
        self.rising[piece.partition] = int(rising[-1])
        events, rows = self._decoded(piece.values)
        if not events:
            return
        pipeline = self.pipeline
        times, bad = parse_times_ms(
            [getattr(event, pipeline.time) for event in events], pipeline.time_scale
        )
        latest = np.minimum(piece.times[rows], int(time.time() * 1000)) + self._ahead_ms
        usable = (times <= latest) & self._representable(events)
        usable[list(bad)] = False
        if not usable.all() and not self.complaint:
            self.complaint = "its time or a number is out of range"
        columns: dict[str, Any] = {
            ID: pl.Series([getattr(event, pipeline.id) for event in events], dtype=pl.String),
            PARTITION: np.full(len(rows), piece.partition),
            OFFSET: piece.offsets[rows],
            RISING: rising[rows],
            TIME: times,
        }
        columns |= {name: self._column(events, name) for name in pipeline.used_fields}
        self.frames.append(pl.DataFrame(columns).filter(pl.Series(usable)))

    def arrivals(self, source: str, topic: str, from_start: bool) -> Arrivals:
        """All that was added, merged in time."""
        frame = pl.concat(self.frames) if self.frames else pl.DataFrame()
        if not len(frame):
            raise InputError(
                f"none of the {self.read:,} messages of {source} can be read as "
                f"{self.pipeline.event.__name__}: {self.complaint}"
            )
        frame = frame.sort(RISING, PARTITION, OFFSET)
        return Arrivals(source, topic, frame, self.read, self.read - len(frame), from_start)

    def _decoded(self, values: Sequence[bytes]) -> tuple[list[Any], I64]:
        events: list[Any] = []
        rows: list[int] = []
        decode = self._decode
        for row, value in enumerate(values):
            try:
                events.append(decode(value))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                self.complaint = self.complaint or str(error)
            else:
                rows.append(row)
        return events, np.array(rows, np.int64)

    def _representable(self, events: list[Any]) -> NDArray[np.bool_]:
        good = np.ones(len(events), np.bool_)
        for name in self._checked:
            for row, event in enumerate(events):
                value = getattr(event, name)
                good[row] &= value is None or abs(value) <= LARGEST
        return good

    def _column(self, events: list[Any], name: str) -> pl.Series:
        values = [getattr(event, name) for event in events]
        if self.pipeline.schema.fields[name].kind == "text":
            return pl.Series(name, values, dtype=pl.String)
        return pl.Series(name, [None if v is None else _as_float(v) for v in values], pl.Float64)


def _as_float(value: float) -> float:
    """A number beyond what a float holds is infinite; its row is left out."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")
