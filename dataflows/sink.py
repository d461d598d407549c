"""The sink operator: publishes what the flow made, and checks that it arrived.

An item is ``(partition number, Outgoing)``; one sink partition writes one partition number of every
output topic, so that each of those has one writer and keeps its order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from numpy.typing import NDArray

from dataflows.bus import Bus, Publisher


@dataclass(slots=True)
class Outgoing:
    """Messages for one partition number: topic → payloads, in order.

    ``published`` and ``read_at`` are for the latency metrics: when the events were published (epoch
    ms, ``(n,) int64``) and when they were read (seconds).
    """

    partition: int
    messages: dict[str, list[bytes]]
    published: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    read_at: float = 0.0


class BusSink(FixedPartitionedSink[Outgoing, None]):
    """Publishes to the partition number that each item names.

    ``on_written`` is told of each item after it was handed to the bus, with the wall clock.
    """

    def __init__(
        self,
        bus: Bus,
        partitions: int,
        on_written: Callable[[Outgoing, float], None] | None = None,
    ) -> None:
        self._bus = bus
        self._partitions = partitions
        self._on_written = on_written
        self._publisher: Publisher | None = None

    def list_parts(self) -> list[str]:
        return [part_name(number) for number in range(self._partitions)]

    def part_fn(self, item_key: str) -> int:
        return int(item_key)

    def build_part(
        self, step_id: str, for_part: str, resume_state: None
    ) -> StatefulSinkPartition[Outgoing, None]:
        if self._publisher is None:
            self._publisher = self._bus.publisher()
        return _SinkPartition(self._publisher, self._on_written)


def part_name(number: int) -> str:
    """Sink partitions are ordered by name, so numbers are padded."""
    return f"{number:06d}"


class _SinkPartition(StatefulSinkPartition[Outgoing, None]):
    def __init__(
        self, publisher: Publisher, on_written: Callable[[Outgoing, float], None] | None
    ) -> None:
        self._publisher = publisher
        self._on_written = on_written

    def write_batch(self, items: list[Outgoing]) -> None:
        for item in items:
            for topic, messages in item.messages.items():
                self._publisher.append(topic, messages, partitions=item.partition)
            if self._on_written is not None:
                self._on_written(item, time.time())

    def snapshot(self) -> None:
        self._publisher.flush()

    def close(self) -> None:
        self._publisher.flush()
