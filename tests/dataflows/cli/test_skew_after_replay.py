"""``skew`` of a run that continued from a replay: windows hold events that the topic does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from anabranch.dataflows.bus import open_bus
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.replay.replay import ReplaySettings, replay
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.producers.batch import Batch
from anabranch.producers.publish import publish
from anabranch.producers.simulators.by_name import simulate
from tests.support.commands import Call, caller

DECLARED = """
from dataclasses import replace
from anabranch import target, window
from anabranch.dataflows.pipelines.payments import pipeline as shipped
pipeline = replace(
    shipped,
    with_features=True,
    features=[*shipped.features, window("merchant", target(), over="1d")],
)
"""
HISTORY, LIVE = 1500, 1000
NO_SKEW = "no skew: 33 features match, 0 values differ"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A history as files, replayed into a state, and a run that continued on a topic."""
    place = tmp_path_factory.mktemp("replayed")
    (place / "pay.py").write_text(DECLARED)
    pipeline = load_pipeline(str(place / "pay.py"))
    messages = list(simulate("payments", seed=3, events=HISTORY + LIVE))
    everything = Batch(
        [value for batch in messages for value in batch.values],
        [key for batch in messages for key in batch.keys],
        np.concatenate([batch.times for batch in messages]),
        np.concatenate([batch.labels for batch in messages]),
    )
    end = int(np.flatnonzero(~everything.labels)[HISTORY])
    history, live = everything.part(0, end), everything.part(end, len(everything))
    for kind in ("events", "labels"):
        lines = b"\n".join(history.only(kind).values)
        (place / f"{kind}.jsonl").write_bytes(lines + b"\n")
    bus = open_bus(f"sqlite:{place / 'data/bus'}")
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    settings = ReplaySettings(
        events=str(place / "events.jsonl"),
        labels=str(place / "labels.jsonl"),
        rows=place / "rows.parquet",
        state=place / "data/state/payments",
        continue_at="earliest",
    )
    (place / "data/state").mkdir()
    replay(pipeline, settings, bus)
    publish(bus, [live], topics={"events": "payments.events", "labels": "payments.labels"})
    with StateDirectory.open(place / "data/state/payments", pipeline, bus, shards=8) as state:
        run_worker(pipeline, bus, SourceOptions(until_end=True), state=state)
    bus.close()
    return place


@pytest.fixture
def call(place: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(place, capfd)


def skew(call: Call, *arguments: object) -> tuple[int, dict[str, Any]]:
    done = call("skew", "pay.py", "--order-tolerance", "0s", "--json", *arguments)
    return done.code, json.loads(done.out) if done.code < 2 else {"error": done.err}


def test_it_warms_up_by_itself(call: Call) -> None:
    code, report = skew(call)
    assert code == 0, report
    assert report["compared"] == report["served"] == LIVE
    assert report["events"] == LIVE
    assert report["history"]["events"] == HISTORY
    assert report["warming_up"] == report["outside"] == report["not_served"] == 0
    done = call("skew", "pay.py", "--order-tolerance", "0s")
    assert NO_SKEW in done.out
    assert "windows were warmed up with 1,500 events of" in done.out


def test_the_history_can_be_named(place: Path, call: Call) -> None:
    named = ("--warmup-from", "events.jsonl", "--warmup-labels", "labels.jsonl")
    code, report = skew(call, *named, "--state", "elsewhere")
    assert (code, report["compared"]) == (0, LIVE), report


def test_the_history_can_be_a_topic(place: Path, call: Call) -> None:
    bus = open_bus(f"sqlite:{place / 'data/bus'}")
    bus.create_topics({"old.events": 1, "old.labels": 1})
    publisher = bus.publisher()
    for kind in ("events", "labels"):
        lines = (place / f"{kind}.jsonl").read_bytes().splitlines()
        times = [json.loads(line)["ts"] for line in lines]
        publisher.append(f"old.{kind}", lines, times=times)
    publisher.close()
    bus.close()
    named = ("--warmup-from", "old.events", "--warmup-labels", "old.labels")
    code, report = skew(call, *named, "--state", "elsewhere")
    assert (code, report["compared"]) == (0, LIVE), report


def test_labels_of_a_history_need_its_events(call: Call) -> None:
    done = call("skew", "pay.py", "--warmup-labels", "labels.jsonl")
    assert done.code == 2
    assert "--warmup-labels needs --warmup-from" in done.err


def test_a_history_that_overlaps_the_topic_counts_once(place: Path, call: Call) -> None:
    bus = open_bus(f"sqlite:{place / 'data/bus'}")
    from anabranch.dataflows.cli.demo.topic_sample import all_messages

    live = list(all_messages(bus, "payments.events"))
    bus.close()
    old = (place / "events.jsonl").read_bytes()
    (place / "both.jsonl").write_bytes(old + b"\n".join(live[:500]) + b"\n")
    named = ("--warmup-from", "both.jsonl", "--warmup-labels", "labels.jsonl")
    code, report = skew(call, *named)
    assert (code, report["compared"]) == (0, LIVE), report


@pytest.mark.parametrize("state", ["data/state/payments", "elsewhere"])
def test_without_the_history_no_row_is_called_different(
    state: str, place: Path, call: Call
) -> None:
    """Whether the state says that there was one, or the served values do."""
    (place / "events.jsonl").rename(place / "away.jsonl")
    try:
        code, report = skew(call, "--state", state)
        text = call("skew", "pay.py", "--state", state, "--order-tolerance", "0s").out
    finally:
        (place / "away.jsonl").rename(place / "events.jsonl")
    assert code == 0, report
    assert {each["differing"] for each in report["features"]} == {0}
    assert report["incomplete"]["card_amount_1d_mean"] > 0
    assert "windows reach behind the first event that was read" in text
    assert "--warmup-from" in text
    code, report = skew(call, "--state", "elsewhere", "--warm-up", "0s")
    assert code == 1
    assert max(each["share"] for each in report["features"]) > 0.1


def test_skew_after_a_replay_is_still_found(place: Path, call: Call) -> None:
    rows = call("consume", "payments.predictions", "--no-follow").out.splitlines()
    served = [json.loads(row) for row in rows]
    for row in served[::50]:
        row["features"]["card_amount_1h_mean"] += 1
    (place / "wrong.jsonl").write_text("\n".join(map(json.dumps, served)))
    named = ("--warmup-from", "events.jsonl", "--warmup-labels", "labels.jsonl")
    code, report = skew(call, "--features", "wrong.jsonl", *named)
    assert code == 1
    assert report["features"][0]["name"] == "card_amount_1h_mean"
    assert report["features"][0]["differing"] == LIVE // 50


def test_a_replay_of_the_own_topics_needs_no_warm_up(place: Path, call: Call) -> None:
    source = place / "data/bus"
    shutil.copytree(source, place / "copy/bus")
    bus = f"sqlite:{place / 'copy/bus'}"
    done = call("replay", "pay.py", "--from", "payments.events", "--to", "again.parquet",
                "--state", "copy/state", "--bus", bus)  # fmt: skip
    assert done.code == 0, done
    assert not (place / "copy/state/replayed.json").exists()
    assert len(pl.read_parquet(place / "again.parquet")) == LIVE
