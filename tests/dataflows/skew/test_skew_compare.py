"""Matching of served and recomputed rows, and what counts as a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.skew.arrival_order import (
    ArrivedEvents,
    events_from_file,
    events_from_topic,
)
from anabranch.dataflows.skew.compare import SkewReport, compare
from anabranch.dataflows.skew.message_reader import ID, OFFSET, PARTITION
from anabranch.dataflows.skew.progress import ignore_progress
from anabranch.dataflows.skew.recompute import Recomputed, longest_look_back_ms, recompute
from anabranch.dataflows.skew.row_features import TIME
from anabranch.dataflows.skew.served_features import ServedFeatures, served_from_topic
from anabranch.state.errors import InputError
from tests.dataflows.skew.test_skew_recompute import ORDERS, on_bus, served
from tests.end_to_end.test_batch_cuts import Step

Place = tuple[str, int, int]  # id, partition, offset


def report(
    mine: dict[Place, float],
    theirs: dict[Place, float],
    *,
    topic: str = "t",
    of: str = "t",
    **more: Any,
) -> SkewReport:
    """The report on one feature, x."""
    places = pl.DataFrame(
        {
            ID: [id for id, _, _ in mine],
            PARTITION: [partition for _, partition, _ in mine],
            OFFSET: [offset for _, _, offset in mine],
            TIME: list(range(len(mine))),
        }
    )
    arrivals = ArrivedEvents("events", topic, places, len(mine), 0, True)
    values = np.array(list(mine.values()))
    recomputed = Recomputed(places, {"x": values}, served=np.ones(len(mine), np.bool_))
    if "rounding" in more:
        recomputed.rounding["x"] = np.full(len(mine), more.pop("rounding"))
    where = pl.DataFrame(
        {
            "id": [id for id, _, _ in theirs],
            "topic": [of] * len(theirs),
            "partition": [partition for _, partition, _ in theirs],
            "offset": [offset for _, _, offset in theirs],
        }
    )
    log = ServedFeatures("log", where, {"x": np.array(list(theirs.values()))})
    return compare("p", arrivals, recomputed, log, **({"tolerance": 1e-9} | more))


@pytest.mark.parametrize(
    ("served", "recomputed", "differs"),
    [
        (1.0, 1.0 + 1e-9, False),
        (1.0, 1.0 + 3e-9, True),
        (1e6, 1e6 + 5e-4, False),
        (1e6, 1e6 + 5e-3, True),
        (0.0, 5e-10, False),
        (np.nan, np.nan, False),
        (np.nan, 0.0, True),
        (0.0, np.inf, True),
        (np.inf, np.inf, False),
    ],
)
def test_what_differs(served: float, recomputed: float, differs: bool):
    found = report({("a", 0, 0): recomputed}, {("a", 0, 0): served}).features[0]
    assert found.differing == int(differs)
    assert len(found.examples) == int(differs)


def test_rounding_is_no_difference():
    sides = {("a", 0, 0): 1.0}, {("a", 0, 0): 1.001}
    assert report(*sides).features[0].differing == 1
    assert report(*sides, rounding=0.01).features[0].differing == 0


def test_rows_are_joined_by_offset():
    """An id that expired and arrived again has two rows."""
    mine = {("a", 0, 0): 1.0, ("b", 0, 1): 2.0, ("a", 0, 2): 3.0}
    found = report(mine, dict(reversed(mine.items())))
    assert (found.compared, found.features[0].differing) == (3, 0)


@pytest.mark.parametrize(("topic", "of"), [("t", "else"), ("t", "t")])
def test_rows_with_other_offsets_are_joined_by_id(topic: str, of: str):
    mine = {("a", 0, 0): 1.0, ("b", 0, 1): 2.0, ("a", 0, 2): 3.0}
    theirs = {("b", 0, 0): 2.0, ("a", 0, 1): 1.0, ("a", 0, 7): 3.0}
    found = report(mine, theirs, topic=topic, of=of)
    assert (found.compared, found.unknown, found.features[0].differing) == (3, 0, 0)


def test_a_row_that_was_served_twice_is_unknown():
    mine = {("a", 0, 0): 1.0, ("b", 0, 1): 2.0}
    found = report(mine, mine | {("a", 0, 9): 1.0}, of="else")
    assert (found.compared, found.unknown) == (2, 1)
    assert found.worst_share() == pytest.approx(1 / 3)


def test_each_partition_has_a_range_of_its_own():
    mine = {(f"{p}{n}", p, n): 1.0 for n in range(6) for p in range(2)}
    theirs = {place: 1.0 for place in mine if place[2] in ((2, 4) if place[1] else (0, 1, 2))}
    found = report(mine, theirs)
    assert (found.compared, found.not_served, found.outside) == (5, 1, 6)
    assert found.missing == ["13 (not served)"]


def test_no_common_row_is_an_error():
    with pytest.raises(InputError, match=r"^no row of log belongs to an event of events"):
        report({("a", 0, 0): 1.0}, {("b", 0, 5): 1.0})


def test_the_longest_window_is_skipped_if_the_first_events_are_deleted():
    steps = [
        Step("good", 20 + i % 77, 0, user=i % 3, price=float(i % 7), choice=i % 12, delay=None)
        for i in range(900)
    ]
    bus = on_bus(steps, 1)
    expected = served(bus)
    bus.delete_before(TopicPartition("orders.events", 0), 300)
    log = served_from_topic("orders", ORDERS.columns, bus, "orders.predictions", ignore_progress)
    assert len(log) == len(expected) == 900
    arrivals = events_from_topic(ORDERS, bus, "orders.events", ignore_progress)
    assert not arrivals.from_start
    found = recompute(ORDERS, arrivals)
    far = longest_look_back_ms(ORDERS)
    assert far == 50 * 300_000  # of the half-life of 5m
    for warm_up_ms, differs in ((0, True), (far, False)):
        skew = compare("orders", arrivals, found, log, tolerance=1e-9, warm_up_ms=warm_up_ms)
        assert any(each.differing for each in skew.features) == differs
        assert skew.compared + skew.warming_up == 600
        assert skew.compared > 100


def test_all_partitions_are_read():
    steps = [Step("good", 5, 0, i % 5, 1.0, i % 12, None) for i in range(60)]
    bus = on_bus(steps, 3)
    expected = served(bus)
    log = served_from_topic("orders", ORDERS.columns, bus, "orders.predictions", ignore_progress)
    rows = zip(log.keys["partition"], log.keys["offset"], log.features["price"], strict=True)
    assert {(p, o): price for p, o, price in rows} == {
        place: features["price"] for place, features in expected.items()
    }


def test_messages_that_arrive_during_the_check_are_ignored():
    bus = MemoryBus()
    bus.create_topics({"t": 1})
    row = {"id": "a", "features": {"x": 1}}
    bus.publisher().append("t", [json.dumps(row).encode()] * 3)
    ends = bus.end_offsets("t")
    bus.publisher().append("t", [b"not for us"])
    bus.end_offsets = lambda topic: ends  # type: ignore[method-assign]
    assert len(served_from_topic("p", ["x"], bus, "t", ignore_progress)) == 3


def test_a_file_with_offsets_is_equivalent_to_its_topic(tmp_path: Path):
    """Rows of three partitions, one after the other, are merged as those of the topic."""
    steps = [Step("good", i % 50, 7 * (i % 5), i % 7, 1.0, i % 12, None) for i in range(200)]
    bus = on_bus(steps, 3)
    rows = [
        {**json.loads(value), "partition": number, "offset": offset, "published": time}
        for number, log in enumerate(bus.logs("orders.events"))
        for offset, (value, time) in enumerate(zip(log.values, log.times, strict=True))
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "events.parquet")
    of_file = events_from_file(ORDERS, tmp_path / "events.parquet", ignore_progress)
    of_topic = events_from_topic(ORDERS, bus, "orders.events", ignore_progress)
    assert of_file.topic == of_topic.topic
    assert of_file.from_start
    assert of_file.frame[PARTITION].n_unique() == 3
    assert of_file.frame.equals(of_topic.frame)
