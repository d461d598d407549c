"""Input topics are merged in event time while there is a backlog, and never delayed without one."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.dataflows.batch.batch import RawBatch
from anabranch.dataflows.bus import BusError, TopicPartition
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.bus.merge_times import MergeTimes
from anabranch.dataflows.source.event_time_merge import MergedReader
from tests.support.offset_holes import BusWithHoles

TOPICS = ("p.events", "p.labels")


def bus_with(times: dict[tuple[str, int], list[int]], partitions: int) -> MemoryBus:
    return fill(MemoryBus(), times, partitions)


def fill(bus: MemoryBus, times: dict[tuple[str, int], list[int]], partitions: int) -> MemoryBus:
    bus.create_topics(dict.fromkeys(TOPICS, partitions))
    for (topic, partition), stamps in times.items():
        values = [f"{topic[2]}{partition}.{i}".encode() for i in range(len(stamps))]
        bus.publisher().append(topic, values, partitions=partition, times=stamps)
    return bus


def drain(reader: MergedReader, empty_reads: int = 0) -> list[tuple[int, bytes]]:
    """All rows in the order in which they are handed over, with their times.

    ``empty_reads``: how often nothing may be ready, as rows wait for more to be fetched.
    """
    rows: list[tuple[int, bytes]] = []
    while (batch := reader.read()) is not None or (empty_reads := empty_reads - 1) >= 0:
        if batch is None:
            continue
        values = batch.events.values + batch.labels.values
        times = np.concatenate([batch.events.times, batch.labels.times])
        rows += [(int(times[i]), values[i]) for i in batch.order.tolist()]
    return rows


def start(bus: MemoryBus, partitions: int, limit: int) -> MergedReader:
    reader = MergedReader(bus, TOPICS, worker_id="0", limit=limit)
    reader.add({TopicPartition(t, p): 0 for t in TOPICS for p in range(partitions)})
    return reader


@given(
    st.lists(st.lists(st.integers(0, 50), max_size=30), min_size=4, max_size=4),
    st.integers(1, 12),
)
@settings(max_examples=150, deadline=None)
def test_backlog_is_merged_by_time_whatever_the_batch_size(logs, limit):
    places = [(topic, partition) for topic in TOPICS for partition in range(2)]
    bus = bus_with({at: sorted(log) for at, log in zip(places, logs, strict=True)}, 2)
    rows = drain(start(bus, 2, limit))
    assert [time for time, _ in rows] == sorted(time for log in logs for time in log)
    assert sorted(value for _, value in rows) == sorted(
        bus.values(TOPICS[0]) + bus.values(TOPICS[1])
    )


@given(st.lists(st.integers(0, 20), max_size=30), st.lists(st.integers(0, 20), max_size=30))
@settings(max_examples=100, deadline=None)
def test_events_come_before_labels_of_the_same_time(events, labels):
    bus = bus_with({("p.events", 0): sorted(events), ("p.labels", 0): sorted(labels)}, 1)
    rows = drain(start(bus, 1, 1000))
    assert [(time, value[:1]) for time, value in rows] == sorted(
        [(t, b"e") for t in events] + [(t, b"l") for t in labels]
    )


@given(st.lists(st.integers(0, 20), max_size=40), st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_a_partition_keeps_its_own_order_even_if_times_fall(times, limit):
    bus = bus_with({("p.events", 0): times, ("p.labels", 0): [10]}, 1)
    rows = [value for _, value in drain(start(bus, 1, limit)) if value.startswith(b"e")]
    assert rows == bus.values("p.events")


def test_live_rows_are_ready_at_once_though_other_topics_are_idle():
    bus = bus_with({("p.events", 0): [5]}, 2)
    reader = start(bus, 2, 100)
    assert [value for _, value in drain(reader)] == [b"e0.0"]
    bus.publisher().append("p.events", [b"next"], partitions=1, times=[3])
    assert [value for _, value in drain(reader)] == [b"next"]


def test_a_partition_that_does_not_deliver_delays_others_for_a_bounded_time():
    bus = bus_with({("p.events", 0): [5, 6], ("p.labels", 0): [1]}, 1)
    now = [100.0]
    reader = MergedReader(bus, TOPICS, worker_id="0", limit=10, idle_timeout_s=2.0)
    reader.timer = lambda: now[0]
    reader.add({TopicPartition(t, 0): 0 for t in TOPICS})
    inner = bus.reader
    stuck = TopicPartition("p.labels", 0)

    def reader_with_stuck_labels(*arguments):
        created = inner(*arguments)
        created.pause([stuck])
        return created

    bus.reader = reader_with_stuck_labels  # type: ignore[method-assign]
    assert reader.read() is None
    now[0] += 1.9
    assert reader.read() is None
    now[0] += 0.2
    batch = reader.read()
    assert batch is not None
    assert batch.events.values == [b"e0.0", b"e0.1"]


def test_positions_are_those_of_rows_handed_over_not_of_rows_fetched():
    bus = bus_with({("p.events", 0): list(range(10)), ("p.labels", 0): [4] * 10}, 1)
    reader = start(bus, 1, 6)
    reader.read()
    assert reader.positions == {("p.events", 0): 5, ("p.labels", 0): 1}
    reader.add({TopicPartition("p.events", 0): 5})  # as if a partition joins: it restarts there
    rest = drain(reader)
    assert len(rest) == 14


def messages(batch: RawBatch) -> list[tuple[str, int, int]]:
    """Topic, partition and offset of each row, in order."""
    rows = [
        (part.topic, int(partition), int(offset))
        for part in (batch.events, batch.labels)
        for partition, offset in zip(part.partitions, part.offsets, strict=True)
    ]
    return [rows[i] for i in batch.order.tolist()]


def in_order(times: dict[tuple[str, int], list[int]]) -> list[tuple[str, int, int]]:
    """The order by definition: rising time, topic, partition, offset."""
    rows = [
        (rising, TOPICS.index(topic), partition, offset)
        for (topic, partition), stamps in times.items()
        for offset, rising in enumerate(accumulate(stamps, max))
    ]
    return [(TOPICS[topic], partition, offset) for _, topic, partition, offset in sorted(rows)]


backlogs = st.dictionaries(
    st.tuples(st.sampled_from(TOPICS), st.integers(0, 2)),
    st.lists(st.integers(0, 12), min_size=1, max_size=25),
    min_size=1,
)


class SmallFetches(MemoryBus):
    """A bus whose readers return ``fetch`` messages of each partition at a time."""

    def __init__(self, fetch: int) -> None:
        super().__init__()
        self.fetch = fetch

    def reader(self, *arguments):
        reader = super().reader(*arguments)
        poll = reader.poll
        reader.poll = lambda limit, timeout_s=0.0: poll(self.fetch, timeout_s)
        return reader


@given(backlogs, st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=300, deadline=None)
def test_a_reader_restarted_after_any_batch_continues_in_the_same_order(times, fetch, limit, data):
    bus = fill(SmallFetches(fetch), times, 3)
    places = [TopicPartition(*at) for at in times]
    reader = MergedReader(bus, TOPICS, worker_id="0", limit=limit)
    reader.add(dict.fromkeys(places, 0))
    found: list[tuple[str, int, int]] = []
    while (batch := reader.read()) is not None:
        found += messages(batch)
        if data.draw(st.booleans(), label="restart here"):
            positions, latest = dict(reader.positions), dict(reader.latest)
            reader.close()
            limit = data.draw(st.integers(1, 9), label="limit")
            reader = MergedReader(bus, TOPICS, worker_id="0", limit=limit)
            reader.add(positions, latest)
        for at in places:
            handed_over = times[at][: reader.positions[at]]
            assert reader.latest.get(at) == max(handed_over, default=None)
    assert found == in_order(times)


def test_what_was_handed_over_live_moves_nothing_that_follows():
    times = {("p.events", 0): [9, 1, 1], ("p.labels", 0): [5]}
    for latest in (None, {TopicPartition("p.events", 0): 9}):
        reader = MergedReader(bus_with(times, 1), TOPICS, worker_id="0")
        reader.add({TopicPartition("p.events", 0): 1, TopicPartition("p.labels", 0): 0}, latest)
        batch = reader.read()
        assert batch is not None
        assert messages(batch) == [("p.events", 0, 1), ("p.events", 0, 2), ("p.labels", 0, 0)]


def test_the_latest_time_of_a_single_partition_is_known_after_any_number_of_batches():
    rng = np.random.default_rng(3)
    stamps = rng.integers(0, 10_000, 500).tolist()
    at = TopicPartition("p.events", 0)
    bus = bus_with({at: stamps}, 1)
    reader = MergedReader(bus, TOPICS[:1], worker_id="0", limit=3)
    reader.add({at: 0}, {at: 17})
    for turn in range(160):
        assert reader.read() is not None
        if turn % 37 == 0:
            assert reader.latest == {at: max(17, *stamps[: 3 * (turn + 1)])}
    assert reader.latest == {at: max(17, *stamps[:480])}


def test_a_gap_stops_the_reader_or_is_skipped():
    at = TopicPartition("p.events", 0)
    bus = bus_with({at: [1, 2, 3, 4]}, 1)
    bus.delete_before(at, 3)
    reader = MergedReader(bus, TOPICS, worker_id="0")
    reader.add({at: 1, TopicPartition("p.labels", 0): 0})
    with pytest.raises(BusError, match=r"p\.events partition 0 keeps nothing before offset 3, but"):
        reader.read()
    reader = MergedReader(bus, TOPICS, worker_id="0", on_out_of_range="earliest")
    reader.add({at: 1, TopicPartition("p.labels", 0): 0})
    assert [value for _, value in drain(reader)] == [b"e0.3"]
    assert reader.positions[at] == 4


@pytest.mark.parametrize("when", ["at opening", "in mid-run"])
@pytest.mark.parametrize("topics", [TOPICS, TOPICS[:1]])
def test_positions_move_over_a_gap_that_nothing_follows(when, topics):
    at = TopicPartition("p.events", 0)
    bus = bus_with({at: [1, 2, 3, 4]}, 1)
    reader = MergedReader(bus, topics, worker_id="0", on_out_of_range="earliest", limit=2)
    reader.add(dict.fromkeys([TopicPartition(topic, 0) for topic in topics], 0))
    if when == "in mid-run":
        assert reader.read() is not None
    bus.delete_before(at, 4)
    assert reader.read() is None
    assert reader.positions[at] == 4
    assert reader.unavailable_reason() is None


def test_a_position_passes_offsets_without_a_message_while_other_partitions_are_read():
    bus = BusWithHoles()
    fill(bus, {("p.events", 0): list(range(30)), ("p.labels", 0): [3]}, 1)
    bus.add_holes("p.labels", 1)
    reader = start(bus, 1, 2)
    for _ in range(4):  # no poll is empty: there are always events
        assert reader.read() is not None
    assert reader.positions[TopicPartition("p.labels", 0)] == 2
    assert len(drain(reader)) + 8 == 31
    assert not any(reader.lag().values())


@given(backlogs, st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=200, deadline=None)
def test_with_a_tolerance_too_a_backlog_has_one_order(times, fetch, limit, data):
    """Whatever is fetched when, and wherever it is cut: the order of the merge times."""
    tolerance, now = 2, 10_000
    bus = fill(SmallFetches(fetch), times, 3)
    places = [TopicPartition(*at) for at in times]

    def new_reader() -> MergedReader:
        reader = MergedReader(bus, TOPICS, worker_id="0", limit=limit, tolerance_ms=tolerance)
        reader.clock = lambda: now / 1000
        return reader

    reader = new_reader()
    reader.add(dict.fromkeys(places, 0))
    found: list[tuple[str, int, int]] = []
    total = sum(map(len, times.values()))
    for _ in range(40 * total + 400):
        batch = reader.read()
        if batch is None:
            if len(found) == total:
                break
            continue
        found += messages(batch)
        if data.draw(st.booleans(), label="restart here"):
            positions, latest = dict(reader.positions), dict(reader.latest)
            reader.close()
            reader = new_reader()
            reader.add(positions, latest)
    merged = {
        at: MergeTimes(tolerance).determine(np.array(stamps), True)[0].tolist()
        for at, stamps in times.items()
    }
    assert found == in_order(merged)


def test_one_time_far_ahead_moves_neither_those_that_follow_nor_what_is_kept():
    hour = 3_600_000
    times = [n * 1000 for n in range(200)]
    ahead = [time + hour * (n == 50) for n, time in enumerate(times)]
    never = [time if n != 150 else 4_102_444_800_000 for n, time in enumerate(times)]
    bus = bus_with({("p.events", 0): ahead, ("p.events", 1): times, ("p.labels", 0): never}, 2)
    reader = MergedReader(bus, TOPICS, worker_id="0", limit=7, tolerance_ms=60_000)
    reader.add({TopicPartition(t, p): 0 for t in TOPICS for p in range(2)})
    values = [int(value.split(b".")[1]) for _, value in drain(reader, empty_reads=100)]
    assert len(values) == 600
    assert all(abs(value - place // 3) <= 1 for place, value in enumerate(values))
    assert max(reader.latest.values()) < 200_000


@pytest.mark.parametrize("topics", [TOPICS, TOPICS[:1]])
def test_a_time_of_the_future_is_never_kept(topics):
    at, other = TopicPartition("p.events", 0), TopicPartition("p.labels", 0)
    bus = bus_with({at: [1000, 2000, 4_102_444_800_000]}, 1)
    reader = MergedReader(bus, topics, worker_id="0", tolerance_ms=500)
    reader.add(dict.fromkeys([at, other][: len(topics)], 0))
    assert len(drain(reader)) == 3
    assert reader.latest.get(at, 0) <= 2000
    bus.publisher().append("p.events", [b"x"] * 40, times=list(range(9000, 9040)))
    assert len(drain(reader)) == 40
    assert 9000 <= reader.latest[at] < 9040


def test_a_time_of_the_future_in_the_state_of_an_earlier_run_is_forgotten():
    places = {TopicPartition(topic, 0): 0 for topic in TOPICS}
    bus = bus_with({("p.events", 0): [1, 3, 5], ("p.labels", 0): [2, 4, 6]}, 1)
    reader = MergedReader(bus, TOPICS, worker_id="0", tolerance_ms=500)
    reader.add(places, {TopicPartition("p.labels", 0): 4_102_444_800_000})
    assert [time for time, _ in drain(reader)] == [1, 2, 3, 4, 5, 6]
    assert max(reader.latest.values()) == 6


def test_rows_that_wait_for_those_that_follow_are_handed_over_when_none_come():
    bus = bus_with({("p.events", 0): [5, 2000, 7], ("p.labels", 0): [1]}, 1)
    now = [100.0]
    reader = MergedReader(bus, TOPICS, worker_id="0", idle_timeout_s=2.0, tolerance_ms=1000)
    reader.timer = lambda: now[0]
    reader.add({TopicPartition(t, 0): 0 for t in TOPICS})
    inner = bus.reader

    def reader_with_more_to_come(*arguments):
        created = inner(*arguments)
        ends = created.ends
        created.ends = lambda: {at: end + 1 for at, end in ends().items()}
        return created

    bus.reader = reader_with_more_to_come  # type: ignore[method-assign]
    assert reader.read() is None
    assert set(reader.positions.values()) == {0}
    rows = []
    for _ in range(4):
        now[0] += 2.1
        rows += drain(reader)
    assert [time for time, _ in rows] == [1, 5, 2000, 7]


def test_a_single_partition_of_labels_is_read_as_labels():
    bus = bus_with({("p.labels", 0): [1, 2]}, 1)
    reader = MergedReader(bus, TOPICS, worker_id="0")
    reader.add({TopicPartition("p.labels", 0): 0})
    batch = reader.read()
    assert batch is not None
    assert (len(batch.events), batch.labels.values) == (0, [b"l0.0", b"l0.1"])
