"""Full pickles and logged rows: many River models restored, and when each is written."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import (
    anomaly,
    base,
    compose,
    dummy,
    ensemble,
    facto,
    feature_extraction,
    feature_selection,
    forest,
    linear_model,
    naive_bayes,
    neighbors,
    optim,
    preprocessing,
    rules,
    tree,
)

from anabranch.models.learners.checkpoint import Bounds, Checkpoint, restored
from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import LEARN, PREDICT, Learner, Task
from anabranch.models.learners.pickling import unchanged_by_predicting, why_not_picklable
from anabranch.models.learners.river import RiverLearner
from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta, decode, encode, merge

NAMES = ("a", "b", "c")
ROWS = 600
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(ROWS, 3))
SIGNS = (FEATURES[:, 0] + FEATURES[:, 1] * FEATURES[:, 2] > 0) ^ (np.arange(ROWS) > 350)
LOGGED = Bounds(pickle_bytes=0)

HT = tree.HoeffdingTreeClassifier
LOGREG = linear_model.LogisticRegression


def quick_tree(**arguments: Any) -> Any:
    return HT(grace_period=20, delta=0.05, **arguments)


BINARY = [
    forest.ARFClassifier(n_models=3, seed=1, grace_period=20),
    preprocessing.StandardScaler() | forest.ARFClassifier(n_models=2, seed=1, leaf_prediction="mc"),
    forest.AMFClassifier(n_estimators=3, seed=1),
    quick_tree(),
    quick_tree(splitter=tree.splitter.HistogramSplitter()),
    tree.HoeffdingAdaptiveTreeClassifier(grace_period=20, delta=0.05, seed=1),
    tree.ExtremelyFastDecisionTreeClassifier(grace_period=20, min_samples_reevaluate=20),
    tree.LASTClassifier(),
    tree.SGTClassifier(grace_period=20),
    ensemble.ADWINBaggingClassifier(quick_tree(), n_models=3, seed=1),
    ensemble.LeveragingBaggingClassifier(quick_tree(), n_models=3, seed=1),
    ensemble.BaggingClassifier(LOGREG(), n_models=3, seed=1),
    ensemble.SRPClassifier(n_models=2, seed=1),
    ensemble.AdaBoostClassifier(quick_tree(), n_models=2, seed=1),
    ensemble.ADWINBoostingClassifier(LOGREG(), n_models=2, seed=1),
    ensemble.BOLEClassifier(quick_tree(), n_models=2, seed=1),
    ensemble.StackingClassifier([LOGREG(), naive_bayes.GaussianNB()], meta_classifier=LOGREG()),
    ensemble.VotingClassifier([LOGREG(), quick_tree(), naive_bayes.GaussianNB()]),
    neighbors.KNNClassifier(engine=neighbors.LazySearch(window_size=50)),
    neighbors.KNNClassifier(engine=neighbors.SWINN(maxlen=80, warm_up=30, seed=1)),
    naive_bayes.GaussianNB(),
    naive_bayes.BernoulliNB(),
    preprocessing.StandardScaler() | LOGREG(),
    LOGREG(initializer=optim.initializers.Normal(seed=1)),
    preprocessing.AdaptiveStandardScaler() | LOGREG(optimizer=optim.FTRLProximal()),
    preprocessing.RobustScaler() | linear_model.PAClassifier(),
    preprocessing.MinMaxScaler() | linear_model.Perceptron(),
    preprocessing.MaxAbsScaler() | linear_model.ALMAClassifier(),
    preprocessing.GaussianRandomProjector(2, seed=1) | LOGREG(),
    feature_extraction.RBFSampler(seed=1) | LOGREG(),
    feature_extraction.PolynomialExtender() | LOGREG(),
    feature_selection.PoissonInclusion(p=0.3, seed=1) | LOGREG(),
    preprocessing.LDA(n_components=2, seed=1) | LOGREG(),
    (compose.Select("a", "b") + preprocessing.StandardScaler()) | LOGREG(),
    compose.Discard("a") | quick_tree(),
    facto.FMClassifier(seed_initializer=1)
    if "seed_initializer" in facto.FMClassifier.__init__.__annotations__
    else facto.FMClassifier(seed=1),
    dummy.PriorClassifier(),
    dummy.NoChangeClassifier(),
]
REGRESSION = [
    forest.ARFRegressor(n_models=3, seed=1, grace_period=20),
    forest.AMFRegressor(n_estimators=3, seed=1),
    forest.OXTRegressor(n_models=2, seed=1, grace_period=20),
    tree.HoeffdingTreeRegressor(grace_period=20, delta=0.05),
    tree.HoeffdingTreeRegressor(grace_period=20, splitter=tree.splitter.QOSplitter()),
    tree.HoeffdingAdaptiveTreeRegressor(grace_period=20, seed=1),
    tree.SGTRegressor(grace_period=20),
    ensemble.BaggingRegressor(linear_model.LinearRegression(), n_models=3, seed=1),
    ensemble.SRPRegressor(n_models=2, seed=1),
    ensemble.EWARegressor([linear_model.LinearRegression(), linear_model.PARegressor()]),
    neighbors.KNNRegressor(engine=neighbors.LazySearch(window_size=50)),
    rules.AMRules(n_min=20),
    linear_model.BayesianLinearRegression(),
    preprocessing.StandardScaler() | linear_model.LinearRegression(optimizer=optim.Adam()),
    preprocessing.TargetStandardScaler(linear_model.LinearRegression()),
    facto.FMRegressor(seed=1),
    dummy.StatisticRegressor(__import__("river").stats.Mean()),
]
ANOMALY = [
    anomaly.HalfSpaceTrees(n_trees=4, height=4, window_size=20, seed=1),
    preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(n_trees=3, window_size=20, seed=1),
    anomaly.QuantileFilter(anomaly.HalfSpaceTrees(n_trees=3, window_size=20, seed=1), q=0.9),
    anomaly.ThresholdFilter(anomaly.HalfSpaceTrees(n_trees=3, window_size=9, seed=1), 0.6),
    anomaly.OneClassSVM(),
    anomaly.LocalOutlierFactor(n_neighbors=5),
]
MODELS = [
    (task, model)
    for task, models in (
        (Task.BINARY, BINARY),
        (
            Task.MULTICLASS,
            [quick_tree(), forest.ARFClassifier(2, seed=1), naive_bayes.GaussianNB()],
        ),
        (Task.REGRESSION, REGRESSION),
        (Task.ANOMALY, ANOMALY),
    )
    for model in models
]


def target(task: Task, row: Any) -> Any:
    if task is Task.MULTICLASS:
        return [("no", "yes", "perhaps")[int(SIGNS[r]) + (r % 5 == 0)] for r in row.tolist()]
    return FEATURES[row].sum(axis=1) if task is Task.REGRESSION else SIGNS[row].astype(float)


def go(runner: Any, task: Task, low: int, high: int) -> list[str]:
    """Predict each row, and learn it thirty steps later; predictions, comparable bit for bit."""
    row = np.arange(2 * low, 2 * high)
    op = np.where(row % 2 == 0, PREDICT, LEARN).astype(np.uint8)
    row = np.where(row % 2 == 0, row // 2, np.maximum(row // 2 - 30, 0))
    if task is Task.ANOMALY and low == 0:
        op[::3] = LEARN
    answers = runner.run(FEATURES, op, row, target(task, row))
    return [repr(list(answers.values)), repr(answers.labels)]


def image(deltas: list[Delta]) -> Delta:
    return merge([decode(encode(delta)) for delta in deltas])


def name_of(value: Any) -> str | None:
    if isinstance(value, Task):
        return value.value
    return str(value).replace(" ", "")[:40] if isinstance(value, base.Base) else None


@pytest.mark.parametrize(("task", "model"), MODELS, ids=name_of)
@pytest.mark.parametrize("first", [0, 200])
def test_logged_rows_rebuild_a_model(task: Task, model: Any, first: int) -> None:
    """The full pickle is taken fresh, or after 200 rows; the rest comes from the log."""
    assert why_not_picklable(model) is None
    whole = RiverLearner(model.clone(), NAMES, task)
    kept = Checkpoint(
        "m", RiverLearner(pickle.loads(pickle.dumps(whole.model)), NAMES, task), LOGGED
    )
    assert go(kept, task, 0, first) == go(whole, task, 0, first) if first else True
    deltas = [kept.changes()]
    for low, high in ((first, 250), (250, 251), (251, 400)):
        assert go(kept, task, low, high) == go(whole, task, low, high)
        deltas.append(kept.changes())
        assert not deltas[-1].blobs
    again = Checkpoint("m", RiverLearner(model.clone(), NAMES, task), LOGGED)
    again.restore(image(deltas))
    assert again.learner.version == whole.version
    want = go(whole, task, 400, 500)
    assert go(again, task, 400, 500) == want
    undeclared = restored("m", image(deltas))
    assert undeclared is not None
    assert go(undeclared, task, 400, 500) == want
    # What was restored logs on behind what it was given.
    deltas.append(again.changes())
    third = Checkpoint("m", RiverLearner(model.clone(), NAMES, task), LOGGED)
    third.restore(image(deltas))
    assert go(third, task, 500, ROWS) == go(whole, task, 500, ROWS)


UNCHANGED = [(task, model) for task, model in MODELS if unchanged_by_predicting(model)]


def test_large_models_are_known_to_be_unchanged_by_predicting() -> None:
    assert len(UNCHANGED) >= 30
    for model in (HT(), forest.ARFClassifier(), forest.ARFRegressor(), ensemble.SRPClassifier()):
        assert unchanged_by_predicting(model)
    for model in (
        feature_selection.PoissonInclusion(p=0.3, seed=1) | LOGREG(),
        preprocessing.LDA(n_components=2, seed=1) | LOGREG(),
        neighbors.KNNClassifier(engine=neighbors.SWINN()),
        ensemble.BaggingClassifier(facto.FMClassifier()),
    ):
        assert not unchanged_by_predicting(model)


@pytest.mark.parametrize(("task", "model"), UNCHANGED, ids=name_of)
def test_predicting_changes_no_byte_of_the_pickle(task: Task, model: Any) -> None:
    """Its pickle is the same to the byte: no counter, no random number, no memory of the row."""
    learner = RiverLearner(model.clone(), NAMES, task)
    go(learner, task, 0, 300)
    learner = pickle.loads(pickle.dumps(learner, protocol=5))
    before = pickle.dumps(learner, protocol=5)
    row = np.arange(300, 400)
    learner.run(FEATURES, np.zeros(100, np.uint8), row, target(task, row))
    assert pickle.dumps(learner, protocol=5) == before


def test_in_another_process_with_other_hashes(tmp_path: Path) -> None:
    """Sets of text are ordered by hashes, which differ from one process to the next."""
    images, wanted = [], []
    for task, model in MODELS:
        kept = Checkpoint("m", RiverLearner(model.clone(), NAMES, task), LOGGED)
        go(kept, task, 0, 200)
        deltas = [kept.changes()]
        go(kept, task, 200, 400)
        images.append((task, image([*deltas, kept.changes()])))
        wanted.append(go(kept, task, 400, ROWS))
    (tmp_path / "images").write_bytes(pickle.dumps(images))
    code = (
        "import pickle, sys; from tests.models.learners.test_checkpoint import *\n"
        "images = pickle.load(open(sys.argv[1], 'rb')); found = []\n"
        "for (task, image), (_, model) in zip(images, MODELS, strict=True):\n"
        "    kept = Checkpoint('m', RiverLearner(model.clone(), NAMES, task), LOGGED)\n"
        "    kept.restore(image); found.append(go(kept, task, 400, ROWS))\n"
        "pickle.dump(found, open(sys.argv[1] + '.found', 'wb'))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code, str(tmp_path / "images")]
    subprocess.run(command, env=environment, cwd=root, check=True)
    found = pickle.loads((tmp_path / "images.found").read_bytes())
    different = [str(MODELS[i][1]) for i in range(len(found)) if found[i] != wanted[i]]
    assert not different


class Clock:
    """A clock that is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(Learner):
    """A learner that takes a second for each row, and a while to pickle."""

    task, names, version = Task.REGRESSION, ("a",), 0

    def __init__(self, clock: Clock, pickle_s: float) -> None:
        self.clock, self.pickle_s, self.rows = clock, pickle_s, []

    def run(self, features: Any, op: Any, row: Any, target: Any) -> Any:
        self.clock.now += len(op)
        self.version += len(op)
        self.rows += features[row, 0].tolist()

    def __getstate__(self) -> Any:
        self.clock.now += self.pickle_s
        return self.__dict__ | {"clock": Clock()}


def learn(kept: Checkpoint, rows: int) -> None:
    kept.run(np.ones((1, 1)), np.ones(rows, np.uint8), np.zeros(rows, int), np.zeros(rows))


def test_when_a_large_model_is_pickled_again() -> None:
    clock = Clock()
    kept = Checkpoint("m", Slow(clock, pickle_s=2.0), Bounds(replay_s=10.0, share=0.05), clock)
    assert "full" in kept.changes().blobs
    for rows in (5, 5, 1):  # 11 s to learn again, but only 11 of the 40 s have passed
        learn(kept, rows)
        delta = kept.changes()
        assert len(delta.rows["log"]) == rows
        assert not delta.blobs
    assert delta.rows["log"].index.tolist() == [10]
    clock.now += 28.0
    assert not kept.changes()
    clock.now += 1.0
    delta = kept.changes()
    assert "full" in delta.blobs
    assert "log" in delta.cleared
    clock.now += 1_000.0  # time alone is no reason, when there is little to learn again
    learn(kept, 10)
    assert kept.changes().rows["log"].index.tolist() == list(range(10))


class Ticking(Clock):
    """A clock that advances a second with each call."""

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_a_new_full_pickle_clears_the_log_before_it() -> None:
    bounds = Bounds(pickle_bytes=0, replay_s=2.5, share=1e9)  # three runs, then a full one
    whole = RiverLearner(quick_tree(), NAMES, Task.BINARY)
    kept = Checkpoint("m", RiverLearner(quick_tree(), NAMES, Task.BINARY), bounds, Ticking())
    deltas = [kept.changes()]
    for low in range(0, 400, 40):
        assert go(kept, Task.BINARY, low, low + 40) == go(whole, Task.BINARY, low, low + 40)
        deltas.append(kept.changes())
        again = Checkpoint("m", RiverLearner(quick_tree(), NAMES, Task.BINARY), bounds)
        again.restore(image(deltas))
        assert again.learner.version == whole.version
    full = ["full" in delta.blobs for delta in deltas]
    assert full == [True, False, False, True, False, False, True, False, False, True, False]
    assert go(again, Task.BINARY, 400, ROWS) == go(whole, Task.BINARY, 400, ROWS)


def test_a_log_larger_than_the_model_is_replaced() -> None:
    clock = Clock()
    bounds = Bounds(replay_s=1e9, log_bytes=17 * 9)
    kept = Checkpoint("m", Slow(clock, pickle_s=0.1), bounds, clock)
    kept.changes()
    kept._full_bytes = 0
    learn(kept, 9)
    assert not kept.changes().blobs
    learn(kept, 1)
    assert "full" in kept.changes().blobs


def test_a_small_model_is_pickled_each_time_and_logs_nothing() -> None:
    clock = Clock()
    learner = Slow(clock, pickle_s=0.01)
    kept = Checkpoint("m", learner, clock=clock)
    for _ in range(3):
        learn(kept, 3)
        assert set(kept.changes().blobs) == {"full", "cost"}
    learner.pickle_s = 0.5
    learn(kept, 1)
    assert "full" in kept.changes().blobs
    learn(kept, 1)
    assert not kept.changes().blobs


def test_small_models_are_not_logged_and_cost_nothing() -> None:
    model = preprocessing.StandardScaler() | LOGREG()
    learner: Learner = learner_for(model, NAMES, Task.BINARY)
    kept = Checkpoint("m", learner)
    kept.changes()
    assert kept.run == learner.run


def not_found(x: Any) -> Any:
    return x


def test_why_a_model_can_not_be_pickled() -> None:
    assert "can't be pickled" in str(why_not_picklable(compose.FuncTransformer(lambda x: x)))
    assert why_not_picklable(compose.FuncTransformer(not_found)) is None
    assert "addresses" in str(
        why_not_picklable(feature_extraction.RandomTreesEmbedding() | LOGREG())
    )
    hat = tree.HoeffdingAdaptiveTreeClassifier
    assert "has no seed" in str(why_not_picklable(ensemble.LeveragingBaggingClassifier(hat())))
    assert why_not_picklable(ensemble.LeveragingBaggingClassifier(hat(seed=3))) is None
    assert why_not_picklable(preprocessing.StandardScaler() | forest.ARFClassifier()) is None
    learner = RiverLearner(compose.FuncTransformer(lambda x: x) | LOGREG(), NAMES, Task.BINARY)
    with pytest.raises(StateError, match=r"model 'm' can't be pickled.*named functions"):
        Checkpoint("m", learner).changes()
