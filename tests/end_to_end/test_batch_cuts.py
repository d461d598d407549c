"""Batch invariance: however a stream is cut into batches, every output byte is the same.

Predictions with their features and model versions, drift signals and dead letters are compared, on
streams with late, duplicate, malformed and infinite messages, for every kind of feature.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model, preprocessing, tree

from anabranch import (
    Event,
    Label,
    Pipeline,
    count_distinct,
    day_of_week,
    decayed,
    field,
    hashed,
    hour_of_day,
    inline,
    monitor,
    one_hot,
    since_last,
    target,
    window,
)
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.bus.partitioner import partition_of_key
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions

T0 = 1_700_000_000_000
HUGE = 2e140  # finite, but the variance of a window with it is not
LIMITS = (1, 2, 3, 7, 50, 1000)
STATS = ("count", "sum", "mean", "std", "var", "min", "max", "first", "last")
COMPILED = preprocessing.StandardScaler() | linear_model.LogisticRegression()
RIVER = tree.HoeffdingTreeClassifier(grace_period=5, delta=0.5)


class Order(Event):
    id: str
    ts: int
    user: str
    shop: str
    price: float
    items: int
    tip: float | None = None
    voucher: str | None = None
    returned: bool = False


class Returned(Label):
    id: str
    ts: int
    returned: bool


FEATURES = (
    field("price"),
    field("tip", fill_null=-1.0),
    hour_of_day(),
    day_of_week(),
    one_hot("voucher", ("x", "y")),
    hashed("shop", buckets=4),
    window("user", "price", over=("30s", "20m"), stats=STATS),
    window("user", "tip", over=("1m", "1h"), stats=STATS),
    window("user", "items", over="1h", stats=("sum", "max", "last"), resolution="1m"),
    since_last("user", within="10m"),
    count_distinct("user", "shop", over=("1m", "1h")),
    count_distinct("user", "voucher", over="1h"),
    decayed("user", "price", half_life="5m", stats=("mean", "count", "sum")),
    window("shop", over="5m"),
    window("shop", "price", over="5m", stats=("mean", "std")),
    decayed("shop", "tip", half_life="1m"),
    window("shop", target(), over=("30s", "1h"), stats=STATS),
    window("user", target(), over="20m", resolution="1m"),
)
MONITORS = (
    monitor("loss", "PageHinkley", cooldown="1s", min_instances=3, threshold=0.3, delta=0.01),
    monitor("price", "PageHinkley", cooldown="1m", min_instances=3, threshold=5.0),
    monitor("user_price_20m_sum", "ADWIN", cooldown="0s", clock=1, grace_period=2, delta=0.5),
)


@cache
def pipeline(model: str, delayed: bool) -> Pipeline:
    return Pipeline(
        name="orders",
        event=Order,
        label=Returned.target("returned", timeout="30m") if delayed else inline("returned"),
        features=FEATURES,
        model=COMPILED if model == "compiled" else RIVER,
        monitors=MONITORS,
        allowed_lateness="5m",
        max_clock_skew="1m",
        dedup_window="10m",
        with_features=True,
    )


class Message(NamedTuple):
    topic: str
    time: int
    key: str
    value: bytes


Outputs = dict[str, list[list[bytes]]]
"""Topic → the messages of each of its partitions."""


def run(pipeline: Pipeline, messages: list[Message], limit: int, partitions: int = 1) -> Outputs:
    """All outputs for messages published in this order."""
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, partitions))
    publisher = bus.publisher()
    for topic, time, key, value in messages:
        if topic in pipeline.inputs:
            place = partition_of_key(key.encode(), partitions)
            publisher.append(topic, [value], partitions=place, times=[time])
    run_worker(pipeline, bus, SourceOptions(limit=limit, until_end=True))
    return {t: [log.values for log in bus.logs(t)] for t in pipeline.topics.outputs}


MALFORMED = (
    b"",
    b"{",
    b"\xff",
    b'{"id":"x"}',
    b'{"id":"x","ts":1',
    b'"user":"u","shop":"s","price":1,"items":1}',
)
SPOILT: tuple[dict[str, Any], ...] = (
    {"price": "1"},
    {"other": 1},
    {"ts": "noon"},
    {"ts": T0 + 10**12},
    {"items": 10**400},
    {"ts": None},
)


class Step(NamedTuple):
    """One message to arrive."""

    kind: str
    wait: int  # seconds since the arrival before
    behind: int  # seconds that its event time lags
    user: int
    price: float
    choice: int
    delay: int | None  # seconds until its label


ODD = ("again", "malformed", "spoilt", "huge", "stray label")
STEPS = st.builds(
    Step,
    kind=st.sampled_from(["good"] * 12 + list(ODD)),
    wait=st.sampled_from([0, 0, 1, 5, 29, 30, 60, 200, 700]),
    behind=st.sampled_from([0, 0, 0, 1, 30, 59, 299, 300, 301, 3000]),
    user=st.integers(0, 3),
    price=st.one_of(
        st.integers(-3, 3).map(float), st.floats(-1e6, 1e6), st.sampled_from([1e-300, 0.1, -0.0])
    ),
    choice=st.integers(0, 11),
    delay=st.sampled_from([None, 0, 0, 1, 30, 400, 3000]),
)
STREAMS = st.lists(STEPS, min_size=1, max_size=45)


def published(steps: list[Step]) -> list[Message]:
    """The messages of both topics, in order of time."""
    events: list[Message] = []
    labels: list[Message] = []
    now, known = T0, 0
    for step in steps:
        now += 1000 * step.wait
        key = f"u{step.user}"
        if step.kind == "malformed":
            value = MALFORMED[step.choice % len(MALFORMED)]
            events.append(Message("orders.events", now, key, value))
            continue
        if step.kind == "stray label":
            labels.append(label(now, key, f"nobody {step.choice}", step))
            continue
        if step.kind != "again" or not known:
            known += 1
        id = f"o{known}"
        order: dict[str, Any] = {
            "id": id,
            "ts": now - 1000 * step.behind,
            "user": key,
            "shop": f"s{step.choice % 3}",
            "price": HUGE if step.kind == "huge" else step.price,
            "items": step.choice,
            "returned": step.choice % 2 == 0,
        }
        if step.choice % 4:
            order |= {"tip": step.price / 7, "voucher": "xyz"[step.choice % 3]}
        if step.kind == "spoilt":
            order |= SPOILT[step.choice % len(SPOILT)]
        events.append(Message("orders.events", now, key, json.dumps(order).encode()))
        if step.delay is not None:
            labels.append(label(now + 1000 * step.delay, key, id, step))
    return sorted(events + labels, key=lambda message: message.time)


def label(time: int, key: str, id: str, step: Step) -> Message:
    said = {"id": id, "ts": time, "returned": (step.choice + step.user) % 3 == 0}
    value = b'{"id":' if step.choice == 11 else json.dumps(said).encode()
    return Message("orders.labels", time, key, value)


def in_order_of_source(dead: list[bytes]) -> list[bytes]:
    return sorted(dead, key=lambda letter: [json.loads(letter)[at] for at in ("topic", "offset")])


def check(pipeline: Pipeline, messages: list[Message], limits: list[int], partitions: int) -> None:
    expected = run(pipeline, messages, 1, partitions)
    for limit in limits:
        found = run(pipeline, messages, limit, partitions)
        for topic in (pipeline.topics.predictions, pipeline.topics.drift):
            assert found[topic] == expected[topic], (limit, topic)
        for found_dead, dead in zip(
            found[pipeline.topics.dead_letters], expected[pipeline.topics.dead_letters], strict=True
        ):
            assert in_order_of_source(found_dead) == in_order_of_source(dead), limit


@pytest.mark.parametrize("delayed", [False, True], ids=["inline", "delayed"])
@pytest.mark.parametrize("model", ["compiled", "river"])
@given(steps=STREAMS, limits=st.lists(st.sampled_from(LIMITS[1:]), min_size=2, max_size=2))
@settings(max_examples=30, deadline=None)
def test_no_cut_changes_a_byte(model, delayed, steps, limits):
    check(pipeline(model, delayed), published(steps), limits, partitions=1)


@given(steps=STREAMS, limit=st.sampled_from(LIMITS[1:]))
@settings(max_examples=8, deadline=None)
def test_no_cut_changes_a_byte_with_several_partitions(steps, limit):
    check(pipeline("compiled", True), published(steps), [limit], partitions=3)


@given(steps=STREAMS, limit=st.sampled_from(LIMITS[1:]))
@settings(max_examples=30, deadline=None)
def test_dead_letters_come_in_the_order_in_which_their_messages_were_read(steps, limit):
    orders, messages = pipeline("compiled", True), published(steps)
    dead = orders.topics.dead_letters
    assert run(orders, messages, limit)[dead] == run(orders, messages, 1)[dead]


@pytest.mark.parametrize("model", ["compiled", "river"])
@pytest.mark.parametrize("delayed", [False, True], ids=["inline", "delayed"])
def test_a_long_stream_with_drift_has_the_same_outputs_in_any_batches(model, delayed):
    """A thousand messages: tables grow, keys are evicted, monitors signal drift."""
    steps = [
        Step(
            kind=ODD[i // 50 % len(ODD)] if i % 50 == 49 else "good",
            wait=(i * 7919) % 11,
            behind=(0, 0, 0, 7, 60, 400)[(i * 31) % 6],
            user=(i * i) % 23,
            price=float((i * 37) % 17 + (100 if i > 700 else 0)),
            choice=(i * 13) % 11,
            delay=(None, 0, 90, 400)[i % 4],
        )
        for i in range(1000)
    ]  # fmt: skip
    orders, messages = pipeline(model, delayed), published(steps)
    expected = run(orders, messages, 7)
    assert len(expected[orders.topics.predictions][0]) > 700
    assert len(expected[orders.topics.drift][0]) > 2
    assert len(expected[orders.topics.dead_letters][0]) > 20
    for limit in (64, 1000):
        found = run(orders, messages, limit)
        for topic in (orders.topics.predictions, orders.topics.drift):
            assert found[topic] == expected[topic], (limit, topic)
