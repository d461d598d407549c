"""Reads messages of a topic, to show a few of them or to count all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from anabranch.dataflows.bus import Bus, TopicPartition

Message = dict[str, Any]
_AT_ONCE = 10_000


def all_messages(bus: Bus, topic: str) -> Iterator[bytes]:
    """The messages that are on a topic now; in order, if it has one partition."""
    ends = dict(enumerate(bus.end_offsets(topic)))
    starts = enumerate(bus.start_offsets(topic))
    reader = bus.reader({TopicPartition(topic, number): start for number, start in starts})
    try:
        while any(at < ends[where.partition] for where, at in reader.positions().items()):
            for piece in reader.poll(_AT_ONCE, timeout_s=0.1):
                yield from piece.values
    finally:
        reader.close()


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
