"""Offsets that no reader is handed: markers of transactions, aborted and removed messages (Kafka).

A reader's position passes them, and an end is what can be read: the last stable offset.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka import Producer

from anabranch.dataflows.bus import Bus, BusError, Reader, TopicPartition, open_bus
from anabranch.dataflows.bus.kafka import reader as reader_module
from anabranch.dataflows.bus.read_to_end import ends_now, read_to_end
from anabranch.dataflows.source.event_time_merge import MergedReader
from tests.dataflows.bus.test_broker_failures import poll_until
from tests.dataflows.bus.test_bus import new_topic, numbered, publish, values_of
from tests.support.kafka_broker import KafkaBroker
from tests.support.transactions import Outcome, Transactions
from tests.support.waiting import wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture
def transactions(kafka_broker: KafkaBroker) -> Iterator[Transactions]:
    with Transactions(kafka_broker.url) as producer:
        yield producer


@pytest.fixture
def bus(kafka_broker: KafkaBroker) -> Bus:
    return open_bus(kafka_broker.url)


def check_reads(bus: Bus, topic: str, expected: list[bytes], end: int) -> None:
    """Reading to the end ends, with these messages and the position at ``end``."""
    at = TopicPartition(topic, 0)
    with closing(bus.reader({at: 0})) as reader:
        ends = ends_now(bus, [at])
        assert ends == {at: end}
        found = values_of(list(read_to_end(reader, ends)))
        assert found.get(0, []) == expected
        poll_until(reader, lambda: reader.positions() == reader.ends() == ends)


@pytest.mark.parametrize(
    ("outcomes", "expected", "end"),
    [
        (["commit"], 3, 4),
        (["commit", "commit"], 6, 8),
        (["abort"], 0, 4),
        (["commit", "abort"], 3, 8),
        (["abort", "commit"], 3, 8),
    ],
)
def test_a_topic_that_ends_in_a_marker_is_read_to_its_end(
    bus: Bus, transactions: Transactions, outcomes: list[Outcome], expected: int, end: int
) -> None:
    topic = new_topic(bus, 1)
    for outcome in outcomes:
        transactions.write(topic, numbered(3), outcome)
    check_reads(bus, topic, (numbered(3) * 2)[:expected], end)


def test_a_topic_on_which_only_aborted_messages_are_is_empty(
    bus: Bus, transactions: Transactions
) -> None:
    topic = new_topic(bus, 1)
    transactions.write(topic, numbered(500), "abort")
    check_reads(bus, topic, [], 501)


def test_reading_ends_where_an_open_transaction_begins_and_says_so(
    bus: Bus, transactions: Transactions, caplog: pytest.LogCaptureFixture
) -> None:
    topic = new_topic(bus, 1)
    at = TopicPartition(topic, 0)
    publish(bus, topic, [b"before"])
    transactions.write(topic, numbered(3), "open")
    publish(bus, topic, [b"behind"])
    with caplog.at_level(logging.WARNING, "anabranch.bus"):
        check_reads(bus, topic, [b"before"], 1)
    assert [record.getMessage() for record in caplog.records] == [
        f"topic {topic} partition 0 is read to offset 1 only: an open transaction begins there, "
        "and nothing after it can be read until it is committed or aborted"
    ]
    with closing(bus.reader({at: 1})) as reader:  # it continues as soon as the transaction ends
        poll_until(reader, lambda: reader.positions() == reader.ends() == {at: 1})
        transactions.end("commit")
        slices = poll_until(reader, lambda: reader.positions() == {at: 6})
        assert values_of(slices) == {0: [*numbered(3), b"behind"]}
    caplog.clear()
    check_reads(bus, topic, [b"before", *numbered(3), b"behind"], 6)
    assert not caplog.records


def test_an_open_transaction_that_grows_is_no_backlog(bus: Bus, transactions: Transactions) -> None:
    topic = new_topic(bus, 1)
    at = TopicPartition(topic, 0)
    with closing(bus.reader({at: 0})) as reader:
        for _ in range(5):
            transactions.write(topic, numbered(100), "open")
            written = max(bus.open_transactions(topic), default=None)
            assert written == 0
            poll_until(reader, lambda: reader.ends() == {at: 0})
        transactions.end("abort")
        poll_until(reader, lambda: reader.positions() == reader.ends() == {at: 501})


def test_a_transaction_that_stays_open_is_warned_of_once(
    bus: Bus,
    transactions: Transactions,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic = new_topic(bus, 1)
    at = TopicPartition(topic, 0)
    publish(bus, topic, [b"before"])
    with closing(bus.reader({at: 0})) as reader:
        poll_until(reader, lambda: reader.ends() == {at: 1})
        transactions.write(topic, numbered(1), "open")
        for _ in range(20):
            reader.poll(10, 0.02)
            reader.ends()
        assert not caplog.records  # it has not been open for a minute
        monkeypatch.setattr(reader_module, "_OPEN_S", 0.1)
        for outcome in ("abort", "commit"):
            poll_until(reader, lambda: reader.ends() and caplog.records)
            for _ in range(20):
                reader.poll(10, 0.02)
                reader.ends()
            (record,) = caplog.records
            begin = reader.positions()[at]
            assert record.getMessage().startswith(
                f"topic {topic} partition 0: an open transaction begins at offset {begin}, and "
            )
            caplog.clear()
            transactions.end(outcome)
            poll_until(reader, lambda begin=begin: reader.positions()[at] > begin)
            transactions.write(topic, numbered(1), "open")


def live(reader: MergedReader, count: int) -> list[bytes]:
    """Events as they are handed over, until there are ``count``."""
    found: list[bytes] = []

    def read() -> bool:
        batch = reader.read(0.05)
        found.extend([] if batch is None else batch.events.values)
        return len(found) >= count

    wait_until(read)
    return found


@pytest.mark.parametrize("outcome", ["commit", "abort", "open"])
def test_a_partition_that_ends_in_a_marker_delays_no_other(
    bus: Bus, transactions: Transactions, outcome: Outcome
) -> None:
    events, labels = new_topic(bus, 1), new_topic(bus, 1)
    transactions.write(labels, numbered(3), outcome)
    # It would wait for an hour, were there more to come.
    reader = MergedReader(bus, [events, labels], worker_id="0", idle_timeout_s=3600)
    reader.add({TopicPartition(events, 0): 0, TopicPartition(labels, 0): 0})
    for turn in range(4):
        publish(bus, events, [b"%d" % turn])
        assert live(reader, 1) == [b"%d" % turn]
        transactions.write(labels, numbered(2), outcome)
    end = bus.end_offsets(labels)[0]
    assert end == (0 if outcome == "open" else 16)

    def finished() -> bool:
        reader.read()
        return reader.positions[TopicPartition(labels, 0)] == end

    wait_until(finished)
    wait_until(lambda: not any(reader.lag().values()))
    reader.close()


def test_a_position_passes_a_marker_while_other_partitions_go_on(
    bus: Bus, transactions: Transactions
) -> None:
    events, labels = new_topic(bus, 1), new_topic(bus, 1)
    transactions.write(labels, numbered(3), "commit")
    reader = MergedReader(bus, [events, labels], worker_id="0", limit=1)
    reader.add({TopicPartition(events, 0): 0, TopicPartition(labels, 0): 0})
    publish(bus, events, numbered(50))
    for _ in range(50):  # no poll is empty: there are always events
        live(reader, 1)
    assert reader.positions[TopicPartition(labels, 0)] == 4
    reader.close()


def written(reader: Reader) -> list[tuple[int, bytes]]:
    """Offset and value of all messages."""
    ends = reader.ends()
    return [
        (offset, value)
        for piece in read_to_end(reader, ends)
        for offset, value in zip(piece.offsets.tolist(), piece.values, strict=True)
    ]


def test_a_compacted_topic_is_read_to_its_end() -> None:
    with KafkaBroker(fast_start=True, settings={"log.cleaner.backoff.ms": "100"}) as broker:
        compacted = {
            "topic.cleanup.policy": "compact",
            "topic.segment.ms": "100",
            "topic.min.cleanable.dirty.ratio": "0.001",
            "topic.min.compaction.lag.ms": "0",
            "topic.delete.retention.ms": "0",
        }
        bus = open_bus(broker.url, compacted)
        topic = new_topic(bus, 1)
        at = TopicPartition(topic, 0)
        producer = Producer({"bootstrap.servers": broker.url.removeprefix("kafka://")})
        for round_ in range(3):
            for key in range(20):
                producer.produce(topic, b"%d" % round_, b"%d" % key)
            producer.flush(10)

        def first() -> int:
            # A further message rolls the segment, without which nothing of it is removed.
            producer.produce(topic, b"last", b"last")
            producer.flush(10)
            with closing(bus.reader({at: 0})) as reader:
                return written(reader)[0][0]

        wait_until(lambda: first() >= 40)
        with Transactions(broker.url) as transactions:
            transactions.write(topic, [b"dropped"], "abort", keys=[b"0"])
        with closing(bus.reader({at: 0})) as reader:
            found = written(reader)
            assert reader.positions() == reader.ends() == {at: bus.end_offsets(topic)[0]}
        values = [value for _, value in found if value != b"last"]
        assert values == [b"2"] * 20
        assert bus.start_offsets(topic) == [0]


def test_only_committed_messages_can_be_asked_for(kafka_broker: KafkaBroker) -> None:
    with pytest.raises(BusError, match=r"isolation\.level can't be changed: only committed"):
        open_bus(kafka_broker.url, {"isolation.level": "read_uncommitted"})
