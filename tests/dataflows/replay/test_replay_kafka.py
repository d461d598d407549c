"""Replay from a real Kafka, and a run that continues there, equal those on the embedded bus."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.bus.partitioner import partition_of_key
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.replay.replay import ReplaySettings, replay
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from tests.support.history import EVENTS, Message, cut_by_time, simulated, values
from tests.support.kafka_broker import KEEP_HISTORY, KafkaBroker

pytestmark = pytest.mark.kafka
PIPELINE = copy.copy(load_pipeline("payments"))
PIPELINE.name = "replayed"  # its topics are its own: the broker is shared


def open_topics(url: str) -> Bus:
    return open_bus(url, KEEP_HISTORY if url.startswith("kafka:") else None)


def publish(url: str, messages: list[Message]) -> None:
    bus = open_topics(url)
    topics = PIPELINE.topics
    bus.create_topics({topics.events: 2, topics.labels: 2})
    publisher = bus.publisher()
    for message in messages:
        topic = topics.events if message.topic == EVENTS else topics.labels
        place = partition_of_key(message.key or b"", 2)
        publisher.append(topic, [message.value], partitions=place, times=[message.time])
    publisher.close()
    bus.close()


def replay_then_run(
    url: str, directory: Path, first: list[Message], rest: list[Message]
) -> tuple[pl.DataFrame, list[Any]]:
    """The rows of a replay of the first part, and the predictions of a run for the rest."""
    publish(url, first)
    settings = ReplaySettings(
        events=PIPELINE.topics.events, rows=directory / "rows.parquet", state=directory / "state"
    )
    bus = open_topics(url)
    replay(PIPELINE, settings, bus)
    publish(url, rest)
    with StateDirectory.open(directory / "state", PIPELINE, bus) as state:
        run_worker(PIPELINE, bus, SourceOptions(until_end=True), state=state)
    bus.close()
    served = [json.loads(value) for value in values(url, PIPELINE.topics.predictions)]
    return pl.read_parquet(settings.rows), served


def test_kafka_equals_the_embedded_bus(kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    first, rest = cut_by_time(simulated(800), 0.6)
    found = []
    for name, url in (("kafka", kafka_broker.url), ("sqlite", f"sqlite:{tmp_path / 'bus'}")):
        (tmp_path / name).mkdir()
        found.append(replay_then_run(url, tmp_path / name, first, rest))
    assert_frame_equal(found[0][0], found[1][0], check_exact=True)
    assert found[0][1] == found[1][1]
    assert len(found[0][1]) > 100
