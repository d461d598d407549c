"""Reads messages of a topic, to show a few of them or to count all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.bus.read_to_end import ends_now, read_to_end

Message = dict[str, Any]


def all_messages(bus: Bus, topic: str) -> Iterator[bytes]:
    """The messages that are on a topic now; in order, if it has one partition."""
    starts = enumerate(bus.start_offsets(topic))
    offsets = {TopicPartition(topic, number): start for number, start in starts}
    ends = ends_now(bus, offsets)
    reader = bus.reader(offsets)
    try:
        for piece in read_to_end(reader, ends):
            yield from piece.values
    finally:
        reader.close()


def last_messages(bus: Bus, topic: str, count: int) -> list[Message]:
    """The last ``count`` JSON messages of a topic's first partition, oldest first."""
    at = TopicPartition(topic, 0)
    ends, start = ends_now(bus, [at]), bus.start_offsets(topic)[0]
    reader = bus.reader({at: max(ends[at] - count, start)})
    found: list[Message] = []
    try:
        for piece in read_to_end(reader, ends):
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
