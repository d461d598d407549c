"""The dead letter of a message without a payload has the message's key, on every bus."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer
from river import linear_model

from anabranch import Event, MemoryBus, Pipeline, field, inline
from anabranch.dataflows.batch.dead_letters import payload_fields
from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.bus.protocol import Tombstone
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from tests.support.kafka_broker import KafkaBroker


class Reading(Event):
    id: str
    ts: int
    value: float
    target: float = 0.0


PIPELINE = Pipeline(
    name="readings",
    event=Reading,
    features=[field("value")],
    label=inline("target"),
    model=linear_model.LinearRegression(),
)
EVENT = b'{"id":"a","ts":1736121600000,"value":1.5}'


KEYS = [b"a", b"gone", b"\xff\x00", None]
"""Of an event, two tombstones and an empty message without a key."""


def publish(bus: Bus) -> None:
    publisher = bus.publisher()
    publisher.append("readings.events", [EVENT, b"", b"", b""], keys=KEYS)
    publisher.close()


def publish_nulls(bus: Bus) -> None:
    producer = Producer({"bootstrap.servers": bus.url.removeprefix("kafka://")})
    for key, value in zip(KEYS, [EVENT, None, None, None], strict=True):
        producer.produce("readings.events", key=key, value=value)
    assert producer.flush(30) == 0


def dead_letters(bus: Bus, send: Callable[[Bus], None]) -> list[DeadLetter]:
    bus.create_topics({"readings.events": 1})
    send(bus)
    run_worker(PIPELINE, bus, SourceOptions(until_end=True))
    reader = bus.reader({TopicPartition("readings.dead-letters", 0): 0})
    found: list[DeadLetter] = []
    while len(found) < 3:
        for piece in reader.poll(100, 1.0):
            found += [msgspec.json.decode(value, type=DeadLetter) for value in piece.values]
    reader.close()
    return found


def check(bus: Bus, send: Callable[[Bus], None] = publish) -> None:
    first, second, third = dead_letters(bus, send)
    assert (first.key, first.key_base64, first.payload) == ("gone", msgspec.UNSET, "")
    assert "it has no value" in first.detail
    assert (second.key, second.key_base64) == (msgspec.UNSET, "/wA=")
    assert (third.key, third.key_base64) == (msgspec.UNSET, msgspec.UNSET)
    assert [each.offset for each in (first, second, third)] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["memory", "embedded"])
def test_a_tombstone_is_a_dead_letter_with_its_key(kind: str, tmp_path: Path) -> None:
    bus = MemoryBus() if kind == "memory" else open_bus(f"sqlite:{tmp_path}/bus")
    check(bus)
    bus.close()


def test_on_kafka(kafka_broker: KafkaBroker) -> None:
    bus = open_bus(kafka_broker.url)
    try:
        check(bus, publish_nulls)
    finally:
        bus.close()


def test_other_dead_letters_have_no_key() -> None:
    letter = DeadLetter(
        topic="t", partition=0, offset=0, reason="late", detail="-", **payload_fields(EVENT)
    )
    assert json.loads(msgspec.json.encode(letter)).keys() == {
        "topic", "partition", "offset", "reason", "detail", "payload", "payload_base64",
    }  # fmt: skip
    assert payload_fields(Tombstone.of(None)) == {"payload": ""}
