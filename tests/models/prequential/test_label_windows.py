"""Windows over labels, against what had arrived by then: any order, any rules, and a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model, preprocessing, tree

from anabranch import Event, Label, Pipeline, inline, target, window
from anabranch import field as number
from anabranch.dataflows.batch.batch import Batch, WorkerWatermark
from anabranch.dataflows.bus import Bus, TopicPartition, open_bus
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.manifest import describe
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.sharding.router import Router
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.source.decoder import BatchDecoder
from anabranch.dataflows.source.event_time_merge import MergedReader
from anabranch.dataflows.source.late_and_duplicate import LateAndDuplicateFilter
from anabranch.dataflows.steps.model_step import ModelStep
from anabranch.dataflows.steps.window_step import WindowStep
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.state.errors import StateError
from tests.support.history import publish as publish_simulated
from tests.support.history import simulated, values
from tests.support.window_reference import statistic

T0 = 1_700_000_000_000
SECOND, MINUTE = 1000, 60_000
LATENESS, WAIT, HOLD = 5 * MINUTE, 10 * MINUTE, 3 * MINUTE
WIDTHS = {"40s": 40 * SECOND, "20m": 20 * MINUTE}
STATS = ("count", "sum", "mean", "std", "var", "min", "max", "first", "last")
RULES: dict[str, dict[str, Any]] = {
    "dropped": {},
    "assumed": {"default": 0.5},
    "corrected": {"default": 0.5, "late": "update"},
}
Json = dict[str, Any]
SHOP: Json = {"shop": "s", "user": "u", "price": 1.0}


class Sale(Event):
    id: str
    ts: int
    shop: str
    user: str
    price: float
    value: float = 0.0


class Rating(Label):
    id: str
    ts: int
    value: float


def sales(label: Any, **changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "sales",
        "event": Sale,
        "label": label,
        "features": [
            window("shop", target(), over=tuple(WIDTHS), stats=STATS),
            number("price"),
            window("user", target(), over=tuple(WIDTHS)),
        ],
        "model": preprocessing.StandardScaler() | linear_model.LinearRegression(),
        "metrics": (),
        "allowed_lateness": "5m",
        "with_features": True,
    }
    return Pipeline(**(declared | changes))


def rating(rules: str) -> Any:
    return Rating.target("value", timeout="10m", early_buffer="3m", **RULES[rules])


class Message(NamedTuple):
    """One arrival; no two have the same time of publishing."""

    topic: str
    time: int
    body: Json


def publish(bus: Bus, messages: Sequence[Message]) -> None:
    publisher = bus.publisher()
    for topic, time, body in messages:
        publisher.append(topic, [json.dumps(body).encode()], partitions=0, times=[time])
    publisher.close()


def run(pipeline: Pipeline, messages: Sequence[Message], limit: int = 7) -> list[Json]:
    """The predictions."""
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    publish(bus, [each for each in messages if each.topic in pipeline.inputs])
    run_worker(pipeline, bus, SourceOptions(limit=limit, until_end=True))
    return [json.loads(value) for value in bus.values(pipeline.topics.predictions)]


@dataclass
class Reference:
    """What is known at each message: labels of each key, and who waits; nothing but lists."""

    otherwise: float | None = None
    corrects: bool = False
    known: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=dict)
    waiting: dict[str, Json] = field(default_factory=dict)
    settled: dict[str, tuple[Json, float]] = field(default_factory=dict)
    held: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    now: int = -(2**60)

    def enter(self, event: Json, time: int, value: float) -> None:
        for entity in ("shop", "user"):
            self.known.setdefault((entity, event[entity]), []).append((time, value))

    def run_out(self, time: int) -> None:
        self.now = max(self.now, time)
        over = [each for each in self.waiting.values() if each["ts"] + WAIT < self.now]
        for event in sorted(over, key=lambda each: each["ts"]):
            del self.waiting[event["id"]]
            if self.otherwise is not None:
                self.enter(event, event["ts"] + WAIT, self.otherwise)
                self.settled[event["id"]] = event, self.otherwise
        self.held = {id: one for id, one in self.held.items() if one[0] + HOLD >= self.now}

    def features(self, event: Json) -> list[float]:
        found: list[float] = []
        for entity, stats in (("shop", STATS), ("user", ("count", "mean"))):
            labels = sorted(self.known.get((entity, event[entity]), []), key=lambda one: one[0])
            for width in WIDTHS.values():
                inside = [v for at, v in labels if event["ts"] - width < at <= event["ts"]]
                found += [statistic(stat, inside) for stat in stats]
            if entity == "shop":
                found.append(event["price"])
        return found

    def event(self, event: Json) -> list[float]:
        self.run_out(event["ts"])
        found = self.features(event)
        if event["id"] in self.held:
            _, time, value = self.held.pop(event["id"])
            self.enter(event, max(time, event["ts"]), value)
            self.settled[event["id"]] = event, value
        else:
            self.waiting[event["id"]] = event
        return found

    def label(self, said: Json) -> None:
        id, time, value = said["id"], said["ts"], said["value"]
        self.run_out(time)
        if id in self.waiting:
            event = self.waiting.pop(id)
            self.enter(event, max(time, event["ts"]), value)
            self.settled[id] = event, value
        elif id in self.settled:
            event, learned = self.settled[id]
            if self.corrects and learned != value:
                self.enter(event, time, value)
                self.settled[id] = event, value
        elif time + WAIT >= self.now and id not in self.held:
            self.held[id] = self.now, time, value


class Step(NamedTuple):
    """One sale: when it comes, how late, and the labels that it gets."""

    pause: int  # seconds
    behind: int  # seconds that its time lags its arrival
    shop: int
    user: int
    labels: tuple[tuple[int, int, int], ...]  # seconds after the sale, seconds of lag, value


LABELS = st.tuples(
    st.sampled_from([-200, -60, -1, 0, 1, 20, 39, 40, 41, 300, 599, 600, 601, 900, 2000]),
    st.sampled_from([0, 0, 0, 1, 40, 500]),
    st.integers(-2, 2),
)
STEPS = st.builds(
    Step,
    pause=st.sampled_from([0, 0, 1, 5, 20, 40, 60, 300, 700]),
    behind=st.sampled_from([0, 0, 0, 1, 39, 40, 200]),
    shop=st.integers(0, 1),
    user=st.integers(0, 2),
    labels=st.lists(LABELS, max_size=2).map(tuple),
)
STREAMS = st.lists(STEPS, min_size=1, max_size=40)


def messages_of(steps: Sequence[Step]) -> list[Message]:
    """In the order in which they arrive."""
    found: list[tuple[int, str, Json]] = []
    now = T0
    for i, step in enumerate(steps):
        now += SECOND * step.pause
        event: Json = {"id": f"s{i}", "ts": now - SECOND * step.behind, "shop": f"shop {step.shop}"}
        event |= {"user": f"user {step.user}", "price": float(i % 5)}
        found.append((now, "sales.events", event))
        for after, lag, value in step.labels:
            at = now + SECOND * after
            said = {"id": f"s{i}", "ts": at - SECOND * lag, "value": value / 4}
            found.append((at, "sales.labels", said))
    found.sort(key=lambda each: each[0])
    return [Message(topic, at + 2 * i, body) for i, (at, topic, body) in enumerate(found)]


def check(predictions: list[Json], messages: Sequence[Message], reference: Reference) -> None:
    by_id = {each["id"]: list(each["features"].values()) for each in predictions}
    admitted = -(2**60)
    for topic, _, body in messages:
        if topic == "sales.labels":
            reference.label(body)
        elif body["ts"] >= admitted - LATENESS:
            admitted = max(admitted, body["ts"])
            expected = reference.event(body)
            assert by_id.pop(body["id"]) == pytest.approx(expected, rel=1e-12, abs=1e-12), body
    assert not by_id


def reference_of(rules: str) -> Reference:
    return Reference(RULES[rules].get("default"), "late" in RULES[rules])


@pytest.mark.parametrize("rules", list(RULES))
@given(steps=STREAMS, limit=st.sampled_from([1, 2, 5, 1000]))
@settings(max_examples=60, deadline=None)
def test_features_are_of_the_labels_that_had_arrived_by_then_in_any_order(rules, steps, limit):
    messages = messages_of(steps)
    check(run(sales(rating(rules)), messages, limit), messages, reference_of(rules))


def long_stream(count: int = 1500) -> list[Message]:
    """Enough labels of a key for running sums; they contradict, come early, late and never."""
    return messages_of(
        [
            Step(
                pause=i * 7919 % 5,
                behind=(0, 0, 3, 40, 290)[i * 31 % 5],
                shop=i * i % 3,
                user=i * 7 % 11,
                labels=(
                    (),
                    ((5, 0, i % 5 - 2),),
                    ((300, 40, i % 3 - 1), (500, 0, 2)),
                    ((-100, 0, 1),),
                    ((700, 0, i % 4 - 1),),
                )[i * 13 % 5],
            )
            for i in range(count)
        ]
    )


@pytest.mark.parametrize("rules", list(RULES))
def test_a_long_stream_agrees_too(rules):
    messages = long_stream()
    check(run(sales(rating(rules)), messages, 64), messages, reference_of(rules))


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_an_inline_label_enters_right_after_its_event_and_is_never_in_its_own_features(limit):
    pipeline = sales(inline("value"))
    messages = [each for each in long_stream(400) if each.topic == "sales.events"]
    for i, message in enumerate(messages):
        message.body["value"] = float(i % 7)
    reference, admitted = Reference(), -(2**60)
    found = {each["id"]: list(each["features"].values()) for each in run(pipeline, messages, limit)}
    for _, _, body in messages:
        if body["ts"] < admitted - LATENESS:
            continue
        admitted = max(admitted, body["ts"])
        expected = reference.features(body)
        assert found[body["id"]] == pytest.approx(expected, rel=1e-12, abs=1e-12)
        reference.enter(body, body["ts"], body["value"])


@given(
    steps=STREAMS,
    at=st.integers(0, 60),
    value=st.integers(-2, 2),
    lag=st.sampled_from([0, 100, 3000]),
)
@settings(max_examples=40, deadline=None)
def test_a_label_that_comes_later_changes_nothing_before_it(steps, at, value, lag):
    """Whatever it says, of whichever event, and however old it claims to be."""
    pipeline, messages = sales(rating("assumed")), messages_of(steps)
    cut = min(at, len(messages))
    time = messages[cut - 1].time + 1 if cut else T0 - 1
    said = {"id": f"s{at % len(steps)}", "ts": time - SECOND * lag, "value": value / 4}
    planted = [*messages[:cut], Message("sales.labels", time, said), *messages[cut:]]
    before = {each.body["id"] for each in messages[:cut] if each.topic == "sales.events"}
    without, with_it = run(pipeline, messages), run(pipeline, planted)
    same = [each for each in without if each["id"] in before]
    assert same == [each for each in with_it if each["id"] in before]


@pytest.mark.parametrize("rules", list(RULES))
def test_a_run_that_stops_and_resumes_gives_the_bytes_of_one_that_did_not(tmp_path, rules):
    pipeline, messages = sales(rating(rules)), long_stream(600)
    whole = in_pieces(tmp_path / "whole", pipeline, [messages])
    cuts = [0, 1, 37, 300, 301, len(messages)]
    pieces = [messages[a:b] for a, b in pairwise(cuts)]
    assert in_pieces(tmp_path / "pieces", pipeline, pieces) == whole
    assert len(whole) > 550


def in_pieces(path: Path, pipeline: Pipeline, pieces: Sequence[Sequence[Message]]) -> list[bytes]:
    """Publish a piece, run to its end with the state of the last run, and so on."""
    path.mkdir()
    url = f"sqlite:{path / 'bus'}"
    for piece in pieces:
        bus = open_bus(url)
        bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
        publish(bus, piece)
        with StateDirectory.open(path / "state", pipeline, bus) as state:
            run_worker(pipeline, bus, SourceOptions(limit=50, until_end=True), state=state)
        bus.close()
    return values(url, pipeline.topics.predictions)


def test_a_state_of_other_label_windows_is_refused(tmp_path):
    label = rating("assumed")
    one, other = sales(label), sales(label, features=[window("shop", target(), over="1h")])
    assert describe(one)["features"] != describe(other)["features"]
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(one.inputs, 1))
    with StateDirectory.open(tmp_path / "state", one, bus):
        pass
    with pytest.raises(StateError, match="features of pipeline 'sales' changed"):
        StateDirectory.open(tmp_path / "state", other, bus).__enter__()


def sales_of(labels: list[float]) -> list[Message]:
    """Sales of one shop that carry these labels, a millisecond apart."""
    return [
        Message("sales.events", T0 + i, {"id": f"s{i}", "ts": T0 + i, **SHOP, "value": value})
        for i, value in enumerate(labels)
    ]


def test_labels_of_a_model_of_several_classes_are_counted_as_numbers():
    pipeline = sales(
        inline("value"),
        features=[window("shop", target(), over="1h", stats=("count", "mean"))],
        model=tree.HoeffdingTreeClassifier(),
    )
    found = run(pipeline, sales_of([0.0, 1.0, 2.0, 3.0]))
    assert [list(each["features"].values()) for each in found] == [
        [0.0, 0.0],
        [1.0, 0.0],
        [2.0, 0.5],
        [3.0, 1.0],
    ]


def test_statistics_of_huge_labels_are_clipped_to_what_a_model_can_take():
    pipeline = sales(inline("value"), features=[window("shop", target(), over="1h", stats=STATS)])
    found = run(pipeline, sales_of([9e99, 8e99, 7e99, 6e99]))
    assert found[-1]["features"]["shop_target_1h_sum"] == 1e100
    assert found[-1]["features"]["shop_target_1h_var"] == 1e100
    assert np.isclose(found[-1]["features"]["shop_target_1h_mean"], 8e99)


@pytest.mark.parametrize("rules", list(RULES))
def test_shards_of_several_workers_give_the_same_bits(rules):
    """The batch's keys stay with it on its way to the models, while other windows are filled."""
    features = [
        window("shop", target(), over=tuple(WIDTHS), stats=STATS),
        window("user", "price", over="20m", stats=("count", "sum")),
        window("user", target(), over="20m"),
    ]
    pipeline = sales(rating(rules), features=features)
    messages = long_stream(300)
    expected = [list(each["features"].values()) for each in run(pipeline, messages)]
    metrics = WorkerMetrics(pipeline.name)
    router, models = Router(pipeline, shards=4, workers=2), ModelStep(pipeline, metrics)
    shards = {str(n): WindowStep(pipeline, metrics, workers=2) for n in range(4)}
    found: list[list[float]] = []
    for batch in batches(pipeline, messages):
        filled = [
            shards[key].on_batch([part])[0][0]
            for key, part in router.route(batch, 0)
            if not isinstance(part, WorkerWatermark)
        ]
        for results in models.on_batch(filled)[0]:
            found += results.batch.features.tolist()
    assert found == expected


def batches(pipeline: Pipeline, messages: Sequence[Message]) -> Iterator[Batch]:
    """The batches of the merged reader."""
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    publish(bus, messages)
    reader = MergedReader(bus, list(pipeline.inputs), worker_id="0", limit=11)
    reader.add({TopicPartition(topic, 0): 0 for topic in pipeline.inputs})
    decoder = BatchDecoder(pipeline)
    late_filter = LateAndDuplicateFilter(pipeline.allowed_lateness, pipeline.dedup_window)
    while (raw := reader.read()) is not None:
        yield late_filter.apply(decoder.decode(raw))


def test_simulated_payments_count_the_verdicts_that_had_come_and_tell_risky_merchants(tmp_path):
    shipped = load_pipeline("payments")
    of_labels = window("merchant", target(), over="7d", stats=("count", "sum", "mean"))
    pipeline = replace(shipped, features=[*shipped.features, of_labels], with_features=True)
    url = f"sqlite:{tmp_path / 'bus'}"
    arrived = simulated(6000)
    publish_simulated(url, arrived)
    bus = open_bus(url)
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    bus.close()
    found = [json.loads(value)["features"] for value in values(url, "payments.predictions")]

    merchants: dict[str, str] = {}
    known: dict[str, list[bool]] = {}
    expected: list[tuple[int, int]] = []
    frauds: set[str] = set()
    for message in sorted(arrived, key=lambda each: (each.time, each.topic)):
        body = json.loads(message.value)
        if message.topic == "payments.events":
            merchants[body["id"]] = body["merchant"]
            verdicts = known.get(body["merchant"], [])
            expected.append((len(verdicts), sum(verdicts)))
        else:
            known.setdefault(merchants[body["id"]], []).append(body["fraud"])
            frauds |= {body["id"]} if body["fraud"] else set()
    counted = [(f["merchant_target_7d_count"], f["merchant_target_7d_sum"]) for f in found]
    assert counted == expected
    rates = np.array([features["merchant_target_7d_mean"] for features in found[3000:]])
    is_fraud = np.array([id in frauds for id in merchants])[3000:]
    assert rates[is_fraud].mean() > 1.5 * rates[~is_fraud].mean()
