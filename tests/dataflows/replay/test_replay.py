"""Replay equals a run: the same rows from every form of history, and a run continues from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from anabranch import target, window
from anabranch.dataflows.bus import TopicPartition, open_bus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.replay import late_labels, training_file
from anabranch.dataflows.replay.replay import ReplayReport, ReplaySettings, replay
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.producers.simulators.faults import Faults
from tests.support.history import (
    EVENTS,
    LABELS,
    Message,
    copy_of_topic,
    cut_by_time,
    of_topic,
    publish,
    simulated,
    values,
    write,
)

PREDICTIONS, DEAD = "payments.predictions", "payments.dead-letters"
FAULTS = Faults(malformed=0.01, duplicates=0.02, out_of_order=0.05)


@pytest.fixture(scope="module")
def clean() -> list[Message]:
    return simulated(1500)


@pytest.fixture(scope="module")
def faulty() -> list[Message]:
    return simulated(1500, FAULTS)


@pytest.fixture
def pipeline() -> Pipeline:
    """The payments pipeline with a window over labels, and with features in predictions."""
    shipped = load_pipeline("payments")
    of_labels = window("merchant", target(), over=("1h", "1d"))
    return replace(shipped, features=[*shipped.features, of_labels], with_features=True)


def replayed(
    pipeline: Pipeline, to: Path, events: str, url: str = "", **settings: Any
) -> tuple[pl.DataFrame, ReplayReport]:
    """The rows of a replay, and its report."""
    bus = open_bus(url) if url else None
    try:
        found = replay(pipeline, ReplaySettings(events=events, rows=to, **settings), bus)
    finally:
        if bus is not None:
            bus.close()
    return pl.read_parquet(to), found


def run(pipeline: Pipeline, url: str, state: Path | None, batch: int = 300) -> None:
    """Run to the end of the topics."""
    bus = open_bus(url)
    options = SourceOptions(until_end=True, limit=batch)
    try:
        if state is None:
            run_worker(pipeline, bus, options)
            return
        with StateDirectory.open(state, pipeline, bus) as opened:
            run_worker(pipeline, bus, options, state=opened, checkpoint_interval_s=0.05)
    finally:
        bus.close()


def as_served(rows: pl.DataFrame, pipeline: Pipeline) -> list[dict[str, Any]]:
    """Rows in the form of the predictions of a run."""
    names = ["id", "ts", "topic", "partition", "offset", "model", "version", "prediction", "score"]
    return [
        {
            **{name: row[name] for name in names},
            "features": {name: row[name] for name in pipeline.columns},
        }
        for row in rows.to_dicts()
    ]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_files_give_the_same_rows_as_the_topic(
    tmp_path: Path, pipeline: Pipeline, clean: list[Message], kind: str
) -> None:
    url = f"sqlite:{tmp_path / 'bus'}"
    publish(url, clean)
    expected, reference = replayed(pipeline, tmp_path / "topic.parquet", EVENTS, url)
    events = [message.value for message in of_topic(clean, EVENTS)]
    verdicts = [message.value for message in of_topic(clean, LABELS)]
    rows, found = replayed(
        pipeline,
        tmp_path / "file.parquet",
        write(tmp_path / f"events.{kind}", events),
        labels=write(tmp_path / f"labels.{kind}", verdicts),
        batch_size=97,
    )
    assert_frame_equal(rows, expected, check_exact=True)
    assert len(rows) == len(events) == found.rows
    assert found.labelled == reference.labelled == len(verdicts)
    assert found.total == len(events) + len(verdicts)


def test_rows_are_the_predictions_that_a_run_publishes_with_the_labels_that_it_learns(
    tmp_path: Path, pipeline: Pipeline, faulty: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:{tmp_path / 'bus'}"
    publish(url, faulty)
    monkeypatch.setattr(training_file, "PART_ROWS", 130)
    monkeypatch.setattr(late_labels, "_MAX_IN_MEMORY", 40)
    dead = tmp_path / "dead.jsonl"
    rows, found = replayed(
        pipeline, tmp_path / "rows.parquet", EVENTS, url, dead_letters=dead, batch_size=50
    )
    run(pipeline, url, None)
    assert as_served(rows, pipeline) == [json.loads(value) for value in values(url, PREDICTIONS)]
    refused = values(url, DEAD)
    assert sorted(dead.read_bytes().splitlines()) == sorted(refused)
    assert found.dead_letters.total() == len(refused) > 20
    check_labels(rows, faulty)


def check_labels(rows: pl.DataFrame, messages: list[Message]) -> None:
    """Assert that each row has the label of its payment, if there is one."""
    verdicts = {v["id"]: v for v in map(json.loads, (m.value for m in of_topic(messages, LABELS)))}
    assert 0 < len(verdicts) < len(rows)
    for row in rows.select("id", "ts", "label", "label_ts", "label_delay_ms").to_dicts():
        verdict = verdicts.get(row["id"])
        if verdict is None:
            assert row["label"] is row["label_ts"] is row["label_delay_ms"] is None
        else:
            assert row["label"] is verdict["fraud"]
            assert row["label_ts"] == verdict["ts"]
            assert row["label_delay_ms"] == verdict["ts"] - row["ts"]


def test_nothing_is_published_by_a_replay(
    tmp_path: Path, pipeline: Pipeline, clean: list[Message]
) -> None:
    url = f"sqlite:{tmp_path / 'bus'}"
    publish(url, clean[:200])
    replayed(pipeline, tmp_path / "rows.parquet", EVENTS, url, state=tmp_path / "state")
    assert [values(url, topic) for topic in pipeline.topics.outputs] == [[], [], []]


def test_a_run_after_a_replay_equals_one_run(
    tmp_path: Path, pipeline: Pipeline, faulty: list[Message]
) -> None:
    whole, parts = f"sqlite:{tmp_path / 'whole'}", f"sqlite:{tmp_path / 'parts'}"
    first, rest = cut_by_time(faulty, 0.6)
    publish(whole, faulty)
    run(pipeline, whole, None)
    publish(parts, first)
    rows, _ = replayed(
        pipeline, tmp_path / "rows.parquet", EVENTS, parts, state=tmp_path / "state", batch_size=333
    )
    publish(parts, rest)
    run(pipeline, parts, tmp_path / "state")
    expected = values(whole, PREDICTIONS)
    assert values(parts, PREDICTIONS) == expected[len(rows) :]
    assert as_served(rows, pipeline) == [json.loads(value) for value in expected[: len(rows)]]
    assert 100 < len(rows) < len(expected) - 100
    assert values(parts, DEAD) == values(whole, DEAD)[-len(values(parts, DEAD)) :]


def test_a_replayed_state_takes_over_from_a_run_that_has_continued_meanwhile(
    tmp_path: Path, pipeline: Pipeline, clean: list[Message]
) -> None:
    url = f"sqlite:{tmp_path / 'bus'}"
    first, later = cut_by_time(clean, 0.4)
    meanwhile, rest = cut_by_time(later, 0.5)
    publish(url, first)
    run(pipeline, url, tmp_path / "old")
    replayed(pipeline, tmp_path / "rows.parquet", EVENTS, url, state=tmp_path / "new")
    publish(url, meanwhile)
    run(pipeline, url, tmp_path / "old")
    before = values(url, PREDICTIONS)
    publish(url, rest)
    run(pipeline, url, tmp_path / "new")
    served = [json.loads(value)["offset"] for value in values(url, PREDICTIONS)]
    assert served == list(range(len(of_topic(clean, EVENTS))))
    assert len(served) - len(before) == len(of_topic(rest, EVENTS)) > 0


@pytest.mark.parametrize("where", ["earliest", "latest"])
def test_a_run_continues_after_a_file_where_the_user_says(
    tmp_path: Path, pipeline: Pipeline, clean: list[Message], where: Any
) -> None:
    whole, parts = f"sqlite:{tmp_path / 'whole'}", f"sqlite:{tmp_path / 'parts'}"
    first, rest = cut_by_time(clean, 0.5)
    publish(whole, clean)
    run(pipeline, whole, None)
    publish(parts, rest if where == "earliest" else first)
    events = write(tmp_path / "events.parquet", [m.value for m in of_topic(first, EVENTS)])
    verdicts = write(tmp_path / "labels.jsonl", [m.value for m in of_topic(first, LABELS)])
    rows, found = replayed(
        pipeline,
        tmp_path / "rows.parquet",
        events,
        parts,
        labels=verdicts,
        state=tmp_path / "state",
        continue_at=where,
    )
    behind = 0 if where == "earliest" else len(of_topic(first, EVENTS))
    assert found.offsets[TopicPartition(EVENTS, 0)] == behind
    if where == "latest":
        publish(parts, rest)
    run(pipeline, parts, tmp_path / "state")

    def what(url: str) -> list[tuple[Any, ...]]:
        found = map(json.loads, values(url, PREDICTIONS))
        return [(p["id"], p["score"], p["version"], p["features"]) for p in found]

    assert what(parts) == what(whole)[len(rows) :]


def by_time(found: tuple[int, int, bytes]) -> Any:
    return json.loads(found[2])["ts"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("order", [None, by_time], ids=["partition by partition", "by time"])
def test_a_file_with_offsets_is_equivalent_to_the_topic(
    tmp_path: Path, pipeline: Pipeline, clean: list[Message], kind: str, order: Any
) -> None:
    urls = [f"sqlite:{tmp_path / name}" for name in ("topic", "file")]
    first, rest = cut_by_time(clean, 0.7)
    for url in urls:
        publish(url, first, partitions=3)
    expected, reference = replayed(
        pipeline, tmp_path / "a.parquet", EVENTS, urls[0], state=tmp_path / "a"
    )
    rows, found = replayed(
        pipeline,
        tmp_path / "b.parquet",
        copy_of_topic(tmp_path / f"events.{kind}", urls[1], EVENTS, order),
        urls[1],
        labels=copy_of_topic(tmp_path / f"labels.{kind}", urls[1], LABELS, order),
        state=tmp_path / "b",
        batch_size=61,
    )
    assert_frame_equal(rows, expected, check_exact=True)
    assert set(rows["partition"]) == {0, 1, 2}
    assert found.offsets == reference.offsets
    for url, state in zip(urls, ("a", "b"), strict=True):
        publish(url, rest, partitions=3)
        run(pipeline, url, tmp_path / state)
    outputs = [values(url, PREDICTIONS) for url in urls]
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == len(of_topic(rest, EVENTS))


def test_a_file_with_publishing_times_is_merged_by_them(
    tmp_path: Path, pipeline: Pipeline, clean: list[Message]
) -> None:
    # All labels were published behind all events: the model has learned nothing before.
    events, verdicts = of_topic(clean, EVENTS)[:300], of_topic(clean, LABELS)[:200]
    late = max(message.time for message in clean)
    places = [
        [{"partition": 0, "offset": 2 * i, "published": time + i} for i in range(len(part))]
        for part, time in ((events, late), (verdicts, late + 1000))
    ]
    rows, _ = replayed(
        pipeline,
        tmp_path / "rows.parquet",
        write(tmp_path / "e.parquet", [m.value for m in events], places[0]),
        labels=write(tmp_path / "l.parquet", [m.value for m in verdicts], places[1]),
    )
    assert rows["version"].max() == 0
    assert rows["label"].count() > 100
    assert rows["offset"].to_list() == list(range(0, 600, 2))


def test_features_are_those_of_a_rolling_window(
    tmp_path: Path, pipeline: Pipeline, clean: list[Message]
) -> None:
    events = [json.loads(m.value) for m in of_topic(clean, EVENTS)]
    path = write(tmp_path / "e.parquet", [m.value for m in of_topic(clean, EVENTS)])
    rows, _ = replayed(pipeline, tmp_path / "rows.parquet", path)
    frame = pl.DataFrame(events).with_columns(pl.from_epoch("ts", time_unit="ms").alias("at"))
    mean = (
        frame.with_row_index()
        .rolling("at", period="1h", group_by="card")
        .agg(pl.col("index").last(), pl.col("amount").mean())
    )
    served = rows["card_amount_1h_mean"].to_numpy()
    # Events of the same moment see each other here, but not the later of them there.
    alone = ~frame.select("card", "ts").is_duplicated().to_numpy()
    found = np.full(len(rows), np.nan)
    found[mean["index"].to_numpy()] = mean["amount"].to_numpy()
    np.testing.assert_allclose(served[alone], found[alone], rtol=1e-9)
