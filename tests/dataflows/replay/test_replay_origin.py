"""The offsets where a run continues after a replay: known, given by the user, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.replay.source_offsets import open_source
from anabranch.state.errors import InputError
from tests.support.history import EVENTS, LABELS, of_topic, simulated, write

PAYMENTS = load_pipeline("payments")
VALUES = [message.value for message in of_topic(simulated(30), EVENTS)]


def bus_with(events: int, trimmed: int = 0) -> MemoryBus:
    """A bus with events in two partitions, with the first of the second deleted."""
    bus = MemoryBus()
    bus.create_topics({EVENTS: 2, LABELS: 2, "old.events": 2, "narrow.events": 1})
    for partition in (0, 1):
        bus.publisher().append(EVENTS, VALUES[:events], partitions=partition)
    bus.delete_before(TopicPartition(EVENTS, 1), trimmed)
    return bus


def placed(path: Path, offsets: list[int]) -> str:
    places = [{"partition": 0, "offset": offset} for offset in offsets]
    return write(path, VALUES[: len(offsets)], places)


def test_a_partition_without_rows_continues_at_the_start_of_its_topic(tmp_path: Path) -> None:
    events = placed(tmp_path / "e.parquet", [3, 5])
    source = open_source(PAYMENTS, events, LABELS, bus_with(9, trimmed=4), resumable=True)
    assert source.bus.start_offsets(EVENTS) == [3, 4]
    assert source.bus.end_offsets(EVENTS) == [6, 4]
    assert source.total == 2
    assert source.start_offsets == {}


def test_a_file_whose_next_message_was_deleted_is_refused(tmp_path: Path) -> None:
    places = [{"partition": 1, "offset": 2}]
    events = write(tmp_path / "e.jsonl", VALUES[:1], places)
    with pytest.raises(InputError, match="messages after it have been deleted"):
        open_source(PAYMENTS, events, LABELS, bus_with(9, trimmed=4), resumable=True)


def test_continue_at_applies_only_to_unknown_offsets(tmp_path: Path) -> None:
    events = write(tmp_path / "e.csv", VALUES)
    source = open_source(
        PAYMENTS, events, LABELS, bus_with(9, trimmed=4), resumable=True, continue_at="earliest"
    )
    assert source.start_offsets == {TopicPartition(EVENTS, 0): 0, TopicPartition(EVENTS, 1): 4}


def test_the_offsets_of_a_topic_of_another_name_are_unknown() -> None:
    bus = bus_with(9)
    with pytest.raises(InputError, match=r"it is unknown which messages of payments\.events"):
        open_source(PAYMENTS, "old.events", LABELS, bus, resumable=True)
    source = open_source(PAYMENTS, "old.events", LABELS, bus, resumable=True, continue_at="latest")
    assert source.start_offsets == {TopicPartition(EVENTS, 0): 9, TopicPartition(EVENTS, 1): 9}


def test_a_topic_of_another_name_is_read_as_the_pipelines_topic() -> None:
    bus = bus_with(9)
    bus.publisher().append("old.events", VALUES[:3], partitions=1)
    source = open_source(PAYMENTS, "old.events", None, bus, resumable=False)
    at = TopicPartition(EVENTS, 1)
    reader = source.bus.reader({at: 1})
    reader.pause([at])
    assert reader.poll(10) == []
    reader.resume([at])
    (piece,) = reader.poll(10)
    assert (piece.topic, piece.partition, piece.values) == (EVENTS, 1, VALUES[1:3])
    assert reader.positions() == reader.ends() == {at: 3}


def test_events_and_labels_may_have_different_partition_counts() -> None:
    source = open_source(PAYMENTS, "narrow.events", LABELS, bus_with(1), resumable=False)
    assert source.bus.topics() == {EVENTS: 1, LABELS: 2}
