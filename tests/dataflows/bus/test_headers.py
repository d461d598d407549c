"""Headers of messages on every bus; and the key and header that outputs have."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import linear_model

from anabranch import Event, MemoryBus, Pipeline, Topics, field, inline
from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.bus.headers import SourceHeaders, header_of
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from tests.support.waiting import wait_until

MANY = 5_000  # more than a segment of the embedded bus holds


@pytest.fixture(params=["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Bus:
    if request.param == "memory":
        return MemoryBus()
    if request.param == "sqlite":
        return open_bus(f"sqlite:{tmp_path}/bus")
    return open_bus(request.getfixturevalue("kafka_broker").url)


@pytest.fixture
def topic(bus: Bus) -> str:
    name = uuid.uuid4().hex
    bus.create_topics({name: 2})
    return name


def read(
    bus: Bus, topic: str, count: int, partition: int = 0, limit: int = 700, headers: bool = True
) -> list[tuple[bytes, bytes | None, Any]]:
    """Value, key and headers of each message of a partition."""
    found: list[tuple[bytes, bytes | None, Any]] = []
    reader = bus.reader({TopicPartition(topic, partition): 0}, headers=headers)

    def all_read() -> bool:
        for piece in reader.poll(limit, 0.1):
            own = piece.headers or [None] * len(piece.values)
            found.extend(zip(piece.values, piece.keys, own, strict=True))
        return len(found) >= count

    wait_until(all_read)
    reader.close()
    return found


def test_headers_come_back_with_their_messages(bus: Bus, topic: str) -> None:
    publisher = bus.publisher()
    publisher.append(topic, [b"without"], partitions=0)
    headers = [[("n", str(n).encode()), ("n", None)] if n % 2 else None for n in range(MANY)]
    publisher.append(topic, [b"%d" % n for n in range(MANY)], partitions=0, headers=headers)
    publisher.append(
        topic,
        [b"a", b"b", b"c"],
        partitions=[1, 0, 1],
        headers=[[("x", b"a")], None, [("x", b"c")]],
    )
    publisher.close()
    found = read(bus, topic, MANY + 2)
    assert [each[2] for each in found] == [None, *headers, None]
    assert read(bus, topic, 2, partition=1) == [
        (b"a", None, [("x", b"a")]),
        (b"c", None, [("x", b"c")]),
    ]
    assert {each[2] for each in read(bus, topic, MANY + 2, headers=False)} == {None}


def test_headers_of_outputs_are_made_when_they_are_read(bus: Bus, topic: str) -> None:
    publisher = bus.publisher()
    made = SourceHeaders("orders", 3, np.arange(MANY) * 2)
    publisher.append(topic, [b"x"] * MANY, partitions=0, headers=made)
    publisher.close()
    found = read(bus, topic, MANY, limit=333)
    assert [each[2] for each in found] == list(made)
    assert found[-1][2] == [("anabranch-source", b"orders/3/%d" % (2 * MANY - 2))]


def test_the_last_header_of_a_name_counts() -> None:
    assert header_of([("a", b"1"), ("b", b"2"), ("a", b"3")], "a") == b"3"
    assert header_of([("a", b"1")], "b") is None
    assert header_of(None, "a") is None


class Order(Event):
    id: str
    ts: int
    amount: float
    paid: bool


def test_outputs_carry_the_key_of_the_event_and_its_coordinates(bus: Bus, topic: str) -> None:
    pipeline = Pipeline(
        name=f"p{topic}",
        event=Order,
        label=inline("paid"),
        features=[field("amount")],
        model=linear_model.LogisticRegression(),
        topics=Topics(events=topic),
    )
    now = int(time.time() * 1000)
    values = [
        json.dumps({"id": str(n), "ts": now, "amount": n, "paid": n % 2 == 0}).encode()
        if n != 7
        else b"bad"
        for n in range(40)
    ]
    keys = [b"k%d" % n if n % 3 else None for n in range(40)]
    publisher = bus.publisher()
    publisher.append(topic, values, keys=keys, partitions=[n % 2 for n in range(40)])
    publisher.close()
    run_worker(pipeline, bus, SourceOptions(until_end=True, limit=9))
    for partition, count in ((0, 20), (1, 19)):
        for value, key, headers in read(bus, pipeline.topics.predictions, count, partition):
            row = json.loads(value)
            assert key == keys[int(row["id"])]
            place = f"{topic}/{partition}/{row['offset']}".encode()
            assert headers == [("anabranch-source", place)]
    [(_, key, headers)] = read(bus, pipeline.topics.dead_letters, 1, 1)
    assert key == b"k7"
    assert headers == [("anabranch-source", f"{topic}/1/3".encode())]
