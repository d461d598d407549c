"""Retention on the embedded bus: whole segments that are too old are removed, and readers told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from anabranch.dataflows.bus import BusError, OnOutOfRange, TopicPartition
from anabranch.dataflows.bus.embedded import publisher as publisher_module
from anabranch.dataflows.bus.embedded.bus import EmbeddedBus

AT = TopicPartition("t", 0)
HOUR = 3_600_000


@pytest.fixture
def bus(tmp_path: Path) -> EmbeddedBus:
    bus = EmbeddedBus(str(tmp_path / "bus"))
    bus.create_topics({"t": 2})
    return bus


def publish(bus: EmbeddedBus, count: int, hours_ago: float, partition: int = 0) -> None:
    ms = int(time.time() * 1000 - hours_ago * HOUR)
    publisher = bus.publisher()
    publisher.append("t", [b"x"] * count, partitions=partition, times=[ms] * count)
    publisher.close()


def read(bus: EmbeddedBus, start: int, on_out_of_range: OnOutOfRange = "stop") -> list[int]:
    reader = bus.reader({AT: start}, on_out_of_range=on_out_of_range)
    found: list[int] = []
    while slices := reader.poll(100):
        found += [offset for piece in slices for offset in piece.offsets.tolist()]
    reader.close()
    return found


def test_by_default_history_is_kept(bus: EmbeddedBus) -> None:
    publish(bus, 5, 24 * 365 * 10)
    publish(bus, 5, 0)
    assert bus.limits("t").retention_ms is None
    assert bus.start_offsets("t") == [0, 0]


def test_segments_that_are_too_old_go_when_it_is_set(bus: EmbeddedBus) -> None:
    for hours in (50, 40, 2, 30, 0):  # the fourth stays: what is before it does
        publish(bus, 3, hours)
    bus.set_retention("t", 10 * HOUR)
    assert bus.start_offsets("t") == [6, 0]
    assert bus.end_offsets("t") == [15, 0]
    assert list(bus.verify()) == []
    assert bus.limits("t").retention_ms == 10 * HOUR
    assert read(bus, 6) == list(range(6, 15))


def test_a_segment_stays_until_its_newest_message_is_too_old(bus: EmbeddedBus) -> None:
    now = int(time.time() * 1000)
    publisher = bus.publisher()
    publisher.append("t", [b""] * 3, partitions=0, times=[now - 50 * HOUR, now, now - 40 * HOUR])
    publisher.close()
    publish(bus, 1, 0)
    bus.set_retention("t", 10 * HOUR)
    assert bus.start_offsets("t") == [0, 0]


def test_the_last_segment_stays(bus: EmbeddedBus) -> None:
    publish(bus, 3, 50)
    publish(bus, 2, 40)
    publish(bus, 2, 40, partition=1)
    bus.set_retention("t", HOUR)
    assert bus.start_offsets("t") == [3, 0]
    assert bus.end_offsets("t") == [5, 2]
    publish(bus, 1, 0)
    assert list(bus.verify()) == []


def test_a_publisher_removes_what_is_too_old(
    bus: EmbeddedBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "EVERY_S", 0.0)
    bus.set_retention("t", 10 * HOUR)
    publish(bus, 3, 20)
    publish(bus, 3, 15)
    publish(bus, 3, 0)
    assert bus.start_offsets("t") == [6, 0]
    bus.set_retention("t", None)
    publish(bus, 3, 20)
    publish(bus, 3, 0)
    assert bus.start_offsets("t") == [6, 0]


def test_a_reader_that_is_behind_is_told_or_continues(
    bus: EmbeddedBus, caplog: pytest.LogCaptureFixture
) -> None:
    for hours in (50, 40, 0):
        publish(bus, 3, hours)
    live = bus.reader({AT: 1})
    continuing = bus.reader({AT: 1}, on_out_of_range="earliest")
    bus.set_retention("t", 10 * HOUR)
    for attempt in (lambda: live.poll(10), lambda: bus.reader({AT: 1})):
        with pytest.raises(BusError, match=r"keeps nothing before offset 6, but offset 1 is next"):
            attempt()
    found: list[int] = []
    while len(found) < 3:
        found += [offset for piece in continuing.poll(10) for offset in piece.offsets.tolist()]
    assert found == [6, 7, 8]
    assert read(bus, 0, "earliest") == [6, 7, 8]
    assert "continuing there without the 5 messages from offset 1 on" in caplog.text
    live.close()
    continuing.close()
