"""What a worker tells of itself: right totals after a run, over processes, and over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from time import monotonic
from time import time as wall_clock
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from river import datasets, evaluate, linear_model, metrics, preprocessing

from anabranch import Event, Label, Pipeline, field, inline, monitor, window
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.bus.partitioner import partition_of_key
from anabranch.dataflows.pipelines.datasets import dataset_pipeline
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.telemetry.http_server import UPTIME, serve
from anabranch.dataflows.telemetry.worker_metrics import (
    WorkerMetrics,
    observe_many,
    shared_registry,
)
from anabranch.producers.datasets import dataset_messages
from anabranch.state.errors import AnabranchError
from tests.support.waiting import GENEROUS_S

T0 = 1_700_000_000_000
MINUTE = 60_000


class Order(Event):
    id: str
    ts: int
    user: str
    price: float


class Returned(Label):
    id: str
    ts: int
    returned: bool


def orders(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "orders",
        "event": Order,
        "label": Returned.target("returned"),
        "features": [field("price"), window("user", "price", over="1h")],
        "model": preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        "metrics": ["Accuracy"],
        "monitors": [
            monitor("price", "PageHinkley", cooldown="0s", min_instances=2, threshold=50.0)
        ],
    }
    return Pipeline(**(declared | changes))


def order(i: int, minute: float) -> dict[str, Any]:
    price = 1000.0 if i > 40 else float(i % 3)
    return {"id": f"o{i}", "ts": T0 + int(minute * MINUTE), "user": f"u{i % 5}", "price": price}


def bus_with_orders(partitions: int = 1) -> MemoryBus:
    """50 good orders with 30 labels, and some of everything that is bad."""
    bus = MemoryBus()
    bus.create_topics({"orders.events": partitions, "orders.labels": partitions})
    rows: list[tuple[int, str, Any]] = [
        (T0 + i * MINUTE, f"u{i % 5}", order(i, i)) for i in range(50)
    ]
    rows[7:7] = [(T0 + 6 * MINUTE, "u1", {"id": 1}), (T0 + 6 * MINUTE, "u1", "not an order")]
    rows += [(T0 + 49 * MINUTE, "u1", order(3, 49)), (T0 + 49 * MINUTE, "u2", order(99, 1))]
    publisher = bus.publisher()
    for time, user, message in rows:
        place = partition_of_key(user.encode(), partitions)
        value = json.dumps(message).encode()
        publisher.append("orders.events", [value], partitions=place, times=[time])
    publisher.append("orders.events", [b"{"], partitions=0, times=[T0 + 49 * MINUTE])
    for i in [*range(30), 5, 1000]:
        at = T0 + (i % 100) * MINUTE + 30_000
        label = {"id": f"o{i}", "ts": at, "returned": i % 3 == 0}
        place = partition_of_key(f"u{i % 5}".encode(), partitions)
        publisher.append(
            "orders.labels", [json.dumps(label).encode()], partitions=place, times=[at]
        )
    return bus


def samples(registry: CollectorRegistry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Sample name and labels (without the pipeline's) → value."""
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("pipeline", "pid")}
            found[sample.name, frozenset(labels.items())] = sample.value
    return found


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return samples(registry).get((name, frozenset(labels.items())))


def run(bus: MemoryBus, pipeline: Pipeline, limit: int) -> CollectorRegistry:
    telling = WorkerMetrics(pipeline.name)
    run_worker(pipeline, bus, SourceOptions(limit=limit, until_end=True), metrics=telling)
    return telling.registry


@pytest.mark.parametrize("limit", [1, 8, 1000])
@pytest.mark.parametrize("partitions", [1, 3])
def test_totals_are_what_came_in_and_what_went_out(limit, partitions):
    bus = bus_with_orders(partitions)
    registry = run(bus, orders(), limit)
    assert value(registry, "anabranch_events_total") == 55
    assert value(registry, "anabranch_labels_total") == 32
    assert value(registry, "anabranch_predictions_total") == 50
    assert len(bus.values("orders.predictions")) == 50
    assert value(registry, "anabranch_learned_labels_total") == 30
    assert value(registry, "anabranch_pending_predictions") == 20
    dead = Counter(json.loads(letter)["reason"] for letter in bus.values("orders.dead-letters"))
    assert dead == {
        "does not fit the type": 2, "duplicate id": 1, "late": 1, "not JSON": 1,
        "duplicate label": 1, "label without event": 1,
    }  # fmt: skip
    for reason, count in dead.items():
        assert value(registry, "anabranch_dead_letters_total", reason=reason) == count
    signals = bus.values("orders.drift")
    assert len(signals) > 0
    assert value(
        registry, "anabranch_drift_signals_total", subject="price", severity="drift"
    ) == len(signals)


def test_the_delay_of_labels_is_a_histogram_and_their_fate_is_counted():
    registry = run(bus_with_orders(), orders(), 8)
    assert value(registry, "anabranch_label_delay_seconds_count") == 30
    assert value(registry, "anabranch_label_delay_seconds_sum") == 30 * 30
    assert value(registry, "anabranch_label_delay_seconds_bucket", le="10.0") == 0
    assert value(registry, "anabranch_label_delay_seconds_bucket", le="60.0") == 30
    assert value(registry, "anabranch_label_outcomes_total", outcome="learned") == 30
    assert value(registry, "anabranch_buffered_early_labels") == 0


def test_labels_that_are_assumed_or_held_have_no_delay_yet():
    natural = Returned.target(
        "returned", timeout="5m", default=False, late="update", early_buffer="1h"
    )
    bus = bus_with_orders()
    at = T0 + 49 * MINUTE
    publisher = bus.publisher()
    for id, returned in (("o40", True), ("o41", False), ("early", True)):
        label = json.dumps({"id": id, "ts": at, "returned": returned}).encode()
        publisher.append("orders.labels", [label], partitions=0, times=[at])
    registry = run(bus, orders(label=natural), 8)
    outcomes = {
        what: value(registry, "anabranch_label_outcomes_total", outcome=what)
        for what in ("learned", "defaulted", "updated", "confirmed", "buffered", "expired")
    }
    assert outcomes == {
        "learned": 30, "defaulted": 14, "updated": 1, "confirmed": 1, "buffered": 1,
        "expired": None,
    }  # fmt: skip
    assert value(registry, "anabranch_label_delay_seconds_count") == 30
    assert value(registry, "anabranch_buffered_early_labels") == 1
    assert value(registry, "anabranch_pending_predictions") == 6


def test_figures_of_the_moment_are_those_at_the_end():
    registry = run(bus_with_orders(), orders(), 8)
    assert value(registry, "anabranch_event_timestamp_seconds") == (T0 + 49 * MINUTE) / 1000
    assert value(registry, "anabranch_window_keys", entity="user") == 5
    assert value(registry, "anabranch_window_bytes", entity="user") > 0
    for topic in ("orders.events", "orders.labels"):
        assert value(registry, "anabranch_lag_messages", topic=topic, partition="0") == 0


def test_histograms_count_every_prediction_and_every_batch():
    registry = run(bus_with_orders(), orders(), 8)
    for name in ("anabranch_latency_seconds", "anabranch_processing_seconds"):
        assert value(registry, f"{name}_count") == 50
    rows = value(registry, "anabranch_batch_rows_sum")
    assert rows == 55 + 32
    batches = value(registry, "anabranch_batch_rows_count")
    assert 87 / 8 <= batches <= 87
    assert value(registry, "anabranch_batch_rows_bucket", le="10.0") == batches


def test_the_newest_event_time_is_the_greatest_though_a_late_event_came_last():
    bus = MemoryBus()
    bus.create_topics({"orders.events": 1, "orders.labels": 1})
    rows = [order(0, 5), order(1, 9), order(2, 3)]
    values = [json.dumps(row).encode() for row in rows]
    bus.publisher().append("orders.events", values, times=[T0 + 9 * MINUTE] * 3)
    registry = run(bus, orders(), 100)
    assert value(registry, "anabranch_event_timestamp_seconds") == (T0 + 9 * MINUTE) / 1000


@pytest.mark.parametrize("limit", [50, 1000])
def test_quality_is_rivers(limit):
    pipeline = dataset_pipeline("Phishing")
    bus = MemoryBus()
    bus.create_topics({pipeline.topics.events: 1})
    for batch in dataset_messages("Phishing"):
        bus.publisher().append(pipeline.topics.events, batch.values, times=batch.times)
    registry = run(bus, pipeline, limit)
    own = evaluate.progressive_val_score(
        datasets.Phishing(), pipeline.model.clone(), metrics.Accuracy()
    )
    labels = {"model": "LogisticRegression", "metric": "Accuracy"}
    found = value(registry, "anabranch_model_quality", **labels)
    assert found == own.get()
    assert value(registry, "anabranch_learned_labels_total") == 1250


def test_an_inline_label_counts_as_learned_and_not_as_a_label():
    class Sale(Order):
        returned: bool

    bus = MemoryBus()
    bus.create_topics({"orders.events": 1})
    values = [json.dumps(order(i, i) | {"returned": i % 2 == 0}).encode() for i in range(9)]
    bus.publisher().append("orders.events", values, times=[T0 + i * MINUTE for i in range(9)])
    registry = run(bus, orders(event=Sale, label=inline("returned")), 4)
    assert value(registry, "anabranch_learned_labels_total") == 9
    assert not value(registry, "anabranch_labels_total")


SECONDS = st.one_of(st.floats(0, 20), st.sampled_from([0.0, 0.1, 1.0, 5.0, 1e9]), st.floats(-1, 0))


@given(st.lists(st.lists(SECONDS, max_size=20), max_size=4))
@settings(max_examples=100, deadline=None)
def test_observing_many_is_observing_each(pieces):
    registry, buckets = CollectorRegistry(), (0.1, 1.0, 5.0)
    many = Histogram("many", "", registry=registry, buckets=buckets)
    each = Histogram("each", "", registry=registry, buckets=buckets)
    for piece in pieces:
        observe_many(many, np.array(piece, np.float64))
        for seconds in piece:
            each.observe(seconds)
    for bound in ("0.1", "1.0", "5.0", "+Inf"):
        found, wanted = (value(registry, f"{name}_bucket", le=bound) for name in ("many", "each"))
        assert found == wanted
    assert value(registry, "many_count") == value(registry, "each_count")
    assert value(registry, "many_sum") == pytest.approx(value(registry, "each_sum"))


WORKER = """
import sys
from tests.dataflows.telemetry.test_metrics_export import bus_with_orders, orders
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.runtime.worker import run_worker

run_worker(orders(), bus_with_orders(), SourceOptions(limit=int(sys.argv[1]), until_end=True))
"""


def test_several_processes_are_summed_up(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", WORKER, limit], env=environment)
        for limit in ("8", "1000")
    ]
    assert [process.wait(GENEROUS_S) for process in processes] == [0, 0]
    registry = shared_registry(str(tmp_path))
    assert value(registry, "anabranch_events_total") == 110
    assert value(registry, "anabranch_predictions_total") == 100
    assert value(registry, "anabranch_learned_labels_total") == 60
    assert value(registry, "anabranch_dead_letters_total", reason="late") == 2
    assert value(registry, "anabranch_latency_seconds_count") == 100
    assert value(registry, "anabranch_event_timestamp_seconds") == (T0 + 49 * MINUTE) / 1000
    quality = [v for (name, _), v in samples(registry).items() if name == "anabranch_model_quality"]
    assert len(quality) == 1
    assert 0 <= quality[0] <= 1


def test_metrics_are_served_on_a_free_port():
    registry = run(bus_with_orders(), orders(), 1000)
    port = serve(registry, 0, host="127.0.0.1")
    assert port > 0
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        text = response.read().decode()
    assert 'anabranch_predictions_total{pipeline="orders"} 50.0' in text
    assert 'anabranch_dead_letters_total{pipeline="orders",reason="late"} 1.0' in text


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_run_is_live_while_it_starts_ready_when_it_has_reported_and_neither_without_a_heartbeat():
    now = [1000.0]
    registry = CollectorRegistry()
    port = serve(registry, 0, host="127.0.0.1", clock=lambda: now[0])
    assert get(port, "/healthz/live") == (200, "starting: no worker has reported yet\n")
    not_yet = "not ready: 0 of 1 workers have restored their state\n"
    assert get(port, "/healthz/ready") == (503, not_yet)
    WorkerMetrics("orders", registry).flush()
    now[0] = value(registry, UPTIME) + 59
    assert get(port, "/healthz/live") == get(port, "/healthz/ready") == (200, "ok\n")
    now[0] += 5
    unhealthy = (503, "a worker has not reported for 64 s\n")
    assert get(port, "/healthz/live") == get(port, "/healthz/ready") == unhealthy
    assert get(port, "/elsewhere")[0] == 404


@pytest.mark.parametrize("hours", [-2, 1, 24])
def test_health_does_not_go_by_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch, hours: int):
    registry = CollectorRegistry()
    now = [monotonic()]
    port = serve(registry, 0, host="127.0.0.1", clock=lambda: now[0])
    wall = wall_clock()
    WorkerMetrics("orders", registry).flush()
    monkeypatch.setattr("time.time", lambda: wall + 3600 * hours)
    assert get(port, "/healthz/live") == get(port, "/healthz/ready") == (200, "ok\n")
    now[0] += 70
    assert get(port, "/healthz/live")[0] == get(port, "/healthz/ready")[0] == 503


def test_it_is_ready_when_all_workers_are():
    registry = CollectorRegistry()
    port = serve(registry, 0, host="127.0.0.1", workers=2)
    WorkerMetrics("orders", registry).flush()
    one = "not ready: 1 of 2 workers have restored their state\n"
    assert get(port, "/healthz/ready") == (503, one)
    assert get(port, "/healthz/live") == (200, "ok\n")


def test_a_port_that_is_taken_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AnabranchError, match=f"metrics port {port} can't be opened") as found:
            serve(CollectorRegistry(), port, host="127.0.0.1")
    assert "--metrics-port" in str(found.value)
