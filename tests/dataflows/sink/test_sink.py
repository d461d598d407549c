"""One partition of the sink, from life to life: nothing is doubled, nothing is lost."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.dataflows.batch.batch import RawBatch, RawRows
from anabranch.dataflows.batch.outgoing import Outgoing
from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.bus.embedded.bus import EmbeddedBus
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.sink.bus_sink import BusSink, part_name
from anabranch.dataflows.sink.offset_runs import OffsetRuns
from anabranch.state.errors import StateError
from tests.support.sink_rows import (
    CONTROL,
    DEAD,
    DRIFT,
    EVENTS,
    INPUTS,
    LABELS,
    MARKING,
    OUTPUTS,
    PREDICTIONS,
    ROLLOUTS,
    Row,
    control,
    event,
    expected,
    label,
    on_outputs,
    outgoing,
)

ROWS = [
    event(0),
    event(1, subjects=("loss", "size", "size")),
    event(2, predicted=False, reasons=("late",)),
    label(0, reasons=("label without event",)),
    event(3, reasons=("duplicate id", "odd", "odd")),
    label(1, subjects=("loss",), actions=("promoted",)),
    control(0, actions=("paused", "rejected", "rejected")),
    event(4, actions=("started",)),
    event(5),
]


class Killed(Exception):
    """Stands for the end of the process."""


class FrailBus(MemoryBus):
    """A bus that kills whoever publishes more than ``budget`` messages, in the middle of a call."""

    budget = 10**9

    def publisher(self, stop: Any = None) -> Any:
        bus, publisher = self, super().publisher(stop)

        class Frail:
            flush, close = publisher.flush, publisher.close

            def append(self, topic: str, values: list[bytes], **columns: Any) -> None:
                publisher.append(topic, values[: bus.budget], **columns)
                bus.budget -= len(values)
                if bus.budget < 0:
                    raise Killed

        return Frail()


def make_bus(kind: type[MemoryBus] = MemoryBus, read: int = 1000) -> Any:
    """A bus whose sources have ``read`` messages each."""
    bus = kind()
    fill(bus, read)
    return bus


def fill(bus: Any, read: int) -> None:
    bus.create_topics(dict.fromkeys((*INPUTS, *OUTPUTS), 1))
    publisher = bus.publisher()
    for topic in INPUTS:
        publisher.append(topic, [b""] * read)


def ends_of(bus: Any) -> dict[TopicPartition, int]:
    return {TopicPartition(topic, 0): bus.end_offsets(topic)[0] for topic in OUTPUTS}


def new_part(bus: Any, state: Any = None, **options: Any) -> Any:
    options.setdefault("since", {})
    sink = BusSink(bus, 1, marking=MARKING, **options)
    return sink.build_part("sink", part_name(0), state)


def published(bus: MemoryBus) -> dict[str, list[bytes]]:
    return {topic: bus.values(topic) for topic in OUTPUTS}


def contents(bus: MemoryBus) -> Counter[Any]:
    return on_outputs(published(bus))


def test_a_replay_publishes_only_what_was_not_published():
    bus = make_bus()
    first = new_part(bus)
    first.write_batch([outgoing(ROWS[:2])])
    state = first.snapshot()
    first.write_batch([outgoing(ROWS[2:5], life=0)])
    assert contents(bus) == expected(ROWS[:5])

    second = new_part(bus, state)
    second.write_batch([outgoing(ROWS[2:7], life=1), outgoing(ROWS[7:], life=1)])
    assert contents(bus) == expected(ROWS)
    assert second.snapshot() == {topic: bus.end_offsets(topic)[0] for topic in OUTPUTS}


def test_a_partition_that_was_never_confirmed_looks_behind_the_ends_of_the_new_state():
    bus = make_bus()
    other = new_part(bus)
    other.write_batch([outgoing(ROWS)])  # an earlier life of the pipeline, with another state
    since = ends_of(bus)
    new_part(bus, since=since).write_batch([outgoing(ROWS[:4], life=1)])

    again = new_part(bus, since=since)
    again.write_batch([outgoing(ROWS, life=2)])
    twice = expected(ROWS) + expected(ROWS)
    assert contents(bus) == twice


def test_without_recovery_all_is_published_and_nothing_remembered():
    bus = make_bus()
    for life in range(2):
        part = new_part(bus, {"ignored": 3}, since=None)
        part.write_batch([outgoing(ROWS, life=life)])
        assert part.snapshot() is None
        part.close()
    assert contents(bus) == expected(ROWS) + expected(ROWS)


def test_the_same_mark_suppresses_as_often_as_it_was_published():
    bus = make_bus()
    twin = event(0, predicted=False, reasons=("odd", "odd"), subjects=("loss", "loss"))
    cut = outgoing([twin])
    cut.messages[DEAD] = cut.messages[DEAD][:1]
    cut.marks[DEAD] = cut.marks[DEAD][:1]
    new_part(bus).write_batch([cut])
    new_part(bus).write_batch([outgoing([twin], life=1)])
    assert contents(bus) == expected([twin])


def test_the_old_ends_stay_in_the_state_until_the_replay_has_passed_what_was_published():
    bus = make_bus()
    first = new_part(bus)
    first.write_batch([outgoing([event(0)])])
    state = first.snapshot()
    first.write_batch([outgoing([event(offset) for offset in range(1, 10)])])

    second = new_part(bus, state)
    second.write_batch([outgoing([event(1), event(2)], life=1)])
    halfway = second.snapshot()
    assert halfway == state

    third = new_part(bus, halfway)
    third.write_batch([outgoing([event(offset) for offset in range(3, 12)], life=2)])
    assert contents(bus) == expected(map(event, range(12)))
    assert third.snapshot()[PREDICTIONS] == 12


def test_what_never_comes_again_does_not_hold_the_state_back():
    bus = make_bus()
    first = new_part(bus)
    first.write_batch([outgoing([event(0, reasons=("late",)), label(4, reasons=("late",))])])
    second = new_part(bus)
    second.write_batch([outgoing([event(0)], life=1)])
    assert second.snapshot() == dict.fromkeys(OUTPUTS, 0)
    # The label is read again, gives nothing this time, and an event tells how far labels are.
    second.write_batch([outgoing([label(4), event(1)], life=1)])
    assert second.snapshot() == {PREDICTIONS: 2, DRIFT: 0, DEAD: 2, ROLLOUTS: 0}


def strange_messages() -> list[bytes]:
    at = {"topic": EVENTS, "partition": 0, "offset": 1}
    return [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"topic": "toy.events"}',
        *(
            msgspec.json.encode(at | wrong)
            for wrong in (
                {"offset": 1000},  # behind the end of the source: never read
                {"offset": -1},
                {"offset": 10**30},
                {"offset": None},
                {"partition": 1},
                {"topic": "other.events"},
                {"topic": LABELS} | {"offset": 10**9},
            )
        ),
    ]


def test_strangers_messages_are_passed_over_and_said_once(caplog):
    bus = make_bus()
    for topic in OUTPUTS:
        bus.publisher().append(topic, strange_messages())
    before = len(strange_messages())
    new_part(bus).write_batch([outgoing(ROWS[:3])])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        part = new_part(bus)
    said = [record.message for record in caplog.records]
    assert len(said) == len(OUTPUTS)
    assert all(f"{before} messages from offset 0 on are not of this pipeline" in s for s in said)
    part.write_batch([outgoing(ROWS)])
    own = {topic: values[before:] for topic, values in published(bus).items()}
    assert on_outputs(own) == expected(ROWS)
    assert part.snapshot() == {topic: bus.end_offsets(topic)[0] for topic in OUTPUTS}


def test_what_is_written_is_told_without_what_was_suppressed():
    bus = make_bus()
    new_part(bus).write_batch([outgoing([event(0), event(1)])])
    told: list[Outgoing] = []
    sink = BusSink(bus, 1, lambda item, _: told.append(item), marking=MARKING, since={})
    part = sink.build_part("sink", part_name(0), None)
    item = outgoing([event(offset) for offset in range(4)])
    item.published[:] = [10, 11, 12, 13]
    part.write_batch([item])
    assert told[0].published.tolist() == [12, 13]
    assert len(told[0].messages[PREDICTIONS]) == 2


def test_an_output_that_is_shorter_than_the_state_says():
    bus = make_bus()
    part = new_part(bus)
    part.write_batch([outgoing(ROWS)])
    state = part.snapshot() | {DEAD: 99}
    with pytest.raises(StateError, match=r"toy\.dead-letters partition 0 ends at offset 5, .* 99"):
        new_part(bus, state)
    new_part(bus, state, accept_loss=True).write_batch([outgoing(ROWS[4:5])])
    assert len(bus.values(DEAD)) == 5  # read from its start: these are there


def test_an_output_whose_retention_has_passed_the_state(caplog):
    bus = make_bus()
    new_part(bus).write_batch([outgoing(ROWS)])
    bus.delete_before(TopicPartition(PREDICTIONS, 0), 2)
    with caplog.at_level(logging.WARNING):
        part = new_part(bus)
    assert "keeps nothing before offset 2" in caplog.text
    part.write_batch([outgoing(ROWS)])
    assert len(bus.values(PREDICTIONS)) == 3 + 2  # the two that are gone


def test_a_new_output_topic_of_an_old_state_is_read_from_where_it_was_when_the_state_was_made():
    bus = make_bus()
    part = new_part(bus)
    part.write_batch([outgoing(ROWS[:3])])
    state = part.snapshot()
    del state[DEAD]  # the state was written before there were dead letters
    part.write_batch([outgoing(ROWS[3:])])
    new_part(bus, state).write_batch([outgoing(ROWS[3:])])
    assert contents(bus) == expected(ROWS)


def test_the_embedded_bus_is_read_back_in_pieces_with_progress(tmp_path, monkeypatch):
    monkeypatch.setattr("anabranch.dataflows.sink.read_back._TELL_EVERY_S", 0.0)
    bus = EmbeddedBus(str(tmp_path))
    fill(bus, 20_000)
    rows = [event(o, reasons=("odd",) if o % 100 == 0 else ()) for o in range(20_000)]
    first = new_part(bus)
    for start in range(0, 15_000, 500):
        first.write_batch([outgoing(rows[start : start + 500])])
    lines: list[str] = []
    second = new_part(bus, progress=lines.append)
    assert "of 15,150 messages" in lines[0]
    second.write_batch([outgoing(rows[start : start + 777]) for start in range(0, 20_000, 777)])
    assert bus.end_offsets(PREDICTIONS) == [20_000]
    assert bus.end_offsets(DEAD) == [200]
    assert second.snapshot() == {PREDICTIONS: 20_000, DRIFT: 0, DEAD: 200, ROLLOUTS: 0}


def test_where_an_output_ended_that_is_none_now_stays_in_the_state():
    bus = make_bus()
    first = new_part(bus, {"toy.before": 7})
    first.write_batch([outgoing(ROWS[:2])])
    assert first.snapshot()["toy.before"] == 7
    again = new_part(bus, {"toy.before": 7})  # all is on the outputs, and comes once more
    again.write_batch([outgoing(ROWS[:1])])
    assert again.snapshot() == {"toy.before": 7, **dict.fromkeys(OUTPUTS, 0)}


def test_what_goes_to_another_process_knows_how_far_its_rows_reach():
    events = RawRows(EVENTS, [b""] * 3, np.array([0, 1, 0]), np.array([7, 9, 8]), np.arange(3))
    labels = RawRows(LABELS, [b""], np.array([1]), np.array([3]), np.arange(1))
    sources = RawBatch("0", 0, events, labels, np.arange(4), 0.0)
    sources.controls = RawRows(CONTROL, [b""], np.array([2]), np.array([5]), np.arange(1))
    reaches = ({EVENTS: 8}, {EVENTS: 9, LABELS: 3}, {CONTROL: 5}, {})
    for partition, reached in enumerate(reaches):
        item = Outgoing(partition, {DEAD: [b"x"]}, marks={DEAD: []}, sources=sources)
        again = pickle.loads(pickle.dumps(item))
        assert item.reached() == again.reached() == reached
        assert again.messages == item.messages
        assert isinstance(again.sources, dict)


@given(st.lists(st.lists(st.integers(0, 40), max_size=8), max_size=300), st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_runs_are_a_set(added, asked):
    runs, known = OffsetRuns(), set()
    for offsets in added:
        runs.add(np.array(offsets, np.int64))
        known.update(offsets)
    assert runs.holds(np.arange(-2, 50)).tolist() == [o in known for o in range(-2, 50)]
    runs.add(np.array([asked], np.int64))
    assert runs.holds(np.array([asked])).tolist() == [True]


REASONS = st.lists(st.sampled_from(("late", "odd", "huge")), max_size=3).map(tuple)
MADE = st.tuples(st.sampled_from(INPUTS), st.booleans(), REASONS, REASONS, REASONS)


def rows_of(made: list[tuple[str, bool, Any, Any, Any]]) -> list[Any]:
    rows, at = [], dict.fromkeys(INPUTS, 0)
    for topic, predicted, reasons, subjects, actions in made:
        make = Row(topic, at[topic], predicted and topic == EVENTS)
        rows.append(make._replace(reasons=reasons, subjects=subjects, actions=actions))
        at[topic] += 1
    return rows


@given(st.lists(MADE, min_size=1, max_size=40), st.data())
@settings(max_examples=150, deadline=None)
def test_any_crash_anywhere_and_any_cut(made, data):
    """Lives that end in the middle of a call, and begin at one of the last confirmed epochs."""
    rows = rows_of(made)
    bus = make_bus(FrailBus)
    confirmed: list[tuple[int, Any]] = [(0, None)]  # the next row, and the state
    for life in range(data.draw(st.integers(1, 6), "lives")):
        back = data.draw(st.integers(1, min(3, len(confirmed))), "epochs back")
        confirmed = confirmed[: len(confirmed) - back + 1]
        bus.budget = data.draw(st.integers(0, 40), "messages until the end")
        live(bus, rows, confirmed, life, data)
    bus.budget = 10**9
    live(bus, rows, confirmed, 99, data)
    assert contents(bus) == expected(rows)
    assert confirmed[-1][0] == len(rows)


def live(bus: Any, rows: list[Any], confirmed: list[tuple[int, Any]], life: int, data: Any) -> None:
    at, state = confirmed[-1]
    part = new_part(bus, state)
    written = False
    while at < len(rows):
        stop = min(at + data.draw(st.integers(1, 9), "rows"), len(rows))
        item = outgoing(rows[at:stop], life=life)
        try:
            if item.messages:
                part.write_batch([item])
                written = True
            if stop == len(rows) or data.draw(st.booleans(), "epoch ends"):
                if written:  # else the engine does not ask, and keeps the state that it has
                    state = part.snapshot()
                confirmed.append((stop, state))
                written = False
        except Killed:
            return
        at = stop
