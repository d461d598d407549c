"""Distribution monitors signal what has shifted, by name, and nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from river import linear_model, optim
from scipy.spatial import distance

from anabranch import (
    Distributions,
    Event,
    Label,
    Pipeline,
    Shadow,
    field,
    hour_of_day,
    one_hot,
    window,
)
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.pipelines.payments import pipeline as payments
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.drift.bins import edges_of
from anabranch.models.drift.distribution_shift import SAMPLE, DistributionMonitor, DistributionShift
from anabranch.producers.batch import Kind
from anabranch.producers.publish import publish
from anabranch.producers.simulators.by_name import simulate
from anabranch.producers.simulators.upstream_faults import UPSTREAM_FAULTS, with_upstream_fault
from anabranch.state.errors import DeclarationError, InputError
from anabranch.state.store.delta import decode, encode, merge
from tests.dataflows.source.test_source_resume import run

F64 = NDArray[np.float64]
QUICK = Distributions(window=200, reference="0s")
ROWS = 200_000


def shifts_of(
    values: F64, declared: Distributions = QUICK, cuts: Sequence[int] = ()
) -> list[DistributionShift]:
    """All shifts, with rows counted from the start."""
    shifts = DistributionMonitor(declared, values.shape[1], values.shape[1])
    found = []
    times = np.arange(len(values)) * 1000
    for low, high in pairwise([0, *cuts, len(values)]):
        for each in shifts.update(values[low:high], times[low:high]):
            found.append(replace(each, row=each.row + low))
    return found


def autocorrelated(rng: np.random.Generator, rows: int, columns: int, rho: float) -> F64:
    noise = rng.normal(size=(rows, columns))
    for at in range(1, rows):
        noise[at] = rho * noise[at - 1] + np.sqrt(1 - rho**2) * noise[at]
    return noise


STEADY: dict[str, Callable[[np.random.Generator], F64]] = {
    "independent": lambda rng: rng.normal(size=(ROWS, 20)),
    "heavy tails": lambda rng: rng.standard_cauchy(size=(ROWS, 20)),
    "rare and categorical": lambda rng: (rng.random((ROWS, 20)) < 0.002).astype(np.float64),
    "half missing": lambda rng: np.where(rng.random((ROWS, 5)) < 0.5, np.nan, 1.0),
    "slow to change": lambda rng: autocorrelated(rng, ROWS // 2, 5, 0.9),
    # A day is 20,000 rows: the reference holds two.
    "daily rhythm": lambda rng: (
        rng.normal(size=(ROWS, 5)) + 2 * np.sin(np.arange(ROWS) / 20_000 * 2 * np.pi)[:, None]
    ),
}


@pytest.mark.parametrize("name", STEADY)
def test_stable_streams_give_no_drift(name):
    """A few of the accepted warnings, one per million rows; and no drift."""
    declared = replace(QUICK, reference="40000s")
    found = [
        each
        for seed in range(2)
        for each in shifts_of(STEADY[name](np.random.default_rng(seed)), declared)
    ]
    warned = [each.severity for each in found]
    assert "drift" not in warned
    assert warned == ["warning", "resolved"] * (len(warned) // 2)
    assert len(warned) <= 6


MOVED: dict[str, Callable[[F64], F64]] = {
    "a shift": lambda values: values + 1.0,
    "a scale": lambda values: values * 100.0,
    "missing": lambda values: np.full_like(values, np.nan),
    "one value": lambda values: np.zeros_like(values),
    "far away": lambda values: np.full_like(values, 1e300),
}


@pytest.mark.parametrize("name", MOVED)
def test_one_shifted_column_of_a_hundred_is_signalled_and_resolved(name):
    values = np.random.default_rng(5).normal(size=(12_000, 100))
    values[6000:9000, 37] = MOVED[name](values[6000:9000, 37])
    found = shifts_of(values)
    assert {each.column for each in found} == {37}
    signals = [(each.severity, each.row) for each in found]
    assert signals == [("warning", 6199), ("drift", 6399), ("resolved", 9399)]
    assert all(each.began == 6199 * 1000 for each in found)
    assert all(each.p < each.threshold for each in found[:2])
    assert found[0].top[0][2] > found[0].top[0][1] or found[0].top[1][2] > found[0].top[1][1]


def test_a_value_that_the_sample_did_not_have_has_a_bin():
    values = np.zeros((8000, 1))
    values[6000:] = 1.0
    assert [each.severity for each in shifts_of(values)] == ["warning", "drift"]
    assert edges_of(np.zeros(5)).size == 2
    assert edges_of(np.full(5, np.nan)).size == 0


def test_a_small_shift_is_not_signalled():
    values = np.random.default_rng(3).normal(size=(40_000, 3))
    values[20_000:] += 0.15  # a population stability index of about 0.02
    assert shifts_of(values, Distributions(window=2000, reference="0s")) == []


def test_distances_are_those_of_scipy():
    """Of the bins that the reference and the window have."""
    values = np.random.default_rng(3).normal(size=(8000, 1))
    values[6000:] = np.clip(values[6000:], -0.5, None) + 0.4
    first = shifts_of(values)[0]
    edges = edges_of(values[:SAMPLE, 0])
    bins = [np.searchsorted(edges, part, side="right") for part in (values[SAMPLE:first.row - 199],
            values[first.row - 199 : first.row + 1])]  # fmt: skip
    counts = [np.bincount(each[:, 0], minlength=len(edges) + 1) + 0.5 for each in bins]
    # QUICK's reference is the first ten windows.
    counts[0] = np.bincount(bins[0][:2000, 0], minlength=len(edges) + 1) + 0.5
    share, now = (each / each.sum() for each in counts)
    assert first.js == pytest.approx(distance.jensenshannon(share, now, base=2) ** 2)
    assert first.ks == pytest.approx(np.abs(np.cumsum(share) - np.cumsum(now)).max())
    assert first.psi == pytest.approx(((now - share) * np.log(now / share)).sum())


def test_a_warning_without_a_second_window_is_resolved():
    values = np.random.default_rng(3).normal(size=(8000, 1))
    values[6000:6200] += 2  # one window
    signals = [(each.severity, each.row) for each in shifts_of(values)]
    assert signals == [("warning", 6199), ("resolved", 6399)]


def test_lasting_drift_is_signalled_once():
    values = np.random.default_rng(3).normal(size=(40_000, 1))
    values[20_000:] += 2
    assert [each.severity for each in shifts_of(values)] == ["warning", "drift"]


@given(
    seed=st.integers(0, 99), cuts=st.sets(st.integers(1, 5999), max_size=12),
    kept=st.sets(st.integers(0, 12)),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_shifts_depend_neither_on_calls_nor_on_restarts(seed, cuts, kept):
    rng = np.random.default_rng(seed)
    values = np.column_stack([rng.normal(size=6000), rng.integers(0, 3, 6000), rng.random(6000)])
    values[rng.random((6000, 3)) < 0.1] = np.nan
    values[4500:, 0] += 3
    whole = shifts_of(values)
    assert whole
    assert shifts_of(values, cuts=sorted(cuts)) == whole
    shifts, deltas, found = DistributionMonitor(QUICK, 3, 3), [], []
    times = np.arange(6000) * 1000
    for number, (low, high) in enumerate(pairwise([0, *sorted(cuts), 6000])):
        some = shifts.update(values[low:high], times[low:high])
        found += [replace(each, row=each.row + low) for each in some]
        deltas.append(decode(encode(shifts.changes())))
        if number in kept:
            shifts = DistributionMonitor(QUICK, 3, 3)
            shifts.restore(merge(deltas))
    assert found == whole
    assert shifts.rows == 6000 > SAMPLE


# On the payments, a day being 17,280 of them.

AT, ALL = 26_000, 34_000


FAULTS: dict[str, tuple[str, str]] = {
    "cents": ("feature", "amount"),
    "country": ("feature", "country=DE"),
    "feed": ("keys", "merchant keys"),
    "type": ("invalid", "invalid events"),
}


def signals(fault: str | None) -> list[dict[str, Any]]:
    """Signals of simulated payments, the later of which have a fault."""
    watched = replace(payments, distributions=Distributions(), monitors=[])
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(watched.inputs, 1))
    batches = simulate("payments", seed=3, events=ALL, event_rate=0.2)
    if fault is not None:
        batches = with_upstream_fault(batches, fault, AT)
    topics: dict[Kind, str] = {"events": "payments.events", "labels": "payments.labels"}
    publish(bus, batches, topics=topics)
    run_worker(watched, bus, SourceOptions(limit=1000, until_end=True))
    found = map(json.loads, bus.values("payments.drift"))
    # Labels that trickle in when nothing more happens are as late as they say.
    return [each for each in found if each["subject"] != "label delay"]


def test_every_fault_that_can_be_simulated_is_tried():
    assert FAULTS.keys() == UPSTREAM_FAULTS.keys()
    with pytest.raises(InputError, match="choose one of cents, country, feed, type"):
        next(with_upstream_fault([], "another", 0))


def test_unchanged_payments_give_no_signal():
    assert signals(None) == []


@pytest.mark.parametrize("name", FAULTS)
def test_the_right_signal_names_the_right_subject(name):
    kind, subject = FAULTS[name]
    found = signals(name)
    first = [each for each in found if each["offset"] == found[0]["offset"]]
    assert (kind, subject) in {(each["kind"], each["subject"]) for each in first}
    assert AT <= first[0]["offset"] < AT + 2000
    drifted = [each for each in found if each["severity"] == "drift"]
    assert subject in {each["subject"] for each in drifted}
    one = next(each for each in drifted if each["subject"] == subject)
    assert one["reference"] == "the first 1d"
    assert one["statistic"]["p"] < one["statistic"]["threshold"]
    assert one["began"] <= one["ts"]
    if kind == "feature":
        assert one["top"][0]["expected"] != one["top"][0]["observed"]


# In a whole flow, with all kinds of rows.


class Reading(Event):
    """A reading of a sensor."""

    id: str
    ts: int
    sensor: str
    value: float
    load: float | None = None
    mode: str = "a"


class Check(Label):
    """Whether the reading was right."""

    id: str
    ts: int
    right: bool


def sensors(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "sensors",
        "event": Reading,
        "label": Check.target("right", timeout="1h"),
        "features": [
            field("value"), field("load", fill_null=0.0), hour_of_day(),
            one_hot("mode", ("a", "b")), window("sensor", "value", over="10m"),
        ],
        "model": linear_model.LogisticRegression(),
        "distributions": Distributions(window=100, reference="10m", false_alarms=100.0),
    }  # fmt: skip
    return Pipeline(**(declared | changes))


def sensor_bus(pipeline: Pipeline, rows: int = 4000) -> MemoryBus:
    chance, bus = random.Random(4), MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    publisher = bus.publisher()
    for number in range(rows):
        time = 1_700_000_000_000 + number * 1000
        late = number > rows * 0.7
        reading = {
            "id": f"r{number}", "ts": time, "sensor": f"s{chance.randrange(9)}",
            "value": chance.gauss(3.0 if late else 0.0, 1.0), "mode": chance.choice("ab"),
            "load": None if chance.random() < (0.6 if late else 0.1) else 1.0,
        }  # fmt: skip
        value = b"{" if chance.random() < (0.4 if late else 0.01) else json.dumps(reading).encode()
        publisher.append("sensors.events", [value], partitions=0, times=[time])
        right = chance.random() < (0.9 if late else 0.3)
        label = json.dumps({"id": f"r{number}", "ts": time + 5, "right": right}).encode()
        publisher.append("sensors.labels", [label], partitions=0, times=[time + 5])
    return bus


def drift_topic(
    pipeline: Pipeline, limit: int, metrics: WorkerMetrics | None = None
) -> list[bytes]:
    bus = sensor_bus(pipeline)
    run_worker(pipeline, bus, SourceOptions(limit=limit, until_end=True), metrics=metrics)
    return bus.values("sensors.drift")


def test_every_kind_is_monitored_whatever_the_batches():
    pipeline, metrics = sensors(), WorkerMetrics("sensors")
    whole = drift_topic(pipeline, 1000, metrics)
    drifted = {
        (each["kind"], each["subject"])
        for each in map(json.loads, whole)
        if each["severity"] == "drift"
    }
    assert drifted >= {
        ("feature", "value"), ("feature", "load"), ("feature", "sensor_value_10m_mean"),
        ("label", "label"), ("missing", "missing load"), ("invalid", "invalid events"),
    }  # fmt: skip
    assert not {subject for _, subject in drifted} & {"hour", "mode=a", "sensor keys"}
    assert [sorted(drift_topic(pipeline, limit)) for limit in (7, 200)] == [sorted(whole)] * 2
    labels = {"pipeline": "sensors", "kind": "feature", "subject": "value"}
    assert metrics.registry.get_sample_value("anabranch_drift_level", labels) == 2.0
    assert metrics.registry.get_sample_value("anabranch_population_stability_index", labels) > 0.1


def test_an_underfitting_model_is_signalled_by_its_residuals():
    stiff = linear_model.LogisticRegression(optimizer=optim.SGD(1e-9))
    found = [json.loads(value) for value in drift_topic(sensors(model=stiff), 1000)]
    assert ("calibration", "drift") in {(each["kind"], each["severity"]) for each in found}
    with_rollout = sensors(model=stiff, rollout=Shadow())  # who served is another matter there
    assert "calibration" not in {
        json.loads(value)["kind"] for value in drift_topic(with_rollout, 1000)
    }


def test_a_run_that_is_stopped_anywhere_gives_the_same_signals(tmp_path: Path):
    flow = "from tests.models.drift.test_shifts import sensors\npipeline = sensors()\n"
    (tmp_path / "flow.py").write_text(flow)
    pipeline = load_pipeline(str(tmp_path / "flow.py"))
    whole, bus, chance, stops = (
        drift_topic(pipeline, 50),
        sensor_bus(pipeline),
        random.Random(1),
        0,
    )
    while run(pipeline, bus, tmp_path / "state", reads=chance.randrange(10, 90), batch=50):
        stops += 1
    assert stops > 2
    assert sorted(bus.values("sensors.drift")) == sorted(whole)


WRONG: dict[str, Any] = {
    "distributions= of pipeline 'sensors' is 5": 5,
    "window=10 of distributions=": Distributions(window=10),
    "psi=0 of distributions=": Distributions(psi=0),
    "false_alarms='x' of distributions=": Distributions(false_alarms="x"),  # type: ignore[arg-type]
    "ignores 'nothing'": Distributions(ignore=["nothing"]),
    "'1 day' is no duration": Distributions(reference="1 day"),
}


@pytest.mark.parametrize("words", WRONG)
def test_an_impossible_declaration_is_refused_in_one_sentence(words):
    with pytest.raises(DeclarationError) as said:
        sensors(distributions=WRONG[words])
    assert words in str(said.value) or "1 day" in str(said.value)
