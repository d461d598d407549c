"""The same history as messages on a bus and as files, for tests of replay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.bus.partitioner import partition_of_key
from anabranch.producers.batch import Batch
from anabranch.producers.simulators.faults import Faults
from anabranch.producers.simulators.payments import PaymentSettings, simulate_payments

EVENTS, LABELS = "payments.events", "payments.labels"
WORLD = PaymentSettings(cards=150, merchants=40, rate=0.3)


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the payments simulator with its publishing time."""

    topic: str
    value: bytes
    key: bytes | None
    time: int


def simulated(events: int, faults: Faults | None = None, seed: int = 3) -> list[Message]:
    """Payments and their labels in order of time."""
    found: list[Message] = []
    for batch in simulate_payments(events=events, seed=seed, settings=WORLD, faults=faults):
        found += messages_of(batch)
    return found


def cut_by_time(messages: Sequence[Message], share: float) -> tuple[list[Message], list[Message]]:
    """The messages before and after a moment; messages of equal time stay together."""
    moment = int(np.quantile([message.time for message in messages], share))
    before = [message for message in messages if message.time <= moment]
    return before, [message for message in messages if message.time > moment]


def of_topic(messages: Sequence[Message], topic: str) -> list[Message]:
    """The messages of one topic, in order."""
    return [message for message in messages if message.topic == topic]


def publish(url: str, messages: Sequence[Message], partitions: int = 1) -> None:
    """Publish each to the partition of its key, with its own time."""
    bus = open_bus(url)
    bus.create_topics({EVENTS: partitions, LABELS: partitions})
    publisher = bus.publisher()
    for message in messages:
        place = partition_of_key(message.key or b"", partitions)
        publisher.append(message.topic, [message.value], partitions=place, times=[message.time])
    publisher.close()
    bus.close()


def on_topic(url: str, topic: str) -> list[tuple[int, int, bytes]]:
    """Partition, offset and value of all messages, partition by partition."""
    bus = open_bus(url)
    try:
        return list(_read(bus, topic))
    finally:
        bus.close()


def values(url: str, topic: str) -> list[bytes]:
    """The values on a topic, partition by partition."""
    return [value for _, _, value in on_topic(url, topic)]


def write(path: Path, messages: Sequence[bytes], more: Sequence[dict[str, Any]] = ()) -> str:
    """Write a file in the format of its name; ``more`` are further fields of each row."""
    rows = [json.loads(value) for value in messages]
    if more:
        rows = [{**row, **extra} for row, extra in zip(rows, more, strict=True)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        pl.DataFrame(rows).write_csv(path)
    else:
        pl.DataFrame(rows).write_parquet(path, row_group_size=500)
    return str(path)


def copy_of_topic(path: Path, url: str, topic: str, order: Any = None) -> str:
    """Write a file with all messages of a topic and their offsets, sorted by ``order``."""
    found = on_topic(url, topic)
    if order is not None:
        found.sort(key=order)
    places = [{"partition": partition, "offset": offset} for partition, offset, _ in found]
    return write(path, [value for _, _, value in found], places)


def messages_of(batch: Batch) -> list[Message]:
    """The messages of a batch of the simulator."""
    topics = [LABELS if label else EVENTS for label in batch.labels.tolist()]
    return list(map(Message, topics, batch.values, batch.keys, batch.times.tolist()))


def _read(bus: Bus, topic: str) -> Any:
    for number, end in enumerate(bus.end_offsets(topic)):
        at = TopicPartition(topic, number)
        reader = bus.reader({at: 0})
        while reader.positions()[at] < end:
            for piece in reader.poll(10_000, 0.5):
                yield from (
                    (number, offset, value)
                    for offset, value in zip(piece.offsets.tolist(), piece.values, strict=True)
                )
        reader.close()
