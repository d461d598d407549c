"""Recomputed features equal those of the real dataflow, in any order of arrival."""

from __future__ import annotations

import ast
import json
import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from river import linear_model

from anabranch import Pipeline
from anabranch.dataflows import skew
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.bus.partitioner import partition_of_key
from anabranch.dataflows.declaration.features import OneHot, window
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.skew.arrival_order import events_from_topic, labels_from_topic
from anabranch.dataflows.skew.message_reader import OFFSET, PARTITION
from anabranch.dataflows.skew.progress import ignore_progress
from anabranch.dataflows.skew.recompute import Recomputed, recompute
from anabranch.dataflows.skew.row_features import TIME, row_columns
from anabranch.dataflows.skew.sparse_table import (
    add,
    fold,
    greatest,
    moment_leaves,
    pool,
    sum_leaves,
)
from anabranch.dataflows.skew.timeline import Timeline
from anabranch.dataflows.skew.xxh64 import xxh64
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.state.errors import InputError
from anabranch.state.keys.hashing import hash64
from tests.end_to_end.test_batch_cuts import ODD, STREAMS, Returned, Step, pipeline, published

ORDERS = pipeline("compiled", False)
DELAYED = {
    rules: replace(pipeline("compiled", True), label=Returned.target("returned", **how))
    for rules, how in {
        "dropped": {"timeout": "30m"},
        "assumed": {"timeout": "5m", "default": False},
        "corrected": {
            "timeout": "1m", "default": False, "late": "update", "update_within": "5m",
            "early_buffer": "1m",
        },
        "not held": {"timeout": "30m", "early_buffer": "0s"},
    }.items()
}  # fmt: skip
Place = tuple[int, int]


def on_bus(steps: list[Step], partitions: int, orders: Pipeline = ORDERS) -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(orders.inputs, partitions))
    publisher = bus.publisher()
    for topic, time, key, value in published(steps):
        if topic in orders.inputs:
            place = partition_of_key(key.encode(), partitions)
            publisher.append(topic, [value], partitions=place, times=[time])
    return bus


def served(
    bus: MemoryBus, limit: int = 50, orders: Pipeline = ORDERS
) -> dict[Place, dict[str, float]]:
    """The features of the real dataflow, by partition and offset of the event."""
    run_worker(orders, bus, SourceOptions(limit=limit, until_end=True))
    found = map(json.loads, bus.values(orders.topics.predictions))
    return {(each["partition"], each["offset"]): each["features"] for each in found}


def recomputed(bus: MemoryBus, orders: Pipeline = ORDERS) -> Recomputed:
    arrivals = events_from_topic(orders, bus, orders.topics.events, ignore_progress)
    if orders.has_label_topic:
        arrivals.labels = labels_from_topic(orders, bus, orders.topics.labels, ignore_progress)
    return recompute(orders, arrivals, ignore_progress)


def check(steps: list[Step], partitions: int, orders: Pipeline = ORDERS) -> Recomputed | None:
    """Assert that exactly the served rows are recomputed, with equal values; None: no rows."""
    bus = on_bus(steps, partitions, orders)
    expected = served(bus, orders=orders)
    try:
        found = recomputed(bus, orders)
    except InputError:
        assert not expected
        return None
    assert not found.not_checked
    assert sorted(found.features) == sorted(orders.columns)
    places = list(zip(found.events[PARTITION], found.events[OFFSET], strict=True))
    rows = {place: row for row, place in enumerate(places) if found.served[row]}
    assert set(rows) == set(expected)
    for place, features in expected.items():
        for name in found.features:
            value = features[name]
            mine = float(found.features[name][rows[place]])
            rounding = float(found.rounding[name][rows[place]]) if name in found.rounding else 0.0
            assert abs(value - mine) <= 1e-9 * (1 + abs(mine)) + rounding, (
                place,
                name,
                value,
                mine,
            )
    return found


@given(steps=STREAMS, partitions=st.sampled_from([1, 1, 3]))
@settings(max_examples=20, deadline=None)
def test_it_equals_the_flow_on_any_stream(steps, partitions):
    check(steps, partitions)


@pytest.mark.parametrize("rules", DELAYED)
@given(steps=STREAMS, partitions=st.sampled_from([1, 1, 3]))
@settings(max_examples=20, deadline=None)
def test_it_equals_the_flow_with_delayed_labels(rules, steps, partitions):
    check(steps, partitions, DELAYED[rules])


@pytest.mark.parametrize("orders", [ORDERS, *DELAYED.values()], ids=["inline", *DELAYED])
@given(seed=st.integers(0, 10**9))
@settings(max_examples=4, deadline=None)
def test_it_equals_the_flow_on_long_streams_in_disorder(orders, seed):
    """Late, duplicate, malformed and null values, with few or many rows per key and window."""
    chance = random.Random(seed)
    users, wait = chance.choice([1, 4, 30]), chance.choice([1, 10, 60, 400])
    steps = [
        Step(
            kind=chance.choice(["good"] * 20 + [kind for kind in ODD if kind != "huge"]),
            wait=chance.choice([0, 0, 1, 5, wait, wait]),
            behind=chance.choice([0, 0, 0, 1, 30, 59, 150, 299, 300, 301, 3000]),
            user=chance.randrange(users),
            price=chance.choice([float(chance.randrange(-3, 4)), chance.uniform(-1e6, 1e6), 0.1]),
            choice=chance.randrange(12),
            delay=chance.choice([None, 0, 0, 1, 30, 59, 400, 1900]),
        )
        for _ in range(300)
    ]
    found = check(steps, chance.choice([1, 3]), orders)
    assert found is not None
    assert found.served.all()
    assert found.late > 10


EDGES = (30, 60, 300)
"""Widths of windows, in seconds, into which an event can come late; none is beyond the lateness."""


@pytest.mark.parametrize("users", [1, 2])
def test_it_equals_the_flow_for_late_events_on_the_edges_of_windows(users):
    """All times and widths are multiples of half a minute, so that many events are on edges."""
    chance = random.Random(users)
    steps = [
        Step(
            kind="good",
            wait=chance.choice([0, 0, 30, 30, 60]),
            behind=chance.choice([0, 0, 0, *EDGES]),
            user=chance.randrange(users),
            price=chance.uniform(-5, 5),
            choice=chance.randrange(12),
            delay=None,
        )
        for _ in range(400)
    ]
    assert min(late_onto_edges(steps)) > 10
    found = check(steps, 1)
    assert found is not None
    assert found.served.all()


def late_onto_edges(steps: list[Step]) -> list[int]:
    """For each width, the number of events exactly at the left edge of the newest window."""
    newest: dict[int, int] = {}
    now, met = 0, dict.fromkeys(EDGES, 0)
    for step in steps:
        now += step.wait
        ahead = newest.get(step.user, now) - (now - step.behind)
        met |= {ahead: met[ahead] + 1} if ahead in met else {}
        newest[step.user] = max(newest.get(step.user, 0), now - step.behind)
    return list(met.values())


def test_an_out_of_order_event_is_not_in_the_features_of_earlier_arrivals():
    def step(wait: int, behind: int = 0) -> Step:
        return Step("good", wait, behind, user=0, price=2.0, choice=1, delay=None)

    found = recomputed(on_bus([step(0), step(100), step(1, 51), step(1)], 1))
    assert found.features["user_price_20m_count"].tolist() == [1, 2, 2, 4]
    assert found.features["user_price_20m_sum"].tolist() == [2, 4, 4, 8]
    assert found.features["user_since_last_10m"].tolist() == [600, 100, 50, 2]


def test_too_large_values_are_in_windows_but_not_served():
    huge = Step("huge", 1, 0, user=0, price=1.0, choice=1, delay=None)
    good = huge._replace(kind="good")
    found = recomputed(on_bus([good, huge, good], 1))
    assert found.served.tolist() == [True, False, False]
    assert found.features["user_price_20m_count"].tolist() == [1, 2, 3]


def test_features_of_unknown_kinds_are_reported():
    orders = Pipeline(
        name="orders",
        event=ORDERS.event,
        features=[window("user", "price", over="1m", stats="max")],
        label=ORDERS.label,
        model=linear_model.LogisticRegression(),
    )
    bus = on_bus([Step("good", 1, 0, user=0, price=1.0, choice=1, delay=None)], 1)
    orders.features = [*orders.features, Mystery()]  # type: ignore[list-item]
    found = recompute(orders, events_from_topic(orders, bus, "orders.events", ignore_progress))
    assert found.not_checked == ["mystery"]
    assert list(found.features) == ["user_price_1m_max"]


class Mystery:
    """A feature of a later version."""

    field = "price"

    def columns(self) -> list[str]:
        return ["mystery"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [(("1", 2, True), [[0, 0, 1], [0, 1, 0], [0, 0, 0]])],
)
def test_one_hot_of_numbers_takes_numbers_alone(values: Any, expected: list[list[int]]):
    frame = pl.DataFrame({"n": [1.0, 2.0, None], TIME: [0, 1, 2]})
    columns = row_columns(OneHot("n", values), frame)
    assert columns is not None
    assert np.column_stack([column.to_numpy() for column in columns]).tolist() == expected


VALUES = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.1, 1e17, -1e17, 1.0, 1e-9]))


@given(values=st.lists(VALUES, min_size=1, max_size=40), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_range_equals_the_combination_of_its_leaves(values, data):
    first = data.draw(st.integers(0, len(values) - 1))
    last = data.draw(st.integers(first, len(values) - 1))
    leaves, inside = np.array(values), values[first : last + 1]
    at, length = np.array([last]), np.array([last - first + 1])
    total, rest = fold(sum_leaves(leaves), at, length, add)
    assert (total[0] + rest[0]) * 2.0**64 == pytest.approx(float(exact_sum(inside)), rel=1e-15)
    assert fold((leaves,), at, length, greatest)[0][0] == max(inside)
    count, mean, low, squares = (
        column[0] for column in fold(moment_leaves(leaves), at, length, pool)
    )
    assert count == len(inside)
    centre = exact_sum(inside) / len(inside)
    assert mean + low == pytest.approx(float(centre), rel=1e-12, abs=1e-15 * max(map(abs, inside)))
    deviations = sum((Fraction(value) - centre) ** 2 for value in inside)
    spread = max(map(abs, inside))
    assert squares == pytest.approx(float(deviations), rel=1e-12, abs=1e-28 * spread**2)


def test_rounding_errors_of_sums_are_compensated():
    values = np.array([1e17, 1.0, -1e17, 0.25, 3e16, -3e16])
    total, rest = fold(sum_leaves(values), np.array([5]), np.array([6]), add)
    assert (total[0] + rest[0]) * 2.0**64 == 1.25


def exact_sum(values: list[float]) -> Fraction:
    return sum(map(Fraction, values), Fraction(0))


@given(
    keys=arrays(np.int64, st.shared(st.integers(1, 30), key="n"), elements=st.integers(0, 2)),
    times=arrays(np.int64, st.shared(st.integers(1, 30), key="n"), elements=st.integers(-20, 20)),
    width=st.integers(1, 45),
)
@settings(max_examples=80, deadline=None)
def test_a_window_has_the_events_that_had_arrived(keys, times, width):
    line = Timeline(keys, times, max_lateness=40)
    pieces = line.pieces(line.starts(width))
    previous = line.previous()
    for row in range(len(keys)):
        at = line.position[row]
        runs = [(int(pieces.first[at]), int(at))]
        for cut in np.flatnonzero(pieces.owner == at):
            runs.append((int(pieces.cut_first[cut]), int(pieces.cut_last[cut])))
        found = sorted(int(line.order[p]) for first, last in runs for p in range(first, last + 1))
        there = [
            other
            for other in range(row + 1)
            if keys[other] == keys[row] and times[row] - width < times[other] <= times[row]
        ]
        assert found == there
        before = [
            (times[other], other)
            for other in range(row)
            if keys[other] == keys[row] and times[other] <= times[row]
        ]
        expected = max(before)[1] if before else -1
        assert (line.order[previous[at]] if previous[at] >= 0 else -1) == expected


@given(st.lists(st.text(max_size=80), max_size=8))
@settings(max_examples=40, deadline=None)
def test_hashes_are_those_of_the_flow(texts):
    assert xxh64(texts).tolist() == hash64(texts).tolist()


def test_no_kernel_of_the_dataflow_is_used():
    """It uses only declarations, durations and errors of `state`, and no steps of the dataflow."""
    allowed = {
        "anabranch.state.windows.specs",
        "anabranch.state.windows.statistics",
        "anabranch.state.durations",
        "anabranch.state.errors",
        "anabranch.state.labels.label_limits",
    }
    refused = ("source", "sharding", "steps", "codec.json")
    for path in Path(skew.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module in allowed or not node.module.startswith("anabranch.state"), path
                for part in refused:
                    assert not node.module.startswith(f"anabranch.dataflows.{part}"), path
