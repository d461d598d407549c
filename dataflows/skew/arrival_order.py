"""The events, and the labels, in the order in which the pipeline read them.

The partitions of a topic are merged as in a backlog: by merge time (`dataflows.bus.merge_times`:
the publishing time, unless a clock was wrong), made non-decreasing within each partition, then by
partition. Labels and events are merged likewise; at equal times events come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.skew.message_reader import (
    ID,
    OFFSET,
    PARTITION,
    PUBLISHED,
    Messages,
    event_kind,
    label_kind,
    messages_from_file,
    messages_from_topic,
)
from anabranch.dataflows.skew.progress import OnProgress
from anabranch.dataflows.skew.row_features import TIME
from anabranch.state.errors import InputError

BEFORE = 1 << 40
"""Is subtracted from the offsets of history, so that they are negative and of no topic."""


@dataclass(frozen=True, slots=True)
class History:
    """Events (and labels) that the pipeline knew before those of its topic.

    Attributes:
        source: name of the file or topic.
        events: number of valid events.
        is_whole: whether nothing is missing between them and the events of the topic.
    """

    source: str
    events: int
    is_whole: bool


@dataclass(slots=True)
class ArrivedEvents:
    """Events in order of arrival.

    Attributes:
        source: name of the topic or file, for messages.
        topic: the topic to which the offsets refer; of a file, the topic that it stands for.
        frame: a row per valid event, see `Messages`.
        read: number of messages read.
        malformed: number of messages that are not valid events.
        starts: the first offset of each partition.
        labels: the delayed labels, if there are windows over them; None if they were not read.
        history: the events before the topic's, in ``frame`` too; None: there are none.
    """

    source: str
    topic: str
    frame: pl.DataFrame
    read: int
    malformed: int
    starts: list[int]
    labels: Messages | None = None
    history: History | None = None

    @property
    def from_start(self) -> bool:
        """Whether no earlier messages have been deleted."""
        return not any(self.starts)

    @property
    def all_from_start(self) -> bool:
        """Whether neither events nor labels have been deleted before the first one."""
        if self.history is not None:
            return self.history.is_whole
        return self.from_start and (self.labels is None or self.labels.from_start)

    @property
    def first_ms(self) -> int:
        """The earliest event time, epoch ms."""
        return int(self.frame[TIME].min())  # type: ignore[arg-type]


def with_history(
    arrived: ArrivedEvents,
    history: ArrivedEvents,
    continued: Mapping[str, Mapping[int, int]],
) -> ArrivedEvents:
    """The events of a topic after those of a history, which the pipeline has processed before.

    Args:
        arrived: the events of the topic, and its labels.
        history: likewise.
        continued: topic → the offset at which the pipeline continued on it, by partition; what is
            before that is part of the history. Empty: not known; then events of the history that
            are on the topic as well count once.
    """
    old, new = history.frame, arrived.frame
    offsets = continued.get(arrived.topic, {})
    is_whole = history.all_from_start
    if offsets:
        new = _from_offsets(new, offsets)
        is_whole &= all(start <= offsets.get(n, 0) for n, start in enumerate(arrived.starts))
    else:
        old = old.join(new.select(ID, TIME), on=[ID, TIME], how="anti", maintain_order="left")
        is_whole &= arrived.from_start
    labels, old_labels = arrived.labels, history.labels
    published = [each[PUBLISHED].max() for each in (old, *_frames(old_labels))]
    last = max((each for each in published if isinstance(each, int)), default=0)
    joined = replace(
        arrived,
        frame=pl.concat([_before(old), _after(new, last)]),
        read=arrived.read - (len(arrived.frame) - len(new)),
        history=History(history.source, len(old), is_whole),
    )
    if labels is not None:
        of_topic = labels.frame
        if len(of_topic) and (offsets := continued.get(labels.topic, {})):
            of_topic = _from_offsets(of_topic, offsets)
        frames = [
            *map(_before, _frames(old_labels)),
            *([_after(of_topic, last)] * bool(len(of_topic))),
        ]
        frame = pl.concat(frames) if frames else of_topic
        joined.labels = replace(labels, frame=frame)
    return joined


def _frames(labels: Messages | None) -> list[pl.DataFrame]:
    return [] if labels is None or not len(labels.frame) else [labels.frame]


def _from_offsets(frame: pl.DataFrame, offsets: Mapping[int, int]) -> pl.DataFrame:
    first = pl.col(PARTITION).replace_strict(offsets, default=0, return_dtype=pl.Int64)
    return frame.filter(pl.col(OFFSET) >= first)


def _before(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col(OFFSET) - BEFORE)


def _after(frame: pl.DataFrame, last_ms: int) -> pl.DataFrame:
    """The frame, published after ``last_ms``."""
    return frame.with_columns(pl.max_horizontal(PUBLISHED, pl.lit(last_ms + 1, pl.Int64)))


def events_from_topic(
    pipeline: Pipeline,
    bus: Bus,
    topic: str,
    on_progress: OnProgress,
    until: Sequence[int] | None = None,
) -> ArrivedEvents:
    """Read all events that are on a topic now, or those before ``until``, by partition.

    Raises:
        BusError: the topic does not exist, or can't be read.
        InputError: it is empty, or no message matches the event type.
    """
    return _events(
        pipeline,
        messages_from_topic(pipeline, event_kind(pipeline), bus, topic, on_progress, until),
    )


def events_from_file(pipeline: Pipeline, path: Path, on_progress: OnProgress) -> ArrivedEvents:
    """Read the events of a Parquet, JSONL or CSV file, with the offsets that `replay` gives them.

    Raises:
        InputError: the file is missing, damaged or empty, or no row matches the event type.
    """
    kind, topic = event_kind(pipeline), pipeline.topics.events
    return _events(pipeline, messages_from_file(pipeline, kind, path, topic, on_progress))


def labels_from_topic(
    pipeline: Pipeline,
    bus: Bus,
    topic: str,
    on_progress: OnProgress,
    until: Sequence[int] | None = None,
) -> Messages:
    """Read all labels that are on a topic now (or those before ``until``); there may be none.

    Raises:
        BusError: the topic does not exist, or can't be read.
    """
    return messages_from_topic(pipeline, label_kind(pipeline), bus, topic, on_progress, until)


def labels_from_file(pipeline: Pipeline, path: Path, on_progress: OnProgress) -> Messages:
    """Read the labels of a Parquet, JSONL or CSV file, see `events_from_file`.

    Raises:
        InputError: the file is missing, damaged or empty.
    """
    kind, topic = label_kind(pipeline), pipeline.topics.labels
    return messages_from_file(pipeline, kind, path, topic, on_progress)


def _events(pipeline: Pipeline, messages: Messages) -> ArrivedEvents:
    usable = len(messages.frame)
    if not usable:
        raise InputError(
            f"none of the {messages.read:,} messages of {messages.source} can be read as "
            f"{pipeline.event.__name__}: {messages.first_error}"
        )
    malformed = messages.read - usable
    return ArrivedEvents(
        messages.source,
        messages.topic,
        messages.frame,
        messages.read,
        malformed,
        messages.starts,
    )
