"""A bus whose input is prepared in memory, for benchmarks without the cost of a bus."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.bus import OnOutOfRange, Slice, TopicPartition
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.declaration.pipeline import Pipeline

START_MS = 1_736_121_600_000
EVERY_MS = 50


class Discard:
    """A publisher that discards everything, so that no contender pays for storing its output.

    It records when ``mark`` messages had been published, and when the last ones were.
    """

    def __init__(self, mark: int = 0) -> None:
        self.mark = mark
        self.marked_at = self.last_at = 0.0
        self._count = 0

    def append(self, topic: str, values: Sequence[bytes], **_: Any) -> None:
        """Discard the messages."""
        self.last_at = time.perf_counter()
        if self._count < self.mark <= self._count + len(values):
            self.marked_at = self.last_at
        self._count += len(values)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Does nothing."""

    close = flush


class Prepared:
    """A reader of one partition that only cuts slices, like the source of the baseline.

    The cost of a real bus is measured by `python -m benchmarks bus`.
    """

    def __init__(self, topic: str, messages: list[bytes], start: int = 0) -> None:
        self._at = TopicPartition(topic, 0)
        self._values = messages
        self._keys: list[bytes | None] = [None] * len(messages)
        self._offsets: NDArray[np.int64] = np.arange(len(messages), dtype=np.int64)
        self._times = START_MS + EVERY_MS * self._offsets
        self._next = start

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        cut = slice(self._next, self._next + limit)
        values = self._values[cut]
        self._next += len(values)
        if not values:
            return []
        offsets, times, keys = self._offsets[cut], self._times[cut], self._keys[cut]
        return [Slice(self._at.topic, 0, offsets, times, values, keys)]

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Does nothing: there is a single partition."""

    resume = pause

    def positions(self) -> dict[TopicPartition, int]:
        return {self._at: self._next}

    def ends(self) -> dict[TopicPartition, int]:
        return {self._at: len(self._values)}

    def partition_counts(self) -> dict[str, int]:
        return {}

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Does nothing."""

    def unavailable_reason(self) -> None:
        """There is none."""

    def close(self) -> None:
        """Does nothing."""


class PreparedBus(MemoryBus):
    """A memory bus whose input is prepared; its output is kept, or goes to ``sink``."""

    def __init__(
        self, pipeline: Pipeline, messages: list[bytes], sink: Discard | None = None
    ) -> None:
        super().__init__()
        self._sink = sink
        self._input, self._messages = pipeline.topics.events, messages
        self.create_topics({self._input: 1})

    def end_offsets(self, topic: str) -> list[int]:
        return [len(self._messages)] if topic == self._input else super().end_offsets(topic)

    def publisher(self, stop: threading.Event | None = None) -> Any:
        return super().publisher(stop) if self._sink is None else self._sink

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        group: str | None = None,
        on_out_of_range: OnOutOfRange = "stop",
    ) -> Any:
        start = positions[TopicPartition(self._input, 0)]
        return Prepared(self._input, self._messages, start)
