"""The contract of a bus, tested with the embedded one and Kafka."""

from __future__ import annotations

import multiprocessing
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions
from confluent_kafka.admin import AdminClient

from anabranch.dataflows.bus import Bus, BusError, Reader, Slice, TopicPartition, open_bus
from anabranch.dataflows.bus.partitioner import partition_of_key
from tests.support.kafka_broker import KEEP_HISTORY, free_ports
from tests.support.waiting import GENEROUS_S

pytestmark = pytest.mark.stress

spawn = multiprocessing.get_context("spawn")  # librdkafka does not survive a fork


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    """An open bus: an embedded one in a directory of its own, or the run's Kafka broker."""
    if request.param == "sqlite":
        url = f"sqlite:{tmp_path / 'bus'}"
    else:
        url = request.getfixturevalue("kafka_broker").url
    opened = open_bus(url)
    yield opened
    opened.close()


@pytest.fixture
def topic(bus: Bus) -> str:
    """A new topic of one partition."""
    return new_topic(bus, 1)


def new_topic(bus: Bus, partitions: int) -> str:
    name = f"t-{uuid.uuid4().hex[:12]}"
    assert bus.create_topics({name: partitions}) == [name]
    return name


def publish(bus: Bus, topic: str, values: list[bytes], **columns: Any) -> None:
    publisher = bus.publisher()
    publisher.append(topic, values, **columns)
    publisher.flush()
    publisher.close()


def drain(
    reader: Reader, count: int, limit: int = 1000, limit_s: float = GENEROUS_S
) -> list[Slice]:
    """Poll until ``count`` messages came, then once more: nothing may follow."""
    slices: list[Slice] = []
    deadline = time.monotonic() + limit_s
    while sum(len(s.values) for s in slices) < count and time.monotonic() < deadline:
        slices += reader.poll(limit, 0.2)
    slices += reader.poll(limit, 0.02)
    return slices


def values_of(slices: list[Slice]) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for part in slices:
        found.setdefault(part.partition, []).extend(part.values)
    return found


def read_all(bus: Bus, topic: str, start: int = 0) -> list[Slice]:
    ends = bus.end_offsets(topic)
    reader = bus.reader({TopicPartition(topic, p): start for p in range(len(ends))})
    try:
        return drain(reader, sum(ends) - start * len(ends))
    finally:
        reader.close()


def numbered(count: int, prefix: str = "") -> list[bytes]:
    return [f"{prefix}{i}".encode() for i in range(count)]


def test_order_and_offsets_per_partition(bus: Bus) -> None:
    topic = new_topic(bus, 3)
    values = numbered(5000)
    where = [i * 7 % 3 for i in range(5000)]
    publisher = bus.publisher()
    for start in range(0, 5000, 700):
        publisher.append(topic, values[start : start + 700], partitions=where[start : start + 700])
    publisher.close()
    slices = read_all(bus, topic)
    for p in range(3):
        assert values_of(slices)[p] == [v for v, w in zip(values, where, strict=True) if w == p]
        offsets = np.concatenate([s.offsets for s in slices if s.partition == p])
        assert offsets.tolist() == list(range(len(offsets)))
    assert all(s.topic == topic and s.offsets.dtype == np.int64 for s in slices)


def test_a_key_names_the_partition_and_comes_back(bus: Bus) -> None:
    topic = new_topic(bus, 5)
    keys: list[bytes | None] = [*numbered(300, "card-"), b"", "ключ".encode()]
    publish(bus, topic, numbered(302), keys=keys)
    slices = read_all(bus, topic)
    seen = {key: s.partition for s in slices for key in s.keys}
    assert seen == {key: partition_of_key(key or b"", 5) for key in keys}
    assert set(seen.values()) == set(range(5))


def test_messages_without_key_are_distributed_round_robin(bus: Bus) -> None:
    topic = new_topic(bus, 3)
    publisher = bus.publisher()
    for value in numbered(4):
        publisher.append(topic, [value])
    publisher.append(topic, [b"k", b"4", b"5"], keys=[b"key", None, None])
    publisher.close()
    found = values_of(read_all(bus, topic))
    del found[partition_of_key(b"key", 3)][found[partition_of_key(b"key", 3)].index(b"k")]
    assert found == {0: [b"0", b"3"], 1: [b"1", b"4"], 2: [b"2", b"5"]}


def test_reads_from_any_offset(bus: Bus, topic: str) -> None:
    publisher = bus.publisher()
    values = numbered(30)
    publisher.append(topic, values[:20])
    publisher.append(topic, values[20:21])
    publisher.append(topic, values[21:])
    publisher.close()
    for start in (0, 1, 19, 20, 21, 22, 29, 30):
        reader = bus.reader({TopicPartition(topic, 0): start})
        slices = drain(reader, 30 - start, limit=3)
        assert [v for s in slices for v in s.values] == values[start:]
        assert all(len(s.values) <= 3 for s in slices)
        assert reader.positions() == {TopicPartition(topic, 0): 30}
        reader.close()


def test_start_and_end_offsets(bus: Bus) -> None:
    topic = new_topic(bus, 2)
    assert bus.start_offsets(topic) == [0, 0]
    assert bus.end_offsets(topic) == [0, 0]
    publish(bus, topic, numbered(7), partitions=1)
    assert bus.start_offsets(topic) == [0, 0]
    assert bus.end_offsets(topic) == [0, 7]


def test_reader_knows_the_ends_before_and_after_reading(bus: Bus) -> None:
    topic = new_topic(bus, 2)
    publish(bus, topic, numbered(5), partitions=1)
    at = [TopicPartition(topic, p) for p in range(2)]
    reader = bus.reader({at[0]: 0, at[1]: 2})
    assert reader.ends() == {at[0]: 0, at[1]: 5}
    assert reader.positions() == {at[0]: 0, at[1]: 2}
    drain(reader, 3)
    publish(bus, topic, numbered(2), partitions=0)
    drain(reader, 2)
    assert reader.ends() == reader.positions() == {at[0]: 2, at[1]: 5}
    reader.close()


def test_empty_topic_gives_nothing_and_does_not_block(bus: Bus, topic: str) -> None:
    reader = bus.reader({TopicPartition(topic, 0): 0})
    at_once, waits = [], []
    for _ in range(5):
        started = time.monotonic()
        assert reader.poll(10) == []
        at_once.append(time.monotonic() - started)
        started = time.monotonic()
        assert reader.poll(10, 0.3) == []
        waits.append(time.monotonic() - started)
    assert min(at_once) < 0.1  # the best of some: the machine may be busy
    assert 0.25 < min(waits) < 1.0
    reader.close()
    reader.close()


def test_times_are_kept(bus: Bus) -> None:
    kept = open_bus(bus.url, KEEP_HISTORY) if bus.url.startswith("kafka:") else bus
    topic = new_topic(kept, 1)
    before = time.time_ns() // 1_000_000
    times = [1, 1_600_000_000_000, 1_500_000_000_000]
    publish(bus, topic, numbered(3), times=times)
    publish(bus, topic, numbered(3), times=np.array(times))
    publish(bus, topic, [b"now"])
    found = np.concatenate([s.times for s in read_all(bus, topic)])
    assert found[:6].tolist() == times * 2
    assert before <= found[6] <= time.time_ns() // 1_000_000


def test_values_of_every_size(bus: Bus, topic: str) -> None:
    values = [b"", b"x" * 1_000_000, b"\x00\xff", b"y" * 1_000_000, b""]
    publish(bus, topic, values, keys=[None, b"", b"k", None, None])
    slices = read_all(bus, topic)
    assert [v for s in slices for v in s.values] == values
    assert [k for s in slices for k in s.keys] == [None, b"", b"k", None, None]


def test_appending_nothing_adds_no_message(bus: Bus, topic: str) -> None:
    publish(bus, topic, [])
    assert bus.end_offsets(topic) == [0]


def test_creating_a_topic_again_does_nothing(bus: Bus, topic: str) -> None:
    assert bus.create_topics({topic: 1}) == []
    assert bus.topics()[topic] == 1


def test_another_partition_count_is_refused(bus: Bus, topic: str) -> None:
    with pytest.raises(BusError, match=f"topic {topic} exists with 1 partitions, not 2"):
        bus.create_topics({topic: 2})
    assert bus.topics()[topic] == 1


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "x" * 250, "ä"])
def test_illegal_topic_name(bus: Bus, name: str) -> None:
    with pytest.raises(BusError, match="is not a topic name"):
        bus.create_topics({name: 1})


def test_partition_count_of_none(bus: Bus) -> None:
    with pytest.raises(BusError, match="topic a: 0 partitions"):
        bus.create_topics({"a": 0})


def test_unknown_topic(bus: Bus) -> None:
    says = "topic nowhere does not exist on .*create it first"
    with pytest.raises(BusError, match=says):
        bus.reader({TopicPartition("nowhere", 0): 0})
    with pytest.raises(BusError, match=says):
        bus.publisher().append("nowhere", [b"x"])
    with pytest.raises(BusError, match=says):
        bus.end_offsets("nowhere")
    assert "nowhere" not in bus.topics()


def test_unknown_partition(bus: Bus, topic: str) -> None:
    with pytest.raises(BusError, match=f"topic {topic} has partitions 0 to 0, not 1"):
        bus.reader({TopicPartition(topic, 1): 0})
    with pytest.raises(BusError, match=f"topic {topic} has partitions 0 to 0, not 4"):
        bus.publisher().append(topic, [b"x"], partitions=[4])


@pytest.mark.parametrize("column", ["keys", "times", "partitions"])
def test_columns_of_other_lengths_are_refused(bus: Bus, topic: str, column: str) -> None:
    publisher = bus.publisher()
    with pytest.raises(BusError, match=f"2 values but 1 {column}"):
        publisher.append(topic, [b"a", b"b"], **{column: [b"k"] if column == "keys" else [0]})
    publisher.close()
    assert bus.end_offsets(topic) == [0]


def test_offset_past_the_end_is_an_error(bus: Bus, topic: str) -> None:
    publish(bus, topic, numbered(3))
    for policy in ("stop", "earliest"):
        says = f"topic {topic} partition 0 ends at offset 3, before offset 9 .* recreated or lost"
        with pytest.raises(BusError, match=says):
            bus.reader({TopicPartition(topic, 0): 9}, on_out_of_range=policy)


def test_pause_and_resume_lose_and_duplicate_nothing(bus: Bus) -> None:
    topic = new_topic(bus, 3)
    at = [TopicPartition(topic, p) for p in range(3)]
    rng = np.random.default_rng(1)
    publisher = bus.publisher()
    reader = bus.reader(dict.fromkeys(at, 0))
    slices: list[Slice] = []
    paused: set[int] = set()
    for turn in range(120):
        # Some runs are longer than what a reader buffers for a paused partition.
        values = [f"{turn}-{i}".encode() for i in range(1500)]
        publisher.append(topic, values, partitions=turn % 3)
        change = int(rng.integers(3))
        if change in paused:
            paused.remove(change)
            reader.resume([at[change]])
        else:
            paused.add(change)
            reader.pause([at[change]])
        got = reader.poll(int(rng.integers(1, 2500)), 0.005)
        assert not {s.partition for s in got} & paused
        slices += got
    publisher.close()
    reader.resume(at)
    got_count = sum(len(s.values) for s in slices)
    slices += drain(reader, 120 * 1500 - got_count)
    for p in range(3):
        offsets = np.concatenate([s.offsets for s in slices if s.partition == p])
        assert np.array_equal(offsets, np.arange(60000))
        expected = [f"{t}-{i}".encode() for t in range(p, 120, 3) for i in range(1500)]
        assert values_of(slices)[p] == expected
    assert reader.positions() == reader.ends() == dict.fromkeys(at, 60000)
    reader.close()


def test_every_partition_is_read(bus: Bus) -> None:
    topic = new_topic(bus, 4)
    for p in range(4):
        publish(bus, topic, numbered(3000), partitions=p)
    reader = bus.reader({TopicPartition(topic, p): 0 for p in range(4)})
    slices = drain(reader, 12000, limit=200)
    assert {p: len(v) for p, v in values_of(slices).items()} == dict.fromkeys(range(4), 3000)
    reader.close()


def _write(url: str, topic: str, prefix: str, count: int, together: Any) -> None:
    publisher = open_bus(url).publisher()
    together.wait(GENEROUS_S)
    for start in range(0, count, 10):
        publisher.append(topic, [f"{prefix}{i}".encode() for i in range(start, start + 10)])
    publisher.close()


def _ended_well(process: Any) -> bool:
    process.join(GENEROUS_S)
    return bool(process.exitcode == 0)


def test_two_processes_publish_while_a_third_reads(bus: Bus) -> None:
    topic = new_topic(bus, 2)
    together = spawn.Barrier(2)
    writers = [
        spawn.Process(target=_write, args=(bus.url, topic, prefix, 5000, together))
        for prefix in "ab"
    ]
    for writer in writers:
        writer.start()
    reader = bus.reader({TopicPartition(topic, p): 0 for p in range(2)})
    slices = drain(reader, 10000)
    assert all(_ended_well(writer) for writer in writers)
    for p in range(2):
        offsets = np.concatenate([s.offsets for s in slices if s.partition == p])
        assert np.array_equal(offsets, np.arange(len(offsets)))  # dense: none lost, none duplicated
        for prefix in (b"a", b"b"):  # each writer's own order is kept
            mine = [int(v[1:]) for v in values_of(slices)[p] if v[:1] == prefix]
            assert mine == sorted(mine)
    every = sorted(v for found in values_of(slices).values() for v in found)
    assert every == sorted(numbered(5000, "a") + numbered(5000, "b"))
    reader.close()


def test_commit_never_moves_a_reader(bus: Bus, topic: str) -> None:
    publish(bus, topic, numbered(10))
    at = TopicPartition(topic, 0)
    reader = bus.reader({at: 0}, group="g")
    drain(reader, 10)
    reader.commit({at: 7})
    reader.close()
    again = bus.reader({at: 2}, group="g")
    assert values_of(drain(again, 8)) == {0: numbered(10)[2:]}
    again.close()
    silent = bus.reader({at: 0})
    silent.commit({at: 1})  # no group: nothing to report to
    silent.close()


@pytest.mark.kafka
def test_commit_is_seen_by_lag_tools(kafka_broker: Any) -> None:
    bus = open_bus(kafka_broker.url)
    topic = new_topic(bus, 1)
    publish(bus, topic, numbered(10))
    reader = bus.reader({TopicPartition(topic, 0): 0}, group="lag-test")
    reader.poll(10, 2)
    reader.commit({TopicPartition(topic, 0): 7})
    reader.close()
    admin = AdminClient(
        {"bootstrap.servers": kafka_broker.url.removeprefix("kafka://"), "log_level": 0}
    )
    asked = [ConsumerGroupTopicPartitions("lag-test")]
    found = admin.list_consumer_group_offsets(asked)["lag-test"].result(10)
    assert [(p.topic, p.offset) for p in found.topic_partitions] == [(topic, 7)]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://x", "'redis://x' is not a bus: write sqlite:PATH"),
        ("sqlite:", "needs a directory"),
        ("sqlite:x?mode=1", "unknown option 'mode'"),
        ("sqlite:x?synchronous=off", "synchronous is normal or full"),
        ("kafka://", "write kafka://HOST:PORT"),
        ("kafka://localhost", "write kafka://HOST:PORT"),
        ("kafka://localhost:9092/topic", "write kafka://HOST:PORT"),
    ],
)
def test_bad_url(url: str, says: str) -> None:
    with pytest.raises(BusError, match=says):
        open_bus(url)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"enable.auto.commit": "true"}, "enable.auto.commit can't be changed: positions"),
        ({"auto.offset.reset": "latest"}, "auto.offset.reset can't be changed: an offset"),
        ({"acks": "1"}, "acks can't be changed"),
        ({"no.such.setting": "1"}, "no.such.setting"),
        ({"reach.timeout.ms": "soon"}, "reach.timeout.ms is a whole number, not 'soon'"),
    ],
)
def test_reserved_and_invalid_settings_are_refused(settings: dict[str, str], says: str) -> None:
    with pytest.raises(BusError, match=says):
        open_bus("kafka://127.0.0.1:9", settings)


def test_settings_are_for_kafka_only(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="settings are for kafka:// only"):
        open_bus(f"sqlite:{tmp_path}", {"linger.ms": "1"})


def test_unreachable_broker() -> None:
    (port,) = free_ports(1)
    with pytest.raises(BusError, match=rf"can't reach Kafka at 127.0.0.1:{port} within 0.5 s: "):
        open_bus(f"kafka://127.0.0.1:{port}", {"reach.timeout.ms": "500"})


def test_unreachable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BusError, match=r"can't create .*file/bus: Not a directory"):
        open_bus(f"sqlite:{tmp_path / 'file' / 'bus'}").create_topics({"a": 1})


MURMUR2 = {  # from org.apache.kafka.common.utils.UtilsTest
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "hashed"), MURMUR2.items())
def test_partition_of_key_is_that_of_the_java_client(key: bytes, hashed: int) -> None:
    for partitions in (1, 7, 12, 2**31 - 1):
        assert partition_of_key(key, partitions) == (hashed & 0x7FFFFFFF) % partitions
