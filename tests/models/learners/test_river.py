"""Any River model as a learner."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from river import anomaly, base, dummy, ensemble, forest, linear_model, naive_bayes, preprocessing

from anabranch.models.learners.learner import NO_LABEL, StepFailed, Task
from anabranch.models.learners.river import RiverLearner
from anabranch.state.errors import DeclarationError

PL = np.array([0, 1], np.uint8)


def run(learner: RiverLearner, rows: list[list[float]], op: list[int], target: Any) -> Any:
    features = np.array(rows)
    if learner.task is not Task.MULTICLASS:
        target = np.array(target, np.float64)
    return learner.run(features, np.array(op, np.uint8), np.arange(len(op)) % len(rows), target)


def test_no_prediction_yet() -> None:
    binary = run(RiverLearner(naive_bayes.GaussianNB(), ["a"], Task.BINARY), [[1.0]], [0], [0])
    assert np.isnan(binary.values[0])
    assert binary.labels.tolist() == [NO_LABEL]
    many = run(RiverLearner(naive_bayes.GaussianNB(), ["a"], Task.MULTICLASS), [[1.0]], [0], [0])
    assert (many.values, many.labels) == ([{}], [None])


def test_a_model_without_probabilities_serves_its_label() -> None:
    pair = [linear_model.LogisticRegression(), linear_model.PAClassifier()]
    learner = RiverLearner(ensemble.VotingClassifier(pair), ["a"], Task.BINARY)
    answers = run(learner, [[2.0], [-2.0]], [1, 1, 0, 0], [1, 0, 0, 0])
    assert answers.values.tolist() == [1.0, 0.0]
    assert answers.labels.tolist() == [1, 0]


def test_a_tie_goes_to_the_class_that_river_prefers() -> None:
    """Of two equally probable classes River names the one that it saw first."""
    learner = RiverLearner(dummy.PriorClassifier(), ["a"], Task.BINARY)
    answers = run(learner, [[0.0]], [1, 1, 0], [1, 0, 0])
    assert (answers.values.tolist(), answers.labels.tolist()) == ([0.5], [1])
    learner = RiverLearner(dummy.PriorClassifier(), ["a"], Task.BINARY)
    answers = run(learner, [[0.0]], [1, 1, 0], [0, 1, 0])
    assert (answers.values.tolist(), answers.labels.tolist()) == ([0.5], [0])


def test_a_model_with_its_own_rule_for_the_label_keeps_it() -> None:
    class Cautious(dummy.PriorClassifier):
        def predict_one(self, x: Any, **kwargs: Any) -> bool:
            return self.predict_proba_one(x).get(True, 0.0) > 0.9

    learner = RiverLearner(Cautious(), ["a"], Task.BINARY)
    answers = run(learner, [[0.0]], [1, 1, 1, 0], [1, 0, 1, 0])
    assert answers.values.tolist() == [pytest.approx(2 / 3)]
    assert answers.labels.tolist() == [0]


def test_targets_are_bools_and_features_floats() -> None:
    seen: list[Any] = []

    class Spy(base.Classifier):
        def learn_one(self, x: Any, y: Any) -> None:
            seen.append((x, y))

        def predict_proba_one(self, x: Any, **kwargs: Any) -> Any:
            return {}

    run(RiverLearner(Spy(), ["a", "b"], Task.BINARY), [[1, 2]], [1, 1], [1, 0])
    assert seen == [({"a": 1.0, "b": 2.0}, True), ({"a": 1.0, "b": 2.0}, False)]
    assert [type(y) for _, y in seen] == [bool, bool]


def test_anomaly_scores_and_filters() -> None:
    scaled = preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(seed=1, window_size=3)
    learner = RiverLearner(scaled, ["a"], Task.ANOMALY)
    rows = [[0.4], [0.5], [0.6], [0.5], [9.0]]
    assert np.isfinite(run(learner, rows, [1, 1, 1, 0, 0], [0] * 5).values).all()
    verdicts = anomaly.ThresholdFilter(anomaly.HalfSpaceTrees(seed=1), threshold=0.5)
    filtered = run(RiverLearner(verdicts, ["a"], Task.ANOMALY), [[0.4]], [1, 0], [0, 0])
    assert filtered.values.tolist() == [0.0]


def test_a_failing_model_names_the_step() -> None:
    class Fragile(linear_model.LinearRegression):
        def learn_one(self, x: Any, y: Any, w: float = 1.0) -> None:
            raise ZeroDivisionError("nothing to divide by")

    learner = RiverLearner(Fragile(), ["a"], Task.REGRESSION)
    with pytest.raises(StepFailed, match=r"Fragile failed while learning: .*nothing") as raised:
        run(learner, [[1.0]], [0, 0, 1], [0, 0, 0])
    assert raised.value.step == 2
    assert len(raised.value.predictions.values) == 2


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (linear_model.LinearRegression(), Task.BINARY, "give a classifier"),
        (linear_model.LogisticRegression(), Task.MULTICLASS, "more than two classes"),
        (naive_bayes.GaussianNB(), Task.REGRESSION, "give a regressor"),
        (anomaly.GaussianScorer(), Task.ANOMALY, "scores without the label"),
        (preprocessing.StandardScaler() | naive_bayes.GaussianNB(), Task.ANOMALY, "GaussianNB"),
        (naive_bayes.GaussianNB, Task.BINARY, r"is a class: give an object, GaussianNB\(\)"),
    ],
)
def test_a_model_of_another_task_is_refused(model: Any, task: Task, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        RiverLearner(model, ["a"], task)


@pytest.mark.parametrize(
    "model",
    [
        forest.ARFClassifier(n_models=3, seed=3),
        ensemble.ADWINBaggingClassifier(naive_bayes.GaussianNB(), n_models=3, seed=3),
    ],
)
def test_a_pickled_copy_continues_identically(model: Any) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 2))
    op, row = np.tile(PL, 300), np.repeat(np.arange(300), 2)
    target = (features[row, 0] > 0).astype(float)
    whole = RiverLearner(model.clone(), ["a", "b"], Task.BINARY)
    want = whole.run(features, op, row, target).values.tolist()
    learner = RiverLearner(model.clone(), ["a", "b"], Task.BINARY)
    got = learner.run(features, op[:301], row[:301], target[:301]).values.tolist()
    learner = pickle.loads(pickle.dumps(learner))
    got += learner.run(features, op[301:], row[301:], target[301:]).values.tolist()
    np.testing.assert_array_equal(got, want)
    assert learner.version == 300
