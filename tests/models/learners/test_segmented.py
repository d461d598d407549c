"""A model per segment equals a loop over River copies, however it is split, stopped and delayed."""

from __future__ import annotations

import copy
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
    forest,
    imblearn,
    linear_model,
    naive_bayes,
    optim,
    preprocessing,
    tree,
)

from anabranch import Event, Pipeline, field, inline, undersample, window
from anabranch.models.learners.checkpoint import Bounds, Checkpoint
from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import LEARN, PREDICT, Learner, Predictions, Task
from anabranch.models.learners.linear import CompiledLinear
from anabranch.models.learners.resampling import ResampledLearner
from anabranch.models.learners.river import RiverLearner
from anabranch.models.learners.segmented import SEGMENT, SegmentedLearner
from anabranch.models.learners.segments import Segments
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.prequential import Prequential
from anabranch.state.errors import DeclarationError
from anabranch.state.labels.label_limits import LabelLimits
from anabranch.state.store.delta import Delta, decode, encode, merge
from tests.support.checkpoint_pipeline import Kept, refused, trades, went_well
from tests.support.commands import Call, Command, caller

NAMES = ("a", "b")
LOGGED = Bounds(pickle_bytes=0)
LOGISTIC = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.Adam(0.05))
MODELS: dict[str, tuple[Task, Any]] = {
    "compiled": (Task.BINARY, LOGISTIC),
    "number": (Task.REGRESSION, preprocessing.StandardScaler() | linear_model.LinearRegression()),
    "bayes": (Task.BINARY, naive_bayes.GaussianNB()),
    "forest": (Task.BINARY, forest.ARFClassifier(n_models=2, seed=3, grace_period=10)),
    "several": (Task.MULTICLASS, tree.HoeffdingTreeClassifier(grace_period=10)),
    "rows": (Task.REGRESSION, tree.HoeffdingTreeRegressor(grace_period=10)),
    "strange": (Task.ANOMALY, anomaly.HalfSpaceTrees(seed=1, window_size=10, n_trees=3)),
    "drawn": (
        Task.BINARY,
        imblearn.RandomUnderSampler(naive_bayes.GaussianNB(), {True: 0.5, False: 0.5}, seed=4),
    ),
}
Steps = tuple[Any, Any, Any, Any]


def steps(task: Task, seed: int, rows: int = 120, kinds: int = 6) -> Steps:
    """Predict and learn rows of several segments, now and then out of turn."""
    rng = np.random.default_rng(seed)
    segment = np.minimum(rng.geometric(0.4, rows) - 1, kinds)
    features = np.column_stack([rng.normal(size=(rows, 2)), segment])
    score = features[:, 0] * (segment % 2 - 0.5) + rng.normal(size=rows) * 0.3
    row = np.repeat(np.arange(rows), 2)
    op = np.tile(np.array([PREDICT, LEARN], np.uint8), rows)
    op[rng.random(op.size) < 0.1] ^= 1
    truth = (score > 0).astype(float)[row] if task is Task.BINARY else score[row]
    if task is Task.MULTICLASS:
        return features, op, row, [("low", "mid", "high")[int(3 * s) % 3] for s in score[row]]
    return features, op, row, truth


def learner(case: str, most: int, after: int = 1) -> SegmentedLearner:
    task, model = MODELS[case]
    return SegmentedLearner(learner_for(model.clone(), NAMES, task), most, after)


def texts(predictions: Predictions) -> list[str]:
    """Comparable bit by bit."""
    labels = predictions.labels
    return [repr(list(predictions.values)), repr(None if labels is None else list(labels))]


def reference(case: str, run: Steps, most: int, after: int) -> tuple[list[Any], set[int]]:
    """Predictions of a loop over River objects and copies of them; the segments with a copy."""
    task, model = MODELS[case]
    shared, models, labels = model.clone(), dict[int, Any](), dict[int, int]()
    features, op, row, target = run
    predictions = []
    for operation, at, truth in zip(op, row, target, strict=True):
        x = dict(zip(NAMES, features[at].tolist(), strict=False))
        segment = int(features[at, -1])
        mine = models.get(segment)
        if operation == PREDICT:
            serving = mine or shared
            if task is Task.BINARY:
                predictions.append(serving.predict_proba_one(x).get(True))
            elif task is Task.MULTICLASS:
                predictions.append((serving.predict_proba_one(x), serving.predict_one(x)))
            else:
                predictions.append(
                    serving.score_one(x) if task is Task.ANOMALY else serving.predict_one(x)
                )
            continue
        y = bool(truth) if task is Task.BINARY else truth
        example = (x,) if task is Task.ANOMALY else (x, y)
        shared.learn_one(*example)
        labels[segment] = labels.get(segment, 0) + 1
        if mine is not None:
            mine.learn_one(*example)
        elif labels[segment] == after and segment < most:
            models[segment] = copy.deepcopy(shared)
    return predictions, set(models)


@pytest.mark.parametrize("case", MODELS)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31), most=st.sampled_from([1, 3, 6]), after=st.sampled_from([1, 2, 9])
)
def test_equal_to_a_loop_over_copies(case: str, seed: int, most: int, after: int) -> None:
    run = steps(MODELS[case][0], seed, kinds=most)
    want, known = reference(case, run, most, after)
    found = learner(case, most, after)
    got = found.run(*run)
    assert set(found.models) == known
    assert found.version == int(run[1].sum())
    learned = run[0][run[2][run[1] == LEARN], -1].astype(int)
    assert found.labels.tolist() == np.bincount(learned, minlength=most + 1).tolist()
    if found.task is Task.MULTICLASS:
        assert list(zip(got.values, got.labels, strict=True)) == want
        return
    values = [np.nan if each is None else float(each) for each in want]
    if isinstance(found.inner, CompiledLinear):
        np.testing.assert_allclose(got.values, values, rtol=1e-12, atol=1e-12)
    else:
        got.values[np.isnan(values)] = np.nan  # a tree that knows one class says nothing of others
        assert repr(got.values.tolist()) == repr(values)


def in_pieces(found: Learner, run: Steps, cuts: list[int], pickled: bool = False) -> list[str]:
    features, op, row, target = run
    values: list[Any] = []
    labels: list[Any] = []
    for low, high in pairwise([0, *sorted(cuts), len(op)]):
        if pickled:
            found = pickle.loads(pickle.dumps(found))
        part = found.run(features, op[low:high], row[low:high], target[low:high])
        values += list(part.values)
        labels += [] if part.labels is None else list(part.labels)
    assert isinstance(found, SegmentedLearner)
    return [repr(values), repr(labels), repr(found.version), repr(found.labels)]


@pytest.mark.parametrize("case", MODELS)
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 999),
    after=st.sampled_from([1, 4]),
    cuts=st.lists(st.integers(0, 240), max_size=6),
)
def test_bit_equal_however_calls_are_split_and_pickled(
    case: str, seed: int, after: int, cuts: list[int]
) -> None:
    run = steps(MODELS[case][0], seed, kinds=4)
    want = in_pieces(learner(case, 4, after), run, [])
    assert in_pieces(learner(case, 4, after), run, cuts) == want
    assert in_pieces(learner(case, 4, after), run, cuts, pickled=True) == want


@pytest.mark.parametrize("case", ["compiled", "forest", "several", "drawn"])
@pytest.mark.parametrize("bounds", [None, LOGGED], ids=["pickled", "logged"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), killed=st.lists(st.integers(0, 240), max_size=4))
def test_a_checkpoint_restores_all_models(
    case: str, bounds: Bounds | None, seed: int, killed: list[int]
) -> None:
    features, op, row, target = steps(MODELS[case][0], seed, kinds=4)
    whole, kept = learner(case, 4, 2), Checkpoint("m", learner(case, 4, 2), bounds)
    deltas: list[Delta] = []
    for low, high in pairwise([0, *sorted(killed), op.size]):
        part = features, op[low:high], row[low:high], target[low:high]
        deltas.append(kept.changes())
        kept.run(*part)  # is lost, and done again
        kept = Checkpoint("m", learner(case, 4, 2), bounds)
        kept.restore(merge([decode(encode(delta)) for delta in deltas]))
        assert texts(kept.run(*part)) == texts(whole.run(*part))
        found = kept.learner
        assert isinstance(found, SegmentedLearner)
        assert found.version == whole.version
        assert list(found.models) == list(whole.models)


def test_predicting_leaves_nothing_to_persist() -> None:
    features, op, row, target = steps(Task.BINARY, 3, kinds=4)
    kept = Checkpoint("m", learner("compiled", 4))
    kept.run(features, op, row, target)
    assert kept.changes().blobs
    kept.run(features, op[:0], row[:0], target[:0])
    kept.run(features, np.zeros_like(op), row, target)
    assert kept.changes().blobs == {}


def test_compiled_models_share_their_declaration() -> None:
    """A thousand of them are pickled at every epoch."""
    found = learner("compiled", 1000)
    rows = np.column_stack([np.random.default_rng(1).normal(size=(1000, 2)), np.arange(1000)])
    found.run(rows, np.ones(1000, np.uint8), np.arange(1000), np.zeros(1000))
    assert len(found.models) == 1000
    assert len(pickle.dumps(found)) < 1000 * 500


def test_each_segment_draws_rows_by_its_own_classes() -> None:
    """A copy has the counts and random numbers of the shared one, and continues independently."""
    run = steps(Task.BINARY, 7, 200, kinds=3)
    inner = learner_for(naive_bayes.GaussianNB(), NAMES, Task.BINARY)
    found = SegmentedLearner(
        ResampledLearner(inner, {True: 0.5, False: 0.5}, 4, correct=False), 3, 2
    )
    want = RiverLearner(MODELS["drawn"][1].clone(), NAMES, Task.BINARY)
    assert texts(found.run(*run)) == texts(SegmentedLearner(want, 3, 2).run(*run))
    counts = [each._sampler.seen for each in found.models.values()]  # type: ignore[attr-defined]
    assert len({repr(sorted(each.items())) for each in counts}) == 3


def delayed(case: str, share: float = 0.9, rows: int = 120) -> tuple[Steps, list[str], list[Any]]:
    """Rows with a segment, its names, and the turns: an event or a label, with its time."""
    run = steps(MODELS[case][0], 11, rows)
    names = [f"s{int(each)}" for each in run[0][:, -1]]
    rng = np.random.default_rng(12)
    turns = [(i * 1000, 0, i) for i in range(rows)]
    turns += [(i * 1000 + int(rng.integers(1, 40_000)), 1, i) for i in range(rows)
              if rng.random() < share]  # fmt: skip
    return run, names, sorted(turns)


def prequential(case: str, bounds: Bounds | None, most: int) -> Prequential:
    task, _ = MODELS[case]
    metric = {Task.BINARY: "LogLoss", Task.MULTICLASS: "Accuracy", Task.REGRESSION: "MAE"}[task]
    return Prequential(
        {"m": learner(case, most, 2)},
        PrequentialSettings(
            metrics=[metric],
            rules=LabelLimits(timeout_ms=20_000),
            bounds=bounds,
            segments=Segments("shop", most),
        ),
    )


def work(step: Prequential, case: str, low: int, high: int) -> Any:
    run, names, turns = delayed(case)
    part = turns[low:high]
    events = np.array([i for _, kind, i in part if kind == 0], np.int64)
    labels = np.array([i for _, kind, i in part if kind == 1], np.int64)
    truths = run[3][::2]
    counts = [0, len(events)]
    order = []
    for _, kind, _ in part:
        order.append(counts[kind])
        counts[kind] += 1
    return step.run(
        EventBatch(
            features=np.ascontiguousarray(run[0][events, :-1]),
            times=events * 1000,
            ids=[f"e{i}" for i in events],
            fields={"shop": [names[i] for i in events]},
        ),
        LabelBatch(
            ids=[f"e{i}" for i in labels],
            values=[truths[i] for i in labels]
            if isinstance(truths, list)
            else np.asarray(truths)[labels],
            times=np.array([when for when, kind, _ in part if kind == 1], np.int64),
        ),
        order=np.array(order, np.int64),
    )


def reference_with_labels(case: str, most: int) -> list[Any]:
    """Each event's prediction by a loop over copies, with labels in order of time."""
    run, names, turns = delayed(case)
    known = list(dict.fromkeys(names[i] for _, kind, i in turns if kind == 0))[:most]
    segment = np.array([known.index(n) if n in known else most for n in names], float)
    features = np.column_stack([run[0][:, :-1], segment])
    taken = [t for t in turns if t[1] == 0 or t[0] - t[2] * 1000 <= 20_000]
    op = np.array([kind for _, kind, _ in taken], np.uint8)
    row = np.array([i for *_, i in taken], np.int64)
    truths = run[3][::2]
    return reference(case, (features, op, row, [truths[i] for i in row]), most, 2)[0]


@pytest.mark.parametrize("case", ["compiled", "bayes", "several", "rows"])
@pytest.mark.parametrize("bounds", [None, LOGGED], ids=["pickled", "logged"])
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(0, 230), max_size=6), killed=st.booleans())
def test_a_label_trains_the_segment_of_its_event(
    case: str, bounds: Bounds | None, cuts: list[int], killed: bool
) -> None:
    """Labels name no segment: it is pending with the prediction, also through a kill."""
    want = reference_with_labels(case, 3)
    turns = len(delayed(case)[2])
    step, deltas = prequential(case, bounds, 3), list[Delta]()
    got: list[Any] = []
    for low, high in pairwise([0, *sorted(min(cut, turns) for cut in cuts), turns]):
        if killed:
            deltas.append(step.changes())
            work(step, case, low, high)
            step = prequential(case, bounds, 3)
            step.restore(merge([decode(encode(delta)) for delta in deltas]))
        served = work(step, case, low, high).predictions["m"]
        several = isinstance(served.values, list)
        got += (
            list(zip(served.values, served.labels, strict=True))
            if several
            else served.values.tolist()
        )
    if case == "several":
        assert got == want
    else:
        wanted = np.array([np.nan if each is None else each for each in want], float)
        found = np.where(np.isnan(wanted), np.nan, got)
        np.testing.assert_allclose(
            found, wanted, rtol=1e-12 if case == "compiled" else 0, atol=1e-15, equal_nan=True
        )
    assert step.models.segments is not None
    report = step.models.segments.report(step.models.learners["m"])
    assert sum(each["labels"] for each in report.values()) == step.models.learners["m"].version
    _, names, order = delayed(case)
    came = dict.fromkeys(names[i] for _, kind, i in order if kind == 0)
    assert list(report) == [*list(came)[:3], "other"]
    assert not report["other"]["own"]


def test_inline_labels_too() -> None:
    run = steps(Task.BINARY, 5)
    names = [f"s{int(each)}" for each in run[0][:, -1]]
    truths = run[3][::2].copy()
    step, cut = (
        Prequential(
            {"m": learner("compiled", 3)},
            PrequentialSettings(metrics=["LogLoss"], inline=True, segments=Segments("shop", 3)),
        )
        for _ in range(2)
    )
    features = np.ascontiguousarray(run[0][:, :-1])
    times = np.arange(120)
    whole = step.run_inline(EventBatch(features, times, fields={"shop": names}), truths)
    for low, high in pairwise([0, 7, 8, 120]):
        part = slice(low, high)
        cut.run_inline(
            EventBatch(features[part], times[part], fields={"shop": names[part]}), truths[part]
        )
    assert step.models.metrics["m"]["LogLoss"].value == cut.models.metrics["m"]["LogLoss"].value > 0
    known = list(dict.fromkeys(names))[:3]
    segment = [known.index(n) if n in known else 3 for n in names]
    row = np.repeat(np.arange(120), 2)
    op = np.tile(np.array([PREDICT, LEARN], np.uint8), 120)
    wide = np.column_stack([features, segment])
    want, _ = reference("compiled", (wide, op, row, truths[row]), 3, 1)
    np.testing.assert_allclose(whole.predictions["m"].values, want, rtol=1e-12)


def test_more_segments_than_allowed_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    segments = Segments("shop", 2)
    for _ in range(3):
        segments.add_to(np.zeros((3, 1)), {"shop": ["a", "b", "c"]})
    assert caplog.text.count("shop has more than 2 values") == 1


class Sale(Event):
    id: str
    ts: int
    shop: str
    abroad: bool
    town: str | None
    price: float
    returned: bool


def sales(**changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "sales",
        "event": Sale,
        "label": inline("returned"),
        "features": [field("price"), window("shop", over="1d", stats="count")],
        "model": LOGISTIC,
    }
    return Pipeline(**declared | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_key": "shp"}, "unknown field 'shp' in model_key='shp' of pipeline 'sales'"),
        (
            {"model_key": "price"},
            "must be a text, an integer, a boolean, a UUID or an enum, but Sale.price is a number",
        ),
        ({"model_key": "town"}, "'town' in model_key='town' of pipeline 'sales' may be null"),
        ({"model_key": "returned"}, "model_key='returned' of pipeline 'sales' is the label"),
        ({"model_key": "shop", "max_segments": 0}, "max_segments=0 .* from 1 to 10,000"),
        ({"model_key": "shop", "max_segments": 10_001}, "from 1 to 10,000"),
        ({"model_key": "shop", "max_segments": "9"}, "must be an integer"),
        (
            {"model_key": "shop", "min_labels_per_segment": 0},
            "min_labels_per_segment=0 for model_key='shop'",
        ),
        ({"min_labels_per_segment": 5}, "are for a model per segment: give model_key="),
    ],
)
def test_an_unsupported_declaration_is_refused_in_one_sentence(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(DeclarationError, match=said) as found:
        sales(**changes)
    assert "\n" not in str(found.value)


def test_a_pipeline_wraps_its_learner_as_declared() -> None:
    plain = sales().learner()
    assert isinstance(plain, CompiledLinear)
    found = sales(model_key="abroad", max_segments=2, min_labels_per_segment=50).learner()
    assert isinstance(found, SegmentedLearner)
    assert found.names == ("price", "shop_1d_count", SEGMENT)
    assert isinstance(found.inner, CompiledLinear)
    drawn = sales(model_key="shop", imbalance=undersample({True: 0.5, False: 0.5})).learner()
    assert isinstance(drawn, SegmentedLearner)
    assert isinstance(drawn.inner, ResampledLearner)


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(tmp_path, capfd)


SEGMENTED = 'metrics=("LogLoss",), model_key="account", max_segments=5, min_labels_per_segment=2,'


def segmented(directory: Path, call: Call) -> Kept:
    directory.mkdir(exist_ok=True)
    kept = Kept(directory, call)
    kept.declare('metrics=("LogLoss",),', SEGMENTED)
    kept.publish(trades(80))
    return kept


def printed_state(kept: Kept) -> Any:
    done = kept.call("state", kept.state, "--json")
    went_well(done)
    return {place["name"]: place for place in json.loads(done.out)["state_partitions"]}["models"]


def with_all(kept: Kept) -> None:
    """Beside segments: drawn rows, slices, and windows of labels, by one of which is sliced."""
    file = kept.directory / "flow.py"
    text = file.read_text()
    for old, new in [
        ("import Event", "import slice_by, target, undersample, Event"),
        (
            "    model=",
            """    imbalance=undersample({True: 0.5, False: 0.5}, seed=7),
    slices=[slice_by("account", max_values=3), slice_by("account_target_1h_mean", bins=(0.5,))],
    model=""",
        ),
        (
            "        since_last(",
            """        window("account", target(), over="1h", stats="mean"),
        since_last(""",
        ),
    ]:
        assert old in text
        text = text.replace(old, new, 1)
    file.write_text(text)


@pytest.mark.parametrize("all_of_it", [False, True], ids=["segments", "all"])
def test_a_run_that_stops_and_resumes_equals_one_that_did_not(
    all_of_it: bool, tmp_path: Path, call: Call
) -> None:
    whole, broken = segmented(tmp_path / "a", call), segmented(tmp_path / "b", call)
    if all_of_it:
        with_all(whole)
        with_all(broken)
    assert not whole.run_until(10_000, batch=20)
    stops = 0
    while broken.run_until(9, batch=5):
        stops += 1
    assert stops > 2
    want, got = whole.outputs(), broken.outputs()
    for topic, by_partition in want.items():
        rows = sorted(json.dumps(row, sort_keys=True) for part in by_partition for row in part)
        mine = sorted(json.dumps(row, sort_keys=True) for part in got[topic] for row in part)
        assert mine == rows, topic
    assert any(want["trades.predictions"])
    report = printed_state(whole)
    assert printed_state(broken) | {"bytes": 0, "generation": 0, "resumes_at": 0} == report | {
        "bytes": 0,
        "generation": 0,
        "resumes_at": 0,
    }
    assert len(report["segments"]) == 6
    if all_of_it:
        assert set(report["slices"]["account_target_1h_mean"]) == {"<0.5", ">=0.5"}
        for values in report["slices"].values():
            counts = [each["labels"] for each in values.values()]
            assert sum(counts) == sum(each["labels"] for each in report["segments"].values())


def test_the_state_lists_segments_and_the_registry_keeps_the_shared_model(
    tmp_path: Path, call: Call
) -> None:
    kept = segmented(tmp_path / "a", call)
    assert not kept.run_until(10_000, batch=20)
    report = printed_state(kept)["segments"]
    assert len(report) == 6
    assert {name for name, each in report.items() if not each["own"]} == {"other"}
    assert all(each["labels"] >= 2 for each in report.values())
    shown = call("state", kept.state)
    went_well(shown)
    assert "5 segments" in shown.out
    went_well(call("models", "snapshot", kept.state))
    about = json.loads(call("models", "show", kept.state, "LogisticRegression@1", "--json").out)
    assert about["columns"][-1] == "account_since_last_2h"
    assert about["rows"] == sum(each["labels"] for each in report.values())
    again = ("run", kept.directory / "flow.py", "--bus", f"sqlite:{kept.directory / 'bus'}")
    begun = ("--model", "LogisticRegression@1", "--registry", kept.state, "--until-end")
    done = call(*again, "--state", kept.directory / "second", *begun)
    assert done.code == 0, done.err
    assert "which has learned" in done.err
    kept.declare('metrics=("LogLoss",),', SEGMENTED.replace("max_segments=5", "max_segments=6"))
    refused(call(*again, "--state", kept.state, "--until-end"), "the model of pipeline", "6 times")


def test_of_several_workers_too(tmp_path: Path, call: Call) -> None:
    kept = segmented(tmp_path / "a", call)
    with Command(
        kept.directory, "run", "flow.py", "--bus", "sqlite:bus", "--state", "state",
        "--until-end", "--checkpoint-interval", "1ms", "--processes", "2",
    ) as command:  # fmt: skip
        went_well(command.done(200.0))
    report = printed_state(kept)["segments"]
    assert len(report) == 6
    assert sum(each["own"] for each in report.values()) == 5
