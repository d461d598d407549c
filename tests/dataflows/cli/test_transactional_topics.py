"""Commands on Kafka topics that end in markers, in aborted messages, or in an open transaction."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from anabranch import read_outputs
from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.cli.demo.topic_sample import all_messages
from tests.support.commands import Call, Command, caller
from tests.support.kafka_broker import KafkaBroker, free_ports
from tests.support.transactions import Transactions
from tests.support.waiting import wait_until

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
    with_features=True,
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


def events(count: int, prefix: str = "e", every_ms: int = 1) -> list[bytes]:
    first = int(time.time() * 1000) - count * every_ms
    rows = [
        {"id": f"{prefix}{i}", "ts": first + i * every_ms, "card": f"c{i % 2}", "amount": 1.5}
        for i in range(count)
    ]
    return [json.dumps(row).encode() for row in rows]


def labels(count: int) -> list[bytes]:
    now = int(time.time() * 1000)
    return [json.dumps({"id": f"e{i}", "ts": now, "fraud": True}).encode() for i in range(count)]


def predicted(url: str, name: str) -> list[str]:
    bus = open_bus(url)
    return [json.loads(value)["id"] for value in all_messages(bus, f"{name}.predictions")]


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
    replayed = call("replay", pipeline, "--from", topic, "--to", "rows.parquet")
    skew = call("skew", pipeline, "--events", topic, "--features", f"{name}.predictions", "--json")
    for done in (consumed, run, replayed, skew):
        assert done.code == 0, done
        assert done.err.count(says) == (rest == "open"), done.err
    assert [json.loads(line)["id"] for line in consumed.out.splitlines()] == [
        f"e{i}" for i in range(5)
    ]
    assert {each["rows"] for each in json.loads(skew.out)["features"]} == {5}
    assert predicted(kafka_broker.url, name) == [f"e{i}" for i in range(5)]

    # The next run has what was committed meanwhile, and passes a marker when it reads back.
    transactions.end("commit")
    transactions.write(f"{name}.predictions", [b"aborted"], "abort")
    assert call("run", pipeline, "--until-end").code == 0
    expected = [f"e{i}" for i in range(5)]
    if rest == "open":
        expected += [f"open{i}" for i in range(4)]
    with read_outputs(name, bus=kafka_broker.url) as outputs:
        assert [each.id for each in outputs] == expected


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


def learned_labels(port: int) -> float:
    """What a run's metrics say; 0 before it serves any."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return 0
    counts = re.findall(r"^anabranch_learned_labels_total{.*} (\S+)$", text, re.MULTILINE)
    return sum(map(float, counts))


def test_a_partition_that_ends_in_a_marker_does_not_hold_up_labels_of_another_process(
    transactions: Transactions, kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    name, url = "timed-out", kafka_broker.url
    pipeline = write_pipeline(tmp_path, name, 'timeout="3s", default=False')
    open_bus(url).create_topics({f"{name}.events": 2, f"{name}.labels": 2})
    topic = f"{name}.events"
    transactions.write(topic, events(1, "only", every_ms=70_000), "commit", partition=1)
    transactions.write(topic, events(3, "aborted"), "abort", partition=1)
    transactions.write(topic, events(120, every_ms=500), "commit", partition=0)
    (port,) = free_ports(1)
    arguments = ("run", pipeline, "--processes", 2, "--metrics-port", port, "--bus", url)
    with Command(tmp_path, *arguments) as command:

        def timed_out() -> bool:
            assert command.process.poll() is None
            # A label times out when an event comes that is late enough.
            transactions.write(topic, events(1, f"{time.time()}-"), "commit", partition=0)
            return learned_labels(port) >= 110  # those that are 3 s older than the last

        wait_until(timed_out, every_s=0.5)
