"""A bus in memory: for tests of pipelines, and benchmarks of everything but a bus."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.bus.headers import Headers, MessageHeaders
from anabranch.dataflows.bus.offset_errors import next_offset
from anabranch.dataflows.bus.partitioner import partition_of_key
from anabranch.dataflows.bus.protocol import (
    OnOutOfRange,
    Slice,
    TopicLimits,
    TopicPartition,
    with_tombstones,
)
from anabranch.state.errors import BusError


@dataclass(slots=True)
class _Log:
    values: list[bytes] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    headers: list[tuple[int, Headers]] = field(default_factory=list)  # from that offset on
    start: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.values)

    def headers_between(self, start: int, stop: int) -> Headers | None:
        """The headers of the messages from ``start`` to ``stop``; None if none has any."""
        found: list[MessageHeaders] | None = None
        for first, headers in self.headers:
            for offset in range(max(first, start), min(first + len(headers), stop)):
                found = found or [None] * (stop - start)
                found[offset - start] = headers[offset - first]
        return found


class MemoryBus:
    """Topics as lists; gone when the process ends.

    ``max_message_bytes`` is what `limits` says of every topic.

    >>> bus = MemoryBus()
    >>> bus.create_topics({"t": 1})
    ['t']
    >>> bus.publisher().append("t", [b"a", b"b"])
    >>> bus.values("t")
    [b'a', b'b']
    """

    url = "memory:"

    def __init__(self, max_message_bytes: int = 8 << 20) -> None:
        self._topics: dict[str, list[_Log]] = {}
        self._ids: dict[str, str] = {}
        self._limits = TopicLimits(max_message_bytes)

    def create_topics(self, partitions: Mapping[str, int]) -> list[str]:
        created = [name for name in partitions if name not in self._topics]
        for name, count in partitions.items():
            if name not in self._topics:
                self._topics[name] = [_Log() for _ in range(count)]
                self._ids[name] = uuid.uuid4().hex
            elif len(self._topics[name]) != count:
                raise BusError(
                    f"topic {name!r} exists with {len(self._topics[name])} partitions, not {count}"
                )
        return created

    def add_partitions(self, topic: str, count: int) -> None:
        logs = self.logs(topic)
        if len(logs) > count:
            raise BusError(f"topic {topic!r} has {len(logs)} partitions, more than {count}")
        logs.extend(_Log() for _ in range(count - len(logs)))

    def delete_topics(self, names: Sequence[str]) -> None:
        for name in names:
            self.logs(name)
        for name in names:
            del self._topics[name], self._ids[name]

    def topics(self) -> dict[str, int]:
        return {name: len(logs) for name, logs in self._topics.items()}

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        return {name: self._ids[name] for name in topics if name in self._ids}

    def start_offsets(self, topic: str) -> list[int]:
        return [log.start for log in self.logs(topic)]

    def end_offsets(self, topic: str) -> list[int]:
        return [log.end for log in self.logs(topic)]

    def offsets_at(self, topic: str, time_ms: int) -> list[int]:
        return [
            log.start + next((n for n, at in enumerate(log.times) if at >= time_ms), len(log.times))
            for log in self.logs(topic)
        ]

    def open_transactions(self, topic: str) -> dict[int, int]:
        """None: there are no transactions here."""
        return {}

    def limits(self, topic: str) -> TopicLimits:
        self.logs(topic)
        return self._limits

    def publisher(self, stop: threading.Event | None = None) -> _MemoryPublisher:
        return _MemoryPublisher(self)

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        group: str | None = None,
        on_out_of_range: OnOutOfRange = "stop",
        headers: bool = False,
    ) -> _MemoryReader:
        for at in positions:
            if at.partition >= len(self.logs(at.topic)):
                raise BusError(f"topic {at.topic!r} has no partition {at.partition}")
        return _MemoryReader(self, dict(positions), on_out_of_range, headers)

    def close(self) -> None:
        """Nothing to close."""

    def logs(self, topic: str) -> list[_Log]:
        """The partitions of a topic.

        Raises:
            BusError: the topic does not exist.
        """
        if topic not in self._topics:
            raise BusError(f"topic {topic!r} does not exist on {self.url}")
        return self._topics[topic]

    def delete_before(self, at: TopicPartition, offset: int) -> None:
        """Delete what lies before ``offset``, as retention does."""
        log = self.logs(at.topic)[at.partition]
        count = min(max(offset - log.start, 0), len(log.values))
        for column in (log.values, log.keys, log.times):
            del column[:count]
        log.start += count

    def values(self, topic: str) -> list[bytes]:
        """All messages of a topic, partition after partition."""
        return [value for log in self.logs(topic) for value in log.values]


class _MemoryPublisher:
    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self._next = 0

    def append(
        self,
        topic: str,
        values: Sequence[bytes],
        *,
        keys: Sequence[bytes | None] | None = None,
        partitions: Sequence[int] | int | None = None,
        times: Sequence[int] | NDArray[np.int64] | None = None,
        headers: Headers | None = None,
    ) -> None:
        logs = self._bus.logs(topic)
        message_times = (
            [int(time.time() * 1000)] * len(values) if times is None else list(map(int, times))
        )
        message_keys = list(keys) if keys is not None else [None] * len(values)
        if partitions is None:
            partitions = (
                0 if len(logs) == 1 else [self._partition(key, len(logs)) for key in message_keys]
            )
        if isinstance(partitions, int):
            log = logs[partitions]
            if headers is not None:
                log.headers.append((log.end, headers))
            log.values.extend(values)
            log.keys.extend(message_keys)
            log.times.extend(message_times)
            return
        for row, (value, key, time_ms, partition) in enumerate(
            zip(values, message_keys, message_times, partitions, strict=True)
        ):
            log = logs[partition]
            if headers is not None:
                log.headers.append((log.end, headers[row : row + 1]))
            log.values.append(value)
            log.keys.append(key)
            log.times.append(time_ms)

    def _partition(self, key: bytes | None, partitions: int) -> int:
        if key is not None:
            return partition_of_key(key, partitions)
        self._next += 1
        return self._next % partitions

    def flush(self, timeout_s: float = 30.0) -> None:
        """Everything is stored already."""

    def close(self) -> None:
        """Nothing to close."""


class _MemoryReader:
    def __init__(
        self,
        bus: MemoryBus,
        positions: dict[TopicPartition, int],
        on_out_of_range: OnOutOfRange = "stop",
        headers: bool = False,
    ) -> None:
        self._headers = headers
        self._bus = bus
        self._positions = positions
        self._on_out_of_range = on_out_of_range
        self._paused: set[TopicPartition] = set()
        for at, wanted in positions.items():
            log = bus.logs(at.topic)[at.partition]
            positions[at] = next_offset(at, wanted, log.start, log.end, on_out_of_range)

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        slices = []
        for at, start in self._positions.items():
            log = self._bus.logs(at.topic)[at.partition]
            if at in self._paused or start == log.end:
                continue
            if start < log.start or start > log.end:
                start = next_offset(at, start, log.start, log.end, self._on_out_of_range)
            stop = min(start + limit, log.end)
            self._positions[at] = stop
            if start == stop:
                continue
            cut = slice(start - log.start, stop - log.start)
            slices.append(
                Slice(
                    at.topic,
                    at.partition,
                    np.arange(start, stop),
                    np.array(log.times[cut], np.int64),
                    with_tombstones(log.values[cut], log.keys[cut]),
                    log.keys[cut],
                    log.headers_between(start, stop) if self._headers else None,
                )
            )
        return slices

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.difference_update(partitions)

    def positions(self) -> dict[TopicPartition, int]:
        return dict(self._positions)

    def ends(self) -> dict[TopicPartition, int]:
        return {at: self._bus.logs(at.topic)[at.partition].end for at in self._positions}

    def partition_counts(self) -> dict[str, int]:
        return {at.topic: len(self._bus.logs(at.topic)) for at in self._positions}

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Nothing reads it."""

    def unavailable_reason(self) -> str | None:
        return None

    def close(self) -> None:
        """Nothing to close."""
