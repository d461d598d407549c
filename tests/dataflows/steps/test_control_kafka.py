"""Control messages and decisions on a real Kafka, beside the same on the embedded bus."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from anabranch import Pipeline
from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.declaration.topics import Topics, named_topics
from anabranch.dataflows.messages.control import Control
from anabranch.dataflows.messages.outputs import RolloutMessage
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.rollout.client import RolloutLog, send_command
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from tests.dataflows.steps.test_control import COMMANDS, MINUTE, T0, order, orders, returned
from tests.support.kafka_broker import KEEP_HISTORY, KafkaBroker
from tests.support.scripted_deployment import use_scripted_controller

pytestmark = pytest.mark.kafka
NAME = "commanded"  # its topics are its own: the broker is shared


def named(pipeline: Pipeline) -> Pipeline:
    renamed = copy.copy(pipeline)
    renamed.name = NAME
    return renamed


PIPELINE = named(orders())


def publish(bus: Bus, topic: str, rows: list[tuple[int, Any]]) -> None:
    publisher = bus.publisher()
    values = [json.dumps(row).encode() for _, row in rows]
    times = [T0 + minute * MINUTE for minute, _ in rows]
    publisher.append(topic, values, partitions=0, times=times)
    publisher.close()


def run(bus: Bus, state: Path) -> None:
    with StateDirectory.open(state, PIPELINE, bus) as opened:
        run_worker(PIPELINE, bus, SourceOptions(until_end=True), state=opened)


def decisions(bus: Bus) -> list[RolloutMessage]:
    with RolloutLog(PIPELINE, bus) as log:
        return log.history()


def run_with_commands(url: str, directory: Path) -> list[RolloutMessage]:
    """Half of the messages, then the rest; and what was decided."""
    bus = open_bus(url, KEEP_HISTORY if url.startswith("kafka:") else None)
    topics = PIPELINE.topics
    bus.create_topics({topics.events: 1, topics.labels: 1})
    events = [(i, order(i, i)) for i in range(12)]
    labels = [(i + 2, returned(i, i + 2)) for i in range(10)]
    bus.create_topics({topics.control: 1})
    for half in (slice(None, 6), slice(6, None)):
        publish(bus, topics.events, events[half])
        publish(bus, topics.labels, labels[half])
        if half.start is None:
            publish(bus, topics.control, COMMANDS[:3])
        else:
            publish(bus, topics.control, [*COMMANDS[3:], (12, {"kind": "dance", "id": "e"})])
        run(bus, directory / "state")
    found = decisions(bus)
    bus.close()
    return found


def test_kafka_decides_as_the_embedded_bus_does(
    kafka_broker: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_scripted_controller(monkeypatch)
    found = {}
    for name, url in (("kafka", kafka_broker.url), ("sqlite", f"sqlite:{tmp_path / 'bus'}")):
        (tmp_path / name).mkdir()
        found[name] = run_with_commands(url, tmp_path / name)
    assert found["kafka"] == found["sqlite"]
    assert [each.request_id for each in found["kafka"]] == ["a", "b", "c", "c", "d"]


def test_a_response_is_found_on_kafka(kafka_broker: KafkaBroker) -> None:
    bus, pipeline = open_bus(kafka_broker.url), copy.copy(PIPELINE)
    pipeline.name, pipeline.topics = "sent", named_topics(Topics(), "sent")
    topics = pipeline.topics
    bus.create_topics({topics.control: 2, topics.rollouts: 2})
    control = Control(kind="pause", id="mine")
    response = RolloutMessage(
        pipeline="sent", action="paused", rollout="r", challenger="tree", champion="m", share=0.1,
        reason="", ts=T0, policy="Shadow", evidence=None, guardrails={}, topic=topics.control,
        partition=0, offset=0, request_id="mine",
    )  # fmt: skip

    def listen() -> None:
        reader = bus.reader({TopicPartition(topics.control, n): 0 for n in range(2)})
        while not (pieces := reader.poll(10, 0.1)):
            continue
        reader.close()
        assert [msgspec.json.decode(v, type=Control) for v in pieces[0].values] == [control]
        publisher = bus.publisher()
        publisher.append(topics.rollouts, [msgspec.json.encode(response)], partitions=1)
        publisher.close()

    thread = threading.Thread(target=listen)
    thread.start()
    assert send_command(pipeline, bus, control, timeout_s=300) == [response]
    thread.join()
    bus.close()
