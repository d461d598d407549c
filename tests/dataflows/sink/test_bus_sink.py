"""One partition of the sink, from run to run: nothing is duplicated, nothing is lost."""

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
from anabranch.dataflows.batch.output_records import OutputRecords
from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.bus.embedded.bus import EmbeddedBus
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.sink.bus_sink import BusSink, part_name
from anabranch.dataflows.sink.published import OffsetRanges
from anabranch.state.errors import StateError
from tests.support.output_messages import (
    CONTROL,
    DEAD,
    DRIFT,
    EVENTS,
    INPUTS,
    LABELS,
    OUTPUTS,
    PREDICTIONS,
    ROLLOUTS,
    Row,
    control,
    event,
    expected,
    label,
    on_outputs,
    output_of,
    recovery,
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
    """Simulates the death of the process."""


class KillingBus(MemoryBus):
    """A bus that kills its publisher after ``budget`` messages, in the middle of a call."""

    budget = 10**9

    def publisher(self, stop: Any = None) -> Any:
        bus, publisher = self, super().publisher(stop)

        class Killing:
            flush, close = publisher.flush, publisher.close

            def append(self, topic: str, values: list[bytes], **columns: Any) -> None:
                publisher.append(topic, values[: bus.budget], **columns)
                bus.budget -= len(values)
                if bus.budget < 0:
                    raise Killed

        return Killing()


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
    since = options.pop("since", {})
    sink = BusSink(bus, 1, recovery=None if since is None else recovery(since, **options))
    return sink.build_part("sink", part_name(0), state)


def published(bus: MemoryBus) -> dict[str, list[bytes]]:
    return {topic: bus.values(topic) for topic in OUTPUTS}


def contents(bus: MemoryBus) -> Counter[Any]:
    return on_outputs(published(bus))


def test_a_replay_publishes_only_what_was_not_published():
    bus = make_bus()
    first = new_part(bus)
    first.write_batch([output_of(ROWS[:2])])
    state = first.snapshot()
    first.write_batch([output_of(ROWS[2:5], run=0)])
    assert contents(bus) == expected(ROWS[:5])

    second = new_part(bus, state)
    second.write_batch([output_of(ROWS[2:7], run=1), output_of(ROWS[7:], run=1)])
    assert contents(bus) == expected(ROWS)
    assert second.snapshot() == {topic: bus.end_offsets(topic)[0] for topic in OUTPUTS}


def test_a_partition_that_was_never_confirmed_reads_back_from_the_ends_in_the_new_state():
    bus = make_bus()
    other = new_part(bus)
    other.write_batch([output_of(ROWS)])  # an earlier run of the pipeline, with another state
    since = ends_of(bus)
    new_part(bus, since=since).write_batch([output_of(ROWS[:4], run=1)])

    again = new_part(bus, since=since)
    again.write_batch([output_of(ROWS, run=2)])
    twice = expected(ROWS) + expected(ROWS)
    assert contents(bus) == twice


def test_without_recovery_everything_is_published_and_no_state_kept():
    bus = make_bus()
    for run in range(2):
        part = new_part(bus, {"ignored": 3}, since=None)
        part.write_batch([output_of(ROWS, run=run)])
        assert part.snapshot() is None
        part.close()
    assert contents(bus) == expected(ROWS) + expected(ROWS)


def test_a_source_key_suppresses_as_many_messages_as_were_published_with_it():
    bus = make_bus()
    twin = event(0, predicted=False, reasons=("odd", "odd"), subjects=("loss", "loss"))
    cut = output_of([twin])
    cut.messages[DEAD] = cut.messages[DEAD][:1]
    cut.source_keys[DEAD] = cut.source_keys[DEAD][:1]
    new_part(bus).write_batch([cut])
    new_part(bus).write_batch([output_of([twin], run=1)])
    assert contents(bus) == expected([twin])


def test_the_old_ends_stay_in_the_state_until_the_replay_has_passed_what_was_published():
    bus = make_bus()
    first = new_part(bus)
    first.write_batch([output_of([event(0)])])
    state = first.snapshot()
    first.write_batch([output_of([event(offset) for offset in range(1, 10)])])

    second = new_part(bus, state)
    second.write_batch([output_of([event(1), event(2)], run=1)])
    halfway = second.snapshot()
    assert halfway == state

    third = new_part(bus, halfway)
    third.write_batch([output_of([event(offset) for offset in range(3, 12)], run=2)])
    assert contents(bus) == expected(map(event, range(12)))
    assert third.snapshot()[PREDICTIONS] == 12


def test_a_message_that_is_never_made_again_does_not_keep_the_old_ends_for_ever():
    bus = make_bus()
    first = new_part(bus)
    first.write_batch([output_of([event(0, reasons=("late",)), label(4, reasons=("late",))])])
    second = new_part(bus)
    second.write_batch([output_of([event(0)], run=1)])
    assert second.snapshot() == dict.fromkeys(OUTPUTS, 0)
    # The label is read again and gives nothing this time.
    second.write_batch([output_of([label(4), event(1)], run=1)])
    assert second.snapshot() == {PREDICTIONS: 2, DRIFT: 0, DEAD: 2, ROLLOUTS: 0}


def foreign_messages() -> list[bytes]:
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
                {"offset": 1000},  # past the end of the source: never read
                {"offset": -1},
                {"offset": 10**30},
                {"offset": None},
                {"partition": 1},
                {"topic": "other.events"},
                {"topic": LABELS} | {"offset": 10**9},
            )
        ),
    ]


def test_messages_of_other_writers_are_ignored_and_logged_once(caplog):
    bus = make_bus()
    for topic in OUTPUTS:
        bus.publisher().append(topic, foreign_messages())
    before = len(foreign_messages())
    new_part(bus).write_batch([output_of(ROWS[:3])])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        part = new_part(bus)
    logged = [record.message for record in caplog.records]
    assert len(logged) == len(OUTPUTS)
    expected_text = f"ignored {before} messages from offset 0 on that this pipeline has not written"
    assert all(expected_text in line for line in logged)
    part.write_batch([output_of(ROWS)])
    own = {topic: values[before:] for topic, values in published(bus).items()}
    assert on_outputs(own) == expected(ROWS)
    assert part.snapshot() == {topic: bus.end_offsets(topic)[0] for topic in OUTPUTS}


def test_on_written_gets_an_item_without_what_was_suppressed():
    bus = make_bus()
    new_part(bus).write_batch([output_of([event(0), event(1)])])
    written: list[OutputRecords] = []
    sink = BusSink(bus, 1, lambda item, _: written.append(item), recovery=recovery({}))
    part = sink.build_part("sink", part_name(0), None)
    item = output_of([event(offset) for offset in range(4)])
    item.published[:] = [10, 11, 12, 13]
    part.write_batch([item])
    assert written[0].published.tolist() == [12, 13]
    assert len(written[0].messages[PREDICTIONS]) == 2


def test_an_output_shorter_than_the_state_says_is_an_error_unless_accepted():
    bus = make_bus()
    part = new_part(bus)
    part.write_batch([output_of(ROWS)])
    state = part.snapshot() | {DEAD: 99}
    with pytest.raises(StateError, match=r"toy\.dead-letters partition 0 ends at offset 5, .* 99"):
        new_part(bus, state)
    new_part(bus, state, accept_loss=True).write_batch([output_of(ROWS[4:5])])
    assert len(bus.values(DEAD)) == 5  # read from its start: these are there


def test_an_output_whose_retention_has_passed_the_state_is_logged(caplog):
    bus = make_bus()
    new_part(bus).write_batch([output_of(ROWS)])
    bus.delete_before(TopicPartition(PREDICTIONS, 0), 2)
    with caplog.at_level(logging.WARNING):
        part = new_part(bus)
    assert "keeps nothing before offset 2" in caplog.text
    part.write_batch([output_of(ROWS)])
    assert len(bus.values(PREDICTIONS)) == 3 + 2  # the two that are gone


def test_a_new_output_topic_of_an_old_state_is_read_from_where_it_was_when_the_state_was_made():
    bus = make_bus()
    part = new_part(bus)
    part.write_batch([output_of(ROWS[:3])])
    state = part.snapshot()
    del state[DEAD]  # the state was written before there were dead letters
    part.write_batch([output_of(ROWS[3:])])
    new_part(bus, state).write_batch([output_of(ROWS[3:])])
    assert contents(bus) == expected(ROWS)


def test_the_embedded_bus_is_read_back_in_pieces_with_progress(tmp_path, monkeypatch):
    monkeypatch.setattr("anabranch.dataflows.sink.read_back._REPORT_EVERY_S", 0.0)
    bus = EmbeddedBus(str(tmp_path))
    fill(bus, 20_000)
    rows = [event(o, reasons=("odd",) if o % 100 == 0 else ()) for o in range(20_000)]
    first = new_part(bus)
    for start in range(0, 15_000, 500):
        first.write_batch([output_of(rows[start : start + 500])])
    lines: list[str] = []
    second = new_part(bus, progress=lines.append)
    assert "of 15,150 messages" in lines[0]
    second.write_batch([output_of(rows[start : start + 777]) for start in range(0, 20_000, 777)])
    assert bus.end_offsets(PREDICTIONS) == [20_000]
    assert bus.end_offsets(DEAD) == [200]
    assert second.snapshot() == {PREDICTIONS: 20_000, DRIFT: 0, DEAD: 200, ROLLOUTS: 0}


def test_the_end_of_a_former_output_stays_in_the_state():
    bus = make_bus()
    first = new_part(bus, {"toy.before": 7})
    first.write_batch([output_of(ROWS[:2])])
    assert first.snapshot()["toy.before"] == 7
    again = new_part(bus, {"toy.before": 7})  # everything is on the outputs, and is made once more
    again.write_batch([output_of(ROWS[:1])])
    assert again.snapshot() == {"toy.before": 7, **dict.fromkeys(OUTPUTS, 0)}


def test_an_item_sent_to_another_process_knows_how_far_its_rows_reach():
    events = RawRows(EVENTS, [b""] * 3, np.array([0, 1, 0]), np.array([7, 9, 8]), np.arange(3))
    labels = RawRows(LABELS, [b""], np.array([1]), np.array([3]), np.arange(1))
    sources = RawBatch("0", 0, events, labels, np.arange(4), 0.0)
    sources.controls = RawRows(CONTROL, [b""], np.array([2]), np.array([5]), np.arange(1))
    reaches = ({EVENTS: 8}, {EVENTS: 9, LABELS: 3}, {CONTROL: 5}, {})
    for partition, reached in enumerate(reaches):
        item = OutputRecords(partition, {DEAD: [b"x"]}, source_keys={DEAD: []}, sources=sources)
        again = pickle.loads(pickle.dumps(item))
        assert item.reached() == again.reached() == reached
        assert again.messages == item.messages
        assert isinstance(again.sources, dict)


@given(st.lists(st.lists(st.integers(0, 40), max_size=8), max_size=300), st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_offset_ranges_are_a_set(added, queried):
    ranges, known = OffsetRanges(), set()
    for offsets in added:
        ranges.add(np.array(offsets, np.int64))
        known.update(offsets)
    assert ranges.contains(np.arange(-2, 50)).tolist() == [o in known for o in range(-2, 50)]
    ranges.add(np.array([queried], np.int64))
    assert ranges.contains(np.array([queried])).tolist() == [True]


REASONS = st.lists(st.sampled_from(("late", "odd", "huge")), max_size=3).map(tuple)
OUTPUT = st.tuples(st.sampled_from(INPUTS), st.booleans(), REASONS, REASONS, REASONS)


def rows_of(outputs: list[tuple[str, bool, Any, Any, Any]]) -> list[Any]:
    rows, at = [], dict.fromkeys(INPUTS, 0)
    for topic, predicted, reasons, subjects, actions in outputs:
        row = Row(topic, at[topic], predicted and topic == EVENTS)
        rows.append(row._replace(reasons=reasons, subjects=subjects, actions=actions))
        at[topic] += 1
    return rows


@given(st.lists(OUTPUT, min_size=1, max_size=40), st.data())
@settings(max_examples=150, deadline=None)
def test_any_crash_anywhere_and_any_cut(outputs, data):
    """Runs that end in the middle of a call, and start from one of the last confirmed epochs."""
    rows = rows_of(outputs)
    bus = make_bus(KillingBus)
    confirmed: list[tuple[int, Any]] = [(0, None)]  # the next row, and the state
    for run in range(data.draw(st.integers(1, 6), "runs")):
        back = data.draw(st.integers(1, min(3, len(confirmed))), "epochs back")
        confirmed = confirmed[: len(confirmed) - back + 1]
        bus.budget = data.draw(st.integers(0, 40), "messages until the end")
        continue_run(bus, rows, confirmed, run, data)
    bus.budget = 10**9
    continue_run(bus, rows, confirmed, 99, data)
    assert contents(bus) == expected(rows)
    assert confirmed[-1][0] == len(rows)


def continue_run(
    bus: Any, rows: list[Any], confirmed: list[tuple[int, Any]], run: int, data: Any
) -> None:
    at, state = confirmed[-1]
    part = new_part(bus, state)
    written = False
    while at < len(rows):
        stop = min(at + data.draw(st.integers(1, 9), "rows"), len(rows))
        item = output_of(rows[at:stop], run=run)
        try:
            if item.messages:
                part.write_batch([item])
                written = True
            if stop == len(rows) or data.draw(st.booleans(), "epoch ends"):
                if written:  # else the engine takes no snapshot and keeps the state that it has
                    state = part.snapshot()
                confirmed.append((stop, state))
                written = False
        except Killed:
            return
        at = stop
