"""Compiled linear models: equal to River, converted from it, and converted back."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import compose, linear_model, naive_bayes, optim, preprocessing, tree

from anabranch.models.learners.compiled import compiled, learner_for, why_not
from anabranch.models.learners.learner import ModelError, Task
from anabranch.models.learners.linear import CompiledLinear
from anabranch.models.learners.river import RiverLearner
from anabranch.state.errors import DeclarationError

NAMES = ("a", "b", "c")
OPTIMIZERS = [optim.SGD(0.05), optim.Adam(0.02), optim.AdaGrad(0.1), optim.Adam(beta_1=0.8)]


def linear(logistic: bool, optimizer: Any, scaler: Any = None, **kwargs: Any) -> Any:
    kind = linear_model.LogisticRegression if logistic else linear_model.LinearRegression
    model = kind(optimizer=optimizer.clone(), **kwargs)
    return model if scaler is None else scaler | model


def steps(events: int, rng: np.random.Generator) -> tuple[Any, Any, Any, Any]:
    """Predict and learn each row, now and then out of turn; one column never varies."""
    features = np.column_stack(
        [rng.normal(50, 9, events), np.full(events, 0.1), rng.exponential(0.3, events)]
    )
    row = np.repeat(np.arange(events), 2)
    op = np.tile(np.array([0, 1], np.uint8), events)
    op[rng.random(op.size) < 0.1] ^= 1
    target = (features[row, 2] > 0.3).astype(float)
    return features, op, row, target


def assert_equal_runs(model: Any, learner: CompiledLinear, run: tuple[Any, ...]) -> None:
    river = RiverLearner(model, learner.names, learner.task)
    before = learner.version
    want, got = river.run(*run), learner.run(*run)
    np.testing.assert_allclose(got.values, want.values, rtol=1e-12, atol=1e-12)
    assert learner.version - before == river.version


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    logistic=st.booleans(),
    optimizer=st.sampled_from(OPTIMIZERS),
    scaler=st.sampled_from([None, True, False]),
    l2=st.sampled_from([0.0, 0.1]),
    intercept=st.tuples(st.sampled_from([0.0, -0.5]), st.sampled_from([0.0, 0.01, 0.2])),
    clip=st.sampled_from([1e12, 0.25]),
    trained=st.integers(0, 40),
)
def test_equal_to_river_from_any_start(
    seed: int, logistic: bool, optimizer: Any, scaler: bool | None, l2: float,
    intercept: tuple[float, float], clip: float, trained: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    scale = None if scaler is None else preprocessing.StandardScaler(with_std=scaler)
    model = linear(
        logistic, optimizer, scale, l2=l2, clip_gradient=clip,
        intercept_init=intercept[0], intercept_lr=intercept[1],
    )  # fmt: skip
    features, op, row, target = steps(100, rng)
    if scaler is not True:
        features[:, 0] /= 50  # unscaled, River itself would diverge
    RiverLearner(model, NAMES, Task.BINARY if logistic else Task.REGRESSION).run(
        features, op[:trained], row[:trained], target[:trained]
    )
    learner = compiled(model, NAMES)
    assert learner is not None
    run = (features, op[trained:150], row[trained:150], target[trained:150])
    assert_equal_runs(model, learner, run)
    # Given back, River continues identically, as itself and compiled.
    back = learner.to_river()
    assert type(back) is type(model)
    rest = (features, op[150:], row[150:], target[150:])
    assert_equal_runs(back, learner, rest)
    again = compiled(learner.to_river(), NAMES)
    assert again is not None
    last = (features, np.zeros(5, np.uint8), np.arange(5), np.zeros(5))
    assert again.run(*last).values.tolist() == learner.run(*last).values.tolist()


@pytest.mark.parametrize("optimizer", OPTIMIZERS[:3], ids=["sgd", "adam", "adagrad"])
def test_equal_after_a_hundred_thousand_rows(optimizer: Any) -> None:
    rng = np.random.default_rng(5)
    model = linear(True, optimizer, preprocessing.StandardScaler(), l2=1e-4)
    learner = compiled(model, NAMES)
    assert learner is not None
    assert_equal_runs(model, learner, steps(100_000, rng))


def test_a_feature_without_variance_counts_for_nothing() -> None:
    """Also when its weight is not zero, here because the model was trained before its scaler."""
    trained = linear_model.LinearRegression()
    trained.learn_one(dict.fromkeys(NAMES, 1.0), 2.0)
    model = preprocessing.StandardScaler() | trained
    learner = compiled(model, NAMES)
    assert learner is not None
    features = np.array([[1.0, 2.0, 3.0], [7.0, 2.0, 9.0]])
    op, row = np.array([0, 1, 0, 1, 0], np.uint8), np.array([1, 0, 1, 1, 0])
    assert_equal_runs(model, learner, (features, op, row, np.ones(5)))


def test_log_loss_weights_are_converted() -> None:
    loss = optim.losses.Log(weight_pos=5.0, weight_neg=0.5)
    model = linear_model.LogisticRegression(loss=loss)
    learner = compiled(model, NAMES)
    assert learner is not None
    features, *run = steps(300, np.random.default_rng(1))
    assert_equal_runs(model, learner, (features, *run))


def test_bit_equal_however_calls_are_split_and_pickled() -> None:
    model = linear(True, optim.Adam(), preprocessing.StandardScaler())
    features, op, row, target = steps(300, np.random.default_rng(2))
    whole, cut = compiled(model, NAMES), compiled(model, NAMES)
    assert whole is not None
    found = []
    for low, high in ((0, 1), (1, 7), (7, 600)):
        cut = pickle.loads(pickle.dumps(cut))
        found += cut.run(features, op[low:high], row[low:high], target[low:high]).values.tolist()
    assert found == whole.run(features, op, row, target).values.tolist()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    logistic=st.booleans(),
    optimizer=st.sampled_from(OPTIMIZERS),
    scaler=st.sampled_from([None, True, False]),
    rows=st.integers(0, 60),
)
def test_run_each_equals_single_steps_bit_for_bit(
    seed: int, logistic: bool, optimizer: Any, scaler: bool | None, rows: int
) -> None:
    scale = None if scaler is None else preprocessing.StandardScaler(with_std=scaler)
    model = linear(logistic, optimizer, scale, l2=0.01)
    features, *_ = steps(rows, np.random.default_rng(seed))
    target = (features[:, 2] > 0.3).astype(float)
    each, stepped = compiled(model, NAMES), compiled(model, NAMES)
    assert each is not None
    assert stepped is not None
    answers = each.run_each(features, target)
    assert answers is not None
    op, row = np.tile(np.array([0, 1], np.uint8), rows), np.repeat(np.arange(rows), 2)
    wanted = stepped.run(features, op, row, np.repeat(target, 2))
    assert answers.values.tobytes() == wanted.values.tobytes()
    assert each.version == stepped.version == rows
    assert pickle.dumps(each) == pickle.dumps(stepped)


@pytest.mark.parametrize("logistic", [True, False])
def test_run_each_does_nothing_when_a_target_is_unusable(logistic: bool) -> None:
    learner = compiled(linear(logistic, OPTIMIZERS[0]), NAMES)
    assert learner is not None
    before = pickle.dumps(learner)
    for bad in (np.nan, np.inf, *([0.5] if logistic else [])):
        assert learner.run_each(np.ones((3, 3)), np.array([1.0, 0.0, bad])) is None
    assert pickle.dumps(learner) == before
    assert learner.run_each(np.ones((2, 3)), np.array([1.0, 0.0])) is not None


def test_an_untrained_model_is_converted_back_unchanged() -> None:
    learner = compiled(linear(True, optim.SGD(), preprocessing.StandardScaler()), NAMES)
    assert learner is not None
    learner.run(np.ones((1, 3)), np.zeros(1, np.uint8), np.zeros(1, np.int64), np.zeros(1))
    assert learner.to_river()["LogisticRegression"].weights == {}


def adam_after_learn_many() -> Any:
    model = linear(True, optim.Adam())
    model.optimizer.m = {"a": 0.0}
    return model


UNKNOWN = [
    (tree.HoeffdingTreeClassifier(), "not a linear model"),
    (preprocessing.MinMaxScaler() | linear_model.LogisticRegression(), "not a linear model"),
    (compose.Select("a") | linear_model.LogisticRegression(), "not a linear model"),
    (linear(True, optim.FTRLProximal()), "the optimizer FTRLProximal"),
    (linear(True, optim.SGD(optim.schedulers.InverseScaling(0.1))), "InverseScaling"),
    (
        linear_model.LinearRegression(intercept_lr=optim.schedulers.InverseScaling(0.1)),
        "rate of the intercept is scheduled by InverseScaling",
    ),
    (linear(False, optim.SGD(), loss=optim.losses.Huber()), "the loss Huber"),
    (linear(False, optim.SGD(), l1=0.1), "l1"),
    (linear(True, optim.SGD(), initializer=optim.initializers.Normal()), "Normal, not Zeros"),
    (linear(True, optim.SGD(), preprocessing.StandardScaler(window_size=9)), "has a window"),
    (adam_after_learn_many(), "learn_many"),
]


@pytest.mark.parametrize(("model", "reason"), UNKNOWN)
def test_why_a_model_is_not_compiled(model: Any, reason: str) -> None:
    assert compiled(model, NAMES) is None
    assert reason in str(why_not(model))


def test_a_model_with_other_learned_features_is_not_compiled() -> None:
    model = linear_model.LogisticRegression()
    model.learn_one({"a": 1.0, "zip": 2.0}, True)
    assert compiled(model, NAMES) is None
    assert "not among the columns: zip" in str(why_not(model, NAMES))


def test_a_subclass_is_not_compiled() -> None:
    class Special(linear_model.LogisticRegression):
        pass

    assert compiled(Special(), NAMES) is None


def test_a_model_that_runs_as_river_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert isinstance(
            learner_for(linear_model.LogisticRegression(), NAMES, Task.BINARY), CompiledLinear
        )
        assert caplog.records == []
        learner = learner_for(naive_bayes.GaussianNB(), NAMES, Task.BINARY)
    assert isinstance(learner, RiverLearner)
    assert [r.getMessage() for r in caplog.records] == [
        "GaussianNB runs as River, not compiled: GaussianNB is not a linear model with an optional "
        "StandardScaler before it"
    ]


def test_wrong_task_and_wrong_width_are_refused() -> None:
    with pytest.raises(DeclarationError, match="can't do a regression task: give a regressor"):
        learner_for(linear_model.LogisticRegression(), NAMES, Task.REGRESSION)
    learner = learner_for(linear_model.LinearRegression(), NAMES, Task.REGRESSION)
    with pytest.raises(ModelError, match="rows have 2 features, the model has 3"):
        learner.run(np.ones((1, 2)), np.zeros(1, np.uint8), np.zeros(1, np.int64), np.zeros(1))
