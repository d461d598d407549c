"""The predictions and metrics of a pipeline equal River's own.

River's side is `evaluate.iter_progressive_val_score` on River's bundled data sets, with the same
model and the same delay. River models must agree bit for bit, compiled ones to 1e-12.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from river import (
    datasets,
    evaluate,
    linear_model,
    metrics,
    naive_bayes,
    optim,
    preprocessing,
    tree,
)

from anabranch import Delayed, Event, Label, Pipeline, field, inline
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.pipelines.datasets import dataset_event, dataset_pipeline
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.learners.linear import CompiledLinear
from anabranch.producers.datasets import DATASETS, ID, TARGET, TIME, dataset_messages, dataset_shape

EXACT, CLOSE = 0.0, 1e-12


@cache
def messages(name: str) -> list[tuple[bytes, int]]:
    """A data set as events with their times."""
    return [
        (value, time)
        for batch in dataset_messages(name)
        for value, time in zip(batch.values, batch.times.tolist(), strict=True)
    ]


def published(pipeline: Pipeline, logs: dict[str, list[tuple[bytes, int]]]) -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics(dict.fromkeys(pipeline.inputs, 1))
    for topic, log in logs.items():
        bus.publisher().append(topic, [v for v, _ in log], times=[t for _, t in log])
    return bus


def run(
    pipeline: Pipeline, bus: MemoryBus, limit: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The predictions, and the metrics at the end."""
    registry = CollectorRegistry()
    telling = WorkerMetrics(pipeline.name, registry)
    run_worker(pipeline, bus, SourceOptions(limit=limit, until_end=True), metrics=telling)
    assert bus.values(pipeline.topics.dead_letters) == []
    predictions = [json.loads(value) for value in bus.values(pipeline.topics.predictions)]
    assert [p["offset"] for p in predictions] == list(range(len(predictions)))
    quality = {
        sample.labels["metric"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "anabranch_model_quality"
    }
    return predictions, quality


class Timed(dict[str, float]):
    """Features with their time, which River's evaluation asks for and no model sees."""

    moment: datetime


@cache
def rows(name: str) -> list[tuple[Timed, Any]]:
    """Features as in the messages, and the target."""
    shape = dataset_shape(name)
    found = []
    for value, time in messages(name):
        event = json.loads(value)
        x = Timed((field, float(event[field])) for field, _ in shape.fields.values())
        x.moment = datetime.fromtimestamp(time / 1000, UTC).replace(tzinfo=None)
        found.append((x, shape.target(event[TARGET])))
    return found


def rivers(name: str, model: Any, metric: Any, delay: Any = None) -> tuple[list[Any], float]:
    """River's predictions in the order of the rows, and its metric at the end.

    ``delay`` is a number of rows, a time, or a function of a row and its target that gives a time.
    """
    arguments: dict[str, Any] = {"delay": delay}
    if delay is not None and not isinstance(delay, int):
        arguments["moment"] = lambda x: x.moment
    steps = evaluate.iter_progressive_val_score(
        rows(name), model.clone(), metric, step=1, yield_predictions=True, **arguments
    )
    answers = [at["Prediction"] for at in steps]
    if callable(delay):  # River tells them in the order of their labels
        turns = np.argsort(label_times(name, delay), kind="stable").tolist()
        answers = [answer for _, answer in sorted(zip(turns, answers, strict=True), key=_first)]
    return answers, metric.get()


def _first(pair: tuple[int, Any]) -> int:
    return pair[0]


# A metric that makes River answer with probabilities where there are classes.
ASKING = {"binary": metrics.LogLoss, "multiclass": metrics.CrossEntropy, "regression": metrics.MAE}


def check(
    name: str,
    model: Any,
    metric: str,
    delay: Any,
    tolerance: float,
    found: tuple[list[dict[str, Any]], dict[str, float]],
) -> None:
    """Compare scores or probabilities, and the metric."""
    task = dataset_shape(name).task
    predictions, quality = found
    wanted, score = rivers(name, model, ASKING[task](), delay)
    if metric != ASKING[task].__name__:
        _, score = rivers(name, model, getattr(metrics, metric)(), delay)
    if task == "binary":
        given = [p["score"] for p in predictions]
        wanted = [p.get(True, 0.0) if p else None for p in wanted]
    elif task == "multiclass":
        given = [p["probabilities"] for p in predictions]
        wanted = [{str(label): p for label, p in each.items()} for each in wanted]
    else:
        given = [p["prediction"] for p in predictions]
    assert len(given) == dataset_shape(name).rows
    if tolerance == EXACT:
        assert given == wanted
    else:
        assert given == pytest.approx(wanted, rel=tolerance, abs=tolerance)
    assert quality == {metric: pytest.approx(score, rel=tolerance, abs=tolerance)}


def pipeline_of(name: str, model: Any, metric: str, delayed: bool) -> Pipeline:
    """A pipeline over a data set, its target in the event or on a topic of its own."""
    shape = dataset_shape(name)
    event, label = dataset_event(shape), inline(TARGET)
    if delayed:
        fields = [(ID, str), (TIME, int), *shape.fields.values()]
        event = msgspec.defstruct(shape.name, fields, bases=(Event,), kw_only=True)
        truth = [(ID, str), (TIME, int), ("truth", shape.target)]
        label = Delayed(
            msgspec.defstruct("Truth", truth, bases=(Label,), kw_only=True), "truth", timeout="100d"
        )
    return Pipeline(
        name=shape.pipeline,
        event=event,
        label=label,
        features=[field(column) for column, _ in shape.fields.values()],
        model=model,
        metrics=[metric],
    )


def log_reg(**parameters: Any) -> Any:
    return linear_model.LogisticRegression(**parameters)


def lin_reg(**parameters: Any) -> Any:
    return linear_model.LinearRegression(**parameters)


def scaled(model: Any) -> Any:
    return preprocessing.StandardScaler() | model


CASES = [
    ("Phishing", scaled(log_reg()), "Accuracy", CLOSE),
    ("Bananas", scaled(log_reg(optimizer=optim.Adam(), l2=0.01)), "LogLoss", CLOSE),
    ("ChickWeights", scaled(lin_reg(intercept_lr=0.1)), "MAE", CLOSE),
    ("TrumpApproval", scaled(lin_reg(optimizer=optim.AdaGrad(0.1))), "RMSE", CLOSE),
    ("Phishing", tree.HoeffdingTreeClassifier(grace_period=50), "ROCAUC", EXACT),
    ("Bananas", naive_bayes.GaussianNB(), "F1", EXACT),
    ("ImageSegments", scaled(naive_bayes.GaussianNB()), "MacroF1", EXACT),
    ("TrumpApproval", tree.HoeffdingTreeRegressor(grace_period=50), "MAE", EXACT),
]
DELAYS = {
    "TrumpApproval": timedelta(days=2, hours=12),
    "default": timedelta(seconds=90, milliseconds=500),
}


@pytest.mark.parametrize(("name", "model", "metric", "tolerance"), CASES)
def test_with_the_label_in_the_event(name, model, metric, tolerance):
    pipeline = pipeline_of(name, model, metric, delayed=False)
    assert isinstance(pipeline.learner(), CompiledLinear) == (tolerance == CLOSE)
    bus = published(pipeline, {pipeline.topics.events: messages(name)})
    check(name, model, metric, None, tolerance, run(pipeline, bus, limit=173))


def uneven(x: dict[str, float], y: Any) -> timedelta:
    """A delay that depends on the row, so that labels are out of order."""
    return timedelta(seconds=int(abs(sum(x.values())) * 37) % 900, milliseconds=500)


def label_times(name: str, delay: Any) -> list[int]:
    """The publishing time of each label, so that none equals that of an event."""
    times = [time for _, time in messages(name)]
    if isinstance(delay, int):
        after = [times[-1] + 1000 * (place + 1) for place in range(delay)]
        return [time - 1 for time in [*times, *after][delay:]]
    each = delay if callable(delay) else lambda x, y: delay
    delays = [each(x, y) for x, y in rows(name)]
    return [time + round(d.total_seconds() * 1000) for time, d in zip(times, delays, strict=True)]


def equals_with_labels_later(
    name: str, model: Any, metric: str, tolerance: float, delay: Any
) -> None:
    pipeline = pipeline_of(name, model, metric, delayed=True)
    events, labels = [], []
    for (value, time), later in zip(messages(name), label_times(name, delay), strict=True):
        event = json.loads(value)
        truth = {ID: event[ID], TIME: later, "truth": event.pop(TARGET)}
        events.append((json.dumps(event).encode(), time))
        labels.append((json.dumps(truth).encode(), later))
    labels.sort(key=lambda label: label[1])
    bus = published(pipeline, {pipeline.topics.events: events, pipeline.topics.labels: labels})
    check(name, model, metric, delay, tolerance, run(pipeline, bus, limit=173))


@pytest.mark.parametrize(("name", "model", "metric", "tolerance"), CASES)
def test_with_labels_on_their_own_topic_some_time_later(name, model, metric, tolerance):
    delay = DELAYS.get(name, DELAYS["default"])
    equals_with_labels_later(name, model, metric, tolerance, delay)


@pytest.mark.parametrize("delay", [1, 7, uneven], ids=["1 row", "7 rows", "uneven"])
@pytest.mark.parametrize(("name", "model", "metric", "tolerance"), [CASES[0], CASES[2], CASES[5]])
def test_with_labels_some_rows_later_or_each_at_its_own_time(name, model, metric, tolerance, delay):
    equals_with_labels_later(name, model, metric, tolerance, delay)


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_that_fits_in_its_own_pipeline(name):
    pipeline = dataset_pipeline(name)
    (metric,) = pipeline.metric_names
    bus = published(pipeline, {pipeline.topics.events: messages(name)})
    found, quality = run(pipeline, bus, limit=1000)
    wanted, score = rivers(name, pipeline.model, getattr(metrics, metric)())
    compiled = isinstance(pipeline.learner(), CompiledLinear)
    given = [prediction["prediction"] for prediction in found]
    if dataset_shape(name).task == "regression":
        assert compiled
        assert given == pytest.approx(wanted, rel=CLOSE, abs=CLOSE)
        score = pytest.approx(score, rel=CLOSE)
    else:
        assert given == wanted
    assert quality == {metric: score}


def test_phishing_gives_1250_predictions_and_rivers_own_accuracy():
    pipeline = dataset_pipeline("Phishing")
    bus = published(pipeline, {pipeline.topics.events: messages("Phishing")})
    found, quality = run(pipeline, bus, limit=50)
    own = evaluate.progressive_val_score(datasets.Phishing(), scaled(log_reg()), metrics.Accuracy())
    assert len(found) == 1250
    assert quality == {"Accuracy": own.get()}
