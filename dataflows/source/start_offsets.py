"""Where a run without state starts: at an end of its topics, at a time, or at given offsets."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Mapping
from datetime import tzinfo
from pathlib import Path
from typing import Any, Literal

import msgspec

from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.messages.event_time import parse_time_ms
from anabranch.state.durations import parse_duration_ms
from anabranch.state.errors import DeclarationError, InputError

Offsets = dict[str, dict[int, int]]
"""Topic → partition → offset."""

Start = Literal["earliest", "latest"] | int | Offsets
"""An end of all topics; a time, epoch ms: the first message published then or later; offsets."""

_HEADER = ["topic", "partition", "offset"]


def parse_start(text: str, zone: tzinfo, now_ms: int | None = None) -> Start:
    """What ``text`` means: an end of the topics, a time, a duration back, or a file of offsets.

    ``zone`` is that of a time without an offset, ``now_ms`` the wall clock. The file has lines
    ``topic,partition,offset``, as Kafka's own tools export, or is a JSON object of topics, whose
    partitions have offsets.

    >>> from datetime import UTC
    >>> parse_start("1970-01-02T00:00Z", UTC), parse_start("-1h", UTC, 7_200_000)
    (86400000, 3600000)

    Raises:
        InputError: it is none of those, or the file can't be used.
    """
    if text == "earliest":
        return "earliest"
    if text == "latest":
        return "latest"
    if Path(text).is_file():
        return _read(Path(text))
    try:
        if text.startswith("-"):
            now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
            return now_ms - parse_duration_ms(text[1:])
        if not text.isdecimal():
            return parse_time_ms(text, 1.0, zone)
    except (ValueError, OverflowError, DeclarationError):
        pass
    raise InputError(
        f"--start-offset {text!r} is none of: earliest, latest, a time such as "
        "2026-11-30T08:00, a duration back such as -2d, or a file of offsets, with lines "
        "topic,partition,offset"
    )


def resolve_start(bus: Bus, topics: Iterable[str], start: Start) -> dict[TopicPartition, int]:
    """The offset of each partition of ``topics`` at which ``start`` is.

    Raises:
        InputError: it has offsets, and they do not fit the topics.
        BusError: a topic does not exist, or the bus does not respond.
    """
    wanted = list(topics)
    if isinstance(start, dict):
        _check(bus, wanted, start)
    found: dict[TopicPartition, int] = {}
    for topic in wanted:
        if isinstance(start, int):
            offsets = bus.offsets_at(topic, start)
        elif isinstance(start, dict):
            offsets = [start[topic][number] for number in range(len(bus.end_offsets(topic)))]
        else:
            offsets = bus.end_offsets(topic) if start == "latest" else bus.start_offsets(topic)
        found |= {TopicPartition(topic, number): at for number, at in enumerate(offsets)}
    return found


def _check(bus: Bus, topics: list[str], offsets: Offsets) -> None:
    unknown = [topic for topic in offsets if topic not in topics]
    if unknown:
        raise InputError(
            f"--start-offset has offsets of topic {unknown[0]!r}, which is no input: the inputs "
            f"are {', '.join(topics)}"
        )
    for topic in topics:
        starts, ends = bus.start_offsets(topic), bus.end_offsets(topic)
        given = offsets.get(topic, {})
        for number, (first, end) in enumerate(zip(starts, ends, strict=True)):
            if number not in given:
                raise InputError(
                    f"--start-offset has no offset of partition {number} of topic {topic!r}: give "
                    "one for each partition"
                )
            if not first <= given[number] <= end:
                raise InputError(
                    f"--start-offset has offset {given[number]} of partition {number} of topic "
                    f"{topic!r}, which holds {first} to {end}"
                )
        if extra := sorted(given.keys() - set(range(len(ends)))):
            raise InputError(
                f"--start-offset has an offset of partition {extra[0]} of topic {topic!r}, whose "
                f"partitions are 0 to {len(ends) - 1}"
            )


def _read(path: Path) -> Offsets:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"--start-offset {path} can't be read: {why}") from None
    if text.lstrip().startswith("{"):
        try:
            return _natural(msgspec.json.decode(text, type=dict[str, dict[int, int]]))
        except msgspec.MsgspecError as error:
            raise InputError(
                f'--start-offset {path}: {error}; write {{"topic": {{"0": 17}}}}'
            ) from None
    offsets: Offsets = {}
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        cells = [cell.strip().strip('"') for cell in row]
        if not any(cells) or (number == 1 and [cell.lower() for cell in cells] == _HEADER):
            continue
        if len(cells) != 3 or not (cells[1].isdecimal() and cells[2].isdecimal()):
            raise InputError(
                f"--start-offset {path}, line {number}: write topic,partition,offset, such as "
                "orders,0,17"
            )
        offsets.setdefault(cells[0], {})[int(cells[1])] = int(cells[2])
    if not offsets:
        raise InputError(f"--start-offset {path} has no offsets: write topic,partition,offset")
    return offsets


def _natural(offsets: Mapping[str, Mapping[int, Any]]) -> Offsets:
    """Raise unless all numbers are at least 0."""
    for partitions in offsets.values():
        for partition, offset in partitions.items():
            if partition < 0 or offset < 0:
                raise msgspec.ValidationError("a partition or offset is below 0")
    return {topic: dict(partitions) for topic, partitions in offsets.items()}
