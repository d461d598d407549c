"""The sink on a real Kafka: it reads back what is published, and waits for a broker."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import msgspec
import pytest

from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.sink.bus_sink import BusSink, part_name
from anabranch.dataflows.sink.delivery_retry import DeliveryRetry
from tests.support.kafka_broker import KafkaBroker
from tests.support.output_messages import (
    DEAD,
    EVENTS,
    INPUTS,
    OUTPUTS,
    PREDICTIONS,
    event,
    output_of,
    recovery,
)
from tests.support.waiting import GENEROUS_S

pytestmark = [pytest.mark.kafka, pytest.mark.stress]
ROWS = [event(o, reasons=("odd",) if o % 10 == 0 else ()) for o in range(3000)]


@pytest.fixture
def broker(kafka_broker: KafkaBroker) -> Iterator[KafkaBroker]:
    yield kafka_broker
    if not kafka_broker.running:
        kafka_broker.start()


@pytest.fixture
def bus(broker: KafkaBroker) -> Iterator[Bus]:
    bus = open_bus(broker.url)
    missing = bus.create_topics(dict.fromkeys((*INPUTS, *OUTPUTS), 2))
    if EVENTS in missing:
        publisher = bus.publisher()
        publisher.append(EVENTS, [b""] * 3000, partitions=1)
        publisher.close()
    yield bus
    bus.close()


def new_part(bus: Bus, state, since, retry=None):
    sink = BusSink(bus, 2, recovery=recovery(since), retry=retry)
    return sink.build_part("sink", part_name(1), state)


def offsets_on(bus: Bus, topic: str, start: int) -> list[int]:
    at, end = TopicPartition(topic, 1), bus.end_offsets(topic)[1]
    reader, found = bus.reader({at: start}), []
    while reader.positions()[at] < end:
        for piece in reader.poll(5000, 1.0):
            found += [msgspec.json.decode(value)["offset"] for value in piece.values]
    reader.close()
    return found


def test_messages_published_before_a_crash_are_not_published_again(bus):
    since = {TopicPartition(topic, 1): bus.end_offsets(topic)[1] for topic in OUTPUTS}
    first = new_part(bus, None, since)
    first.write_batch([output_of(ROWS[:500], partition=1)])
    state = first.snapshot()
    first.write_batch([output_of(ROWS[500:2000], partition=1)])
    first._writer._publisher.flush(30)  # arrived, but not confirmed
    second = new_part(bus, state, since)
    second.write_batch([output_of(ROWS[500:1200], partition=1, run=1)])
    assert second.snapshot() == state
    second.write_batch([output_of(ROWS[1200:], partition=1, run=1)])
    ends = second.snapshot()
    second.close()
    assert ends == {topic: bus.end_offsets(topic)[1] for topic in OUTPUTS}
    assert offsets_on(bus, PREDICTIONS, since[PREDICTIONS, 1]) == list(range(3000))
    assert offsets_on(bus, DEAD, since[DEAD, 1]) == list(range(0, 3000, 10))


def test_a_broker_that_is_down_at_the_end_of_an_epoch_is_waited_for(bus, broker):
    since = {TopicPartition(topic, 1): bus.end_offsets(topic)[1] for topic in OUTPUTS}
    waits = threading.Event()
    retry = DeliveryRetry(on_waiting=lambda *_: waits.set(), first_s=0.5)
    part = new_part(bus, None, since, retry)
    part.write_batch([output_of(ROWS[:10], partition=1)])
    part.snapshot()
    broker.kill()
    part.write_batch([output_of(ROWS[10:500], partition=1)])
    states = []
    thread = threading.Thread(target=lambda: states.append(part.snapshot()))
    thread.start()
    assert waits.wait(GENEROUS_S)
    assert thread.is_alive()
    broker.start()
    thread.join(GENEROUS_S)
    assert states[0][PREDICTIONS] == since[PREDICTIONS, 1] + 500
    part.close()
    assert offsets_on(bus, PREDICTIONS, since[PREDICTIONS, 1]) == list(range(500))
