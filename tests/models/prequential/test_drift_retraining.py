"""Fresh models that drift starts: when, with what, and that no cut and no restart shows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift, linear_model, naive_bayes, preprocessing, tree

from anabranch.models.drift.detectors import monitor
from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import Learner, Task
from anabranch.models.learners.subsampling import SubsampledLearner
from anabranch.models.metrics.slices import slice_by
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.prequential import Prequential
from anabranch.models.prequential.replay_buffer import ReplayBuffer
from anabranch.models.prequential.rollout_commands import RolloutController
from anabranch.models.rollout import decision as d
from anabranch.models.rollout.challenger import Challenger, OnDrift
from anabranch.models.rollout.command import Command
from anabranch.models.rollout.deployment import Deployment
from anabranch.models.rollout.policies import ABTest, Bandit, Canary, Policy, Shadow
from anabranch.models.rollout.serving import Serving
from anabranch.state.errors import DeclarationError, InputError
from anabranch.state.store.delta import Delta, decode, encode, merge

NAMES = ("a", "b")
SIZE, CHANGE, WARM = 900, 300, 40
QUICK = Canary(steps=(0.5, 1.0), min_labels=10, alpha=0.2, min_effect=0.0)
Row = tuple[int, bool]  # the number of an event, and whether it is its label


def slow() -> Any:
    """Learns for ever, and so is long in forgetting."""
    return preprocessing.StandardScaler() | naive_bayes.GaussianNB()


def make(
    policy: Policy = QUICK,
    fresh: Any = None,
    task: Task = Task.BINARY,
    inline: bool = False,
    watched: Any = (),
    grace: int = 0,
    learn: float = 1.0,
    challengers: Any = (),
) -> Prequential:
    declared = Challenger(model=fresh or slow(), warmup_rows=WARM, burn_in=grace, sample_rate=learn)

    def beginner() -> Learner:
        learner = learner_for(declared.model.clone(), NAMES, task)
        return learner if learn == 1 else SubsampledLearner(learner, learn)

    models = {"old": slow(), **dict(challengers)}
    rollouts = Serving(Deployment("old", list(models)[1:], policy, task, "p"), task)
    return Prequential(
        {name: learner_for(model.clone(), NAMES, task) for name, model in models.items()},
        PrequentialSettings(
            metrics=["Accuracy"],
            monitors=watched or [monitor("loss", delta=0.01, cooldown="10s")],
            rollouts=rollouts,
            inline=inline,
            slices=[slice_by("kind")],
            on_drift=OnDrift(declared, beginner),
        ),
    )


class Stream:
    """Events whose meaning is turned round at `CHANGE`, each with a label a little later."""

    def __init__(self, seed: int, classes: int = 2) -> None:
        rng = np.random.default_rng(seed)
        self.features = rng.normal(size=(SIZE, 2)).round(2)
        truth = (self.features[:, 0] + 0.4 * rng.normal(size=SIZE) > 0).astype(np.int64)
        truth[CHANGE:] = 1 - truth[CHANGE:]
        self.values: Any = truth.astype(np.float64)
        if classes > 2:
            third = self.features[:, 1] > 1
            self.values = [
                ("no", "yes", "other")[2 if t else v] for v, t in zip(truth, third, strict=True)
            ]
        moments = np.concatenate(
            [np.arange(SIZE), np.arange(SIZE) + 0.5 + rng.exponential(4, SIZE)]
        )
        order = np.argsort(moments, kind="stable").tolist()
        self.order: list[Row] = [(i % SIZE, i >= SIZE) for i in order]

    def feed(self, step: Prequential, rows: list[Row]) -> dict[str, list[Any]]:
        """Work through some rows: what was served, decided and signalled, with their rows."""
        events = [i for i, is_label in rows if not is_label]
        labels = events if step.models.settings.inline else [i for i, is_label in rows if is_label]
        place = {(i, False): at for at, i in enumerate(events)}
        if not step.models.settings.inline:
            place |= {(i, True): len(events) + at for at, i in enumerate(labels)}
        numbers = isinstance(self.values, np.ndarray)
        outcome = step.run(
            EventBatch(
                features=np.ascontiguousarray(self.features[events]),
                times=np.array(events, np.int64) * 1000,
                ids=[f"e{i}" for i in events],
                fields={"kind": [f"k{i % 3}" for i in events]},
                keys=[f"user{i % 50}" for i in events],
            ),
            LabelBatch(
                ids=[f"e{i}" for i in labels],
                values=self.values[labels] if numbers else [self.values[i] for i in labels],
                times=np.array(labels, np.int64) * 1000 + 500,
            ),
            order=np.array([place[row] for row in rows if row in place], np.int64),
        )
        out = outcome.served
        if out is None:
            return {}
        fresh = outcome.predictions.get("fresh-1")
        every = [*events, *labels]
        answers = list(out.predictions.values)
        return {
            "answers": list(map(repr, answers)),
            "models": out.models,
            "versions": out.versions,
            "events": events,
            "fresh": [None] * len(events) if fresh is None else list(fresh.values),
            "decisions": [
                (e.action, e.challenger, e.champion, e.reason, e.time, repr(e.evidence), every[row])
                for e, row in out.decisions
            ],
            "alarms": [(alarm.time, alarm.statistic, alarm.seen) for alarm in outcome.alarms],
        }


def run(step: Prequential, stream: Stream, cuts: list[int]) -> dict[str, list[Any]]:
    """Everything that came out, in batches that end at the cuts; inline all labels go at once."""
    rows = [row for row in stream.order if not (step.models.settings.inline and row[1])]
    found: dict[str, list[Any]] = {}
    for low, high in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        for name, values in stream.feed(step, rows[low:high]).items():
            found.setdefault(name, []).extend(values)
    return found


def knows(step: Prequential) -> list[Any]:
    """What was measured, of all models and slices."""
    metrics = {
        name: {m: v.value for m, v in of.items()} for name, of in step.models.metrics.items()
    }
    versions = {name: learner.version for name, learner in step.models.learners.items()}
    return [metrics, versions, step.models.slices.report(), step.models.champion]


CASES = {
    "delayed": {},
    "inline": {"inline": True},
    "tree": {"fresh": tree.HoeffdingTreeClassifier(grace_period=20)},
    "compiled": {"fresh": preprocessing.StandardScaler() | linear_model.LogisticRegression()},
    "two monitors": {
        "watched": [
            monitor("loss", delta=0.002, cooldown="10s"),
            monitor("loss", "PageHinkley", cooldown="20s", threshold=8.0),
            monitor("a", delta=0.5, cooldown="1s"),
        ]
    },
    "test": {"policy": ABTest(alpha=0.2, min_effect=0.0), "grace": 20},
    "with another": {"challengers": {"other": tree.HoeffdingTreeClassifier(grace_period=20)}},
    "a bandit": {},
    "a share of the labels": {"learn": 0.5},
    "classes": {"task": Task.MULTICLASS},
    "classes inline": {"task": Task.MULTICLASS, "inline": True},
}


def case(name: str) -> tuple[Prequential, Stream]:
    from river import bandit

    how: dict[str, Any] = CASES[name]
    if name == "a bandit":
        how = {"policy": Bandit(policy=bandit.EpsilonGreedy(epsilon=0.2, seed=1))}
    classes = 3 if how.get("task") is Task.MULTICLASS else 2
    return make(**how), Stream(seed=7, classes=classes)


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=3, deadline=None)
def test_no_cut_shows(name, data):
    step, stream = case(name)
    rows = SIZE if step.models.settings.inline else 2 * SIZE
    whole = run(step, stream, [])
    assert any(action == d.STARTED and who == "fresh-1" for action, who, *_ in whole["decisions"])
    cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1), min_size=1, max_size=40)))
    other, _ = case(name)
    found = run(other, stream, cuts)
    # In a batch before its first event a fresh model has no answers at all.
    assert {**found, "fresh": None} == {**whole, "fresh": None}
    assert knows(other) == knows(step)


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=2, deadline=None)
def test_no_restart_shows(name, data):
    step, stream = case(name)
    rows = SIZE if step.models.settings.inline else 2 * SIZE
    whole = run(step, stream, [])
    kept: list[Delta] = []
    found: dict[str, list[Any]] = {}
    order = [row for row in stream.order if not (step.models.settings.inline and row[1])]
    cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1), min_size=1, max_size=5)))
    for low, high in zip([0, *cuts], [*cuts, rows], strict=True):
        again, _ = case(name)
        again.restore(merge(kept))
        for what, values in stream.feed(again, order[low:high]).items():
            found.setdefault(what, []).extend(values)
        kept.append(decode(encode(again.changes())))
    assert {**found, "fresh": None} == {**whole, "fresh": None}
    assert knows(again) == knows(step)


@pytest.mark.parametrize("inline", [False, True], ids=["delayed", "inline"])
def test_it_is_the_model_that_a_loop_over_river_gives(inline):
    """ADWIN on the champion's loss, a clone that learns the last rows, then both row by row."""
    stream, step = Stream(seed=3), make(policy=Shadow(), inline=inline)
    whole = run(step, stream, list(range(50, SIZE, 170)))
    expected = dict(by_hand(stream, inline))
    assert len(expected) > 300
    found = {
        event: answer
        for event, answer in zip(whole["events"], whole["fresh"], strict=True)
        if answer is not None and not math.isnan(answer)
    }
    assert found == expected


def by_hand(stream: Stream, inline: bool) -> Iterator[tuple[int, float]]:
    """Events with what a fresh model answers."""
    champion, detector, fresh = slow(), drift.ADWIN(delta=0.01), None
    waiting: dict[int, float] = {}
    rows: list[tuple[dict[str, float], bool]] = []
    for event, is_label in stream.order:
        if is_label and inline:
            continue
        x = dict(zip(NAMES, stream.features[event].tolist(), strict=True))
        y = bool(stream.values[event])
        if not is_label:
            waiting[event] = champion.predict_proba_one(x).get(True, math.nan)
            if fresh is not None:
                yield event, fresh.predict_proba_one(x).get(True, 0.5)
        if is_label or inline:
            champion.learn_one(x, y)
            rows.append((x, y))
            if fresh is not None:
                fresh.learn_one(x, y)
            if math.isnan(waiting[event]):
                continue  # it knew nothing yet
            detector.update(float((waiting[event] > 0.5) != y))
            if detector.drift_detected and fresh is None:
                fresh = slow()
                for warm, label in rows[-WARM:]:
                    fresh.learn_one(warm, label)


def test_it_leads_where_the_champion_no_longer_can():
    step, stream = make(), Stream(seed=1)
    whole = run(step, stream, list(range(100, 2 * SIZE, 100)))
    decided = [(action, who) for action, who, *_ in whole["decisions"]]
    assert decided[0] == (d.STARTED, "fresh-1")
    assert (d.PROMOTED, "fresh-1") in decided
    assert (d.STEPPED, "fresh-1") not in decided  # in shadow, until it leads
    began = next(row for action, *_, row in whole["decisions"] if action == d.STARTED)
    assert CHANGE < began < CHANGE + 150
    why = next(why for action, _, _, why, *_ in whole["decisions"] if action == d.STARTED)
    assert "the loss of old has drifted (ADWIN: from 0." in why
    assert f"trained on the last {WARM} labelled rows" in why
    assert step.models.champion.startswith("fresh-")
    late = [
        model for event, model in zip(whole["events"], whole["models"], strict=True) if event > 850
    ]
    assert set(late) == {step.models.champion}
    versions = dict(zip(whole["events"], whole["versions"], strict=True))
    # It has learned the rows that warmed it, and those since.
    assert WARM + 899 - began - 30 < versions[899] <= WARM + 900 - began


def test_a_loss_that_falls_starts_none():
    step, stream = (
        make(policy=Shadow(), watched=[monitor("loss", delta=0.3, cooldown="1s")]),
        Stream(2),
    )
    whole = run(step, stream, [])
    started = [who for action, who, *_ in whole["decisions"] if action == d.STARTED]
    assert started == ["fresh-1"]
    assert len(whole["alarms"]) == 3  # the others are of a loss that falls
    assert [statistic > 0 for _, statistic, _ in whole["alarms"]] == [True, False, False]


def test_with_labels_that_judge_who_served_it_has_to_serve():
    policy = Canary(
        steps=(0.5, 1.0), min_labels=10, alpha=0.2, comparison="unpaired", min_effect=0.0
    )
    step, stream = make(policy), Stream(seed=1)
    whole = run(step, stream, [])
    assert (d.STEPPED, "fresh-1") in [(a, w) for a, w, *_ in whole["decisions"]] or any(
        model == "fresh-1" for model in whole["models"]
    )


def test_grace_is_labels_that_do_not_judge():
    plain, patient = make(), make(grace=60)
    stream = Stream(seed=1)
    promoted = []
    for step in (plain, patient):
        decisions = run(step, stream, [])["decisions"]
        promoted.append(next(row for action, *_, row in decisions if action == d.PROMOTED))
    assert promoted[1] > promoted[0] + 30


def test_it_does_not_stop_a_canary_that_climbs_nor_is_it_stopped():
    step = make(
        Canary(steps=(0.1, 0.5), min_labels=10**6, min_effect=0.0), challengers={"x": slow()}
    )
    whole = run(step, Stream(seed=1), [])
    assert [who for action, who, *_ in whole["decisions"] if action == d.STARTED][:2] == [
        "x",
        "fresh-1",
    ]
    assert step.models.rollouts is not None
    trial = step.models.rollouts.deployment.trial("x")
    assert trial is None or trial.share == 0.1


def test_a_fresh_one_is_steered_as_any_other():
    step, stream = make(policy=Shadow()), Stream(seed=1)
    run(step, stream, [])

    def provide(command: Command) -> Any:
        raise InputError("there is nothing to add")

    [gone] = RolloutController(step.models, provide).command(
        Command(kind="remove", id="1", challenger="fresh-1"), 5
    )
    assert (gone.action, gone.challenger) == (d.REMOVED, "fresh-1")
    assert "fresh-1" not in step.models.learners


@pytest.mark.parametrize("numbers", [True, False])
@given(
    sizes=st.lists(st.integers(0, 9), max_size=12), most=st.integers(0, 7), again=st.integers(1, 9)
)
@settings(max_examples=30, deadline=None)
def test_the_last_labelled_rows_are_kept_through_anything(numbers, sizes, most, again):
    rows, kept, deltas = ReplayBuffer(most, 1, numbers), [], []
    for size in sizes:
        fresh = [float(len(kept) + i) for i in range(size)]
        kept += fresh
        targets = np.array(fresh) if numbers else [f"t{value:g}" for value in fresh]
        rows.add(np.array(fresh).reshape(-1, 1), targets)
        deltas.append(decode(encode(rows.changes())))
    expected = kept[max(len(kept) - most, 0) :]

    def check(found: ReplayBuffer, wanted: list[float]) -> None:
        features, targets = found.last()
        assert features[:, 0].tolist() == wanted
        assert list(targets) == (wanted if numbers else [f"t{value:g}" for value in wanted])

    check(rows, expected)
    for size in (most, again):
        other = ReplayBuffer(size, 1, numbers)
        other.restore(merge(deltas))
        check(other, expected[max(len(expected) - size, 0) :])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"warmup_rows": -1}, "warmup_rows=-1 must be 0 or more labels"),
        ({"warmup_rows": True}, "warmup_rows=True must be"),
        ({"warmup_rows": 10**7}, "more than the 100,000 rows"),
        ({"burn_in": 0.5}, "burn_in=0.5 must be"),
        ({"sample_rate": 0}, "sample_rate=0 must be a share"),
        ({"sample_rate": float("nan")}, "sample_rate=nan must be a share"),
    ],
)
def test_what_can_not_be_is_said(how, words):
    with pytest.raises(DeclarationError, match=words):
        OnDrift(Challenger(model=slow(), **how), lambda: learner_for(slow(), NAMES, Task.BINARY))
