"""The events, and the labels, in the order in which the pipeline read them.

The partitions of a topic are merged as in a backlog: by merge time (`dataflows.bus.merge_times`:
the publishing time, unless a clock was wrong), made non-decreasing within each partition, then by
partition. Labels and events are merged likewise; at equal times events come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.skew.message_reader import (
    Messages,
    event_kind,
    label_kind,
    messages_from_file,
    messages_from_topic,
)
from anabranch.dataflows.skew.progress import OnProgress
from anabranch.dataflows.skew.row_features import TIME
from anabranch.state.errors import InputError


@dataclass(slots=True)
class ArrivedEvents:
    """Events in order of arrival.

    Attributes:
        source: name of the topic or file, for messages.
        topic: the topic to which the offsets refer; of a file, the topic that it stands for.
        frame: a row per valid event, see `Messages`.
        read: number of messages read.
        malformed: number of messages that are not valid events.
        from_start: whether no earlier messages have been deleted.
        labels: the delayed labels, if there are windows over them; None if they were not read.
    """

    source: str
    topic: str
    frame: pl.DataFrame
    read: int
    malformed: int
    from_start: bool
    labels: Messages | None = None

    @property
    def all_from_start(self) -> bool:
        """Whether neither events nor labels have been deleted before the first one."""
        return self.from_start and (self.labels is None or self.labels.from_start)

    @property
    def first_ms(self) -> int:
        """The earliest event time, epoch ms."""
        return int(self.frame[TIME].min())  # type: ignore[arg-type]


def events_from_topic(
    pipeline: Pipeline, bus: Bus, topic: str, on_progress: OnProgress
) -> ArrivedEvents:
    """Read all events that are on a topic now.

    Raises:
        BusError: the topic does not exist, or can't be read.
        InputError: it is empty, or no message matches the event type.
    """
    return _events(
        pipeline, messages_from_topic(pipeline, event_kind(pipeline), bus, topic, on_progress)
    )


def events_from_file(pipeline: Pipeline, path: Path, on_progress: OnProgress) -> ArrivedEvents:
    """Read the events of a Parquet, JSONL or CSV file, with the offsets that `replay` gives them.

    Raises:
        InputError: the file is missing, damaged or empty, or no row matches the event type.
    """
    kind, topic = event_kind(pipeline), pipeline.topics.events
    return _events(pipeline, messages_from_file(pipeline, kind, path, topic, on_progress))


def labels_from_topic(
    pipeline: Pipeline, bus: Bus, topic: str, on_progress: OnProgress
) -> Messages:
    """Read all labels that are on a topic now; there may be none.

    Raises:
        BusError: the topic does not exist, or can't be read.
    """
    return messages_from_topic(pipeline, label_kind(pipeline), bus, topic, on_progress)


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
        messages.from_start,
    )
