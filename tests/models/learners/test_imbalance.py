"""Imbalanced classes: equal to River's wrappers and weights, calibrated, restored anywhere."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import (
    anomaly,
    datasets,
    evaluate,
    forest,
    imblearn,
    linear_model,
    metrics,
    naive_bayes,
    optim,
    preprocessing,
    tree,
)

from anabranch import Event, Pipeline, class_weights, field, inline, oversample, undersample
from anabranch.models.learners.checkpoint import Bounds, Checkpoint
from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.imbalance import Imbalance, with_imbalance
from anabranch.models.learners.learner import LEARN, PREDICT, Learner, Predictions, Task
from anabranch.models.learners.linear import CompiledLinear
from anabranch.models.learners.resampling import ResampledLearner, Sampler, corrected
from anabranch.models.learners.river import RiverLearner
from anabranch.models.prequential.batch import EventBatch
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.prequential import Prequential
from anabranch.state.errors import DeclarationError
from anabranch.state.store.delta import Delta, decode, encode, merge
from tests.support.checkpoint_pipeline import Kept, refused, trades, went_well
from tests.support.commands import Call, caller

NAMES = ("a", "b")
LOGGED = Bounds(pickle_bytes=0)
SCALED = preprocessing.StandardScaler() | linear_model.LogisticRegression()
TREE = tree.HoeffdingTreeClassifier(grace_period=10, delta=0.1)
MODELS = {
    "compiled": (Task.BINARY, SCALED),
    "bayes": (Task.BINARY, naive_bayes.GaussianNB()),
    "tree": (Task.BINARY, TREE),
    "forest": (Task.BINARY, forest.ARFClassifier(n_models=2, seed=3, grace_period=10)),
    "several": (Task.MULTICLASS, naive_bayes.GaussianNB()),
}
Steps = tuple[Any, Any, Any, Any]


def steps(task: Task, seed: int, rows: int, share: float) -> Steps:
    """Predict and learn each row, now and then out of turn; some classes are rare."""
    rng = np.random.default_rng(seed)
    rare = rng.random(rows) < share
    features = rng.normal(size=(rows, 2)) + 1.5 * rare[:, None]
    row = np.repeat(np.arange(rows), 2)
    op = np.tile(np.array([PREDICT, LEARN], np.uint8), rows)
    op[rng.random(op.size) < 0.1] ^= 1
    if task is Task.BINARY:
        return features, op, row, rare[row].astype(float)
    kinds = np.where(rare, rng.integers(1, 3, rows), 0)
    return features, op, row, [("usual", "rare", "odd")[kind] for kind in kinds[row].tolist()]


def shares(task: Task, part: float) -> dict[Any, float]:
    if task is Task.BINARY:
        return {True: part, False: 1.0 - part}
    return {"usual": part, "rare": (1.0 - part) / 2, "odd": (1.0 - part) / 2}


def texts(predictions: Predictions) -> list[str]:
    """Comparable bit by bit."""
    labels = predictions.labels
    return [repr(list(predictions.values)), repr(None if labels is None else list(labels))]


def in_pieces(learner: Learner, run: Steps, cuts: list[int], pickled: bool = False) -> list[str]:
    features, op, row, target = run
    values: list[Any] = []
    labels: list[Any] = []
    for low, high in pairwise([0, *sorted(cuts), len(op)]):
        if pickled:
            learner = pickle.loads(pickle.dumps(learner))
        part = learner.run(features, op[low:high], row[low:high], target[low:high])
        values += list(part.values)
        labels += list(part.labels if learner.task is Task.MULTICLASS else part.binary_labels())
    return [repr(values), repr(labels), repr(learner.version)]


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("over", [False, True])
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    part=st.sampled_from([0.5, 0.3, 0.9]),
    share=st.sampled_from([0.0, 0.02, 0.2, 0.5, 0.95]),
)
def test_equal_to_rivers_wrapper(
    case: str, over: bool, seed: int, part: float, share: float
) -> None:
    task, model = MODELS[case]
    run, desired = steps(task, seed, 150, share), shares(task, part)
    wrapper = imblearn.RandomOverSampler if over else imblearn.RandomUnderSampler
    river = RiverLearner(wrapper(model.clone(), desired, seed=seed), NAMES, task)
    declare = oversample if over else undersample
    learner = with_imbalance(
        learner_for(model.clone(), NAMES, task), declare(desired, seed=seed, correct=False)
    )
    assert isinstance(learner, ResampledLearner)
    want, got = river.run(*run), learner.run(*run)
    if case == "compiled":
        assert isinstance(learner.inner, CompiledLinear)
        np.testing.assert_allclose(got.values, want.values, rtol=1e-12, atol=1e-12)
    else:
        assert texts(got) == texts(want)
    assert learner.version == river.version


def test_progressive_validation_is_that_of_rivers_wrapper() -> None:
    rows = [({k: float(v) for k, v in x.items()}, y) for x, y in datasets.Phishing()]
    desired = {True: 0.8, False: 0.2}
    river = imblearn.RandomUnderSampler(TREE.clone(), desired, seed=42)
    want = evaluate.progressive_val_score(rows, river, metrics.LogLoss())
    names = tuple(rows[0][0])
    declared = undersample(desired, seed=42, correct=False)
    learner = with_imbalance(learner_for(TREE.clone(), names, Task.BINARY), declared)
    step = Prequential({"m": learner}, PrequentialSettings(metrics=["LogLoss"], inline=True))
    features = np.array([list(x.values()) for x, _ in rows])
    truths = np.array([float(y) for _, y in rows])
    for low in range(0, len(rows), 100):
        part = slice(low, low + 100)
        step.run_inline(
            EventBatch(features[part], np.zeros(len(truths[part]), np.int64)), truths[part]
        )
    assert step.models.metrics["m"]["LogLoss"].value == want.get()


@pytest.mark.parametrize("case", MODELS)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999),
    over=st.booleans(),
    correct=st.booleans(),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_bit_equal_however_calls_are_split_and_pickled(
    case: str, seed: int, over: bool, correct: bool, cuts: list[int]
) -> None:
    task, model = MODELS[case]
    declare = oversample if over else undersample
    declared = declare(shares(task, 0.5), seed=seed, correct=correct)
    whole, cut, copied = (
        with_imbalance(learner_for(model.clone(), NAMES, task), declared) for _ in range(3)
    )
    run = steps(task, seed, 100, 0.1)
    want = in_pieces(whole, run, [])
    assert in_pieces(cut, run, cuts) == want
    assert in_pieces(copied, run, cuts, pickled=True) == want


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("bounds", [None, LOGGED], ids=["pickled", "logged"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), killed=st.lists(st.integers(0, 200), max_size=4))
def test_a_checkpoint_draws_the_same_rows_again(
    case: str, bounds: Bounds | None, seed: int, killed: list[int]
) -> None:
    task, model = MODELS[case]
    declared = undersample(shares(task, 0.5), seed=seed)

    def fresh() -> Learner:
        return with_imbalance(learner_for(model.clone(), NAMES, task), declared)

    features, op, row, target = steps(task, seed, 100, 0.1)
    whole, kept = fresh(), Checkpoint("m", fresh(), bounds)
    deltas: list[Delta] = []
    for low, high in pairwise([0, *sorted(killed), op.size]):
        part = features, op[low:high], row[low:high], target[low:high]
        deltas.append(kept.changes())
        kept.run(*part)  # is lost, and done again
        kept = Checkpoint("m", fresh(), bounds)
        kept.restore(merge([decode(encode(delta)) for delta in deltas]))
        assert texts(kept.run(*part)) == texts(whole.run(*part))
        assert kept.learner.version == whole.version


def rare_stream(rows: int, seed: int) -> tuple[Any, Any, Any]:
    """Features, whether it is so, and the true probability: 2 % on average."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 2))
    chance = 1 / (1 + np.exp(-(features @ [1.0, -0.5] - 4.4)))
    return features, (rng.random(rows) < chance).astype(float), chance


def loss(truth: Any, p: Any) -> float:
    p = np.clip(p, 1e-15, 1 - 1e-15)
    return float(-np.mean(np.where(truth == 1.0, np.log(p), np.log(1 - p))))


@pytest.mark.parametrize("declare", [undersample, oversample])
def test_corrected_scores_are_probabilities_of_the_stream(declare: Any) -> None:
    features, truth, chance = rare_stream(40_000, 3)
    found = {}
    for correct in (True, False):
        inner = learner_for(linear_model.LogisticRegression(optim.SGD(0.02)), NAMES, Task.BINARY)
        declared = declare({True: 0.5, False: 0.5}, seed=1, correct=correct)
        learner = with_imbalance(inner, declared)
        at = np.arange(len(truth))
        op = np.tile(np.array([PREDICT, LEARN], np.uint8), len(truth))
        found[correct] = learner.run(features, op, np.repeat(at, 2), np.repeat(truth, 2))
    late = slice(20_000, None)
    served, raw = found[True].values[late], found[False].values[late]
    assert abs(served.mean() - chance[late].mean()) < 0.005
    assert raw.mean() > 0.2
    assert loss(truth[late], served) < 1.1 * loss(truth[late], chance[late])
    assert loss(truth[late], raw) > 3 * loss(truth[late], served)
    # What the model says is not touched: it finds the rare ones.
    labels = found[True].binary_labels()
    assert labels.tolist() == found[False].binary_labels().tolist()
    assert labels[late][truth[late] == 1.0].mean() > 0.5


@given(
    ps=st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), min_size=1, max_size=20),
    beta=st.floats(1e-6, 1e3),
)
def test_correction_divides_the_odds(ps: list[float], beta: float) -> None:
    got = corrected(np.array(ps), beta)
    for p, found in zip(ps, got.tolist(), strict=True):
        if p != p or p in (0.0, 1.0):
            assert found == p or (p != p and found != found)
        elif 1e-9 < p < 1 - 1e-9:
            assert found / (1 - found) == pytest.approx(p / (1 - p) * beta, rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.booleans(), max_size=300), seed=st.integers(0, 99), over=st.booleans(),
    part=st.sampled_from([0.5, 0.2, 0.9]),
)  # fmt: skip
def test_each_prediction_is_corrected_by_what_was_counted_before_it(
    labels: list[bool], seed: int, over: bool, part: float
) -> None:
    """Beta is the ratio of the odds desired and counted; nothing is corrected before both came."""
    declare = oversample if over else undersample
    both = [
        with_imbalance(
            learner_for(linear_model.LogisticRegression(), NAMES, Task.BINARY),
            declare({True: part, False: 1 - part}, seed=seed, correct=correct),
        )
        for correct in (True, False)
    ]
    size = len(labels)
    op = np.tile(np.array([PREDICT, LEARN], np.uint8), size)
    target = np.repeat(np.array(labels, np.float64), 2)
    features = np.random.default_rng(seed).normal(size=(max(size, 1), 2))
    run = features, op, np.repeat(np.arange(size), 2), target
    got, raw = both[0].run(*run), both[1].run(*run)
    for i in range(size):
        yes = sum(labels[:i])
        no = i - yes
        beta = (1 - part) / part * yes / no if yes and no else 1.0
        p = raw.values[i]
        assert got.values[i] == pytest.approx(beta * p / (beta * p - p + 1), rel=1e-12)
    assert got.binary_labels().tolist() == raw.binary_labels().tolist()


def test_of_several_classes_each_is_divided_by_its_rate() -> None:
    run = steps(Task.MULTICLASS, 4, 400, 0.1)
    desired = {"usual": 0.4, "rare": 0.6}  # of "odd" nothing is said: all of them are learned
    both = [
        with_imbalance(
            learner_for(naive_bayes.GaussianNB(), NAMES, Task.MULTICLASS),
            undersample(desired, seed=2, correct=correct),
        )
        for correct in (True, False)
    ]
    got, raw = both[0].run(*run), both[1].run(*run)
    usual, rare = (sum(o == LEARN and y == name for o, y in zip(run[1], run[3], strict=True))
                   for name in ("usual", "rare"))  # fmt: skip
    assert got.labels == raw.labels
    # The last step but one of the stream is a prediction, after which one row was learned.
    assert run[1][-2:].tolist() == [PREDICT, LEARN]
    usual -= run[3][-1] == "usual"
    rare -= run[3][-1] == "rare"
    rate = (0.4 / usual) / (0.6 / rare)
    weighed = raw.values[-1] | {"usual": raw.values[-1]["usual"] / rate}
    total = sum(weighed.values())
    assert 0 < rate < 1
    assert got.values[-1] == pytest.approx({name: p / total for name, p in weighed.items()})


def test_the_rows_drawn_have_the_desired_shares() -> None:
    rng = np.random.default_rng(1)
    sampler = Sampler({True: 0.3, False: 0.7}, seed=1)
    drawn = {True: 0, False: 0}
    for label in (rng.random(50_000) < 0.01).tolist():
        drawn[label] += sampler.draw(label)
    assert drawn[True] == pytest.approx(500, abs=100)
    assert drawn[True] / sum(drawn.values()) == pytest.approx(0.3, abs=0.03)


WEIGHTS = {True: 10.0, False: 0.5}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    optimizer=st.sampled_from([optim.SGD(0.05), optim.Adam(0.02), optim.AdaGrad(0.1)]),
    own=st.sampled_from([(1.0, 1.0), (3.0, 0.7)]),
    cut=st.integers(0, 300),
)
def test_compiled_weights_are_those_of_rivers_log_loss(
    seed: int, optimizer: Any, own: tuple[float, float], cut: int
) -> None:
    def model(positive: float, negative: float) -> Any:
        log = optim.losses.Log(weight_pos=positive, weight_neg=negative)
        logistic = linear_model.LogisticRegression(optimizer.clone(), loss=log)
        return preprocessing.StandardScaler() | logistic

    run = steps(Task.BINARY, seed, 150, 0.1)
    learner = with_imbalance(learner_for(model(*own), NAMES, Task.BINARY), class_weights(WEIGHTS))
    assert isinstance(learner, CompiledLinear)
    want = RiverLearner(model(own[0] * 10.0, own[1] * 0.5), NAMES, Task.BINARY).run(*run)
    np.testing.assert_allclose(learner.run(*run).values, want.values, rtol=1e-12, atol=1e-12)
    # And those that River multiplies the gradient by.
    again = with_imbalance(RiverLearner(model(*own), NAMES, Task.BINARY), class_weights(WEIGHTS))
    np.testing.assert_allclose(again.run(*run).values, want.values, rtol=1e-12, atol=1e-12)
    whole, cut_up = (
        with_imbalance(learner_for(model(*own), NAMES, Task.BINARY), class_weights(WEIGHTS))
        for _ in range(2)
    )
    assert in_pieces(cut_up, run, [cut], pickled=True) == in_pieces(whole, run, [])


def test_weights_are_passed_to_river_models() -> None:
    features, op, row, target = run = steps(Task.BINARY, 5, 300, 0.1)
    learner = with_imbalance(
        learner_for(TREE.clone(), NAMES, Task.BINARY), class_weights({True: 4})
    )
    model, want = TREE.clone(), []
    for i in range(op.size):
        x, y = dict(zip(NAMES, features[row[i]].tolist(), strict=True)), target[i] == 1.0
        if op[i] == PREDICT:
            want.append(model.predict_proba_one(x).get(True, np.nan if i == 0 else 0.0))
        else:
            model.learn_one(x, y, w=4 if y else 1.0)
    got = learner.run(*run).values.tolist()
    assert got[5:] == want[5:]


def test_without_imbalance_the_learner_is_not_wrapped() -> None:
    plain = learner_for(SCALED.clone(), NAMES, Task.BINARY)
    assert with_imbalance(plain, None) is plain
    assert Checkpoint("m", plain).run_each is not None
    weighed = with_imbalance(plain, class_weights(WEIGHTS))
    assert Checkpoint("m", weighed).run_each is not None


def test_to_river_returns_the_declared_model() -> None:
    run = steps(Task.BINARY, 5, 100, 0.1)
    for declared in (undersample({True: 0.5, False: 0.5}), class_weights(WEIGHTS)):
        learner = with_imbalance(learner_for(SCALED.clone(), NAMES, Task.BINARY), declared)
        learner.run(*run)
        river = learner.to_river()
        assert type(river) is type(SCALED)
        assert river["LogisticRegression"].loss.weight_pos == 1.0
        assert river["LogisticRegression"].weights


class Sale(Event):
    id: str
    ts: int
    price: float
    returned: bool
    kind: str


def sales(imbalance: Any, model: Any = SCALED, label: str | None = "returned") -> Pipeline:
    return Pipeline(
        name="sales",
        event=Sale,
        label=None if label is None else inline(label),
        features=[field("price")] if label != "price" else [field("returned")],
        model=model,
        imbalance=imbalance,
    )


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda: undersample({True: 0.5, False: 0.6}), "sum to 1.1"),
        (lambda: undersample({True: 1.0, False: 0.0}), "above 0"),
        (lambda: oversample([True, False]), "oversample needs the desired share"),
        (lambda: undersample({True: 0.5, False: 0.5}, seed=None), "seed=None of undersample"),
        (lambda: class_weights({}), "needs a weight for each class"),
        (lambda: class_weights({True: -1}), "class_weights of True is -1"),
        (lambda: class_weights({True: float("nan")}), "is nan: give a number above 0"),
        (
            lambda: sales("balanced"),
            "imbalance='balanced' of pipeline 'sales' is not supported: use",
        ),
        (lambda: sales(undersample({True: 1.0})), "of one class only"),
        (
            lambda: sales(class_weights({1: 2.0})),
            "1 in imbalance= of pipeline 'sales' is not a value of",
        ),
        (
            lambda: sales(class_weights({"yes": 2.0})),
            "'yes' in imbalance= of .*, which is True or Fal",
        ),
        (
            lambda: sales(class_weights({True: 2.0}), naive_bayes.GaussianNB(), "kind"),
            "True in imbalance= of pipeline 'sales' is not a value of the label, which is text",
        ),
        (
            lambda: sales(class_weights({True: 2.0}), naive_bayes.GaussianNB()),
            "GaussianNB takes no weights in learn_one: use undersample",
        ),
        (
            lambda: sales(class_weights({1.0: 2.0}), linear_model.LinearRegression(), "price"),
            "is for classifiers, and LinearRegression predicts a number: leave it out",
        ),
        (
            lambda: sales(class_weights({True: 2.0}), anomaly.HalfSpaceTrees()),
            "is for classifiers, and HalfSpaceTrees predicts anomalies: leave it out",
        ),
        (lambda: sales(class_weights({True: 2.0}), anomaly.HalfSpaceTrees(), None), "classifiers"),
    ],
)
def test_an_unsupported_declaration_is_refused_in_one_sentence(declare: Any, said: str) -> None:
    with pytest.raises(DeclarationError, match=said) as found:
        declare()
    assert "\n" not in str(found.value)


def test_a_pipeline_wraps_its_learner_as_declared() -> None:
    assert isinstance(sales(undersample({True: 0.5, False: 0.5})).learner(), ResampledLearner)
    assert isinstance(sales(class_weights({True: 2.0})).learner(), CompiledLinear)
    assert isinstance(sales(None).learner(), CompiledLinear)
    several = sales(class_weights({"new": 2.0}), TREE, "kind").learner()
    assert isinstance(several, RiverLearner)
    assert several.class_weights == {"new": 2.0}


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


HALF = "imbalance=undersample({True: 0.5, False: 0.5}, seed=7),"
RARE = [
    (
        account,
        message | {"fraud": int(message["id"][1:]) % 9 == 0} if "fraud" in message else message,
    )
    for account, message in trades(80)
]


def declare(kept: Kept, imbalance: str) -> None:
    kept.declare('metrics=("LogLoss",),', f'metrics=("LogLoss",), {imbalance}')
    file = kept.directory / "flow.py"
    names = "import class_weights, undersample, Event"
    file.write_text(file.read_text().replace("import Event", names))


@pytest.mark.parametrize("imbalance", [HALF, "imbalance=class_weights({True: 10.0}),"])
def test_a_run_that_is_stopped_and_resumed_equals_one_that_was_not(
    imbalance: str, tmp_path: Path, call: Call
) -> None:
    whole = Kept(tmp_path, call)
    declare(whole, imbalance)
    whole.publish(RARE)
    broken = whole.copy(tmp_path / "again", caller_in(tmp_path / "again", call))
    assert not whole.run_until(10_000, batch=20)
    stops = 0
    while broken.run_until(9, batch=5):
        stops += 1
    assert stops > 2
    for topic, by_partition in whole.outputs().items():
        want = sorted(json.dumps(row, sort_keys=True) for rows in by_partition for row in rows)
        got = broken.outputs()[topic]
        assert sorted(json.dumps(row, sort_keys=True) for rows in got for row in rows) == want


def caller_in(directory: Path, call: Call) -> Call:
    """It is not called: `run_until` runs in this process."""
    directory.mkdir()
    return call


def test_a_state_is_refused_under_another_imbalance(tmp_path: Path, call: Call) -> None:
    kept = Kept(tmp_path, call)
    declare(kept, HALF)
    kept.publish(RARE)
    assert not kept.run_until(10_000, batch=20)
    for other in ("", HALF.replace("seed=7", "seed=8")):
        declare(kept, other)
        refused(kept.run(), "the model of pipeline 'trades' changed")
    declare(kept, HALF)
    went_well(kept.run())
    went_well(call("models", "snapshot", "state"))
    begun = ("run", "flow.py", "--bus", "sqlite:bus", "--until-end", "--state", "second",
             "--model", "LogisticRegression@1", "--registry", "state")  # fmt: skip
    went_well(call(*begun))


def test_equal_declarations_have_the_same_text() -> None:
    texts: list[Imbalance] = [
        class_weights({True: 2.0, False: 1.0}),
        class_weights({False: 1.0, True: 2.0}),
    ]
    assert str(texts[0]) == str(texts[1])
