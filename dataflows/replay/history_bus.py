"""A read-only bus whose topics are the recorded inputs of a pipeline."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence

from anabranch.dataflows.bus import (
    Bus,
    BusError,
    OnOutOfRange,
    Publisher,
    Reader,
    Slice,
    TopicLimits,
    TopicPartition,
)
from anabranch.dataflows.bus.combined_reader import CombinedReader
from anabranch.dataflows.files.file_topic import FileTopic
from anabranch.dataflows.replay.bus_topic import BusTopic


class EmptyTopic:
    """An input topic without history; attributes as those of `BusTopic`."""

    def __init__(self, name: str, partitions: int) -> None:
        self.name = name
        self.widen(partitions)

    def widen(self, partitions: int) -> None:
        """Set the partition count."""
        self.starts, self.ends, self.counts = ([0] * partitions for _ in range(3))

    def reader(self, positions: Mapping[TopicPartition, int]) -> Reader:
        """A reader that is at its end."""
        return _EmptyReader(dict(positions))


History = FileTopic | BusTopic | EmptyTopic
"""The source of the messages of one input topic."""


class HistoryBus:
    """A read-only `Bus` whose topics are ``histories``.

    ``live`` is the bus on which a run continues: the ids of topics are those there.
    """

    url = "history"

    def __init__(self, histories: Sequence[History], live: Bus | None = None) -> None:
        self._histories = {history.name: history for history in histories}
        self._live = live

    def create_topics(self, partitions: Mapping[str, int]) -> list[str]:
        """Create nothing: a replay has no output topics."""
        return []

    def add_partitions(self, topic: str, count: int) -> None:
        raise BusError("a replay has no output topics: this is a bug in anabranch")

    def topics(self) -> dict[str, int]:
        return {name: len(history.ends) for name, history in self._histories.items()}

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        return {} if self._live is None else self._live.topic_ids(topics)

    def start_offsets(self, topic: str) -> list[int]:
        return list(self._of(topic).starts)

    def end_offsets(self, topic: str) -> list[int]:
        return list(self._of(topic).ends)

    def offsets_at(self, topic: str, time_ms: int) -> list[int]:
        raise BusError("a replay starts at the beginning: this is a bug in anabranch")

    def open_transactions(self, topic: str) -> dict[int, int]:
        """None: `BusTopic` has reported those."""
        return {}

    def limits(self, topic: str) -> TopicLimits:
        raise BusError("a replay publishes nothing: this is a bug in anabranch")

    def publisher(self, stop: threading.Event | None = None) -> Publisher:
        raise BusError("a replay publishes nothing: this is a bug in anabranch")

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        group: str | None = None,
        on_out_of_range: OnOutOfRange = "stop",
        headers: bool = False,
    ) -> Reader:
        readers: dict[str, Reader] = {}
        for topic in dict.fromkeys(at.topic for at in positions):
            own = {at: offset for at, offset in positions.items() if at.topic == topic}
            history = self._of(topic)
            if isinstance(history, BusTopic):
                readers[topic] = history.reader(own, on_out_of_range, headers)
            else:
                readers[topic] = history.reader(own)
        return CombinedReader(readers)

    def close(self) -> None:
        """Does nothing: readers close their files, and buses belong to their openers."""

    def _of(self, topic: str) -> History:
        if topic not in self._histories:
            raise BusError(f"topic {topic!r} does not exist on {self.url}")
        return self._histories[topic]


class _EmptyReader:
    """A reader of partitions that are at their ends."""

    def __init__(self, positions: dict[TopicPartition, int]) -> None:
        self._positions = positions

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        return []

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Does nothing: there are no messages."""

    resume = pause

    def positions(self) -> dict[TopicPartition, int]:
        return dict(self._positions)

    ends = positions

    def partition_counts(self) -> dict[str, int]:
        return {}

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Does nothing: a replay belongs to no consumer group."""

    def unavailable_reason(self) -> str | None:
        return None

    def close(self) -> None:
        """Does nothing: no resource is held."""
