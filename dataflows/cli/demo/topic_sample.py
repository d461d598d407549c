"""Reads the messages of a topic that are there now: all, the last few, or one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.bus.read_to_end import ends_now, read_to_end

Message = dict[str, Any]


def all_messages(bus: Bus, topic: str) -> Iterator[bytes]:
    """Iterate over the messages that are on a topic now, each partition in order."""
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
    messages: list[Message] = []
    try:
        for piece in read_to_end(reader, ends):
            messages += [orjson.loads(value) for value in piece.values]
    finally:
        reader.close()
    return messages


def event_time_ms(bus: Bus, topic: str, offset: int) -> int:
    """The event time (epoch ms) of the first valid message at or after ``offset``; 0 if none."""
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


def last_by(messages: Iterable[Message], field: str) -> list[Message]:
    """The last message for each value of ``field``."""
    return list({message[field]: message for message in messages}.values())
