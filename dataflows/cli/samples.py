"""Reads a few messages of a topic, to show them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from dataflows.bus import Bus, TopicPartition

Message = dict[str, Any]


def last_messages(bus: Bus, topic: str, count: int) -> list[Message]:
    """The last ``count`` JSON messages of a topic's first partition, oldest first."""
    end, start = bus.end_offsets(topic)[0], bus.start_offsets(topic)[0]
    at = TopicPartition(topic, 0)
    reader = bus.reader({at: max(end - count, start)})
    found: list[Message] = []
    try:
        while reader.positions()[at] < end:
            for piece in reader.poll(count, timeout_s=0.1):
                found += [orjson.loads(value) for value in piece.values]
    finally:
        reader.close()
    return found


def event_time_ms(bus: Bus, topic: str, offset: int) -> int:
    """The event time of the first readable message at ``offset`` of a topic, or behind it."""
    at = TopicPartition(topic, 0)
    reader = bus.reader({at: min(offset, bus.end_offsets(topic)[0] - 1)})
    try:
        for piece in reader.poll(100, timeout_s=1.0):
            for value in piece.values:
                try:
                    return int(orjson.loads(value)["ts"])
                except (ValueError, KeyError, TypeError):
                    continue
    finally:
        reader.close()
    return 0


def one_per(messages: Iterable[Message], field: str) -> list[Message]:
    """One message for each value of ``field``, the last of each."""
    return list({message[field]: message for message in messages}.values())
