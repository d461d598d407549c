"""Control messages among events and labels: where they come, what they end, and bad ones."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model, preprocessing

from anabranch import Event, Label, Pipeline, Shadow, field, inline, window
from anabranch.dataflows.batch.batch import MODELS, EntityRows, RawBatch
from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.messages.outputs import DeadLetter, RolloutMessage
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.sharding.router import Router
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.source.event_time_merge import MergedReader
from anabranch.dataflows.steps.model_step import ModelStep, Reassembly
from anabranch.dataflows.steps.window_step import WindowStep
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from tests.support.scripted_deployment import ScriptedController, use_scripted_controller

TOPICS = ("p.events", "p.labels", "p.control")
T0 = 1_700_000_000_000
MINUTE = 60_000
Json = dict[str, Any]


class Order(Event):
    id: str
    ts: int
    shop: str
    amount: float
    odd: bool = False


class Return(Label):
    id: str
    ts: int
    odd: bool


def orders(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "p",
        "event": Order,
        "label": Return.target("odd", timeout="1h"),
        "features": [field("amount"), window("shop", "amount", over="1h", stats=("count",))],
        "model": preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        "rollout": Shadow(),
    }
    return Pipeline(**(declared | changes))


def order(i: int, minute: int) -> Json:
    ts = T0 + minute * MINUTE
    return {"id": f"o{i}", "ts": ts, "shop": f"s{i % 3}", "amount": float(i % 7)}


def returned(i: int, minute: int) -> Json:
    return {"id": f"o{i}", "ts": T0 + minute * MINUTE, "odd": i % 2 == 1}


def publish(
    bus: MemoryBus, topic: str, messages: Sequence[tuple[int, Json | bytes]], partition: int = 0
) -> None:
    """Messages with the minute of their publishing."""
    bus.publisher().append(
        topic,
        [each if isinstance(each, bytes) else json.dumps(each).encode() for _, each in messages],
        partitions=partition,
        times=[T0 + minute * MINUTE for minute, _ in messages],
    )


def decisions(bus: MemoryBus, topic: str = "p.rollouts") -> list[RolloutMessage]:
    return [msgspec.json.decode(value, type=RolloutMessage) for value in bus.values(topic)]


# Reading.


def batches(bus: MemoryBus, partitions: int, limit: int) -> list[RawBatch]:
    reader = MergedReader(bus, TOPICS, worker_id="0", control="p.control", limit=limit)
    reader.add({TopicPartition(t, n): 0 for t in TOPICS for n in range(partitions)})
    found = []
    while (batch := reader.read()) is not None:
        found.append(batch)
    assert reader.positions == {
        TopicPartition(t, n): end for t in TOPICS for n, end in enumerate(bus.end_offsets(t))
    }
    return found


@given(
    st.lists(st.lists(st.integers(0, 20), max_size=15), min_size=6, max_size=6), st.integers(1, 9)
)
@settings(max_examples=200, deadline=None)
def test_a_control_message_comes_in_its_turn_and_ends_its_batch(logs, limit):
    """Its turn is by rising time, behind events and labels of the same, as for any cut."""
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(TOPICS, 2))
    places = [(topic, n) for topic in TOPICS for n in range(2)]
    due = []
    for rank, ((topic, n), times) in enumerate(zip(places, logs, strict=True)):
        values = [f"{topic} {n} {i}".encode() for i in range(len(times))]
        bus.publisher().append(topic, values, partitions=n, times=times)
        rising = accumulate(times, max)
        due += [(at, rank, i, values[i]) for i, at in enumerate(rising)]
    found = []
    for batch in batches(bus, 2, limit):
        rows = batch.events.values + batch.labels.values
        found += [rows[row] for row in batch.order.tolist()] + batch.controls.values
        assert len(batch.controls) <= 1
        assert 1 <= len(rows) + len(batch.controls) <= limit
    assert found == [value for *_, value in sorted(due)]


def test_a_control_message_does_not_wait_for_events_when_all_is_read():
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(TOPICS, 1))
    publish(bus, "p.events", [(5, b"e")])
    reader = MergedReader(bus, TOPICS, worker_id="0", control="p.control")
    reader.add({TopicPartition(t, 0): 0 for t in TOPICS})
    assert reader.read().events.values == [b"e"]
    assert reader.read() is None
    publish(bus, "p.control", [(1, b"c"), (1, b"d")])
    assert [reader.read().controls.values for _ in range(2)] == [[b"c"], [b"d"]]
    assert reader.lag() == dict.fromkeys([TopicPartition(t, 0) for t in TOPICS], 0)


# Whole runs.

COMMANDS = [
    (2, {"kind": "start", "id": "a", "challenger": "tree", "requested_by": "ann"}),
    (4, {"kind": "set_traffic", "id": "b", "challenger": "tree", "share": 0.25}),
    (4, {"kind": "promote", "id": "c", "challenger": "tree"}),
    (9, {"kind": "set_traffic", "id": "d", "challenger": "tree", "share": 1.5}),
]


def run(
    pipeline: Pipeline, *, limit: int, commands: Sequence[tuple[int, Json | bytes]]
) -> MemoryBus:
    """Order i at minute i, its return two minutes later; on one partition."""
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    publish(bus, "p.events", [(i, order(i, i)) for i in range(12)])
    if pipeline.has_label_topic:
        publish(bus, "p.labels", [(i + 2, returned(i, i + 2)) for i in range(10)])
    publish(bus, "p.control", commands)
    run_worker(pipeline, bus, SourceOptions(until_end=True, limit=limit))
    return bus


@pytest.mark.parametrize("limit", [1, 2, 5, 1000])
def test_commands_are_followed_between_two_rows_however_the_stream_is_cut(monkeypatch, limit):
    use_scripted_controller(monkeypatch)
    found = decisions(run(orders(), limit=limit, commands=COMMANDS))
    assert [(each.request_id, each.action, each.reason) for each in found] == [
        ("a", "started", "after 3 events and 1 labels"),
        ("b", "traffic_set", "after 5 events and 3 labels"),
        ("c", "promoted", "after 5 events and 3 labels"),
        ("c", "ended", "after 5 events and 3 labels"),
        ("d", "rejected", "the share 1.5 is not possible: give one from 0 to 1"),
    ]
    assert [each.offset for each in found] == [0, 1, 2, 2, 3]
    assert {(each.topic, each.partition) for each in found} == {("p.control", 0)}
    assert [each.ts for each in found] == [T0 + m * MINUTE for m in (2, 4, 4, 4, 9)]
    assert found[0].requested_by == "ann"
    assert found[1].requested_by is msgspec.UNSET


def test_before_the_first_event_a_decision_has_the_time_of_its_message(monkeypatch):
    use_scripted_controller(monkeypatch)
    bus = run(orders(), limit=9, commands=[(-5, COMMANDS[0][1])])
    assert [each.ts for each in decisions(bus)] == [T0 - 5 * MINUTE]


def test_figures_that_are_none_are_null(monkeypatch):
    use_scripted_controller(monkeypatch)
    bus = run(orders(), limit=9, commands=COMMANDS)
    promoted = json.loads(bus.values("p.rollouts")[2])
    assert promoted["evidence"] == {
        "labels": 10, "served": 4, "champion_loss": 0.5, "challenger_loss": None,
        "difference": 0.1, "low": None, "high": None, "e_value": 3.0, "e_worse": 0.2,
        "alpha": 0.05,
    }  # fmt: skip
    assert promoted["guardrails"] == {"error_rate": 0.0, "psi": None}
    assert promoted["share"] is None
    assert "requested_by" not in promoted


@pytest.mark.parametrize("limit", [1, 1000])
def test_a_pipeline_with_inline_labels_listens_as_well(monkeypatch, limit):
    use_scripted_controller(monkeypatch)
    pipeline = orders(label=inline("odd"), features=[field("amount")])
    assert pipeline.inputs == ("p.events", "p.control")
    found = decisions(run(pipeline, limit=limit, commands=COMMANDS[:1]))
    assert [each.reason for each in found] == ["after 0 events and 3 labels"]


BAD = {
    b"oops": "malformed",
    b"\xff": "malformed",
    b"{}": "missing required field `kind`",
    b'{"kind":"dance","id":"1"}': "Invalid enum value 'dance'",
    b'{"kind":"pause","id":7}': "Expected `str`, got `int` - at `$.id`",
    b'{"kind":"pause","id":""}': "Expected `str` of length >= 1",
    b'{"kind":"pause","id":"1","share":"much"}': "Expected `float | null`, got `str`",
    b'{"kind":"pause","id":"1","chalenger":"tree"}': "unknown field `chalenger`",
    b'{"kind":"pause","id":"1","by":"ann"}': "the field by is now called requested_by",
    b'{"kind":"start","id":"1","policy":[1]}': "Expected `object`, got `array`",
}


def test_what_is_no_control_message_is_a_dead_letter_with_its_coordinates(monkeypatch):
    use_scripted_controller(monkeypatch)
    good = {"kind": "pause", "id": "good"}
    bus = run(orders(), limit=7, commands=[*((3, bad) for bad in BAD), (3, good)])
    dead_letters = [msgspec.json.decode(v, type=DeadLetter) for v in bus.values("p.dead-letters")]
    assert [(each.topic, each.partition, each.offset) for each in dead_letters] == [
        ("p.control", 0, offset) for offset in range(len(BAD))
    ]
    assert {each.reason for each in dead_letters} == {"not a control message"}
    for letter, words in zip(dead_letters, BAD.values(), strict=True):
        assert words in letter.detail, letter
    assert [each.request_id for each in decisions(bus)] == ["good"]


def test_a_dead_control_message_comes_behind_the_dead_letters_of_its_batch(monkeypatch):
    """Of labels that were held in vain, which only the model step finds, too."""
    use_scripted_controller(monkeypatch)
    bus = MemoryBus()
    pipeline = orders(label=Return.target("odd", timeout="1h", early_buffer="0s"))
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    publish(bus, "p.labels", [(1, returned(99, 1))])
    publish(bus, "p.events", [(1, b"oops")])
    publish(bus, "p.control", [(1, b"oops")])
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    dead_letters = [json.loads(value)["topic"] for value in bus.values("p.dead-letters")]
    assert dead_letters == ["p.events", "p.labels", "p.control"]


def test_a_pipeline_without_rollouts_reads_and_writes_no_more_than_before():
    pipeline = orders(rollout=None)
    bus = MemoryBus()
    bus.create_topics({"p.events": 1, "p.labels": 1})
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    assert sorted(bus.topics()) == [
        "p.dead-letters", "p.drift", "p.events", "p.labels", "p.predictions",
    ]  # fmt: skip


def test_the_control_topic_is_made_with_as_many_partitions_as_the_events_have():
    bus = MemoryBus()
    bus.create_topics({"p.events": 3, "p.labels": 3})
    run_worker(orders(), bus, SourceOptions(until_end=True))
    assert bus.topics()["p.control"] == bus.topics()["p.rollouts"] == 3


# Several workers.


def raw_of(pipeline: Pipeline, commands: Sequence[tuple[int, Json]], events: int) -> Any:
    from anabranch.dataflows.source.decoder import BatchDecoder
    from anabranch.dataflows.source.late_and_duplicate import LateAndDuplicateFilter

    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(TOPICS, 1))
    publish(bus, "p.events", [(i, order(i, i)) for i in range(events)])
    publish(bus, "p.control", commands)
    decoder, late_filter = BatchDecoder(pipeline), LateAndDuplicateFilter("10m", "1h")
    return [late_filter.apply(decoder.decode(raw)) for raw in batches(bus, 1, 100)]


def test_with_several_workers_a_command_without_events_goes_to_the_models():
    pipeline = orders()
    router, metrics = Router(pipeline, 4, workers=2), WorkerMetrics("p")
    step = ModelStep(pipeline, metrics)
    step.commands.controller = ScriptedController(step)
    windows: dict[str, WindowStep] = {}
    items = []
    for batch in raw_of(pipeline, COMMANDS[2:3] + COMMANDS[:1], events=5):
        for key, item in pickle.loads(pickle.dumps(router.route(batch, T0))):
            shard = windows.setdefault(key, WindowStep(pipeline, metrics, workers=2))
            items += shard.on_batch([item])[0]
    results, _ = step.on_batch(sorted(items, key=lambda item: isinstance(item, EntityRows)))
    decided = [(d.action, d.reason) for result in results for d in result.decisions]
    assert decided == [
        ("promoted", "after 5 events and 0 labels"),
        ("ended", "after 5 events and 0 labels"),
        ("started", "after 5 events and 0 labels"),
    ]


def test_a_command_alone_is_one_item_for_the_models():
    pipeline = orders()
    (batch,) = raw_of(pipeline, COMMANDS[:1], events=0)
    routed = Router(pipeline, 4, workers=2).route(batch, T0)
    assert [key for key, _ in routed] == [MODELS]
    assert Reassembly(pipeline).add(batch)[0].control is not None


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, {"shop"}),
        ({"rollout_key": "shop", "features": [field("amount")]}, {"shop"}),
        ({"rollout_key": "id"}, set()),
        ({"rollout": None}, set()),
    ],
)
def test_the_field_by_which_traffic_is_divided_comes_to_the_models(changes, kept):
    pipeline = orders(**changes)
    (batch,) = raw_of(pipeline, [], events=4)
    assert kept <= set(batch.columns)
    Router(pipeline, 4, workers=2).route(batch, T0)
    if pipeline.entities:
        assert set(batch.columns) == kept
    for name in kept:
        assert list(batch.columns[name]) == ["s0", "s1", "s2", "s0"]


def test_batches_count_control_messages_as_rows(monkeypatch):
    from prometheus_client import generate_latest

    use_scripted_controller(monkeypatch)
    metrics = WorkerMetrics("p")
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(TOPICS, 1))
    publish(bus, "p.control", COMMANDS[:2])
    run_worker(orders(), bus, SourceOptions(until_end=True), metrics=metrics)
    exported = generate_latest(metrics.registry).decode()
    assert 'anabranch_batch_rows_sum{pipeline="p"} 2.0' in exported
    assert 'anabranch_rollout_decisions_total{action="started",pipeline="p"} 1.0' in exported
    assert 'anabranch_lag_messages{partition="0",pipeline="p",topic="p.control"} 0.0' in exported
