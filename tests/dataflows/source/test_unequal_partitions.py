"""Input topics may have different partition counts: partition n is that of those that have one."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from river import linear_model

from anabranch import Event, Label, Pipeline, StateError, field, read_outputs, target, window
from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.recovery.inspection import inspect
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.models.rollout.policies import Shadow
from tests.support.commands import run_command
from tests.support.history import values

T0 = 1_750_000_000_000
MINUTE = 60_000
COUNTS = [(6, 3), (3, 1), (1, 3)]


class Pay(Event):
    id: str
    ts: int
    card: str
    amount: float


class Verdict(Label):
    id: str
    ts: int
    fraud: bool


def pipeline() -> Pipeline:
    return Pipeline(
        name=f"unequal-{uuid.uuid4().hex[:8]}",
        event=Pay,
        label=Verdict.target("fraud", timeout="1h"),
        features=[
            field("amount"),
            window("card", "amount", over="1h"),
            window("card", target(), over="1h", stats=("count",)),
        ],
        model=linear_model.LogisticRegression(),
        challengers={"other": linear_model.LogisticRegression()},
        rollout=Shadow(),
        with_features=True,
    )


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    if request.param == "sqlite":
        url = f"sqlite:{tmp_path / 'bus'}"
    else:
        url = request.getfixturevalue("kafka_broker").url
    opened = open_bus(url)
    yield opened
    opened.close()


def create(bus: Bus, declared: Pipeline, events: int, labels: int) -> None:
    bus.create_topics({declared.topics.events: events, declared.topics.labels: labels})


def publish(bus: Bus, declared: Pipeline, first: int, count: int) -> None:
    """Events a minute apart over all partitions; each label half an hour later, likewise."""
    topics, counts = declared.topics, bus.topics()
    rows: list[tuple[int, str, int, dict[str, Any]]] = []
    for n in range(first, first + count):
        ts = T0 + n * MINUTE
        event = {"id": f"e{n}", "ts": ts, "card": f"c{n % 7}", "amount": float(n % 5)}
        rows.append((ts, topics.events, n, event))
        at = ts + 30 * MINUTE
        rows.append((at, topics.labels, n * 5, {"id": f"e{n}", "ts": at, "fraud": n % 3 == 0}))
    publisher = bus.publisher()
    for at, topic, number, body in sorted(rows, key=lambda row: row[0]):
        place = number % counts[topic]
        publisher.append(topic, [json.dumps(body).encode()], partitions=place, times=[at])
    publisher.close()


def run(declared: Pipeline, bus: Bus, state: Path | None, limit: int = 50) -> None:
    options = SourceOptions(until_end=True, limit=limit)
    if state is None:
        run_worker(declared, bus, options)
        return
    with StateDirectory.open(state, declared, bus) as opened:
        run_worker(declared, bus, options, state=opened)


def outcomes(declared: Pipeline, bus: Bus) -> list[tuple[Any, ...]]:
    rows = [json.loads(value) for value in values(bus.url, declared.topics.predictions)]
    return sorted((row["id"], row["score"], tuple(row["features"].values())) for row in rows)


def reasons(declared: Pipeline, bus: Bus) -> Counter[str]:
    return Counter(
        json.loads(value)["reason"] for value in values(bus.url, declared.topics.dead_letters)
    )


@pytest.mark.parametrize(("events", "labels"), COUNTS)
def test_a_run_is_that_of_equal_counts_and_may_be_stopped(
    bus: Bus, tmp_path: Path, events: int, labels: int
) -> None:
    equal, unequal = pipeline(), pipeline()
    create(bus, equal, events, events)
    create(bus, unequal, events, labels)
    for declared in (equal, unequal):
        publish(bus, declared, 0, 120)
        run(declared, bus, tmp_path / declared.name)
        publish(bus, declared, 120, 60)
        run(declared, bus, tmp_path / declared.name)
        assert reasons(declared, bus) == {}
    assert outcomes(unequal, bus) == outcomes(equal, bus)
    assert len(outcomes(unequal, bus)) == 180
    most = max(events, labels)
    assert {bus.topics()[topic] for topic in unequal.topics.outputs} == {most}
    offsets = inspect(tmp_path / unequal.name).offsets
    assert len(offsets[unequal.topics.events]) == events
    assert len(offsets[unequal.topics.labels]) == labels


def test_partitions_that_labels_get_later_are_read_from_their_first_message(
    bus: Bus, tmp_path: Path
) -> None:
    declared = pipeline()
    create(bus, declared, 3, 1)
    publish(bus, declared, 0, 60)
    run(declared, bus, tmp_path / "state")
    bus.add_partitions(declared.topics.labels, 5)
    publish(bus, declared, 60, 60)
    run(declared, bus, tmp_path / "state")
    assert reasons(declared, bus) == {}
    assert len(list(read_outputs(declared, bus=bus))) == 120
    assert {bus.topics()[topic] for topic in declared.topics.outputs} == {5}
    parts = inspect(tmp_path / "state").state_partitions
    assert [part.pending_predictions for part in parts if part.name == "models"] == [0]


def test_a_topic_that_has_lost_partitions_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the bus gives topics no identity."""
    monkeypatch.setattr(MemoryBus, "topic_ids", lambda bus, topics: {})
    declared, bus, other = pipeline(), MemoryBus(), MemoryBus()
    create(bus, declared, 3, 2)
    publish(bus, declared, 0, 20)
    run(declared, bus, tmp_path / "state")
    create(other, declared, 3, 1)
    for topic, count in bus.topics().items():
        if topic not in declared.inputs:
            other.create_topics({topic: count})
    publish(other, declared, 0, 20)
    with pytest.raises(StateError, match=r"labels has 1 partitions, and .* partition 1 of it was"):
        run(declared, other, tmp_path / "state")


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
    name="NAME", event=Pay, label=Verdict.target("fraud", timeout="1h"),
    features=[field("amount"), window("card", "amount", over="1h")],
    model=linear_model.LogisticRegression(), with_features=True,
)
"""


def test_history_is_replayed_and_checked_and_continued(
    tmp_path: Path,
) -> None:
    declared, opened = pipeline(), open_bus(f"sqlite:{tmp_path / 'bus'}")
    events = declared.topics.events
    (tmp_path / "flow.py").write_text(FLOW.replace("NAME", declared.name))
    create(opened, declared, 3, 1)
    publish(opened, declared, 0, 60)

    def command(*arguments: str) -> None:
        done = run_command(tmp_path, *arguments, "--bus", opened.url)
        assert done.code == 0, done.out + done.err

    command("replay", "flow.py", "--from", events, "--to", "rows.parquet", "--state", "state")
    offsets = inspect(tmp_path / "state").offsets
    assert {topic: sorted(each) for topic, each in offsets.items()} == {
        events: [0, 1, 2],
        declared.topics.labels: [0],
    }
    command("skew", "flow.py", "--events", events, "--features", "rows.parquet")  # 1: they differ
    publish(opened, declared, 60, 60)
    command("run", "flow.py", "--until-end", "--state", "state")
    assert len(outcomes(declared, opened)) == 60
    assert reasons(declared, opened) == {}
    opened.close()
