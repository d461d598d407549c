"""A bus in memory on which some offsets hold no message, as markers of transactions on Kafka."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from anabranch.dataflows.bus import OnOutOfRange, Slice, TopicPartition
from anabranch.dataflows.bus.memory import MemoryBus

_HOLE = b"\0 no message"


class BusWithHoles(MemoryBus):
    """Readers pass the offsets that `add_holes` appends, and are handed nothing for them."""

    def add_holes(self, topic: str, count: int, partition: int = 0) -> None:
        """Append offsets without a message."""
        self.publisher().append(topic, [_HOLE] * count, partitions=partition)

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        group: str | None = None,
        on_out_of_range: OnOutOfRange = "stop",
    ) -> Any:
        reader = super().reader(positions, group, on_out_of_range)
        poll = reader.poll

        def poll_messages(limit: int, timeout_s: float = 0.0) -> list[Slice]:
            slices = [_without_holes(piece) for piece in poll(limit, timeout_s)]
            return [piece for piece in slices if piece.values]

        reader.poll = poll_messages  # type: ignore[method-assign]
        return reader


def _without_holes(piece: Slice) -> Slice:
    kept = [row for row, value in enumerate(piece.values) if value != _HOLE]
    at = np.array(kept, np.int64)
    return Slice(
        piece.topic,
        piece.partition,
        piece.offsets[at],
        piece.times[at],
        [piece.values[row] for row in kept],
        [piece.keys[row] for row in kept],
    )
