"""Nested events with integer ids, casts and null entities, from bytes to predictions and back.

The features that are served equal those of flat events with the same values, and those that the
skew check recomputes.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from typing import Any

import pytest
from river import linear_model, preprocessing

from anabranch import (
    Cast,
    Event,
    Label,
    Pipeline,
    count_distinct,
    decayed,
    field,
    hashed,
    one_hot,
    path,
    since_last,
    slice_by,
    target,
    window,
)
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.skew.arrival_order import events_from_topic, labels_from_topic
from anabranch.dataflows.skew.message_reader import OFFSET
from anabranch.dataflows.skew.progress import ignore_progress
from anabranch.dataflows.skew.recompute import recompute
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics

T0 = 1_736_121_600_000
MINUTE = 60_000


class Channel(enum.StrEnum):
    WEB = "web"
    SHOP = "shop"


class Nested(Event, kw_only=True):
    id: int = path("order.number")
    ts: Cast[int] = path("meta.at")
    user: int | None = path("after.customer.id")
    store: int
    amount: Cast[float] = path("total.amount")
    size: int = path("items[0].pieces", default=1)
    channel: Channel = path("after.channel")


class Flat(Event):
    id: str
    ts: int
    user: str | None
    store: str
    amount: float
    size: int
    channel: str


class Verdict(Label):
    id: int
    ts: int
    fraud: Cast[bool]


FEATURES = [
    field("amount"),
    field("size"),
    one_hot("channel", ("web", "shop")),
    hashed("channel", buckets=3),
    window("user", "amount", over=("10m", "1h"), stats=("count", "mean", "max", "last")),
    window("store", "amount", over="1h", stats=("count", "sum")),
    since_last("user", within="1h"),
    count_distinct("user", "store", over="1h"),
    decayed("user", "amount", half_life="10m"),
    window("user", target(), over="1h", stats=("count", "mean")),
    window(("store", "channel"), "amount", over="1h", stats=("count", "mean")),
    since_last(("user", "channel"), within="1h"),
    window(("store", "user"), target(), over="1h", stats="count"),
]


def pipeline(event: type[Event]) -> Pipeline:
    return Pipeline(
        name="orders",
        event=event,
        label=Verdict.target("fraud", timeout="2h"),
        features=FEATURES,
        model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        slices=[slice_by("store", max_values=3)],
        model_key="store",
        with_features=True,
        key="store",
    )


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": 1000 + n,
            "ts": T0 + n * MINUTE,
            "user": None if n % 4 == 1 else n % 3,
            "store": n % 2,
            "amount": n * 7 % 11 + 0.25,
            "size": n % 5 if n % 6 else 1,
            "channel": "web" if n % 3 else "shop",
        }
        for n in range(count)
    ]


def nested(row: dict[str, Any], number: int) -> dict[str, Any]:
    user: Any = {"id": row["user"], "name": "n"}
    if row["user"] is None:
        user = [None, {"id": None}, {}][number % 3]
    return {
        "order": {"number": row["id"], "at": "x"},
        "meta": {"at": str(row["ts"])},
        "after": {"customer": user, "channel": row["channel"]},
        "store": row["store"],
        "total": {"amount": f"{row['amount']:.2f}", "currency": "EUR"},
        "items": [{"pieces": row["size"]}, {}] if row["size"] != 1 else [],
        **({"new": [1, "\u00fc"]} if number % 9 == 5 else {}),
    }


def flat(row: dict[str, Any], number: int) -> dict[str, Any]:
    user = None if row["user"] is None else str(row["user"])
    return row | {"id": str(row["id"]), "user": user, "store": str(row["store"])}


def on_bus(events: Sequence[Any], count: int) -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics({"orders.events": 1, "orders.labels": 1})
    publisher = bus.publisher()
    times = [T0 + n * MINUTE for n in range(count)]
    publisher.append("orders.events", [json.dumps(e).encode() for e in events], times=times)
    labels = [
        json.dumps({"id": 1000 + n, "ts": T0 + (n + 3) * MINUTE, "fraud": n % 2}).encode()
        for n in range(count)
    ]
    publisher.append("orders.labels", labels, times=[T0 + (n + 3) * MINUTE for n in range(count)])
    return bus


def predictions(
    bus: MemoryBus, declared: Pipeline, limit: int, metrics: WorkerMetrics | None = None
) -> list[dict[str, Any]]:
    run_worker(declared, bus, SourceOptions(limit=limit, until_end=True), metrics=metrics)
    letters = bus.values(declared.topics.dead_letters)
    assert not letters, letters
    return [json.loads(value) for value in bus.values(declared.topics.predictions)]


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_nested_events_give_what_flat_ones_give(limit: int) -> None:
    events = rows(40)
    as_nested = [nested(row, n) for n, row in enumerate(events)]
    as_flat = [flat(row, n) for n, row in enumerate(events)]
    found = predictions(on_bus(as_nested, 40), pipeline(Nested), limit)
    assert found == predictions(on_bus(as_flat, 40), pipeline(Flat), 11)
    assert [row["id"] for row in found] == [str(row["id"]) for row in events]


def test_unknown_fields_are_metrics() -> None:
    events = [nested(row, n) for n, row in enumerate(rows(40))]
    metrics = WorkerMetrics("orders")
    predictions(on_bus(events, 40), pipeline(Nested), 7, metrics)
    for name in ("order.at", "total.currency"):
        labels = {"pipeline": "orders", "topic": "orders.events", "field": name}
        assert metrics.registry.get_sample_value("anabranch_unknown_fields_total", labels) == 40
    labels["field"] = "new"
    assert metrics.registry.get_sample_value("anabranch_unknown_fields_total", labels) == 4


EMPTY = {
    "user_amount_10m_count": 0.0,
    "user_amount_1h_mean": 0.0,
    "user_amount_1h_last": 0.0,
    "user_since_last_1h": 3600.0,
    "user_store_1h_distinct": 0.0,
    "user_target_1h_count": 0.0,
}


def test_an_event_without_an_entity_has_empty_windows_and_enters_none() -> None:
    events = rows(40)
    as_nested = [nested(row, n) for n, row in enumerate(events)]
    found = predictions(on_bus(as_nested, 40), pipeline(Nested), 9)
    # As if each of them had a user of its own.
    own = [flat(row, n) | ({"user": f"#{n}"} if n % 4 == 1 else {}) for n, row in enumerate(events)]
    expected = predictions(on_bus(own, 40), pipeline(Flat), 9)
    for row, prediction, other in zip(events, found, expected, strict=True):
        features = prediction["features"]
        of_user = {name: features[name] for name in features if name.startswith("user_")}
        if row["user"] is None:
            assert of_user.items() >= EMPTY.items()
        else:
            assert of_user == {name: other["features"][name] for name in of_user}


def test_the_skew_check_recomputes_them() -> None:
    events = [nested(row, n) for n, row in enumerate(rows(40))]
    bus, declared = on_bus(events, 40), pipeline(Nested)
    served = {row["offset"]: row["features"] for row in predictions(bus, declared, 9)}
    arrived = events_from_topic(declared, bus, "orders.events", ignore_progress)
    arrived.labels = labels_from_topic(declared, bus, "orders.labels", ignore_progress)
    found = recompute(declared, arrived, ignore_progress)
    assert not found.not_checked
    for row, offset in enumerate(found.events[OFFSET]):
        for name, values in found.features.items():
            assert values[row] == pytest.approx(served[offset][name], abs=1e-6), (offset, name)
