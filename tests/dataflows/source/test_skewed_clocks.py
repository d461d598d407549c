"""Message times are their producers': one wrong clock moves nothing but its own messages.

What is late, and what is learned, is the same when catching up as live, on both buses.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from river import linear_model

from anabranch import Event, Label, Pipeline, field, window
from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from tests.support.history import values
from tests.support.kafka_broker import KafkaBroker

T0 = 1_750_000_000_000
MINUTE = 60_000
YEAR_2100 = 4_102_444_800_000


class Pay(Event):
    id: str
    ts: int
    card: str
    amount: float


class Verdict(Label):
    id: str
    ts: int
    fraud: bool


def pipeline(name: str) -> Pipeline:
    return Pipeline(
        name=name,
        event=Pay,
        label=Verdict.target("fraud", timeout="1h"),
        features=[field("amount"), window("card", "amount", over="30m")],
        model=linear_model.LogisticRegression(),
        with_features=True,
    )


@dataclass(frozen=True)
class Message:
    """A message and the order in which it really came, by ``at``."""

    at: int
    topic: str
    partition: int
    body: dict[str, Any]
    stamp: int


def history(minutes: int = 120) -> list[Message]:
    """An event every 10 s, in turn on two partitions; its label follows on its partition."""
    found = []
    for n in range(minutes * 6):
        ts = T0 + n * 10_000
        event = {"id": f"e{n}", "ts": ts, "card": f"c{n % 20}", "amount": float(n % 7)}
        label = {"id": f"e{n}", "ts": ts + 5 * MINUTE, "fraud": n % 7 == 0}
        found.append(Message(ts, "events", n % 2, event, ts))
        found.append(Message(ts + 5 * MINUTE, "labels", n % 2, label, ts + 5 * MINUTE))
    return sorted(found, key=lambda message: message.at)


def restamped(messages: list[Message], topic: str, ids: set[str], stamp: int) -> list[Message]:
    """The same messages, some with a time of publishing that is ``stamp`` ms later."""
    return [
        Message(m.at, m.topic, m.partition, m.body, m.stamp + stamp)
        if m.topic == topic and m.body["id"] in ids
        else m
        for m in messages
    ]


def with_a_label_of_2100(messages: list[Message], after: int) -> list[Message]:
    """A label that is dated in the year 2100, and was stamped so."""
    at = messages[after].at
    body = {"id": "e1", "ts": YEAR_2100, "fraud": True}
    wrong = Message(at, "labels", 0, body, YEAR_2100)
    return [*messages[: after + 1], wrong, *messages[after + 1 :]]


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'bus'}"
        return
    broker: KafkaBroker = request.getfixturevalue("kafka_broker")
    yield broker.url


def create(bus: Bus, name: str) -> None:
    """The input topics; on Kafka they must take a time of the year 2100."""
    admin = getattr(bus, "_admin", None)
    if admin is None:
        bus.create_topics({f"{name}.events": 2, f"{name}.labels": 2})
        return
    from confluent_kafka.admin import AdminClient, NewTopic

    any_time = {"retention.ms": "-1", "message.timestamp.after.max.ms": str(2**63 - 1)}
    client = AdminClient({"bootstrap.servers": bus.url.removeprefix("kafka://")})
    topics = [NewTopic(f"{name}.{kind}", 2, 1, config=any_time) for kind in ("events", "labels")]
    for future in client.create_topics(topics).values():
        future.result(30)


def run(
    url: str, state: Path, name: str, messages: list[Message], pieces: int
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Publish so many pieces, each read to its end; return predictions and dead letters."""
    declared = pipeline(name)
    bus = open_bus(url)
    try:
        if f"{name}.events" not in bus.topics():
            create(bus, name)
        size = -(-len(messages) // pieces)
        for start in range(0, len(messages), size):
            publisher = bus.publisher()
            for each in messages[start : start + size]:
                body = json.dumps(each.body).encode()
                topic = f"{name}.{each.topic}"
                publisher.append(topic, [body], partitions=each.partition, times=[each.stamp])
            publisher.close()
            with StateDirectory.open(state, declared, bus) as opened:
                run_worker(declared, bus, SourceOptions(until_end=True, limit=50), state=opened)
    finally:
        bus.close()
    predictions = [json.loads(value) for value in values(url, f"{name}.predictions")]
    dead = [json.loads(value)["reason"] for value in values(url, f"{name}.dead-letters")]
    return sorted(predictions, key=lambda each: str(each["id"])), Counter(dead)


def new_name() -> str:
    return f"skewed-{uuid4().hex[:8]}"


WRONG = {
    "one is fast": ({"e100"}, 50),
    "some are fast": ({f"e{n}" for n in range(0, 720, 8)} | {"e102", "e104", "e719"}, 50),
    "every other is fast for minutes": ({f"e{n}" for n in range(100, 160, 4)}, 50),
    "the first is fast": ({"e0"}, 50),
    "one is slow": ({"e100"}, -50),
    "every other is slow": ({f"e{n}" for n in range(0, 720, 4)}, -50),
}


@pytest.mark.parametrize(("ids", "minutes"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_clock_makes_no_event_late(
    url: str, tmp_path: Path, ids: set[str], minutes: int
) -> None:
    messages = history()
    skewed = restamped(messages, "events", ids, minutes * MINUTE)
    found, dead = run(url, tmp_path / "a", new_name(), skewed, pieces=1)
    assert dead["event time ahead"] == (0 if minutes > 0 else len(ids))  # of its own time
    assert dead["late"] == 0
    assert len(found) == 720 - dead["event time ahead"]
    live, dead_live = run(url, tmp_path / "b", new_name(), skewed, pieces=6)
    assert dead_live == dead
    assert [each["features"] for each in found] == [each["features"] for each in live]


@pytest.mark.parametrize("after", [719, 1439], ids=["in the middle", "at the end"])
def test_a_label_of_the_year_2100_changes_nothing(url: str, tmp_path: Path, after: int) -> None:
    """It is a dead letter; what comes later is learned and predicted as without it."""
    messages = history(240)
    cut = len(messages) // 2
    results = []
    for number, first in enumerate((messages[:cut], with_a_label_of_2100(messages[:cut], after))):
        name, state = new_name(), tmp_path / str(number)
        run(url, state, name, first, pieces=1)
        results.append(run(url, state, name, messages[cut:], pieces=1))
    (clean, no_letters), (found, letters) = results
    assert no_letters == {}
    assert letters == {"event time ahead": 1}
    outcomes = [
        [{name: value for name, value in each.items() if name != "topic"} for each in predictions]
        for predictions in (clean, found)
    ]
    assert outcomes[0] == outcomes[1]
