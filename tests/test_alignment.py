"""Input topics are merged in time while behind, and never held back when caught up."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflows.alignment import AlignedReader
from dataflows.bus import TopicPartition
from dataflows.bus.memory import MemoryBus

TOPICS = ("p.events", "p.labels")


def bus_with(times: dict[tuple[str, int], list[int]], partitions: int) -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(TOPICS, partitions))
    for (topic, partition), stamps in times.items():
        values = [f"{topic[2]}{partition}.{i}".encode() for i in range(len(stamps))]
        bus.publisher().append(topic, values, partitions=partition, times=stamps)
    return bus


def drain(reader: AlignedReader) -> list[tuple[int, bytes]]:
    """All rows in the order in which they go on, with their times."""
    rows: list[tuple[int, bytes]] = []
    while (batch := reader.read()) is not None:
        values = batch.events.values + batch.labels.values
        times = np.concatenate([batch.events.times, batch.labels.times])
        rows += [(int(times[i]), values[i]) for i in batch.order.tolist()]
    return rows


def start(bus: MemoryBus, partitions: int, limit: int) -> AlignedReader:
    reader = AlignedReader(bus, TOPICS, origin="0", limit=limit)
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
def test_a_partition_keeps_its_own_order_even_where_times_go_back(times, limit):
    bus = bus_with({("p.events", 0): times, ("p.labels", 0): [10]}, 1)
    rows = [value for _, value in drain(start(bus, 1, limit)) if value.startswith(b"e")]
    assert rows == bus.values("p.events")


def test_live_rows_go_on_at_once_though_other_topics_are_silent():
    bus = bus_with({("p.events", 0): [5]}, 2)
    reader = start(bus, 2, 100)
    assert [value for _, value in drain(reader)] == [b"e0.0"]
    bus.publisher().append("p.events", [b"next"], partitions=1, times=[3])
    assert [value for _, value in drain(reader)] == [b"next"]


def test_a_partition_that_does_not_deliver_holds_others_back_for_a_bounded_time():
    bus = bus_with({("p.events", 0): [5, 6], ("p.labels", 0): [1]}, 1)
    now = [100.0]
    reader = AlignedReader(bus, TOPICS, origin="0", limit=10, patience_s=2.0, clock=lambda: now[0])
    reader.add({TopicPartition(t, 0): 0 for t in TOPICS})
    inner = bus.reader
    stuck = TopicPartition("p.labels", 0)

    def reader_with_stuck_labels(positions, group=None):
        made = inner(positions, group)
        made.pause([stuck])
        return made

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
    reader.add({TopicPartition("p.events", 0): 5})  # as when a partition joins: begins anew there
    rest = drain(reader)
    assert len(rest) == 14
