"""A Kafka broker that dies, hangs, loses or refuses messages: the bus waits, or says why not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from anabranch.dataflows.bus import (
    Bus,
    BusError,
    Reader,
    Slice,
    TopicPartition,
    UnreachableError,
    open_bus,
    outage_log,
)
from anabranch.dataflows.bus.kafka import broker_watch
from tests.dataflows.bus.test_bus import drain, new_topic, numbered, publish, values_of
from tests.support.kafka_broker import KafkaBroker
from tests.support.waiting import GENEROUS_S, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.stress]
QUICK = {"reach.timeout.ms": "1000"}


@pytest.fixture
def broker(kafka_broker: KafkaBroker) -> Iterator[KafkaBroker]:
    """The run's broker, brought back if a test leaves it stopped."""
    yield kafka_broker
    if kafka_broker.running:
        kafka_broker.resume()
    else:
        kafka_broker.start()


def poll_until(reader: Reader, condition: Callable[[], object]) -> list[Slice]:
    """Poll until a condition holds; returns what was read."""
    slices: list[Slice] = []

    def polled() -> object:
        slices.extend(reader.poll(1000, 0.05))
        return condition()

    wait_until(polled)
    return slices


def failure_of(reader: Reader) -> str:
    """The message of the error with which reading fails."""
    try:
        poll_until(reader, lambda: False)
    except BusError as error:
        return str(error)
    finally:
        reader.close()
    raise AssertionError("no failure")


class Traffic:
    """A publisher in a thread of its own, and everything that it appended."""

    def __init__(self, bus: Bus, topic: str, partitions: int) -> None:
        self.sent: list[bytes] = []
        self.failure: BusError | None = None
        self._publisher = bus.publisher()
        self._topic, self._partitions = topic, partitions
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                start = len(self.sent)
                values = [b"%d" % number for number in range(start, start + 50)]
                where = [number % self._partitions for number in range(start, start + 50)]
                self._publisher.append(self._topic, values, partitions=where)
                self.sent += values
                self._stop.wait(0.01)
            self._publisher.flush(GENEROUS_S)
            self._publisher.close()
        except BusError as error:
            self.failure = error

    def end(self) -> None:
        """Stop appending, and wait until all is stored."""
        self._stop.set()
        self._thread.join(2 * GENEROUS_S)
        assert self.failure is None, self.failure


def check_all(traffic: Traffic, slices: list[Slice], partitions: int) -> None:
    """Every message once, in order, at consecutive offsets."""
    found = values_of(slices)
    for partition in range(partitions):
        assert found[partition] == traffic.sent[partition::partitions]
        offsets = np.concatenate([s.offsets for s in slices if s.partition == partition])
        assert np.array_equal(offsets, np.arange(len(offsets)))


def test_nothing_is_lost_duplicated_or_reordered_when_the_broker_is_killed(
    broker: KafkaBroker,
) -> None:
    bus = open_bus(broker.url)
    topic = new_topic(bus, 2)
    reader = bus.reader(dict.fromkeys([TopicPartition(topic, p) for p in range(2)], 0))
    traffic = Traffic(bus, topic, 2)
    slices: list[Slice] = []
    for _ in range(2):
        more = len(traffic.sent) + 2000
        slices += poll_until(reader, lambda more=more: len(traffic.sent) > more)
        broker.kill()
        missed = len(traffic.sent) + 500
        slices += poll_until(reader, lambda missed=missed: len(traffic.sent) > missed)
        broker.start()
    more = len(traffic.sent) + 2000
    slices += poll_until(reader, lambda: len(traffic.sent) > more)
    traffic.end()
    slices += drain(reader, len(traffic.sent) - sum(len(s.values) for s in slices))
    slices += poll_until(reader, lambda: reader.unavailable_reason() is None)
    reader.close()
    check_all(traffic, slices, 2)


def test_a_broker_that_hangs_is_waited_for_and_logged(
    broker: KafkaBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage_log, "_AGAIN_S", 6.0)
    bus = open_bus(broker.url)
    topic = new_topic(bus, 2)
    reader = bus.reader(dict.fromkeys([TopicPartition(topic, p) for p in range(2)], 0))
    traffic = Traffic(bus, topic, 2)
    slices = poll_until(reader, lambda: len(traffic.sent) > 1000)
    with caplog.at_level(logging.INFO, "anabranch.bus"):
        broker.pause()
        began = time.monotonic()
        slices += poll_until(reader, reader.unavailable_reason)
        noticed_s = time.monotonic() - began
        slices += poll_until(reader, lambda: len(messages(caplog)) >= 2)
        broker.resume()
        slices += poll_until(reader, lambda: reader.unavailable_reason() is None)
    traffic.end()
    slices += drain(reader, len(traffic.sent) - sum(len(s.values) for s in slices))
    reader.close()
    check_all(traffic, slices, 2)
    assert noticed_s > 4.5
    *waiting, last = messages(caplog)
    prefix = f"no answer from {broker.url} for "
    assert all(message.startswith(prefix) for message in waiting)
    assert all(" s: still waiting" in message for message in waiting)
    after_s = [int(message.removeprefix(prefix).split()[0]) for message in waiting]
    assert after_s[0] >= 5
    assert all(later - sooner >= 6 for sooner, later in pairwise(after_s))
    assert len(after_s) >= 2
    assert last.startswith(f"{broker.url} answers again, after ")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the bus has logged."""
    return [r.getMessage() for r in caplog.records if r.name == "anabranch.bus"]


def test_a_quiet_topic_is_no_outage(
    broker: KafkaBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_watch, "_EVERY_S", 0.05)
    monkeypatch.setattr(outage_log, "SILENT_S", 2.0)
    bus = open_bus(broker.url)
    at = TopicPartition(new_topic(bus, 1), 0)
    reader = bus.reader({at: 0})
    end = time.monotonic() + 5
    with caplog.at_level(logging.INFO, "anabranch.bus"):
        poll_until(reader, lambda: reader.unavailable_reason() or time.monotonic() > end)
    assert reader.unavailable_reason() is None
    assert [r for r in caplog.records if r.name == "anabranch.bus"] == []
    reader.close()


def test_a_full_queue_waits_for_a_dead_broker_until_stopped(
    broker: KafkaBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage_log, "_AGAIN_S", 1.0)
    bus = open_bus(broker.url, {"queue.buffering.max.messages": "100"})
    topic = new_topic(bus, 1)
    stop = threading.Event()
    publisher = bus.publisher(stop)
    publisher.append(topic, numbered(150))  # more than the queue holds: waits a little
    publisher.flush()
    broker.kill()
    raised: list[BusError] = []

    def append() -> None:
        try:
            publisher.append(topic, numbered(1000, "more-"))
        except BusError as error:
            raised.append(error)

    thread = threading.Thread(target=append, daemon=True)
    with caplog.at_level(logging.WARNING, "anabranch.bus"):
        thread.start()
        wait_until(lambda: len(messages(caplog)) >= 2)
        assert not raised
        stop.set()
        thread.join(GENEROUS_S)
    assert [type(error) for error in raised] == [UnreachableError]
    assert f"topic {topic}: stopped while 100 messages wait for {broker.url}" in str(raised[0])
    assert "no answer from" in caplog.text
    assert "Connection refused" in caplog.text
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="100 messages not delivered"):
        publisher.close()
    publisher.close()
    assert time.monotonic() - began < 25  # it does not wait the 30 s of a flush
    broker.start()
    assert bus.end_offsets(topic) == [150]


def test_stop_does_not_disturb_a_publisher_whose_broker_responds(broker: KafkaBroker) -> None:
    bus = open_bus(broker.url, {"queue.buffering.max.messages": "50"})
    topic = new_topic(bus, 1)
    stop = threading.Event()
    stop.set()
    publisher = bus.publisher(stop)
    publisher.append(topic, numbered(5000))
    publisher.flush()
    publisher.close()
    assert bus.end_offsets(topic) == [5000]


def test_calls_of_a_broker_that_hangs_end_with_one_sentence(broker: KafkaBroker) -> None:
    at = TopicPartition(new_topic(open_bus(broker.url), 1), 0)
    bus = open_bus(broker.url, QUICK)
    publisher, reader = bus.publisher(), bus.reader({at: 0}, group="hanging")
    publisher.append(at.topic, [b"x"])
    publisher.flush()
    drain(reader, 1)
    broker.pause()
    questions: list[Callable[[], object]] = [
        bus.topics,
        lambda: bus.end_offsets(at.topic),
        lambda: bus.start_offsets(at.topic),
        lambda: bus.create_topics({"another": 1}),
        lambda: bus.bounds([at]),  # type: ignore[attr-defined]
        lambda: bus.reader({at: 0}),
        lambda: open_bus(broker.url, QUICK),
    ]
    for question in questions:
        began = time.monotonic()
        with pytest.raises(
            UnreachableError, match=rf"can't reach Kafka at \S+{broker.port} within 1"
        ):
            question()
        assert time.monotonic() - began < 30
    publisher.append(at.topic, [b"y"])
    with pytest.raises(UnreachableError, match="1 messages not delivered"):
        publisher.flush(0.3)
    began = time.monotonic()
    assert reader.ends() == {at: 1}
    reader.commit({at: 1})
    reader.close()
    assert time.monotonic() - began < 30
    broker.resume()
    publisher.close()
    assert bus.end_offsets(at.topic) == [2]


def test_a_new_topic_of_a_publisher_waits_for_the_broker_too(broker: KafkaBroker) -> None:
    topic = new_topic(open_bus(broker.url), 1)
    bus = open_bus(broker.url, QUICK)
    publisher = bus.publisher()
    broker.kill()
    thread = threading.Thread(target=publisher.append, args=(topic, [b"x"]), daemon=True)
    thread.start()
    thread.join(2.5)
    assert thread.is_alive()
    broker.start()
    thread.join(GENEROUS_S)
    publisher.close()
    assert bus.end_offsets(topic) == [1]


def lower_limit(broker: KafkaBroker, topic: str, max_bytes: int) -> None:
    entry = ConfigEntry(
        "max.message.bytes", str(max_bytes), incremental_operation=AlterConfigOpType.SET
    )
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = broker.admin()  # alive until it has answered
    admin.incremental_alter_configs([resource])[resource].result(10)


def test_what_the_broker_refuses_is_refused_for_good(broker: KafkaBroker) -> None:
    bus = open_bus(broker.url, {"topic.max.message.bytes": "2000"})
    topic = new_topic(bus, 1)
    publisher = bus.publisher()
    publisher.append(topic, [b"small"])
    publisher.flush()
    lower_limit(broker, topic, 1000)  # after the publisher has asked for it
    wait_until(lambda: bus.limits(topic).max_message_bytes < 1000)
    publisher.append(topic, [b"x" * 1500])
    with pytest.raises(
        BusError, match=rf"1 messages could not be delivered.* 1 to {topic}: .*lar"
    ) as e:
        publisher.flush(GENEROUS_S)
    assert not isinstance(e.value, UnreachableError)
    with pytest.raises(BusError, match="could not be delivered"):
        publisher.close()


def test_a_gap_at_opening(broker: KafkaBroker, caplog: pytest.LogCaptureFixture) -> None:
    bus = open_bus(broker.url)
    topic = new_topic(bus, 2)
    publish(bus, topic, numbered(10), partitions=0)
    publish(bus, topic, numbered(3), partitions=1)
    broker.delete_records(topic, {0: 6})
    assert bus.start_offsets(topic) == [6, 0]
    wanted = {TopicPartition(topic, 0): 2, TopicPartition(topic, 1): 0}
    says = (
        f"topic {topic} partition 0 keeps nothing before offset 6, but offset 2 is next: "
        "4 messages are gone; .* --on-offset-out-of-range earliest"
    )
    with pytest.raises(BusError, match=says):
        bus.reader(wanted)
    with caplog.at_level(logging.WARNING, "anabranch.bus"):
        reader = bus.reader(wanted, on_out_of_range="earliest")
    assert "continuing there without the 4 messages from offset 2" in caplog.text
    assert values_of(drain(reader, 7)) == {0: numbered(10)[6:], 1: numbered(3)}
    reader.close()


@pytest.mark.parametrize("policy", ["stop", "earliest"])
@pytest.mark.parametrize("left", [0, 40])
def test_a_gap_in_mid_run(
    broker: KafkaBroker, caplog: pytest.LogCaptureFixture, policy: str, left: int
) -> None:
    few = {
        "queued.min.messages": "1",
        "fetch.message.max.bytes": "1000",
        "fetch.max.bytes": "5000",
        "message.max.bytes": "5000",
    }
    bus = open_bus(broker.url, few)
    topic = new_topic(bus, 2)
    values = [b"%0999d" % number for number in range(400)]
    publisher = bus.publisher()
    for start in range(0, 400, 4):
        publisher.append(topic, values[start : start + 4], partitions=0)
        publisher.flush()  # so that no batch, which is fetched whole, holds many
    publisher.close()
    publish(bus, topic, numbered(3), partitions=1)
    at = TopicPartition(topic, 0)
    reader = bus.reader({at: 0, TopicPartition(topic, 1): 0}, on_out_of_range=policy)  # type: ignore[arg-type]
    slices = drain(reader, 4, limit=1)
    slices += poll_until(reader, lambda: reader.positions()[at] > 5)
    broker.delete_records(topic, {0: 400 - left})
    with caplog.at_level(logging.WARNING, "anabranch.bus"):
        if policy == "stop":
            assert f"topic {topic} partition 0 keeps nothing before" in failure_of(reader)
            return
        slices += poll_until(reader, lambda: reader.positions()[at] == 400)
    reader.close()
    offsets = np.concatenate([s.offsets for s in slices if s.partition == 0])
    assert np.all(np.diff(offsets) > 0)
    assert [*offsets] == [*range(400)][: len(offsets) - left] + [*range(400)][400 - left :]
    gone = 400 - len(offsets)
    assert gone > 0
    assert f"without the {gone} messages from offset {len(offsets) - left} on" in caplog.text
    assert values_of(slices)[1] == numbered(3)


def test_a_topic_deleted_under_its_reader(broker: KafkaBroker) -> None:
    bus = open_bus(broker.url)
    topic = new_topic(bus, 1)
    publish(bus, topic, [b"x"])
    reader = bus.reader({TopicPartition(topic, 0): 0}, on_out_of_range="earliest")
    drain(reader, 1)
    broker.delete_topic(topic)
    assert failure_of(reader).startswith(f"topic {topic} no longer exists")


@pytest.mark.parametrize("refilled", [0, 3, 50])
def test_a_topic_recreated_under_its_reader(broker: KafkaBroker, refilled: int) -> None:
    bus = open_bus(broker.url)
    topic = new_topic(bus, 1)
    publish(bus, topic, numbered(10))
    reader = bus.reader({TopicPartition(topic, 0): 0}, on_out_of_range="earliest")
    slices = drain(reader, 10)
    poll_until(reader, lambda: reader._watch._ids)  # type: ignore[attr-defined]
    broker.delete_topic(topic)
    wait_until(lambda: topic not in bus.topics())
    bus.create_topics({topic: 1})
    if refilled:
        publish(bus, topic, numbered(refilled, "new-"))
    says = failure_of(reader)
    assert says.startswith(f"topic {topic} ")
    assert "recreated" in says
    assert values_of(slices) == {0: numbered(10)}
