"""Training rows: columns of every task, and each label at its row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from river import anomaly, linear_model, preprocessing, tree

from anabranch import Event, Label, Pipeline, field, inline, window
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.replay import late_labels as replay_labels
from anabranch.dataflows.replay import training_file as row_file
from anabranch.dataflows.replay.replay import ReplaySettings, replay
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions

T0 = 1_736_121_600_000
HOUR = 3_600_000
Row = dict[str, Any]


class Thing(Event):
    id: str
    ts: int
    box: str
    score: float
    kind: str = ""
    weight: float = 0.0
    good: bool = False


class Kind(Label):
    id: str
    ts: int
    kind: str


class Weight(Label):
    id: str
    ts: int
    weight: float


class Good(Label):
    id: str
    ts: int
    good: bool


MODELS = {
    "good": lambda: preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    "weight": lambda: preprocessing.StandardScaler() | linear_model.LinearRegression(),
    "kind": lambda: tree.HoeffdingTreeClassifier(grace_period=20),
    # It predicts nothing before its first label.
    "no_prediction": lambda: tree.HoeffdingTreeClassifier(grace_period=20),
    "none": lambda: anomaly.HalfSpaceTrees(n_trees=3, height=3, window_size=20, seed=1),
}


def declared(target: str, label: Any) -> Pipeline:
    return Pipeline(
        name="things",
        event=Thing,
        label=label,
        features=[field("score"), window("box", "score", over="1h", stats=("count", "max"))],
        model=MODELS[target](),
        metrics=(),
        dedup_window="1h",
        with_features=True,
    )


def events(count: int, **more: Any) -> list[Row]:
    return [
        {"id": f"t{i}", "ts": T0 + i * 60_000, "box": f"b{i % 3}", "score": i * 7 % 11 / 10, **more}
        for i in range(count)
    ]


def write(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(
    directory: Path, pipeline: Pipeline, things: list[Row], labels: list[Row] | None = None
) -> pl.DataFrame:
    settings = ReplaySettings(
        events=write(directory / "e.jsonl", things),
        labels=None if labels is None else write(directory / "l.jsonl", labels),
        rows=directory / "rows.parquet",
    )
    replay(pipeline, settings)
    return pl.read_parquet(settings.rows)


def served(pipeline: Pipeline, things: list[Row], labels: list[Row] | None = None) -> list[Row]:
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    for topic, rows in zip(pipeline.inputs, (things, labels or []), strict=False):
        values = [json.dumps(row).encode() for row in rows]
        bus.publisher().append(topic, values, times=[row["ts"] for row in rows])
    run_worker(pipeline, bus, SourceOptions(until_end=True))
    return [json.loads(value) for value in bus.values(pipeline.topics.predictions)]


def as_served(row: Row, names: list[str]) -> Row:
    """A row in the form of a prediction; the feature ``score`` keeps its name."""
    found = {name: row[name] for name in ("id", "ts", "topic", "partition", "offset")}
    found |= {name: row[name] for name in ("model", "version", "prediction")}
    if "score_" in row:
        found["score"] = row["score_"]
    if "probabilities" in row:
        found["probabilities"] = {
            each["class"]: each["probability"] for each in row["probabilities"]
        }
    return {**found, "features": {name: row[name] for name in names}}


LABEL_VALUES: dict[str, list[Any]] = {
    "good": [True, False, None],
    "weight": [1.5, 2.0, None],
    "kind": ["a", "b", "c", None],
}


@pytest.mark.parametrize("target", ["good", "weight", "kind", "none"])
def test_inline_labels_of_every_task(tmp_path: Path, target: str) -> None:
    label_values = LABEL_VALUES.get(target, [])[:-1]
    things = events(150)
    for i, thing in enumerate(things):
        if label_values:
            thing[target] = label_values[i % len(label_values)]
    pipeline = declared(target, None if target == "none" else inline(target))
    rows = rows_of(tmp_path, pipeline, things)
    found = [as_served(row, pipeline.columns) for row in rows.to_dicts()]
    expected = served(pipeline, things)
    assert found == expected
    assert len(found) == 150
    if target == "none":
        assert "label" not in rows.columns
        return
    assert rows["label"].to_list() == [thing[target] for thing in things]
    assert rows["label_ts"].equals(rows["ts"], check_names=False)
    assert rows["label_delay_ms"].to_list() == [0] * 150


@pytest.mark.parametrize(("target", "label"), [("good", Good), ("weight", Weight), ("kind", Kind)])
def test_delayed_labels_of_every_task(
    tmp_path: Path, target: str, label: type[Label], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "PART_ROWS", 37)
    label_values = LABEL_VALUES[target]
    things = events(150)
    labelled = [
        (thing["id"], thing["ts"] + 7 * 60_000, label_values[i % len(label_values)])
        for i, thing in enumerate(things)
    ]
    labels = [
        {"id": id, "ts": ts, target: value} for id, ts, value in labelled if value is not None
    ]
    pipeline = declared(target, label.target(target, timeout="1h"))
    rows = rows_of(tmp_path, pipeline, things, labels)
    found = [as_served(row, pipeline.columns) for row in rows.to_dicts()]
    assert found == served(pipeline, things, labels)
    assert rows["label"].to_list() == [value for _, _, value in labelled]
    expected = [None if value is None else ts for _, ts, value in labelled]
    assert rows["label_ts"].to_list() == expected
    assert rows["version"].max() > 50


def test_a_model_without_prediction_gives_null(tmp_path: Path) -> None:
    pipeline = declared("no_prediction", Good.target("good", timeout="1h"))
    things, labels = events(9), [{"id": "t1", "ts": T0 + 5 * 60_000, "good": True}]
    rows = rows_of(tmp_path, pipeline, things, labels)
    found = [as_served(row, pipeline.columns) for row in rows.to_dicts()]
    assert found == served(pipeline, things, labels)
    assert rows["prediction"].to_list() == [None] * 6 + [True] * 3


def test_each_occurrence_of_an_id_has_its_own_label(tmp_path: Path) -> None:
    pipeline = declared("good", Good.target("good", timeout="3h"))
    things = [{**events(1)[0], "ts": T0 + hour * HOUR} for hour in (0, 2, 4, 9)]
    labels = [
        {"id": "t0", "ts": T0 + HOUR, "good": True},
        {"id": "t0", "ts": T0 + 5 * HOUR, "good": False},
        {"id": "t0", "ts": T0 + 6 * HOUR, "good": True},
    ]
    rows = rows_of(tmp_path, pipeline, things, labels)
    # The third came while the second waited: it was predicted, but its label is the second's.
    assert rows["label"].to_list() == [True, False, None, None]
    assert rows["label_delay_ms"].to_list() == [HOUR, 3 * HOUR, None, None]


def test_an_unused_label_is_in_no_row(tmp_path: Path) -> None:
    pipeline = declared("good", Good.target("good", timeout="3h"))
    things = events(400)
    labels = [
        {"id": "t99", "ts": T0 + 5 * 60_000, "good": True},  # long before its event
        {"id": "t1", "ts": T0 + 10 * 60_000, "good": True},
        {"id": "t1", "ts": T0 + 20 * 60_000, "good": False},  # the second
        {"id": "t2", "ts": T0 + 4 * HOUR, "good": True},  # too late
        {"id": "who", "ts": T0 + 5 * HOUR, "good": True},
    ]
    rows = rows_of(tmp_path, pipeline, things, labels)
    assert rows.filter(pl.col("label").is_not_null())["id"].to_list() == ["t1"]
    assert rows["label"][1] is True


@pytest.mark.parametrize("part_rows", [3, 1000])
def test_default_early_and_updated_labels_are_as_learned(
    tmp_path: Path, part_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_file, "PART_ROWS", part_rows)
    monkeypatch.setattr(replay_labels, "_MAX_IN_MEMORY", 2)
    minute = 60_000
    label = Good.target("good", timeout="10m", default=False, late="update", update_within="1h")
    things = events(40)
    labels = [
        {"id": "t5", "ts": T0 + 3 * minute, "good": True},  # before its event
        {"id": "t1", "ts": T0 + 4 * minute, "good": True},
        {"id": "t2", "ts": T0 + 20 * minute, "good": True},  # it was assumed not to be
        {"id": "t3", "ts": T0 + 21 * minute, "good": False},  # as was assumed
        {"id": "t1", "ts": T0 + 22 * minute, "good": False},  # says otherwise now
        {"id": "t1", "ts": T0 + 23 * minute, "good": True},  # and again
    ]
    rows = rows_of(tmp_path, declared("good", label), things, labels)
    found = rows.select("label", "label_origin", "label_delay_ms").rows()
    assumed = (False, "assumed", 10 * minute)
    assert found[:6] == [
        assumed,
        (True, "corrected", 22 * minute),
        (True, "corrected", 18 * minute),
        assumed,
        assumed,
        (True, "label", 0),
    ]
    assert found[6:29] == [assumed] * 23
    assert found[29:] == [(None, None, None)] * 11
    assert rows["label_ts"].to_list()[2] == T0 + 20 * minute
    # So many labels were learned before each was predicted.
    assert rows["version"].to_list()[:15] == [0] * 5 + [1] + [2] * 5 + [3, 3, 4, 5]


def test_rows_without_labels(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, declared("good", Good.target("good")), events(20))
    assert len(rows) == 20
    assert rows["label"].null_count() == rows["label_ts"].null_count() == 20
    assert rows.schema["label"] == pl.Boolean
