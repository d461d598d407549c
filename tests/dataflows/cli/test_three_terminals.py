"""The README's first example: publish, run and consume, each in a process of its own."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from urllib.request import urlopen

import pytest
from river import datasets, evaluate, metrics

from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.pipelines.datasets import dataset_pipeline
from tests.support.commands import Command, run_command
from tests.support.kafka_broker import KEEP_HISTORY, KafkaBroker
from tests.support.waiting import wait_until

pytestmark = pytest.mark.stress

ROWS = 1250


@pytest.fixture(scope="module")
def river_accuracy() -> float:
    """The accuracy that River reports for the same model and data set."""
    model = dataset_pipeline("Phishing").model.clone()
    accuracy = evaluate.progressive_val_score(datasets.Phishing(), model, metrics.Accuracy())
    return float(accuracy.get())


def test_publish_run_consume(tmp_path: Path, river_accuracy: float) -> None:
    three_terminals(tmp_path, river_accuracy, {})


@pytest.mark.kafka
def test_publish_run_consume_on_kafka(
    tmp_path: Path, river_accuracy: float, kafka_broker: KafkaBroker
) -> None:
    bus = open_bus(kafka_broker.url)
    if any(topic.startswith("phishing.") for topic in bus.topics()):
        pytest.fail(f"another test left its topics on {kafka_broker.url}")
    kept = " ".join(f"{name}={value}" for name, value in KEEP_HISTORY.items())
    environment = {"ANABRANCH_BUS": kafka_broker.url, "ANABRANCH_BUS_SET": kept}
    three_terminals(tmp_path, river_accuracy, environment)


def test_run_started_first(tmp_path: Path, river_accuracy: float) -> None:
    """The pipeline waits for messages; SIGTERM stops it, and its final table is complete."""
    assert run_command(tmp_path, "topics", "dataset:Phishing", "--create").code == 0
    bus = open_bus(f"sqlite:{tmp_path}/data/bus")
    with Command(tmp_path, "run", "dataset:Phishing", "--metrics-port", "0") as command:
        assert command.process.stderr is not None
        address = re.search(r"http\S+", command.process.stderr.readline())
        assert address is not None
        published = run_command(tmp_path, "publish", "--dataset", "Phishing", "--rate", "2000")
        assert f"published {ROWS:,} events to phishing.events" in published.out
        wait_until(lambda: predictions(bus) == ROWS)
        wait_until(lambda: quality(address.group()) == river_accuracy)
        command.send(signal.SIGTERM)
        done = command.done()
    assert done.code == 0
    assert f"{river_accuracy:.4f}" in done.err


def three_terminals(directory: Path, accuracy: float, environment: dict[str, str]) -> None:
    published = run_command(directory, "publish", "--dataset", "Phishing", **environment)
    assert published.code == 0, published.err
    assert f"published {ROWS:,} events to phishing.events" in published.out
    ran = run_command(directory, "run", "dataset:Phishing", "--until-end", **environment)
    assert ran.code == 0, ran.err
    assert re.search(rf"accuracy \(prequential\) +│ +{accuracy:.4f} ", ran.err)
    read = run_command(directory, "consume", "phishing.predictions", "--limit", ROWS, **environment)
    found = [json.loads(line) for line in read.out.splitlines()]
    assert [each["id"] for each in found] == [str(row) for row in range(ROWS)]
    right = [
        each["prediction"] == bool(truth)
        for each, (_, truth) in zip(found, datasets.Phishing(), strict=True)
    ]
    assert sum(right) / ROWS == accuracy


def predictions(bus: Bus) -> int:
    return sum(bus.end_offsets("phishing.predictions"))


def quality(address: str) -> float | None:
    with urlopen(address) as answer:
        text = answer.read().decode()
        found = re.search(r'anabranch_model_quality\{.*"Accuracy".*\} (\S+)', text)
    return float(found.group(1)) if found else None
