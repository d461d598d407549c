"""Commands on Kafka topics that end in markers, in aborted messages, or in an open transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.cli.topic_sample import all_messages
from tests.support.commands import Call, Command, caller
from tests.support.kafka_broker import KafkaBroker
from tests.support.transactions import Transactions

pytestmark = pytest.mark.kafka

PIPELINE = """
from river import linear_model, preprocessing
from anabranch import Event, Label, Pipeline, field, window

class Payment(Event):
    id: str
    ts: int
    card: str
    amount: float

class Verdict(Label):
    id: str
    ts: int
    fraud: bool

pipeline = Pipeline(
    name="{name}",
    event=Payment,
    label=Verdict.target("fraud", {target}),
    features=[field("amount"), window("card", "amount", over="1h", stats=("count", "mean"))],
    model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
)
"""


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str], kafka_broker: KafkaBroker) -> Call:
    run = caller(tmp_path, capfd)
    return lambda *arguments: run(*arguments, ANABRANCH_BUS=kafka_broker.url)


@pytest.fixture
def transactions(kafka_broker: KafkaBroker) -> Iterator[Transactions]:
    with Transactions(kafka_broker.url) as producer:
        yield producer


def write_pipeline(directory: Path, name: str, target: str = 'timeout="7d"') -> str:
    path = directory / f"{name}.py"
    path.write_text(PIPELINE.format(name=name, target=target))
    return path.name


def events(count: int, prefix: str = "e") -> list[bytes]:
    now = int(time.time() * 1000)
    return [
        json.dumps({"id": f"{prefix}{i}", "ts": now, "card": f"c{i % 2}", "amount": 1.5}).encode()
        for i in range(count)
    ]


def labels(count: int) -> list[bytes]:
    now = int(time.time() * 1000)
    return [json.dumps({"id": f"e{i}", "ts": now, "fraud": True}).encode() for i in range(count)]


def predicted(url: str, name: str) -> list[str]:
    bus = open_bus(url)
    return [json.loads(value)["id"] for value in all_messages(bus, f"{name}.predictions")]


def last_line(text: str) -> Any:
    return json.loads(text.strip().splitlines()[-1])


@pytest.mark.parametrize("rest", ["marker", "open"])
def test_every_command_that_reads_to_an_end_ends(
    call: Call, transactions: Transactions, kafka_broker: KafkaBroker, tmp_path: Path, rest: str
) -> None:
    name = f"ends-in-{rest}"
    pipeline, topic = write_pipeline(tmp_path, name), f"{name}.events"
    assert call("topics", pipeline, "--create").code == 0
    transactions.write(topic, events(5), "commit")
    transactions.write(f"{name}.labels", labels(1), "commit")
    transactions.write(topic, events(3, "aborted"), "abort")
    end = 10
    if rest == "open":
        transactions.write(topic, events(4, "open"), "open")
    says = f"topic {topic} partition 0 is read to offset {end} only: an open transaction begins"

    consumed = call("consume", topic, "--no-follow")
    run = call("run", pipeline, "--until-end")
    replayed = call("replay", pipeline, "--from", topic, "--rows", "rows.parquet")
    skew = call("skew", pipeline, "--events", topic, "--features", f"{name}.predictions", "--json")
    for done in (consumed, run, replayed, skew):
        assert done.code == 0, done
        assert done.err.count(says) == (rest == "open"), done.err
    assert [json.loads(line)["id"] for line in consumed.out.splitlines()] == [
        f"e{i}" for i in range(5)
    ]
    assert last_line(skew.out)["rows"] == 5
    assert predicted(kafka_broker.url, name) == [f"e{i}" for i in range(5)]

    if rest == "open":  # the next run has what was committed meanwhile
        transactions.end("commit")
        assert call("run", pipeline, "--until-end").code == 0
        assert predicted(kafka_broker.url, name)[5:] == [f"open{i}" for i in range(4)]


def test_commands_on_topics_with_aborted_messages_only(
    call: Call, transactions: Transactions, tmp_path: Path
) -> None:
    pipeline, topic = write_pipeline(tmp_path, "all-aborted"), "all-aborted.events"
    assert call("topics", pipeline, "--create").code == 0
    transactions.write(topic, events(3), "abort")
    consumed = call("consume", topic, "--no-follow")
    assert (consumed.code, consumed.out) == (0, "")
    assert call("run", pipeline, "--until-end").code == 0
    skew = call("skew", pipeline, "--events", topic, "--features", "all-aborted.predictions")
    assert skew.code == 2
    assert "has no messages: there is nothing to check" in skew.err


def test_labels_time_out_with_two_processes_on_topics_that_end_in_markers(
    transactions: Transactions, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    target = 'timeout="3s", default=False'
    pipeline = write_pipeline(tmp_path, "timed-out", target)
    url = kafka_broker.url
    bus = open_bus(url)
    bus.create_topics({"timed-out.events": 2, "timed-out.labels": 2})
    arguments = ("run", pipeline, "--processes", "2", "--metrics-port", "0", "--bus", url)
    with Command(tmp_path, *arguments) as command:
        deadline = time.monotonic() + 120

        def wait_for(predictions: int, learned: int) -> None:
            while True:
                assert command.process.poll() is None
                assert time.monotonic() < deadline
                if "timed-out.predictions" in bus.topics():
                    found = list(all_messages(bus, "timed-out.predictions"))
                    models = [json.loads(value)["model"] for value in found]
                    if len(found) >= predictions:
                        return
                time.sleep(0.2)

        for partition in range(2):
            transactions.write("timed-out.events", events(60, f"{partition}-"), "open", partition)
        transactions.end("commit")
        wait_for(120, 0)
