"""The events, and the labels, in the order in which the pipeline met them.

A topic with several partitions is merged as a backlog is: by publishing time that never falls
within a partition, then by partition. So are labels and events, the latter first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.skew.message_reader import (
    Messages,
    events_of,
    labels_of,
    messages_of_file,
    messages_of_topic,
)
from anabranch.dataflows.skew.progress import Watch
from anabranch.dataflows.skew.row_features import TIME
from anabranch.state.errors import InputError


@dataclass(slots=True)
class Arrivals:
    """Events in order of arrival.

    Attributes:
        source: the topic or file, for people.
        topic: where the coordinates count; of a file, the topic that it stands for.
        frame: a row per event that could be read, see `Messages`.
        read: how many messages there were.
        malformed: how many of them could not be used.
        from_start: whether nothing was before them.
        labels: the labels that came on their own, where features are made of them; None where
            nobody asked for them.
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
        """Whether nothing was before the events, nor before the labels."""
        return self.from_start and (self.labels is None or self.labels.from_start)

    @property
    def first_ms(self) -> int:
        """The earliest event time, epoch ms."""
        return int(self.frame[TIME].min())  # type: ignore[arg-type]


def arrivals_of_topic(pipeline: Pipeline, bus: Bus, topic: str, watch: Watch) -> Arrivals:
    """All events that are on a topic now.

    Raises:
        BusError: the topic does not exist, or can't be read.
        InputError: it is empty, or no message fits the event type.
    """
    return _arrivals(pipeline, messages_of_topic(pipeline, events_of(pipeline), bus, topic, watch))


def arrivals_of_file(pipeline: Pipeline, path: Path, watch: Watch) -> Arrivals:
    """The events of a Parquet, JSONL or CSV file, with the places that `replay` gives them.

    Raises:
        InputError: the file is missing, damaged or empty, or no row fits the event type.
    """
    kind, topic = events_of(pipeline), pipeline.topics.events
    return _arrivals(pipeline, messages_of_file(pipeline, kind, path, topic, watch))


def labels_of_topic(pipeline: Pipeline, bus: Bus, topic: str, watch: Watch) -> Messages:
    """All labels that are on a topic now; there may be none.

    Raises:
        BusError: the topic does not exist, or can't be read.
    """
    return messages_of_topic(pipeline, labels_of(pipeline), bus, topic, watch)


def labels_of_file(pipeline: Pipeline, path: Path, watch: Watch) -> Messages:
    """The labels of a Parquet, JSONL or CSV file, see `arrivals_of_file`.

    Raises:
        InputError: the file is missing, damaged or empty.
    """
    kind, topic = labels_of(pipeline), pipeline.topics.labels
    return messages_of_file(pipeline, kind, path, topic, watch)


def _arrivals(pipeline: Pipeline, found: Messages) -> Arrivals:
    usable = len(found.frame)
    if not usable:
        raise InputError(
            f"none of the {found.read:,} messages of {found.source} can be read as "
            f"{pipeline.event.__name__}: {found.complaint}"
        )
    malformed = found.read - usable
    return Arrivals(found.source, found.topic, found.frame, found.read, malformed, found.from_start)
