"""Labels find their events whatever partition they are on, with several processes too."""

from __future__ import annotations

import json
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.recovery.inspection import inspect
from anabranch.state.errors import StateError
from tests.support.commands import Command, run_command
from tests.support.history import values
from tests.support.waiting import wait_until

FLOW = """
from river import linear_model
from anabranch import Event, Label, Pipeline, field, window

class Pay(Event):
    id: str
    ts: int
    card: str
    amount: float

class Verdict(Label):
    id: str
    ts: int
    fraud: bool

pipeline = Pipeline(
    name="NAME", event=Pay, label=Verdict.target("fraud", timeout="6h"),
    features=[field("amount"), window("card", "amount", over="1h")],
    model=linear_model.LogisticRegression(),
)
"""
HOUR = 3_600_000
EVENTS = 600


@pytest.fixture(
    params=["sqlite", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.slow])]
)
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    if request.param == "sqlite":
        url = f"sqlite:{tmp_path / 'bus'}"
    else:
        url = request.getfixturevalue("kafka_broker").url
    opened = open_bus(url)
    yield opened
    opened.close()


def publish(bus: Bus, name: str, event_partitions: int, label_partitions: int) -> int:
    """Sixty hours; labels follow within three hours, on any partition.

    Returns how many events of those without a label still wait for one at the end.
    """
    bus.create_topics({f"{name}.events": event_partitions, f"{name}.labels": label_partitions})
    chance = random.Random(1)
    begin = int(time.time() * 1000) - 72 * HOUR
    rows = []
    for n in range(EVENTS):
        ts, card, fraud = begin + n * 6 * 60_000, chance.randrange(50), chance.random() < 0.2
        event = {"id": f"e{n}", "ts": ts, "card": f"card-{card}", "amount": 5.0 + 45.0 * fraud}
        rows.append((ts, f"{name}.events", card % event_partitions, event))
        at = ts + HOUR + chance.randrange(2 * HOUR)
        label = {"id": f"e{n}", "ts": at, "fraud": fraud}
        if n % 20:  # the others get none
            rows.append((at, f"{name}.labels", chance.randrange(label_partitions), label))
    publisher = bus.publisher()
    for ts, topic, partition, body in sorted(rows, key=lambda row: row[0]):
        publisher.append(topic, [json.dumps(body).encode()], partitions=partition, times=[ts])
    publisher.close()
    last = max(row[0] for row in rows)
    return sum(n % 20 == 0 and begin + n * 6 * 60_000 + 6 * HOUR >= last for n in range(EVENTS))


@pytest.mark.parametrize(("events", "labels"), [(2, 2), (6, 3), (3, 1), (1, 3)])
def test_no_label_is_lost_in_a_backlog_of_two_processes(
    bus: Bus, tmp_path: Path, events: int, labels: int
) -> None:
    name = f"apart-{uuid.uuid4().hex[:8]}"
    waiting = publish(bus, name, events, labels)
    (tmp_path / "flow.py").write_text(FLOW.replace("NAME", name))
    done = run_command(
        tmp_path, "run", "flow.py", "--bus", bus.url, "--processes", 2, "--until-end",
        "--state", "state",
    )  # fmt: skip
    assert done.code == 0, done.err
    dead = [json.loads(value)["reason"] for value in values(bus.url, f"{name}.dead-letters")]
    assert Counter(dead) == {}
    predicted = [json.loads(value)["id"] for value in values(bus.url, f"{name}.predictions")]
    assert sorted(predicted) == sorted(f"e{n}" for n in range(EVENTS))
    # And what has waited for longer than the timeout waits no more.
    parts = inspect(tmp_path / "state").state_partitions
    assert [part.pending_predictions for part in parts if part.name == "models"] == [waiting]


def test_in_the_silence_after_a_backlog_all_times_out_that_is_due(tmp_path: Path) -> None:
    """While both processes keep running, and no other event arrives."""
    bus = open_bus(f"sqlite:{tmp_path / 'bus'}")
    name = f"apart-{uuid.uuid4().hex[:8]}"
    waiting = publish(bus, name, 2, 2)
    (tmp_path / "flow.py").write_text(FLOW.replace("NAME", name))

    def pending() -> list[int]:
        try:
            parts = inspect(tmp_path / "state").state_partitions
        except StateError:  # it is being created
            return []
        return [part.pending_predictions for part in parts if part.name == "models"]

    def predicted() -> int:
        topic = f"{name}.predictions"
        return sum(bus.end_offsets(topic)) if topic in bus.topics() else 0

    with Command(
        tmp_path, "run", "flow.py", "--bus", bus.url, "--processes", 2, "--state", "state",
    ) as run:  # fmt: skip
        wait_until(lambda: predicted() == EVENTS, what="the backlog to be predicted")
        wait_until(lambda: pending() == [waiting], what="the timeouts")
        run.send(signal.SIGINT)
        assert run.done().code == 0
    bus.close()
