"""Reading to the end of a topic, whatever its offsets hold; `test_offsets_without_messages` has
the same with a real Kafka."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch import DeadLetter, read_outputs
from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.bus.read_to_end import at_end, ends_now, read_to_end, unread
from tests.support.offset_holes import BusWithHoles

AT = [TopicPartition("t", number) for number in range(2)]


def filled(logs: Sequence[Sequence[bool]]) -> tuple[BusWithHoles, dict[int, list[int]]]:
    """A topic with a message at each offset that is true, and those offsets by partition."""
    bus = BusWithHoles()
    bus.create_topics({"t": len(logs)})
    for number, log in enumerate(logs):
        for is_message in log:
            if is_message:
                bus.publisher().append("t", [b"m"], partitions=number)
            else:
                bus.add_holes("t", 1, number)
    held = {
        number: [offset for offset, is_message in enumerate(log) if is_message]
        for number, log in enumerate(logs)
    }
    return bus, held


@given(
    logs=st.lists(st.lists(st.booleans(), max_size=12), min_size=2, max_size=2),
    limit=st.integers(1, 5),
)
def test_all_messages_are_read_and_then_it_ends(logs: list[list[bool]], limit: int) -> None:
    bus, held = filled(logs)
    reader = bus.reader(dict.fromkeys(AT, 0))
    ends = ends_now(bus, AT)
    found: dict[int, list[int]] = {0: [], 1: []}
    for piece in read_to_end(reader, ends, limit=limit):
        found[piece.partition] += piece.offsets.tolist()
    assert found == held
    assert reader.positions() == ends
    assert at_end(reader.positions(), ends)


def test_what_comes_after_the_end_is_not_read() -> None:
    bus, _ = filled([[True, False, True], [True] * 4])
    ends = ends_now(bus, AT)
    reader = bus.reader(dict.fromkeys(AT, 0))
    bus.publisher().append("t", [b"new"] * 3, partitions=0)
    assert unread(reader.positions(), ends) == ends
    found = list(read_to_end(reader, ends))
    assert [piece.offsets.tolist() for piece in found] == [[0, 2], [0, 1, 2, 3]]
    assert unread(reader.positions(), ends) == {}


def test_outputs_before_offsets_without_a_message_are_read_from_python() -> None:
    bus = BusWithHoles()
    bus.create_topics({"p.dead-letters": 1})
    letter = DeadLetter(topic="p.events", partition=0, offset=7, reason="late", detail="-")
    for _ in range(3):
        bus.publisher().append("p.dead-letters", [msgspec.json.encode(letter)])
        bus.add_holes("p.dead-letters", 2)
    with read_outputs("p", DeadLetter, bus=bus) as letters:
        assert list(letters) == [letter] * 3


def test_without_an_end_it_reads_until_it_is_stopped() -> None:
    bus, _ = filled([[True, True], []])
    asked = itertools.count()
    reader = bus.reader(dict.fromkeys(AT, 0))
    found = read_to_end(reader, None, stopped=lambda: next(asked) == 100)
    assert [piece.offsets.tolist() for piece in found] == [[0, 1]]
    assert next(asked) == 101


def test_open_transactions_are_told_where_they_make_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, _ = filled([[True, True], [True]])
    monkeypatch.setattr(bus, "open_transactions", lambda topic: {0: 2})
    assert ends_now(bus, AT) == {AT[0]: 2, AT[1]: 1}
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "topic t partition 0 is read to offset 2 only"
    ]
    caplog.clear()
    ends_now(bus, AT[1:])  # another partition's is none of this one
    monkeypatch.setattr(bus, "open_transactions", lambda topic: {0: 7})
    ends_now(bus, AT)  # it began after this end
    assert not caplog.records
