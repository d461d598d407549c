"""Two pipelines on one stream of another team, one in two processes, killed and started again."""

from __future__ import annotations

import json
import random
import signal
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from anabranch import DeadLetter, read_outputs
from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.bus.partitioner import partition_of_key
from tests.support.commands import Command, run_command
from tests.support.waiting import GENEROUS_S, wait_until

PARTITIONS = 4
ORDERS = 2_000
HOUR = 3_600_000
PIPELINE = """
from river import linear_model, preprocessing
from anabranch import Event, Label, Pipeline, Topics, field, message_key, window

class Order(Event):
    id: str
    ts: int
    customer: str = message_key()
    amount: float

class Dispute(Label):
    id: str
    ts: int
    disputed: bool

pipeline = Pipeline(
    name="{name}",
    event=Order,
    label=Dispute.target("disputed", timeout="30d", early_buffer="30d"),
    features=[field("amount"), window("customer", "amount", over="1h", stats=("count", "sum"))],
    model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    allowed_lateness="60d",
    with_features=True,
    topics=Topics(
        events="prod.orders.V2-{own}", labels="Disputes-{own}", predictions="ml.{name}-{own}"
    ),
)
"""


@pytest.fixture(
    params=["sqlite", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.slow])]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/bus"
    return str(request.getfixturevalue("kafka_broker").url)


def publish(bus: Bus, own: str) -> dict[str, tuple[float, float, float]]:
    """Publish orders and disputes; returns the features that each order should get."""
    events, labels = f"prod.orders.V2-{own}", f"Disputes-{own}"
    bus.create_topics({events: PARTITIONS, labels: PARTITIONS})
    publisher, chance = bus.publisher(), random.Random(7)
    first = int(time.time() * 1000) - ORDERS * 20_000
    seen: dict[str, list[tuple[int, float]]] = {}
    expected = {}
    for n in range(ORDERS):
        customer, ts = f"c{chance.randrange(40)}", first + n * 20_000
        amount = float(chance.randrange(1, 500))
        key = customer.encode()
        place = partition_of_key(key, PARTITIONS)
        order = json.dumps({"id": f"o{n}", "ts": ts, "amount": amount}).encode()
        publisher.append(events, [order], keys=[key], partitions=place, times=[ts])
        label = json.dumps({"id": f"o{n}", "ts": ts + 1, "disputed": amount > 250}).encode()
        publisher.append(labels, [label], keys=[key], partitions=place, times=[ts + 1])
        past = seen.setdefault(customer, [])
        past.append((ts, amount))
        inside = [each for at, each in past if at > ts - HOUR]
        expected[f"o{n}"] = (amount, float(len(inside)), sum(inside))
    publisher.close()
    return expected


def test_two_pipelines_on_one_stream_are_killed_and_started_again(tmp_path: Path, url: str) -> None:
    own = uuid.uuid4().hex[:8]
    names = ("Order.Risk", "order-value")
    for name in names:
        (tmp_path / f"{name}.py").write_text(PIPELINE.format(name=f"{name}-{own}", own=own))
    bus = open_bus(url)
    expected = publish(bus, own)
    inputs = {topic: count for topic, count in bus.topics().items() if own in topic}

    def command(name: str, *more: str) -> tuple[str, ...]:
        options = ("--bus", url, "--checkpoint-interval", "100ms", "--batch-size", "50")
        processes = ("--processes", "2") if name == names[0] else ()
        return ("run", f"{name}.py", *options, *processes, *more)

    def published(name: str) -> int:
        topic = f"ml.{name}-{own}-{own}"
        return sum(bus.end_offsets(topic)) if topic in bus.topics() else 0

    with (
        Command(tmp_path, *command(names[0])) as first,
        Command(tmp_path, *command(names[1])) as second,
    ):
        running = dict(zip(names, (first, second), strict=True))

        def kill_in_the_middle() -> bool:
            for name, each in list(running.items()):
                assert each.process.poll() is None, each.done().err
                if published(name) > 100:
                    each.send(signal.SIGKILL)
                    del running[name]
            return not running

        wait_until(kill_in_the_middle, 3 * GENEROUS_S, "predictions of both", every_s=0.3)
    for name in names:
        done = run_command(tmp_path, *command(name, "--until-end"))
        assert done.code == 0, done.err

    assert inputs.items() <= bus.topics().items()
    for name in names:
        found: dict[str, Any] = {}
        counts: Counter[str] = Counter()
        topic = f"prod.orders.V2-{own}"
        for prediction in read_outputs(str(tmp_path / f"{name}.py"), bus=bus):
            counts[prediction.id] += 1
            assert prediction.topic == topic
            assert prediction.features is not None
            found[prediction.id] = tuple(prediction.features.values())
        assert set(counts.values()) == {1}
        assert found.keys() == expected.keys()
        for order, features in expected.items():
            assert found[order] == pytest.approx(features, abs=1e-9)
        letters = list(read_outputs(str(tmp_path / f"{name}.py"), DeadLetter, bus=bus))
        assert letters == []
    bus.close()
