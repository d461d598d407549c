"""A step that is restored goes on, bit for bit, as the one that was never interrupted."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import anomaly, forest, linear_model, naive_bayes, preprocessing, tree

from anabranch.models.drift.detectors import monitor
from anabranch.models.learners.checkpoint import Bounds
from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import Task
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.prequential import Prequential
from anabranch.state.errors import StateError
from anabranch.state.labels.label_limits import LabelLimits
from anabranch.state.store.delta import Delta, decode, encode, merge

NAMES = ("a", "b")
LOGGED = Bounds(pickle_bytes=0)
OFTEN = Bounds(pickle_bytes=0, replay_s=0.0, share=1e9)


def linear() -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


def small_tree() -> Any:
    return tree.HoeffdingTreeClassifier(grace_period=5, delta=0.1)


# What is tried: the task, its models, its metrics and its monitors.
CASES: dict[str, tuple[Task, Any, list[str], list[Any]]] = {
    "compiled": (
        Task.BINARY,
        lambda: {"champion": linear()},
        ["LogLoss", "Accuracy", "ROCAUC", "RollingROCAUC", "MCC"],
        [monitor("loss", delta=0.5, cooldown="1s"), monitor("a", "PageHinkley", threshold=2.0)],
    ),
    "tree and challengers": (
        Task.BINARY,
        lambda: {
            "champion": small_tree(),
            "a/b": linear(),
            "a": forest.ARFClassifier(n_models=2, seed=3, grace_period=5),
        },
        ["LogLoss", "F1"],
        [monitor("loss", delta=0.5, cooldown="1s")],
    ),
    "multi-class": (
        Task.MULTICLASS,
        lambda: {"nb": naive_bayes.GaussianNB(), "tree": small_tree()},
        ["Accuracy", "CrossEntropy"],
        [monitor("loss", "PageHinkley", threshold=1.0, cooldown="1s")],
    ),
    "regression": (
        Task.REGRESSION,
        lambda: {"linear": linear_model.LinearRegression(), "tree": tree.HoeffdingTreeRegressor()},
        ["MAE", "RMSE", "R2"],
        [monitor("loss", delta=0.5, cooldown="1s"), monitor("b")],
    ),
    "anomaly": (
        Task.ANOMALY,
        lambda: {"hst": anomaly.HalfSpaceTrees(n_trees=3, height=3, window_size=5, seed=1)},
        ["ROCAUC"],
        [],
    ),
}


def fresh(case: str, bounds: Bounds | None = None, **arguments: Any) -> Prequential:
    task, models, metrics, monitors = CASES[case]
    learners = {name: learner_for(model, NAMES, task) for name, model in models().items()}
    return Prequential(
        learners,
        PrequentialSettings(metrics=metrics, monitors=monitors, bounds=bounds, **arguments),
    )


def stream(task: Task, seed: int, size: int) -> tuple[list[int], Any, Any, list[Any]]:
    """Events 0 to size and their labels at size to 2 size, mixed; some ids come twice."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(size, 2)).round(1)
    times = (np.arange(size) * 10 + rng.integers(-30, 30, size)).astype(np.int64)
    moments = np.concatenate([np.arange(size), np.arange(size) + rng.exponential(8, size) - 3])
    order = np.argsort(moments, kind="stable").tolist()
    signs = (features[:, 0] > 0) ^ (np.arange(size) > size // 2)
    values: list[Any] = signs.astype(float).tolist()
    if task is Task.MULTICLASS:
        values = [("no", "yes", "perhaps", None)[int(v) + int(rng.random() < 0.2)] for v in values]
    elif task is Task.REGRESSION:
        values = features.sum(axis=1).tolist()
    return order, features, times, values


def feed(step: Prequential, data: Any, low: int, high: int) -> list[Any]:
    """Work through a part of the stream; all that the step answers, comparable by `==`."""
    _, features, times, values = data
    size, piece = len(features), data[0][low:high]
    events, labels = [i for i in piece if i < size], [i - size for i in piece if i >= size]
    if step.models.settings.inline:
        labels = events
    at = {event: i for i, event in enumerate(events)}
    at |= {label + size: i + len(events) for i, label in enumerate(labels)}
    chosen = [values[j] for j in labels]
    outcome = step.run(
        EventBatch(
            features=np.ascontiguousarray(features[events]),
            times=times[events],
            ids=[f"e{i - i % 7 // 6}" for i in events],
            tags=np.array(events, np.int32),
        ),
        LabelBatch(
            ids=[f"e{j - j % 5 // 4}" for j in labels],
            values=chosen if step.models.task is Task.MULTICLASS else np.array(chosen, np.float64),
            times=times[labels] + 80,
            context=lambda j: b"%d" % labels[j],
        ),
        order=np.array([at[i] for i in piece if i in at], np.int64),
    )
    learned = outcome.learned
    return [
        {n: (repr(list(p.values)), repr(p.labels)) for n, p in outcome.predictions.items()},
        {n: (repr(list(p.values)), repr(p.labels)) for n, p in learned.predictions.items()},
        {n: list(outcome.versions(n)) for n in step.models.learners},
        (learned.label.tolist(), learned.times.tolist(), learned.tags.tolist()),
        (learned.delays.tolist(), repr(list(learned.target))),
        (outcome.alarms, outcome.rejected_labels, outcome.rejected_events, outcome.dropped),
        (outcome.expired_labels, repr(outcome.corrected), outcome.confirmed, outcome.buffered),
        {n: {m: repr(v.value) for m, v in of.items()} for n, of in step.models.metrics.items()},
        {n: learner.version for n, learner in step.models.learners.items()},
        (
            list(step.models.learners),
            step.models.champion,
            len(step.models.pending),
            step.models.pending.watermark,
        ),
    ]


def through_the_disk(deltas: list[Delta]) -> Delta:
    """The image as the store gives it: packed and unpacked, its arrays read-only."""
    return merge([decode(encode(delta)) for delta in deltas])


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_restored_anywhere_it_goes_on_the_same(case: str, data: Any) -> None:
    task = CASES[case][0]
    arguments: dict[str, Any] = {"inline": data.draw(st.booleans(), "inline")}
    if not arguments["inline"]:
        arguments["rules"] = LabelLimits(
            timeout_ms=data.draw(st.sampled_from([None, 50, 100]), "wait"),
            update_ms=data.draw(st.sampled_from([None, 150]), "correct"),
            early_ms=data.draw(st.sampled_from([0, 30, 1000]), "hold"),
            max_early=data.draw(st.sampled_from([2, 100]), "held"),
        )
        default = st.sampled_from([None, "no" if task is Task.MULTICLASS else 0.0])
        arguments["default"] = data.draw(default, "default")
    bounds = data.draw(st.sampled_from([None, LOGGED, OFTEN]), "bounds")
    size = 60
    given_data = stream(task, data.draw(st.integers(0, 99), "seed"), size)
    cuts = data.draw(st.lists(st.integers(0, 2 * size), max_size=8), "cuts")
    kept = data.draw(st.sets(st.integers(0, 8)), "kept")
    killed = data.draw(st.sets(st.integers(0, 8)), "killed")
    whole, broken = fresh(case, **arguments), fresh(case, bounds, **arguments)
    deltas: list[Delta] = []
    for number, (low, high) in enumerate(pairwise([0, *sorted(cuts), 2 * size])):
        if number in kept | killed:
            deltas.append(broken.changes())
        if number in killed:
            # What it did after the last commit is lost, and is done again.
            feed(broken, given_data, low, high)
            broken = fresh(case, bounds, **arguments)
            broken.restore(through_the_disk(deltas))
        assert feed(broken, given_data, low, high) == feed(whole, given_data, low, high)


def test_models_that_come_lead_and_go_are_restored() -> None:
    case, data = "tree and challengers", stream(Task.BINARY, 1, 60)
    whole = fresh(case)
    deltas = [whole.changes()]
    feed(whole, data, 0, 40)
    deltas.append(whole.changes())
    whole.models.champion = "a/b"
    whole.models.remove("champion")
    feed(whole, data, 40, 60)
    deltas.append(whole.changes())
    whole.models.add("new", learner_for(naive_bayes.GaussianNB(), NAMES, Task.BINARY))
    whole.models.remove("a")
    whole.models.add("a", learner_for(linear(), NAMES, Task.BINARY))
    deltas.append(whole.changes())
    feed(whole, data, 60, 80)
    deltas.append(whole.changes())
    models = {"a": linear(), "new": naive_bayes.GaussianNB(), "a/b": linear()}
    again = Prequential(
        {name: learner_for(model, NAMES, Task.BINARY) for name, model in models.items()},
        PrequentialSettings(
            metrics=["LogLoss", "F1"], monitors=[monitor("loss", delta=0.5, cooldown="1s")]
        ),
    )
    image = through_the_disk(deltas)
    assert not any("champion" in name for name in [*image.blobs, *image.rows, *image.items])
    again.restore(image)
    assert list(again.models.learners) == ["a/b", "new", "a"]
    assert again.models.champion == "a/b"
    assert feed(again, data, 80, 120) == feed(whole, data, 80, 120)


def test_nothing_is_written_when_nothing_happened() -> None:
    step = fresh("tree and challengers")
    assert step.changes()
    assert not step.changes()
    feed(step, stream(Task.BINARY, 1, 60), 0, 30)
    assert step.changes()
    assert not step.changes()


def test_an_empty_image_leaves_the_step_fresh() -> None:
    step, other = fresh("regression"), fresh("regression")
    step.restore(Delta())
    data = stream(Task.REGRESSION, 1, 60)
    assert feed(step, data, 0, 120) == feed(other, data, 0, 120)


def test_new_metrics_and_monitors_begin_and_the_known_go_on() -> None:
    data = stream(Task.BINARY, 1, 60)
    twice = [monitor("a"), monitor("a")]
    old = Prequential(
        {"m": learner_for(linear(), NAMES, Task.BINARY)},
        PrequentialSettings(metrics=["LogLoss"], monitors=twice),
    )
    feed(old, data, 0, 120)
    new = Prequential(
        {"m": learner_for(linear(), NAMES, Task.BINARY)},
        PrequentialSettings(metrics=["F1", "LogLoss"], monitors=[*twice, monitor("b")]),
    )
    new.restore(through_the_disk([old.changes()]))
    assert new.models.metrics["m"]["LogLoss"].value == old.models.metrics["m"]["LogLoss"].value > 0
    assert new.models.metrics["m"]["F1"].value == 0
    assert [watch.seen for watch in new.models.monitors.watches] == [60, 60, 0]
    assert new.models.monitors.watches[0] is not new.models.monitors.watches[1]


@pytest.mark.parametrize(
    ("models", "names", "arguments", "message"),
    [
        ({"n": linear()}, NAMES, {}, "has the models 'm', but 'n' are declared: declare what"),
        ({"m": linear(), "n": linear()}, NAMES, {}, "the models 'm', but 'm', 'n' are declared"),
        ({"m": small_tree()}, NAMES, {}, r"'m' is Pipeline\(.*declared as HoeffdingTreeCl"),
        (
            {"m": preprocessing.StandardScaler() | linear_model.LogisticRegression(l2=0.5)},
            NAMES, {}, "l2=0.0.*l2=0.5",
        ),
        ({"m": linear()}, ("a", "c"), {}, "other features.*only stored b, only declared c"),
        ({"m": linear()}, ("b", "a"), {}, "the same names in another order"),
        ({"m": linear()}, NAMES, {"inline": True}, "labels that arrive later, but a binary"),
    ],
)  # fmt: skip
def test_another_declaration_is_refused(
    models: Any, names: Any, arguments: Any, message: str
) -> None:
    old = Prequential({"m": learner_for(linear(), NAMES, Task.BINARY)})
    learners = {name: learner_for(model, names, Task.BINARY) for name, model in models.items()}
    with pytest.raises(StateError, match=message):
        Prequential(learners, PrequentialSettings(**arguments)).restore(old.changes())


@pytest.mark.parametrize("part", ["step", "models/m/full"])
@pytest.mark.parametrize("blob", [b"", b"junk", b"\x80\x05K\x01."])
def test_a_damaged_pickle_is_a_clear_sentence(part: str, blob: bytes) -> None:
    step = Prequential({"m": learner_for(small_tree(), NAMES, Task.BINARY)})
    image = step.changes()
    assert part in image.blobs
    image.blobs[part] = blob
    again = Prequential({"m": learner_for(small_tree(), NAMES, Task.BINARY)})
    with pytest.raises(StateError):
        again.restore(image)


def test_a_model_that_can_not_be_pickled_is_named() -> None:
    model = small_tree()
    model.nominal_attributes = (x for x in ())
    step = Prequential({"odd": learner_for(model, NAMES, Task.BINARY)})
    with pytest.raises(StateError, match="model 'odd' can't be pickled, so its state"):
        step.changes()
