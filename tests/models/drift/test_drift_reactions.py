"""Reactions to drift: new models after any monitor, quarantine, and monitors of slices."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model, optim, preprocessing

from anabranch import (
    Challenger,
    Distributions,
    Event,
    Pipeline,
    field,
    inline,
    monitor,
    one_hot,
    slice_by,
)
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import Task
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.external_drift import ExternalDrift
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.prequential import Prequential
from anabranch.state.errors import DeclarationError
from anabranch.state.store.delta import decode, encode, merge
from tests.dataflows.source.test_source_resume import run
from tests.models.drift.test_shifts import sensor_bus, sensors

QUICK = Distributions(window=100, reference="10m", false_alarms=100.0)
WATCHED = ("feature", "missing", "keys")
SIZE = 400


def fresh() -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


def reacting(after: str = "feature", **changes: Any) -> Pipeline:
    """Of `sensors`, whose features, labels and nulls change at 2,800 of 4,000."""
    watched = [monitor("loss", cooldown="1m"), monitor("value", cooldown="1m")]
    declared: dict[str, Any] = {
        "distributions": QUICK,
        "model": linear_model.LogisticRegression(optim.SGD(1e-9)),  # never learns
        "monitors": watched if after in ("loss", "any") else [],
        "on_drift": Challenger(
            model=fresh(), warmup_rows=50,
            triggers=("loss", *WATCHED, "label") if after == "any" else (after,),
        ),
    }  # fmt: skip
    return sensors(**(declared | changes))


def outputs(bus: MemoryBus, pipeline: Pipeline) -> dict[str, list[bytes]]:
    """All outputs; drift signals sorted, since one row may cause several."""
    found = {topic: bus.values(topic) for topic in pipeline.topics.outputs}
    return found | {pipeline.topics.drift: sorted(found[pipeline.topics.drift])}


def worked(pipeline: Pipeline, limit: int, metrics: WorkerMetrics | None = None) -> Any:
    bus = sensor_bus(pipeline)
    run_worker(pipeline, bus, SourceOptions(limit=limit, until_end=True), metrics=metrics)
    return outputs(bus, pipeline)


@pytest.mark.parametrize("after", ["feature", "missing", "label", "loss", "any"])
def test_any_monitor_can_start_a_model_whatever_the_batches(after):
    whole = worked(reacting(after), 1000)
    started = [
        each
        for each in map(json.loads, whole["sensors.rollouts"])
        if each["challenger"] == "fresh-1" and each["action"] == "started"
    ]
    assert len(started) == 1
    said = {
        "feature": "the distribution of ", "missing": "the distribution of missing load",
        "label": "the distribution of label", "loss": "the loss of LogisticRegression", "any": "",
    }  # fmt: skip
    assert said[after] in started[0]["reason"]
    assert started[0]["offset"] > (2800 if after in ("missing", "label") else 600)
    for limit in (7, 333):
        assert worked(reacting(after), limit) == whole


@pytest.mark.parametrize("how", ["any", "quarantine"])
def test_a_run_that_is_stopped_anywhere_has_the_same_outputs(how: str, tmp_path: Path):
    call = "reacting('any')" if how == "any" else "quarantining()"
    flow = f"from tests.models.drift.test_drift_reactions import *\npipeline = {call}\n"
    (tmp_path / "flow.py").write_text(flow)
    pipeline = load_pipeline(str(tmp_path / "flow.py"))
    whole, bus, chance, stops = worked(pipeline, 50), sensor_bus(pipeline), random.Random(1), 0
    while run(pipeline, bus, tmp_path / "state", reads=chance.randrange(10, 90), batch=50):
        stops += 1
    assert stops > 2
    assert outputs(bus, pipeline) == whole


def quarantining(**changes: Any) -> Pipeline:
    kept = Distributions(
        window=100, reference="10m", false_alarms=100.0, quarantine=("feature", "missing")
    )
    return sensors(**({"distributions": kept} | changes))


def test_quarantined_events_are_predicted_and_scored_and_not_learned():
    metrics = WorkerMetrics("sensors")
    whole = worked(quarantining(), 1000, metrics)
    predictions = [json.loads(value) for value in whole["sensors.predictions"]]
    usual = [json.loads(value) for value in worked(sensors(distributions=QUICK), 1000)[
        "sensors.predictions"
    ]]  # fmt: skip
    assert [each["id"] for each in predictions] == [each["id"] for each in usual]
    began = min(
        each["ts"] for each in map(json.loads, whole["sensors.drift"])
        if each["severity"] == "warning" and each["ts"] > 1_700_000_000_000 + 2_800_000
    )  # fmt: skip
    # Labels come after 5 ms: those of rows before the first shifted window's end are learned.
    last = [each["version"] for each in predictions if each["ts"] > began]
    assert last[0] == last[-1] < usual[-1]["version"]
    value = metrics.registry.get_sample_value
    labels = {"pipeline": "sensors"}
    quarantined = value("anabranch_quarantined_labels_total", labels)
    assert quarantined >= len(last) - 1
    assert value("anabranch_learned_labels_total", labels) + quarantined == len(predictions)
    for limit in (7, 333):
        assert worked(quarantining(), limit) == whole


@pytest.mark.parametrize("inline", [True, False])
@given(
    seed=st.integers(0, 99), quarantined=st.sets(st.integers(0, SIZE - 1)),
    cuts=st.sets(st.integers(1, SIZE - 1), max_size=8), again=st.booleans(),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_quarantine_equals_a_loop_over_river_that_skips_rows(
    inline, seed, quarantined, cuts, again
):
    """Labels come two events later, or at once."""
    rng = np.random.default_rng(seed)
    features, target = rng.normal(size=(SIZE, 2)), (rng.random(SIZE) < 0.5).astype(float)
    model, want = fresh(), []
    behind = 0 if inline else 2
    for i in range(SIZE + behind):
        if i < SIZE:
            want.append(model.predict_proba_one(dict(zip("ab", features[i], strict=True)))[True])
        if i >= behind and i - behind not in quarantined:
            row = dict(zip("ab", features[i - behind], strict=True))
            model.learn_one(row, target[i - behind] == 1.0)

    def make() -> Prequential:
        learner = learner_for(fresh(), ("a", "b"), Task.BINARY)
        return Prequential(
            {"m": learner},
            PrequentialSettings(metrics=["Accuracy"], inline=inline, quarantine=True),
        )

    step, kept, found, scored, left = make(), [], [], 0, 0
    mask = np.isin(np.arange(SIZE), sorted(quarantined))
    bounds = [0, *sorted(cuts), SIZE]
    for low, high in pairwise(bounds):
        due = np.arange(low, high) - behind
        due = due[due >= 0]
        if high == SIZE and behind:
            due = np.append(due, [SIZE - 2, SIZE - 1])
        events = np.arange(low, high)
        moments = np.concatenate([events * 1.0, due + behind + 0.5])
        outcome = step.run(
            EventBatch(
                features=np.ascontiguousarray(features[low:high]),
                times=events * 1000,
                ids=[f"e{i}" for i in events],
                external_drift=ExternalDrift(
                    quarantined=mask[low:high] if mask[low:high].any() else None
                ),
            ),
            LabelBatch(
                ids=[f"e{i}" for i in due],
                values=target[low:high] if inline else target[due],
                times=due * 1000 + 2500,
            ),
            order=np.argsort(moments, kind="stable"),
        )
        found += outcome.predictions["m"].values.tolist()
        scored += len(outcome.learned.times)
        left += outcome.quarantined
        if again:
            kept.append(decode(encode(step.changes())))
            step = make()
            step.restore(merge(kept))
    assert found == pytest.approx(want, abs=1e-12)
    assert (scored, left) == (SIZE, len(quarantined))
    assert step.models.learners["m"].version == SIZE - len(quarantined)


class Ride(Event):
    """An event with an inline label."""

    id: str
    ts: int
    city: str
    value: float
    late: bool


def rides(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "rides", "event": Ride, "label": inline("late"), "features": [field("value")],
        "model": linear_model.LogisticRegression(), "slices": [slice_by("city")],
        "monitors": [monitor("loss", "HDDM_A", by="city", cooldown="1m"), monitor("loss")],
    }  # fmt: skip
    return Pipeline(**(declared | changes))


def rides_signals(pipeline: Pipeline, limit: int) -> list[dict[str, Any]]:
    """In one city of ten the label is inverted from the middle on; the overall loss stays."""
    bus, rng = MemoryBus(), np.random.default_rng(2)
    bus.create_topics({"rides.events": 1})
    publisher = bus.publisher()
    for number in range(6000):
        city, value = f"c{rng.integers(10)}", float(rng.normal())
        late = bool(value + 0.3 * rng.normal() > 0) ^ (city == "c3" and number >= 3000)
        ride = {"id": f"r{number}", "ts": 1_700_000_000_000 + number * 1000, "city": city,
                "value": value, "late": late}  # fmt: skip
        publisher.append("rides.events", [json.dumps(ride).encode()], partitions=0)
    run_worker(pipeline, bus, SourceOptions(limit=limit, until_end=True))
    return [json.loads(value) for value in bus.values("rides.drift")]


def test_the_slice_that_became_worse_is_named():
    found = rides_signals(rides(), 1000)
    by_city = [each for each in found if "where" in each["subject"]]
    assert {each["subject"] for each in by_city} == {"loss where city=c3"}
    first = by_city[0]
    assert (first["kind"], first["detector"]) == ("loss", "HDDM_A")
    assert 3000 <= first["offset"] < 3300
    assert first["statistic"]["after"] > first["statistic"]["before"]
    assert [rides_signals(rides(), limit) for limit in (1, 77)] == [found] * 2


WRONG: dict[str, Any] = {
    "by='town' of a monitor is not a slice: declared are city": {
        "monitors": [monitor("loss", by="town")]
    },
    "DDM monitors whether predictions are right": {
        "model": linear_model.LinearRegression(), "label": inline("value"), "slices": (),
        "features": [one_hot("city", ("a", "b"))],
        "monitors": [monitor("loss", "DDM")],
    },
    "on_drift= of pipeline 'rides' is for drift of kind 'keys', which is not monitored": {
        "on_drift": Challenger(model=fresh(), triggers=("keys",))
    },
    "triggers='loss' must name some of": {"on_drift": Challenger(model=fresh(), triggers="loss")},
    "triggers=('prediction',) must name": {
        "on_drift": Challenger(model=fresh(), triggers=("prediction",))
    },
    "quarantine=('label',) of distributions=": {
        "distributions": Distributions(quarantine=("label",))
    },
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_an_impossible_declaration_is_refused_in_one_sentence(words):
    with pytest.raises(DeclarationError) as said:
        rides(**WRONG[words])
    assert words in str(said.value)


def test_a_feature_has_no_slices():
    with pytest.raises(DeclarationError, match=r"by='city' .* has no meaning"):
        monitor("value", by="city")
