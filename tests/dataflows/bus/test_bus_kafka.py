"""Behaviour with Kafka alone: brokers that restart, refused messages, settings, logging."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaError
from confluent_kafka.admin import AdminClient

from anabranch.dataflows.bus import (
    Bus,
    BusError,
    Slice,
    TopicPartition,
    UnreachableError,
    open_bus,
)
from anabranch.dataflows.bus.kafka import reader as reader_module
from anabranch.dataflows.bus.kafka.commit_log import CommitLog
from tests.dataflows.bus.test_bus import drain, new_topic, numbered, read_all, values_of
from tests.support.kafka_broker import KafkaBroker, missing_tools
from tests.support.waiting import GENEROUS_S, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.stress]


@pytest.fixture
def own_broker(kafka_broker: KafkaBroker) -> Iterator[KafkaBroker]:
    """The run's broker, brought back if a test leaves it stopped."""
    assert missing_tools() is None
    yield kafka_broker
    if not kafka_broker.running:
        kafka_broker.start()


def admin_of(broker: KafkaBroker) -> AdminClient:
    return AdminClient({"bootstrap.servers": broker.url.removeprefix("kafka://"), "log_level": 0})


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_broker_that_comes_back_is_waited_for(
    own_broker: KafkaBroker, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    bus = open_bus(own_broker.url)
    topic = new_topic(bus, 2)
    at = [TopicPartition(topic, p) for p in range(2)]
    publisher, reader = bus.publisher(), bus.reader(dict.fromkeys(at, 0))
    slices: list[Slice] = []
    with caplog.at_level(logging.WARNING, "anabranch.bus"):
        for turn in range(400):
            if turn == 50:
                getattr(own_broker, how)()
            if turn == 100:
                own_broker.start(wait=False)
            publisher.append(topic, numbered(20, f"{turn}-"))
            slices += reader.poll(1000, 0.01)
        publisher.flush(GENEROUS_S)
        slices += drain(reader, 8000 - sum(len(s.values) for s in slices))
    publisher.close()
    reader.close()
    expected = [v for turn in range(400) for v in numbered(20, f"{turn}-")]
    assert values_of(slices) == {p: expected[p::2] for p in range(2)}
    for p in range(2):
        offsets = np.concatenate([s.offsets for s in slices if s.partition == p])
        assert np.all(np.diff(offsets) > 0)
    logged = [r for r in caplog.records if r.name == "anabranch.bus"]
    assert len(logged) <= 2, [r.getMessage() for r in logged]  # under 5 s it is not logged


def test_flush_reports_what_was_not_delivered(own_broker: KafkaBroker) -> None:
    bus = open_bus(own_broker.url, {"message.timeout.ms": "4000"})
    topic = new_topic(bus, 1)
    publisher = bus.publisher()
    publisher.append(topic, [b"delivered"])
    publisher.flush()
    own_broker.stop()
    publisher.append(topic, numbered(5))
    with pytest.raises(
        UnreachableError, match=r"5 messages not delivered to .* within 0\.2 s.*being sent"
    ):
        publisher.flush(0.2)
    with pytest.raises(BusError, match=rf"5 messages could not be delivered.*5 to {topic}: ") as e:
        publisher.flush(10)
    assert not isinstance(e.value, UnreachableError)  # with a timeout it is final
    with pytest.raises(BusError, match="5 messages could not be delivered"):
        publisher.append(topic, [b"after the gap"])
    with pytest.raises(BusError, match="could not be delivered"):
        publisher.close()
    publisher.close()
    own_broker.start()
    assert sum(open_bus(own_broker.url).end_offsets(topic)) == 1


def test_a_message_too_large_is_refused(kafka_broker: KafkaBroker) -> None:
    bus = open_bus(kafka_broker.url)
    topic = new_topic(bus, 1)
    publisher = bus.publisher()
    with pytest.raises(BusError, match=f"topic {topic}: .*too large"):
        publisher.append(topic, [b"x" * 2_000_000])
    publisher.close()


def test_pauses_that_outgrow_the_buffer(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_MAX_BUFFERED", 50)
    bus = open_bus(kafka_broker.url)
    topic = new_topic(bus, 2)
    at = [TopicPartition(topic, p) for p in range(2)]
    reader, publisher = bus.reader(dict.fromkeys(at, 0)), bus.publisher()
    paused = 0
    slices: list[Slice] = []
    for turn in range(200):
        publisher.append(topic, numbered(200, f"{turn}-"))
        reader.pause([at[turn % 2]])
        slices += reader.poll(700, 0.01)
        paused += sum(p.paused_in_client for p in reader._partitions.values())
        reader.resume([at[turn % 2]])
        slices += reader.poll(70, 0.002)
    publisher.close()
    slices += drain(reader, 40_000 - sum(len(s.values) for s in slices))
    assert paused > 20
    for p in range(2):
        offsets = np.concatenate([s.offsets for s in slices if s.partition == p])
        assert np.array_equal(offsets, np.arange(20_000))
    reader.close()


def test_topic_settings_reach_new_topics(kafka_broker: KafkaBroker) -> None:
    from confluent_kafka.admin import ConfigResource, ResourceType

    bus = open_bus(kafka_broker.url, {"topic.retention.ms": "1234567", "replication.factor": "1"})
    topic = new_topic(bus, 1)
    admin = admin_of(kafka_broker)
    resource = ConfigResource(ResourceType.TOPIC, topic)
    found: dict[str, Any] = admin.describe_configs([resource])[resource].result(10)
    assert found["retention.ms"].value == "1234567"


def test_a_group_with_another_member_is_warned_of_once(
    kafka_broker: KafkaBroker, caplog: pytest.LogCaptureFixture
) -> None:
    bus = open_bus(kafka_broker.url)
    at = TopicPartition(new_topic(bus, 1), 0)
    hosts = kafka_broker.url.removeprefix("kafka://")
    member = Consumer({"bootstrap.servers": hosts, "group.id": "shared", "log_level": 0})
    member.subscribe([at.topic])

    def is_member() -> bool:
        member.poll(0.05)
        return bool(member.assignment())

    wait_until(is_member)
    reader = bus.reader({at: 0}, group="shared")
    with caplog.at_level(logging.INFO, "anabranch.bus"):

        def logged() -> list[str]:
            reader.commit({at: 0})
            reader.poll(10, 0.05)
            return [record.getMessage() for record in caplog.records]

        wait_until(logged)
        for _ in range(20):
            member.poll(0)  # it stays a member
            assert logged() == [
                "positions of group shared can't be reported to Kafka, so lag tools show old ones "
                "(the run itself does not need them): another consumer is a member of that group: "
                "let it use another one"
            ]
        caplog.clear()
        member.close()
        wait_until(logged)
        assert logged() == ["positions of group shared are reported to Kafka again"]
    reader.close()


def test_refused_commits_are_logged_every_ten_minutes(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = CommitLog("g", clock=lambda: now[0])
    refusal = KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED)
    outage = KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE)
    with caplog.at_level(logging.WARNING, "anabranch.bus"):
        for now[0] in range(0, 3000, 5):
            log.on_commit(refusal, [])
            log.on_commit(outage, [])
    assert len(caplog.records) == 5
    assert "positions of group g can't be reported" in caplog.text
    assert "Group authorization failed" in caplog.text


def test_librdkafka_writes_nothing_to_stderr(
    own_broker: KafkaBroker, capfd: pytest.CaptureFixture[str]
) -> None:
    bus = open_bus(own_broker.url, {"linger.ms": "1", "fetch.min.bytes": "1"})
    topic = new_topic(bus, 1)
    publisher, reader = bus.publisher(), bus.reader({TopicPartition(topic, 0): 0})
    publisher.append(topic, [b"x"])
    publisher.flush()
    drain(reader, 1)
    own_broker.kill()
    deadline = time.monotonic() + 0.7
    while time.monotonic() < deadline:
        assert reader.poll(10, 0.05) == []
    own_broker.start()
    publisher.close()
    reader.close()
    said = capfd.readouterr().err.splitlines()  # our own log may have records of it
    assert not [line for line in said if "rdkafka#" in line and "anabranch.bus" not in line]


def small_topic(bus: Bus, broker: KafkaBroker, max_bytes: int) -> str:
    """A new topic of one partition that takes batches of at most ``max_bytes``."""
    small = open_bus(broker.url, {"topic.max.message.bytes": str(max_bytes)})
    return new_topic(small, 1)


def test_batches_respect_the_limit_of_each_topic(kafka_broker: KafkaBroker) -> None:
    bus = open_bus(kafka_broker.url, {"linger.ms": "20"})  # long enough for full batches
    small, large = small_topic(bus, kafka_broker, 2000), new_topic(bus, 1)
    assert bus.limits(small).max_message_bytes < 2000 < bus.limits(large).max_message_bytes
    publisher = bus.publisher()
    for topic in (small, large):
        publisher.append(topic, numbered(5000, "reading-"))
    publisher.append(small, [b"x" * bus.limits(small).max_message_bytes])
    publisher.append(small, [b"v" * (bus.limits(small).max_message_bytes - 100)], keys=[b"k" * 100])
    publisher.close()
    assert values_of(read_all(bus, small))[0][:5000] == numbered(5000, "reading-")
    assert bus.end_offsets(small) == [5002]
    assert values_of(read_all(bus, large))[0] == numbered(5000, "reading-")


def test_a_message_too_large_for_its_topic_is_named(kafka_broker: KafkaBroker) -> None:
    bus = open_bus(kafka_broker.url)
    topic = small_topic(bus, kafka_broker, 2000)
    publisher = bus.publisher()
    publisher.append(topic, [b"before"])
    with pytest.raises(
        BusError, match=rf"topic {topic}: message 2 of 3 is too large: it has 2,001"
    ):
        publisher.append(topic, [b"a", b"v" * 2000, b"b"], keys=[b"k", b"k", None])
    publisher.append(topic, [b"after"])
    publisher.close()
    assert values_of(read_all(bus, topic)) == {0: [b"before", b"after"]}
