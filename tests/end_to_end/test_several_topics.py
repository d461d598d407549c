"""One input on several topics: as if it were one, and each output names the topic of its event."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from river import linear_model, preprocessing

from anabranch import (
    BusError,
    Distributions,
    Event,
    Label,
    MemoryBus,
    Pipeline,
    Topics,
    field,
    monitor,
    pattern,
    read_outputs,
    window,
)
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.replay.replay import ReplaySettings, replay
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source import bus_source
from anabranch.dataflows.source.bus_source import SourceOptions
from tests.support.checkpoint_pipeline import stopping_after

T0 = 1_700_000_000_000
COUNT = 300
VALID = sum(n % 59 != 30 for n in range(COUNT))
EVENTS = ("orders.eu", "orders.us")
LABELS = ("disputes.a", "disputes.b")


class Order(Event):
    id: str
    ts: int
    customer: str
    amount: float


class Dispute(Label):
    id: str
    ts: int
    disputed: bool


def orders(topics: Topics) -> Pipeline:
    return Pipeline(
        name="risk",
        event=Order,
        label=Dispute.target("disputed", timeout="1d"),
        features=[field("amount"), window("customer", "amount", over="1m", stats=("count", "sum"))],
        model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        monitors=[monitor("amount", detector="PageHinkley")],
        distributions=Distributions(),
        with_features=True,
        topics=topics,
    )


def publish(bus: MemoryBus, events: tuple[str, ...], labels: tuple[str, ...]) -> None:
    """The same messages on so many topics; offsets of topics are alike, and some are malformed."""
    bus.create_topics(dict.fromkeys((*events, *labels), 2))
    publisher = bus.publisher()
    for n in range(COUNT):
        at = T0 + n * 1000
        order = {"id": f"o{n}", "ts": at, "customer": f"c{n % 4}", "amount": n % 50 + (n > 200)}
        value = json.dumps(order).encode() if n % 59 != 30 else b"malformed"
        place = n % 4
        publisher.append(
            events[place // 2 % len(events)], [value], partitions=place % 2, times=[at]
        )
        label = json.dumps({"id": f"o{n - 9 * (n % 50 != 7)}", "ts": at, "disputed": n % 3 == 0})
        publisher.append(
            labels[place // 2 % len(labels)], [label.encode()], partitions=place % 2, times=[at]
        )


def outputs(bus: MemoryBus) -> dict[str, list[dict[str, Any]]]:
    topics = ("risk.predictions", "risk.dead-letters", "risk.drift")
    return {topic: [json.loads(value) for value in bus.values(topic)] for topic in topics}


def without_place(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = [{k: v for k, v in row.items() if k not in ("topic", "offset")} for row in rows]
    return sorted(kept, key=json.dumps)


def run(
    pipeline: Pipeline, bus: MemoryBus, state: Path | None = None, stop: int | None = None
) -> None:
    with stopping_after(stop) as stopping:
        options = SourceOptions(until_end=True, limit=7, stop=stopping)
        if state is None:
            run_worker(pipeline, bus, options)
            return
        with StateDirectory.open(state, pipeline, bus) as opened:
            run_worker(pipeline, bus, options, checkpoint_interval_s=0.001, state=opened)


def test_several_topics_are_read_as_one() -> None:
    """The same features, predictions and dead letters as from one topic with the same times."""
    one, several = MemoryBus(), MemoryBus()
    publish(one, EVENTS[:1], LABELS[:1])
    publish(several, EVENTS, LABELS)
    run(orders(Topics(events=EVENTS[0], labels=LABELS[0])), one)
    run(orders(Topics(events=EVENTS, labels=LABELS)), several)
    expected, found = outputs(one), outputs(several)
    assert len(found["risk.predictions"]) == VALID
    for topic in ("risk.predictions", "risk.dead-letters"):
        assert without_place(found[topic]) == without_place(expected[topic])
    assert len(found["risk.drift"]) == len(expected["risk.drift"]) > 0
    kinds = Counter(letter["topic"] for letter in found["risk.dead-letters"])
    assert kinds.keys() == {*EVENTS, *LABELS}

    stored = {
        (topic, number, offset): value
        for topic in EVENTS
        for number, log in enumerate(several.logs(topic))
        for offset, value in enumerate(log.values)
    }
    for row in found["risk.predictions"]:
        source = stored[row["topic"], row["partition"], row["offset"]]
        assert json.loads(source)["id"] == row["id"]


@pytest.mark.parametrize("stops", [(3,), (1, 9, 20)])
def test_each_event_gets_one_prediction_however_often_the_run_is_stopped(
    tmp_path: Path, stops: tuple[int, ...]
) -> None:
    bus = MemoryBus()
    publish(bus, EVENTS, LABELS)
    pipeline = orders(Topics(events=EVENTS, labels=LABELS))
    for stop in stops:
        run(pipeline, bus, tmp_path / "state", stop)
    # A run that was killed after it had published: what it published is not published again.
    saved = tmp_path / "saved"
    (tmp_path / "state").rename(saved)
    run(orders(Topics(events=EVENTS, labels=LABELS)), bus, _copy(saved, tmp_path / "lost"))
    run(orders(Topics(events=EVENTS, labels=LABELS)), bus, _copy(saved, tmp_path / "again"))
    ids = Counter(row["id"] for row in outputs(bus)["risk.predictions"])
    assert set(ids.values()) == {1}
    assert len(ids) == VALID
    letters = Counter(
        (r["topic"], r["partition"], r["offset"], r["reason"])
        for r in outputs(bus)["risk.dead-letters"]
    )
    assert set(letters.values()) == {1}


def _copy(source: Path, to: Path) -> Path:
    shutil.copytree(source, to)
    return to


def test_a_pattern_reads_what_matches_and_tells_of_what_is_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, state = MemoryBus(), tmp_path / "state"
    publish(bus, EVENTS, LABELS[:1])
    monkeypatch.setattr(bus_source, "_LIST_TOPICS_EVERY_S", 0.0)
    topics = Topics(events=pattern(r"orders\..*"), labels="disputes.a")
    with pytest.raises(BusError, match="no topic matches"):
        run(orders(Topics(events=pattern("none"), labels="disputes.a")), bus)
    first = orders(topics)
    with StateDirectory.open(state, first, bus) as opened:
        options = SourceOptions(until_end=True)
        options.list_topics = lambda: {**bus.topics(), "orders.asia": 2}
        run_worker(first, bus, options, state=opened)
    assert first.topics.all_events == EVENTS
    assert "topic orders.asia matches a pattern of the pipeline and did not exist" in caplog.text
    before = len(outputs(bus)["risk.predictions"])

    bus.create_topics({"orders.asia": 2})
    new = json.dumps({"id": "asia", "ts": T0 + 300_000, "customer": "c1", "amount": 1.0}).encode()
    bus.publisher().append("orders.asia", [new], partitions=1, times=[T0 + 300_000])
    caplog.set_level(logging.INFO)
    run(orders(topics), bus, state)
    added = outputs(bus)["risk.predictions"][before:]
    assert [(row["id"], row["topic"]) for row in added] == [("asia", "orders.asia")] or (
        [row["id"] for row in outputs(bus)["risk.predictions"]].count("asia") == 1
    )
    assert len(outputs(bus)["risk.predictions"]) == before + 1


def test_a_replay_reads_all_topics_and_names_them(tmp_path: Path) -> None:
    bus = MemoryBus()
    publish(bus, EVENTS, LABELS)
    pipeline = orders(Topics(events=EVENTS, labels=LABELS))
    replay(pipeline, ReplaySettings(events=None, rows=tmp_path / "rows.parquet"), bus)
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    run(pipeline, bus)
    served = {p.id: (p.topic, p.partition, p.offset) for p in read_outputs(pipeline, bus=bus)}
    found = {
        row["id"]: (row["topic"], row["partition"], row["offset"])
        for row in rows.select("id", "topic", "partition", "offset").to_dicts()
    }
    assert found == served
    assert set(rows["topic"]) == set(EVENTS)
