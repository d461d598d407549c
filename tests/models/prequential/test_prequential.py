"""The prequential step equals River's progressive validation, and no result depends on the cut."""

from __future__ import annotations

import pickle
from datetime import datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from river import (
    anomaly,
    datasets,
    dummy,
    ensemble,
    evaluate,
    forest,
    linear_model,
    naive_bayes,
    optim,
    preprocessing,
    stream,
    tree,
)
from river import metrics as river_metrics

from anabranch.models.drift.detectors import monitor
from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import Task
from anabranch.models.learners.linear import CompiledLinear
from anabranch.models.learners.river import RiverLearner
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.outcome import (
    BUFFER_FULL,
    BUFFERED_LABEL,
    CONTRADICTS,
    DUPLICATE,
    EVENT_MISSING,
    LATE,
    NO_VALUE,
    TOO_OLD,
    UNKNOWN_ID,
)
from anabranch.models.prequential.prequential import Prequential
from anabranch.state.errors import DeclarationError
from anabranch.state.labels.label_limits import LabelLimits

EPOCH = datetime(2024, 1, 1)


@cache
def bundled(name: str, rows: int) -> tuple[tuple[str, ...], list[dict[str, float]], list[Any]]:
    """The numeric features of a River data set, as floats, and its targets."""
    pairs = list(getattr(datasets, name)().take(rows))
    names = tuple(k for k, v in pairs[0][0].items() if isinstance(v, int | float))
    return names, [{n: float(x[n]) for n in names} for x, _ in pairs], [y for _, y in pairs]


def scaled(model: Any) -> Any:
    return preprocessing.StandardScaler() | model


def log_reg(**kwargs: Any) -> Any:
    return linear_model.LogisticRegression(**kwargs)


COMPILED = [
    ("Phishing", log_reg(), "LogLoss"),
    ("Phishing", scaled(log_reg(optimizer=optim.SGD(0.1))), "Accuracy"),
    ("Bananas", scaled(log_reg(optimizer=optim.Adam(), l2=0.01)), "LogLoss"),
    ("Bananas", scaled(log_reg(optimizer=optim.AdaGrad(), l2=0.1)), "F1"),
    ("TrumpApproval", scaled(linear_model.LinearRegression()), "MAE"),
    ("TrumpApproval", scaled(linear_model.LinearRegression(optimizer=optim.Adam())), "RMSE"),
    ("ChickWeights", scaled(linear_model.LinearRegression(intercept_lr=0.1)), "MSE"),
]
RIVER = [
    (Task.BINARY, "Phishing", tree.HoeffdingTreeClassifier(grace_period=50), "Accuracy"),
    (Task.BINARY, "Phishing", naive_bayes.GaussianNB(), "LogLoss"),
    (Task.BINARY, "Bananas", naive_bayes.GaussianNB(), "ROCAUC"),
    (Task.BINARY, "Bananas", forest.ARFClassifier(n_models=3, seed=7), "F1"),
    (Task.BINARY, "Phishing", linear_model.PAClassifier(), "Accuracy"),
    (Task.BINARY, "Phishing", dummy.PriorClassifier(), "Accuracy"),
    (Task.BINARY, "Phishing", ensemble.VotingClassifier([log_reg(), log_reg(l2=0.1)]), "Precision"),
    (Task.MULTICLASS, "ImageSegments", naive_bayes.GaussianNB(), "Accuracy"),
    (Task.MULTICLASS, "ImageSegments", tree.HoeffdingTreeClassifier(), "MacroF1"),
    (Task.MULTICLASS, "ImageSegments", naive_bayes.GaussianNB(), "CrossEntropy"),
    (Task.REGRESSION, "TrumpApproval", tree.HoeffdingTreeRegressor(grace_period=50), "MAE"),
    (Task.REGRESSION, "ChickWeights", scaled(linear_model.LinearRegression()), "R2"),
    (Task.ANOMALY, "Phishing", anomaly.HalfSpaceTrees(seed=1, window_size=50), "ROCAUC"),
    (Task.ANOMALY, "Phishing", anomaly.HalfSpaceTrees(seed=1, window_size=50), "RollingROCAUC"),
]
DELAYS = {"none": None, "1": 1, "7": 7, "hours": timedelta(hours=5), "uneven": "uneven"}


def uneven(x: dict[str, float], y: Any) -> timedelta:
    """A delay that depends on the row, so that labels overtake one another."""
    return timedelta(minutes=int(abs(sum(x.values())) * 37) % 600)


class Timed(dict):  # type: ignore[type-arg]
    """A row that knows when it happened, without showing that to the model."""

    moment: datetime


def with_times(xs: list[dict[str, float]]) -> list[Timed]:
    rows = []
    for i, x in enumerate(xs):
        row = Timed(x)
        row.moment = EPOCH + timedelta(minutes=30 * i + (i * i) % 17)
        rows.append(row)
    return rows


def qa_arguments(delay: Any) -> dict[str, Any]:
    if delay is None or isinstance(delay, int):
        return {"moment": None, "delay": delay}
    return {"moment": lambda x: x.moment, "delay": uneven if delay == "uneven" else delay}


def expected(
    xs: list[Timed], ys: list[Any], model: Any, name: str, delay: Any
) -> tuple[list[Any], list[float]]:
    """River's predictions and its running metric, answer by answer."""
    metric = getattr(river_metrics, name)()
    steps = evaluate.iter_progressive_val_score(
        list(zip(xs, ys, strict=True)), model, metric, step=1, yield_predictions=True,
        **qa_arguments(delay),
    )  # fmt: skip
    predictions, values = [], []
    for at in steps:
        predictions.append(at["Prediction"])
        values.append(metric.get())
    return predictions, values


def arrival(xs: list[Timed], ys: list[Any], delay: Any) -> list[int]:
    """Event i as i, label j as len(xs) + j, in the order of River's simulation."""
    pairs = [(x, (y,)) for x, y in zip(xs, ys, strict=True)]
    arguments = qa_arguments(delay)
    if arguments["delay"] is uneven:
        arguments["delay"] = lambda x, y: uneven(x, y[0])
    answers = stream.simulate_qa(pairs, **arguments, copy=False)
    return [i if y is None else len(xs) + i for i, _, y in answers]


def run_in_cuts(
    step: Prequential, features: Any, ys: Any, order: list[int], cuts: list[int], **kwargs: Any
) -> tuple[list[Any], list[tuple[int, float]]]:
    """Work through `order` in pieces; the outcomes, and the metric after each piece."""
    events = len(features)
    times = kwargs.get("times", np.arange(events, dtype=np.int64))
    outcomes, running, answered = [], [], 0
    names = kwargs.get("judged", range(events))
    bounds = [0, *sorted(set(cuts)), len(order)]
    for low, high in pairwise(bounds):
        if kwargs.get("pickled"):
            step.__dict__ = pickle.loads(pickle.dumps(step.__dict__))
        piece = order[low:high]
        here = sorted(i for i in piece if i < events)
        judged = sorted(i - events for i in piece if i >= events)
        at = {event: i for i, event in enumerate(here)}
        at |= {label + events: i + len(here) for i, label in enumerate(judged)}
        chosen = [ys[j] for j in judged]
        outcomes.append(
            step.run(
                EventBatch(
                    features=np.ascontiguousarray(features[here]),
                    times=times[here],
                    ids=[f"e{i}" for i in here],
                ),
                LabelBatch(
                    ids=[f"e{names[j]}" for j in judged],
                    values=chosen
                    if step.models.task is Task.MULTICLASS
                    else np.array(chosen, np.float64),
                    times=times[judged] + kwargs.get("lag", 0),
                    context=lambda j, judged=judged: b"%d" % judged[j],
                ),
                order=np.array([at[i] for i in piece], np.int64),
            )
        )
        answered += len(judged)
        metrics = list(step.models.metrics[step.models.champion].values())
        running.append((answered, metrics[0].value if metrics else np.nan))
    return outcomes, running


def served_by_answer(outcomes: list[Any], order: list[int], events: int, labels: bool) -> list[Any]:
    """The champion's stored predictions in the order of the answers."""
    found: list[Any] = []
    for outcome in outcomes:
        answers = outcome.learned.predictions["champion"]
        values = answers.values
        found += values if isinstance(values, list) else values.tolist()
        if labels:
            kept = answers.labels if isinstance(values, list) else answers.binary_labels().tolist()
            found[len(found) - len(kept) :] = kept
    return found


def as_given(answer: Any, task: Task, labels: bool) -> Any:
    """River's answer in the form of ours."""
    if task is Task.BINARY and not labels:
        return answer.get(True, 0.0) if answer else np.nan
    if task is Task.BINARY:
        return 255 if answer is None else int(answer)
    return np.nan if answer is None and task is not Task.MULTICLASS else answer


@pytest.mark.parametrize("delay", DELAYS.values(), ids=DELAYS)
@pytest.mark.parametrize(("data", "model", "name"), COMPILED)
def test_compiled_equals_river(data: str, model: Any, name: str, delay: Any) -> None:
    names, plain, ys = bundled(data, 1500)
    xs = with_times(plain)
    task = Task.REGRESSION if name in ("MAE", "RMSE", "MSE") else Task.BINARY
    want, want_metric = expected(xs, ys, model.clone(), name, delay)
    features = np.array([[x[n] for n in names] for x in xs])
    learner = learner_for(model.clone(), names, task)
    assert isinstance(learner, CompiledLinear)
    step = Prequential({"champion": learner}, PrequentialSettings(metrics=[name]))
    order = arrival(xs, ys, delay)
    outcomes, running = run_in_cuts(step, features, ys, order, [10, 11, 500, 1700])
    labels = name in ("Accuracy", "F1")
    got = served_by_answer(outcomes, order, len(xs), labels)
    given = [as_given(p, task, labels) for p in want]
    np.testing.assert_allclose(np.array(got, float), given, rtol=1e-12, atol=1e-12)
    for answered, value in running:
        if answered:
            assert value == pytest.approx(want_metric[answered - 1], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("delay", DELAYS.values(), ids=DELAYS)
@pytest.mark.parametrize(("task", "data", "model", "name"), RIVER)
def test_river_is_equal_bit_for_bit(
    task: Task, data: str, model: Any, name: str, delay: Any
) -> None:
    names, plain, ys = bundled(data, 300)
    if task is Task.REGRESSION:
        ys = [float(y) for y in ys]
    xs = with_times(plain)
    metric = getattr(river_metrics, name)()
    labels = bool(getattr(metric, "requires_labels", False))
    want, want_metric = expected(xs, ys, model.clone(), name, delay)
    features = np.array([[x[n] for n in names] for x in xs])
    step = Prequential(
        {"champion": RiverLearner(model.clone(), names, task)}, PrequentialSettings(metrics=[name])
    )
    order = arrival(xs, ys, delay)
    outcomes, running = run_in_cuts(step, features, ys, order, [3, 40, 41, 333])
    got = served_by_answer(outcomes, order, len(xs), labels)
    given = [as_given(p, task, labels) for p in want]
    if task is Task.MULTICLASS:
        assert got == given
    else:
        np.testing.assert_array_equal(np.array(got, float), np.array(given, float))
    # River sums a macro average over a set of labels, in the order of their hashes: the last bit
    # is then not even its own from one process to the next.
    exact = {} if name == "MacroF1" else {"rel": 0, "abs": 0}
    for answered, value in running:
        if answered:
            assert value == pytest.approx(want_metric[answered - 1], **exact)


@pytest.mark.parametrize(("task", "data", "model", "name"), RIVER)
def test_inline_equals_no_delay(task: Task, data: str, model: Any, name: str) -> None:
    names, plain, ys = bundled(data, 200)
    want, want_metric = expected(with_times(plain), ys, model.clone(), name, None)
    features = np.array([[x[n] for n in names] for x in plain])
    step = Prequential(
        {"champion": RiverLearner(model.clone(), names, task)},
        PrequentialSettings(metrics=[name], inline=True),
    )
    outcomes = []
    for low, high in ((0, 1), (1, 50), (50, 200)):
        values = ys[low:high]
        outcomes.append(
            step.run(
                EventBatch(features=features[low:high], times=np.arange(low, high), ids=[]),
                LabelBatch(
                    ids=[],
                    values=values if task is Task.MULTICLASS else np.array(values, np.float64),
                    times=np.empty(0, np.int64),
                ),
                order=np.empty(0, np.int64),
            )
        )
    labels = bool(getattr(getattr(river_metrics, name)(), "requires_labels", False))
    got = served_by_answer(outcomes, [], 0, labels)
    given = [as_given(p, task, labels) for p in want]
    if task is Task.MULTICLASS:
        assert got == given
    else:
        np.testing.assert_array_equal(np.array(got, float), np.array(given, float))
    exact = {} if name == "MacroF1" else {"rel": 0, "abs": 0}
    assert step.models.metrics["champion"][name].value == pytest.approx(want_metric[-1], **exact)
    assert list(outcomes[2].versions("champion")) == list(range(50, 200))


def make_step(kind: str, rules: LabelLimits, otherwise: Any) -> Prequential:
    names = ("a", "b")
    learners = {
        "champion": learner_for(scaled(log_reg()), names, Task.BINARY),
        "tree": learner_for(tree.HoeffdingTreeClassifier(grace_period=10), names, Task.BINARY),
    }
    if kind == "multiclass":
        learners = {"champion": learner_for(naive_bayes.GaussianNB(), names, Task.MULTICLASS)}
    monitors = [
        monitor("loss", "PageHinkley", cooldown="20ms", threshold=1.0, min_instances=3),
        monitor("a", "PageHinkley", cooldown="5ms", threshold=1.0, min_instances=3),
    ]
    name = "Accuracy" if kind == "multiclass" else "LogLoss"
    return Prequential(
        learners,
        PrequentialSettings(metrics=[name], monitors=monitors, rules=rules, default=otherwise),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_result_depends_on_the_cut(data: Any) -> None:
    """Random order, lost, doubled and late labels, timeouts: one call equals many."""
    kind = data.draw(st.sampled_from(["binary", "multiclass"]))
    events = data.draw(st.integers(1, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rules = LabelLimits(
        timeout_ms=data.draw(st.sampled_from([None, 0, 8, 40])),
        update_ms=data.draw(st.sampled_from([None, 60])),
        early_ms=data.draw(st.sampled_from([0, 20, 1000])),
        max_early=data.draw(st.sampled_from([2, 100])),
    )
    otherwise = data.draw(st.sampled_from([None, False]))
    features = rng.normal(size=(events, 2)).round(2)
    times = np.arange(events, dtype=np.int64) * 2 + rng.integers(-6, 6, events)
    ys: list[Any] = rng.integers(0, 2, events).tolist()
    if kind == "binary":
        ys = [np.nan if rng.random() < 0.05 else y for y in ys]
    order = list(range(events))
    judged = rng.integers(0, events, events)  # some twice
    for label in range(events):
        if rng.random() < 0.8:
            order.insert(int(rng.integers(0, len(order) + 1)), events + label)
    cuts = data.draw(st.lists(st.integers(1, max(1, len(order) - 1)), max_size=12))
    results = []
    for at in ([], cuts, range(1, len(order))):
        step = make_step(kind, rules, otherwise)
        outcomes, _ = run_in_cuts(
            step, features, ys, order, list(at), times=times, lag=3, pickled=at is cuts,
            judged=judged,
        )  # fmt: skip
        results.append(_everything(step, outcomes))
    assert results[0] == results[1] == results[2]


def _everything(step: Prequential, outcomes: list[Any]) -> dict[str, Any]:
    """All that a stream has left, in a form that `==` compares bit for bit."""
    found: dict[str, Any] = {"alarms": [a for o in outcomes for a in o.alarms]}
    for name in step.models.learners:
        for what in ("predictions", "learned"):
            values = [
                (o.predictions if what == "predictions" else o.learned.predictions)[name].values
                for o in outcomes
            ]
            found[name, what] = [repr(v) for many in values for v in list(many)]
        found[name, "metric"] = [m.value for m in step.models.metrics[name].values()]
        found[name, "version"] = step.models.learners[name].version
        found[name, "served at"] = [v for o in outcomes for v in o.versions(name)]
        # Within a call, predictions come by the index of the event and not by their turn.
        found[name, "predictions"].sort()
        found[name, "served at"].sort()
    found["delays"] = [d for o in outcomes for d in o.learned.delays.tolist()]
    found["target"] = [float(y) for o in outcomes for y in o.learned.target]
    found["refused"] = sorted(why for o in outcomes for _, why in o.rejected_labels)
    again = [o.corrected for o in outcomes if o.corrected]
    found["corrected"] = [
        (float(y), t) for c in again for y, t in zip(c.target, c.times, strict=True)
    ]
    for what in ("dropped", "confirmed", "buffered"):
        found[what] = sum(getattr(o, what) for o in outcomes)
    found["given up"] = [(g.context, g.reason) for o in outcomes for g in o.expired_labels]
    found["pending"] = len(step.models.pending)
    return found


def binary_step(**kwargs: Any) -> Prequential:
    learner = learner_for(log_reg(), ("a",), Task.BINARY)
    return Prequential({"champion": learner}, PrequentialSettings(metrics=["LogLoss"], **kwargs))


def feed(step: Prequential, ids: str, label_ids: str, values: list[float], times: list[int]) -> Any:
    """Events first, then labels; one letter is an id."""
    return step.run(
        EventBatch(
            features=np.arange(len(ids), dtype=float)[:, None] + 1.0,
            times=np.array(times[: len(ids)], np.int64),
            ids=list(ids),
        ),
        LabelBatch(
            ids=list(label_ids),
            values=np.array(values),
            times=np.array(times[len(ids) :], np.int64),
        ),
        order=np.arange(len(ids) + len(label_ids)),
    )


def test_what_was_served_is_what_is_learned() -> None:
    step = binary_step()
    feed(step, "ab", "", [], [0, 1])
    caller = np.array([[5.0]])
    step.run(
        EventBatch(features=caller, times=np.array([2]), ids=["c"]),
        LabelBatch(ids=[], values=np.empty(0), times=np.empty(0, np.int64)),
        order=np.array([0]),
    )
    caller[:] = -99.0  # the caller reuses its array
    feed(step, "", "c", [1.0], [9])
    river = log_reg()
    river.learn_one({"a": 5.0}, True)
    assert step.models.learners["champion"].to_river().weights == river.weights  # type: ignore[attr-defined]


def test_refused_labels_are_listed_with_a_reason() -> None:
    step = binary_step()
    outcome = feed(step, "ab", "aaaxb", [1.0, 1.0, 0.0, 0.0, np.nan], [0, 0, 5, 6, 6, 7, 8])
    assert outcome.rejected_labels == [
        (1, DUPLICATE), (2, CONTRADICTS), (3, UNKNOWN_ID), (4, NO_VALUE),
    ]  # fmt: skip
    assert outcome.matched.tolist() == [0]
    assert outcome.learned.delays.tolist() == [5]
    # A label without a value does not use up the prediction.
    assert feed(step, "", "b", [0.0], [20]).matched.tolist() == [0]


def test_a_label_older_than_all_that_waits_is_told_from_an_unknown_one() -> None:
    step = binary_step(rules=LabelLimits(timeout_ms=10, early_ms=100))
    outcome = feed(step, "a", "xy", [1.0, 1.0], [50, 39, 40])
    assert outcome.rejected_labels == [(0, TOO_OLD)]
    assert outcome.buffered == 1


def correcting(**rules: Any) -> Prequential:
    rules = {"timeout_ms": 10, "update_ms": 100, **rules}
    return binary_step(rules=LabelLimits(**rules), default=False)


def river_after(*learned: tuple[float, bool]) -> Any:
    model = log_reg()
    for x, y in learned:
        model.learn_one({"a": x}, y)
    return model.weights


def weights(step: Prequential) -> Any:
    return step.models.learners["champion"].to_river().weights  # type: ignore[attr-defined]


def test_a_late_label_corrects_what_was_assumed_and_is_not_scored_again() -> None:
    step = correcting()
    feed(step, "abc", "", [], [0, 0, 30])
    metric = step.models.metrics["champion"]["LogLoss"].value
    outcome = feed(step, "", "ab", [1.0, 0.0], [35, 36])
    assert (len(outcome.corrected), outcome.confirmed) == (1, 1)
    assert (outcome.corrected.target.tolist(), outcome.corrected.times.tolist()) == ([1.0], [35])
    assert outcome.rejected_labels == []
    assert outcome.learned.label.size == 0
    assert step.models.metrics["champion"]["LogLoss"].value == metric
    assert weights(step) == river_after((1.0, False), (2.0, False), (1.0, True))
    # Both have their label now: a repeat is one, and another one corrects again.
    outcome = feed(step, "", "abb", [1.0, 0.0, 1.0], [42, 42, 42])
    assert outcome.rejected_labels == [(0, DUPLICATE), (1, DUPLICATE)]
    assert outcome.corrected.tags.tolist() == [0]


def test_a_label_corrects_no_longer_than_was_declared() -> None:
    step = correcting()
    feed(step, "ab", "a", [1.0], [0, 1, 5])
    assert feed(step, "", "a", [0.0], [105]).corrected.times.tolist() == [105]
    assert step.models.pending.kept == 2
    late = feed(step, "c", "a", [1.0], [206, 206])  # b's wait was seen to be over at 105
    assert late.corrected is None
    assert step.models.pending.kept == 0
    assert late.rejected_labels == [(0, UNKNOWN_ID)]


def test_without_correction_a_late_label_has_its_own_reason() -> None:
    step = binary_step(rules=LabelLimits(timeout_ms=10), default=False)
    feed(step, "ab", "", [], [0, 30])
    assert feed(step, "", "a", [1.0], [31]).rejected_labels == [(0, LATE)]
    assert weights(step) == river_after((1.0, False))


def test_a_label_that_runs_ahead_teaches_right_after_its_event() -> None:
    step = binary_step(rules=LabelLimits(early_ms=100))
    first = feed(step, "", "aa", [1.0, 0.0], [7, 8])
    assert (first.buffered, first.rejected_labels) == (1, [(1, CONTRADICTS)])
    outcome = feed(step, "ba", "", [], [3, 5])
    assert outcome.learned.label.tolist() == [BUFFERED_LABEL]
    assert outcome.learned.target.tolist() == [1.0]
    assert outcome.learned.times.tolist() == [7]
    assert outcome.learned.items is not None
    assert outcome.learned.items.tolist() == [1]
    assert outcome.learned.predictions["champion"].values.tolist() == [0.5]
    assert list(outcome.versions("champion")) == [0, 0]
    assert weights(step) == river_after((2.0, True))
    # A label from before its event counts as given with it.
    feed(step, "", "c", [1.0], [9])
    assert feed(step, "c", "", [], [50]).learned.delays.tolist() == [0]


def test_labels_that_are_held_in_vain_are_given_back_with_their_note() -> None:
    step = binary_step(rules=LabelLimits(early_ms=10, max_early=2))
    step.run(
        EventBatch(features=np.empty((0, 1)), times=np.empty(0, np.int64), ids=[]),
        LabelBatch(
            ids=list("abc"),
            values=np.ones(3),
            times=np.array([1, 2, 3]),
            context=lambda j: b"label %d" % j,
        ),
        order=np.arange(3),
    )
    outcome = feed(step, "xy", "", [], [13, 14])
    assert [(g.context, g.item, g.reason) for g in outcome.expired_labels] == [
        (b"label 1", 0, EVENT_MISSING), (b"label 2", 1, EVENT_MISSING),
    ]  # fmt: skip
    assert len(step.models.pending.early) == 0


def test_of_too_many_held_labels_the_oldest_is_given_up() -> None:
    step = binary_step(rules=LabelLimits(early_ms=10, max_early=1))
    outcome = feed(step, "", "ab", [1.0, 1.0], [1, 2])
    assert [(g.item, g.reason) for g in outcome.expired_labels] == [(1, BUFFER_FULL)]
    assert feed(step, "ba", "", [], [2, 2]).learned.label.tolist() == [BUFFERED_LABEL]


def test_an_id_that_waits_is_predicted_but_not_stored_again() -> None:
    step = binary_step()
    outcome = feed(step, "aa", "a", [1.0], [0, 1, 2])
    assert outcome.rejected_events == [1]
    assert outcome.predictions["champion"].values.tolist() == [0.5, 0.5]
    assert step.models.learners["champion"].to_river().weights == {"a": 0.005}  # type: ignore[attr-defined]


def test_the_wait_ends_after_its_last_millisecond() -> None:
    step = binary_step(rules=LabelLimits(timeout_ms=10))
    assert feed(step, "a", "a", [1.0], [0, 10]).matched.tolist() == [0]
    late = feed(step, "b", "b", [1.0], [20, 31])
    assert late.dropped == 1
    assert late.rejected_labels == [(0, LATE)]


def test_an_assumed_label_is_learned_when_the_wait_is_over() -> None:
    step = binary_step(rules=LabelLimits(timeout_ms=10), default=False)
    outcome = feed(step, "abc", "", [], [0, 5, 30])
    assert outcome.learned.label.tolist() == [-1, -1]
    assert outcome.learned.target.tolist() == [0.0, 0.0]
    assert outcome.learned.times.tolist() == [10, 15]
    assert outcome.versions("champion") == [0, 0, 2]
    assert step.models.metrics["champion"]["LogLoss"].value == pytest.approx(np.log(2))


def test_models_come_lead_and_go() -> None:
    step = binary_step()
    feed(step, "ab", "", [], [0, 0])
    step.models.add("new", learner_for(naive_bayes.GaussianNB(), ("a",), Task.BINARY))
    outcome = feed(step, "c", "ac", [1.0, 0.0], [1, 2, 3])
    assert np.isnan(outcome.learned.predictions["new"].values[0])
    assert step.models.learners["new"].version == 2
    step.models.champion = "new"
    with pytest.raises(DeclarationError, match="is the champion"):
        step.models.remove("new")
    step.models.remove("champion")
    assert set(feed(step, "d", "b", [1.0], [4, 5]).predictions) == {"new"}
    with pytest.raises(DeclarationError, match="another task"):
        step.models.add("r", learner_for(linear_model.LinearRegression(), ("a",), Task.REGRESSION))


def test_inline_event_without_target_is_served_but_not_learned() -> None:
    step = binary_step(inline=True)
    outcome = feed(step, "abc", "", [1.0, np.nan, 0.5], [0, 1, 2])
    assert outcome.predictions["champion"].values.size == 3
    assert outcome.rejected_labels == [(1, NO_VALUE), (2, NO_VALUE)]
    assert outcome.versions("champion") == [0, 1, 1]


def test_tags_come_back_with_the_label() -> None:
    step = binary_step()
    step.run(
        EventBatch(
            features=np.ones((2, 1)),
            times=np.array([0, 0]),
            ids=["a", "b"],
            tags=np.array([7, 8], np.int32),
        ),
        LabelBatch(ids=[], values=np.empty(0), times=np.empty(0, np.int64)),
        order=np.array([0, 1]),
    )
    assert feed(step, "", "ba", [1.0, 1.0], [3, 3]).learned.tags.tolist() == [8, 7]


def test_declarations_are_checked() -> None:
    with pytest.raises(DeclarationError, match="unknown subject 'z'"):
        binary_step(monitors=[monitor("z")])
    with pytest.raises(DeclarationError, match="no loss 'squared' for a binary task"):
        binary_step(monitors=[monitor("loss", loss="squared")])
    with pytest.raises(DeclarationError, match="no model is given"):
        Prequential({})
