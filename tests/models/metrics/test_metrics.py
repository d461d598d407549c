"""Running metrics equal River's, bit for bit, for every name and every cut."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from river import metrics as river_metrics

from anabranch.models.learners.learner import NO_LABEL, Predictions, Task
from anabranch.models.metrics.losses import LOSSES, losses
from anabranch.models.metrics.metrics import RiverMetric, metric, names_for
from anabranch.state.errors import DeclarationError

KERNELS = {
    "Accuracy", "LogLoss", "Precision", "Recall", "F1", "ROCAUC", "MAE", "MSE", "RMSE",
}  # fmt: skip
probability = st.one_of(
    st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5, 1e-300, 1 / 9, 4 / 9]), st.just(math.nan)
)
value = st.floats(-1e3, 1e3)


def river_value(name: str, task: Task, pairs: list[Any]) -> float:
    """As `progressive_val_score` would update it; pairs of truth, prediction, predicted label."""
    running = getattr(river_metrics, name)()
    for truth, prediction, label in pairs:
        if task is Task.BINARY:
            if label == NO_LABEL:
                continue
            probabilities = {False: 1.0 - prediction, True: prediction}
            running.update(bool(truth), bool(label) if running.requires_labels else probabilities)
        elif task is Task.MULTICLASS:
            if prediction:
                running.update(truth, label if running.requires_labels else prediction)
        elif not math.isnan(prediction):
            running.update(bool(truth) if task is Task.ANOMALY else truth, prediction)
    return float(running.get())


def check(name: str, task: Task, pairs: list[Any], cut: int, labelled: bool) -> None:
    want = river_value(name, task, pairs)
    ours = metric(name, task)
    assert isinstance(ours, RiverMetric) == (name not in KERNELS or task is Task.MULTICLASS)
    for part in (pairs[:cut], pairs[cut:]):
        truths = [truth for truth, _, _ in part]
        values = [prediction for _, prediction, _ in part]
        labels = [label for _, _, label in part]
        if task is Task.MULTICLASS:
            ours.update_many(truths, Predictions(values, labels))
        else:
            kept = np.array(labels, np.uint8) if labelled else None
            ours.update_many(np.array(truths, float), Predictions(np.array(values, float), kept))
        ours = pickle.loads(pickle.dumps(ours))
    # Over text labels River sums in the order of a set, which is no property of the metric.
    exact = {} if task is Task.MULTICLASS else {"rel": 0, "abs": 0}
    assert ours.value == pytest.approx(want, nan_ok=True, **exact)


@pytest.mark.parametrize("name", names_for(Task.BINARY))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    pairs=st.lists(st.tuples(st.booleans(), probability), max_size=40),
    cut=st.integers(0, 40),
    labelled=st.booleans(),
)
def test_binary(name: str, pairs: list[Any], cut: int, labelled: bool) -> None:
    def label(p: float) -> int:
        if math.isnan(p):
            return NO_LABEL
        # A model with labels of its own may choose True at a tie.
        return int(p >= 0.5 if labelled else p > 0.5)

    check(name, Task.BINARY, [(y, p, label(p)) for y, p in pairs], cut, labelled)


@pytest.mark.parametrize("name", names_for(Task.REGRESSION))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    pairs=st.lists(st.tuples(value, value | st.just(math.nan)), max_size=40), cut=st.integers(0, 40)
)
def test_regression(name: str, pairs: list[Any], cut: int) -> None:
    if name == "RMSLE":
        pairs = [(abs(y), abs(p)) for y, p in pairs]
    check(name, Task.REGRESSION, [(y, p, None) for y, p in pairs], cut, False)


@pytest.mark.parametrize("name", ["Accuracy", "MacroF1", "CrossEntropy", "CohenKappa"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    pairs=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc-")), max_size=40),
    cut=st.integers(0, 40),
)
def test_multiclass(name: str, pairs: list[Any], cut: int) -> None:
    known = [(y, {} if p == "-" else {p: 0.7, "d": 0.3}, None if p == "-" else p) for y, p in pairs]
    check(name, Task.MULTICLASS, known, cut, True)


@pytest.mark.parametrize("name", names_for(Task.ANOMALY))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(pairs=st.lists(st.tuples(st.booleans(), probability), max_size=40), cut=st.integers(0, 40))
def test_anomaly(name: str, pairs: list[Any], cut: int) -> None:
    check(name, Task.ANOMALY, [(y, p, None) for y, p in pairs], cut, False)


def test_long_running_means_do_not_drift_from_river() -> None:
    rng = np.random.default_rng(3)
    truth, guess = rng.normal(size=20_000) * 1e3, rng.normal(size=20_000)
    for name in ("MAE", "MSE", "RMSE"):
        ours, theirs = metric(name, Task.REGRESSION), getattr(river_metrics, name)()
        ours.update_many(truth, Predictions(guess))
        for y, p in zip(truth.tolist(), guess.tolist(), strict=True):
            theirs.update(y, p)
        assert ours.value == theirs.get()
    differs = [x for x in truth.tolist() if x**2 != x * x]
    for x in differs:  # where the C library's `pow` is not the product
        ours, theirs = metric("MSE", Task.REGRESSION), river_metrics.MSE()
        ours.update_many(np.array([x]), Predictions(np.zeros(1)))
        theirs.update(x, 0.0)
        assert ours.value == theirs.get()
    ours, theirs = metric("LogLoss"), river_metrics.LogLoss()
    ours.update_many((truth > 0).astype(float), Predictions(1 / (1 + np.exp(-guess * 20))))
    for y, p in zip((truth > 0).tolist(), (1 / (1 + np.exp(-guess * 20))).tolist(), strict=True):
        theirs.update(y, p)
    assert ours.value == theirs.get()


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("LogLos", Task.BINARY, "did you mean LogLoss"),
        ("MAE", Task.BINARY, "no metric 'MAE' for a binary task: there are Accuracy"),
        ("F1", Task.MULTICLASS, "did you mean MacroF1"),
        ("FBeta", Task.BINARY, "no metric 'FBeta'"),
        ("ConfusionMatrix", Task.BINARY, "no metric 'ConfusionMatrix'"),
        ("base", Task.BINARY, "no metric 'base'"),
        ("Accuracy", Task.REGRESSION, "no metric 'Accuracy' for a regression task"),
    ],
)
def test_an_unknown_name_is_one_clear_sentence(name: str, task: Task, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        metric(name, task)


def test_a_pair_that_river_cannot_score_is_counted_not_fatal() -> None:
    logs = metric("RMSLE", Task.REGRESSION)
    logs.update_many(np.array([1.0, 2.0]), Predictions(np.array([-5.0, 2.0])))
    assert isinstance(logs, RiverMetric)
    assert (logs.skipped, logs.value) == (1, 0.0)


def test_losses() -> None:
    truth = np.array([1.0, 0.0, 1.0, 1.0])
    predictions = Predictions(np.array([0.8, 0.6, 0.5, np.nan]))
    assert losses(Task.BINARY, truth, predictions).tolist()[:3] == [0.0, 1.0, 1.0]
    logs = [-math.log(0.8), -math.log(0.4), math.log(2), np.nan]
    np.testing.assert_allclose(losses(Task.BINARY, truth, predictions, "logloss"), logs)
    np.testing.assert_allclose(
        losses(Task.BINARY, truth, predictions, "brier"), [0.04, 0.36, 0.25, np.nan]
    )
    for kind in LOSSES[Task.BINARY]:
        assert np.isnan(losses(Task.BINARY, truth, predictions, kind)[3])
    classes = Predictions([{"a": 0.6, "b": 0.4}, {}], ["a", None])
    assert losses(Task.MULTICLASS, ["b", "b"], classes).tolist()[0] == 1.0
    brier = losses(Task.MULTICLASS, ["b", "b"], classes, "brier")
    assert brier[0] == pytest.approx(0.72)
    assert np.isnan(brier[1])
    assert losses(Task.REGRESSION, np.array([3.0]), Predictions(np.array([1.0])), "squared") == [
        4.0
    ]
    with pytest.raises(DeclarationError, match="there are absolute, squared"):
        losses(Task.REGRESSION, truth, predictions, "error")
