"""Rollouts inside a prequential step: real models, any cut, any restart, and commands."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import bandit, linear_model, naive_bayes, preprocessing

from anabranch.models.drift.detectors import monitor
from anabranch.models.learners.checkpoint import Bounds
from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.learner import Learner, Task
from anabranch.models.metrics.slices import slice_by
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.prequential import Prequential
from anabranch.models.prequential.rollout_commands import RolloutController
from anabranch.models.rollout import decision as d
from anabranch.models.rollout.command import Command
from anabranch.models.rollout.deployment import Deployment
from anabranch.models.rollout.policies import ABTest, Bandit, Canary, Guardrails, Policy, Shadow
from anabranch.models.rollout.served import FALLBACK
from anabranch.models.rollout.serving import Serving
from anabranch.state.errors import InputError, StateError
from anabranch.state.labels.label_limits import LabelLimits
from anabranch.state.store.delta import Delta, decode, encode, merge
from tests.support.faulty_models import BecomesNaN, Mistaken, Raises

NAMES = ("a", "b")
QUICK = Canary(steps=(0.3, 0.6, 1.0), min_labels=4, alpha=0.2, report_every=40)


def linear() -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


def learner(model: Any) -> Learner:
    return learner_for(model, NAMES, Task.BINARY)


def make(
    policy: Policy,
    challengers: dict[str, Any],
    champion: Any = None,
    fallback: float | None = None,
    **arguments: Any,
) -> Prequential:
    rollouts = Serving(
        Deployment("old", list(challengers), policy, Task.BINARY, "p"), Task.BINARY, fallback
    )
    models = {"old": champion or Mistaken(), **challengers}
    return Prequential(
        {name: learner(model) for name, model in models.items()},
        PrequentialSettings(
            metrics=["LogLoss"],
            monitors=[monitor("loss", delta=0.5, cooldown="1s")],
            rollouts=rollouts,
            **arguments,
        ),
    )


SIZE = 500


def stream(seed: int) -> tuple[list[int], Any, Any, Any]:
    """Events 0 to SIZE and their labels at SIZE to 2 SIZE, in the order of arrival."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(SIZE, 2)).round(2)
    moments = np.concatenate([np.arange(SIZE), np.arange(SIZE) + rng.exponential(8, SIZE) - 1])
    order = np.argsort(moments, kind="stable").tolist()
    values = (features[:, 0] + 0.3 * rng.normal(size=SIZE) > 0).astype(np.float64)
    return order, features, np.arange(SIZE) * 1000, values


def feed(step: Prequential, data: Any, low: int = 0, high: int = 2 * SIZE) -> dict[str, list[Any]]:
    """Work through a part of the stream: what was served, and what was decided."""
    order, features, times, values = data
    piece = order[low:high]
    events, labels = [i for i in piece if i < SIZE], [i - SIZE for i in piece if i >= SIZE]
    if step.models.settings.inline:
        labels = events
    at = {event: i for i, event in enumerate(events)}
    at |= {label + SIZE: i + len(events) for i, label in enumerate(labels)}
    outcome = step.run(
        EventBatch(
            features=np.ascontiguousarray(features[events]),
            times=times[events],
            ids=[f"e{i}" for i in events],
            fields={"kind": [f"k{i % 3}" for i in events]},
            keys=[f"user{i % 60}" for i in events],
        ),
        LabelBatch(ids=[f"e{j}" for j in labels], values=values[labels], times=times[labels] + 500),
        order=np.array([at[i] for i in piece if i in at], np.int64),
    )
    out = outcome.served
    if out is None:
        return {}
    served = out.predictions
    rows = [*events, *(j + SIZE for j in labels)]
    return {
        "scores": [repr(value) for value in served.values.tolist()],
        "labels": served.binary_labels().tolist(),
        "models": out.models,
        "versions": out.versions,
        "instead": out.instead_of or [None] * len(events),
        "decisions": [
            (e.action, e.challenger, e.champion, e.share, e.reason, e.time, repr(e.evidence),
             repr(e.guardrails), rows[row])
            for e, row in out.decisions
        ],
        "alarms": list(outcome.alarms),
    }  # fmt: skip


def joined(parts: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {}
    for part in parts:
        for name, values in part.items():
            out.setdefault(name, []).extend(values)
    return out


def actions(fed: dict[str, list[Any]], *without: str) -> list[tuple[str, str]]:
    left = {d.PROGRESS, *without}
    return [entry[:2] for entry in fed["decisions"] if entry[0] not in left]


def greedy() -> Bandit:
    return Bandit(policy=bandit.EpsilonGreedy(epsilon=0.2, seed=1), report_every=50)


CASES: dict[str, Any] = {
    "canary": lambda **a: make(QUICK, {"bad": Raises(12), "new": linear()}, **a),
    "test": lambda **a: make(
        ABTest(split=0.4, alpha=0.2, comparison="unpaired"), {"new": linear()}, fallback=0.1, **a
    ),
    "bandit": lambda **a: make(greedy(), {"bad": BecomesNaN(60), "new": linear()}, **a),
    "shadow": lambda **a: make(
        Shadow(report_every=50, guardrails=Guardrails(error_rate=0.02)),
        {"bad": Raises(30, learning=True), "new": naive_bayes.GaussianNB()},
        slices=[slice_by("kind")],
        **a,
    ),
    "auc": lambda **a: make(
        Canary(steps=(0.3, 1.0), min_labels=4, alpha=0.3, loss="auc", auc_window=8, min_effect=0.0),
        {"new": linear()},
        **a,
    ),
    "failing champion": lambda **a: make(
        QUICK, {"new": linear()}, champion=Raises(150), fallback=0.1, **a
    ),
}


def through_the_disk(deltas: list[Delta]) -> Delta:
    return merge([decode(encode(delta)) for delta in deltas])


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_cut_and_restored_anywhere_it_serves_and_decides_the_same(case: str, data: Any) -> None:
    arguments: dict[str, Any] = {"inline": data.draw(st.booleans(), "inline")}
    if not arguments["inline"]:
        arguments["rules"] = LabelLimits(
            timeout_ms=data.draw(st.sampled_from([None, 6000]), "wait")
        )
    given_data = stream(data.draw(st.integers(0, 9), "seed"))
    cuts = data.draw(st.lists(st.integers(0, 2 * SIZE), max_size=8), "cuts")
    kept = data.draw(st.sets(st.integers(0, 8)), "kept")
    killed = data.draw(st.sets(st.integers(0, 8)), "killed")
    bounds = data.draw(st.sampled_from([None, Bounds(pickle_bytes=0)]), "bounds")
    whole = CASES[case](**arguments)
    expected = feed(whole, given_data)
    broken, deltas, parts = CASES[case](bounds=bounds, **arguments), [], []
    for number, (low, high) in enumerate(pairwise([0, *sorted(cuts), 2 * SIZE])):
        if number in kept | killed:
            deltas.append(broken.changes())
        if number in killed:
            feed(broken, given_data, low, high)  # what is not committed is lost, and done again
            broken = CASES[case](bounds=bounds, **arguments)
            broken.restore(through_the_disk(deltas))
        parts.append(feed(broken, given_data, low, high))
    fed = joined(parts)
    for name in expected:
        assert fed.get(name, []) == expected[name], name
    assert list(broken.models.learners) == list(whole.models.learners)
    assert broken.models.champion == whole.models.champion
    assert {n: repr(of["LogLoss"].value) for n, of in broken.models.metrics.items()} == {
        n: repr(of["LogLoss"].value) for n, of in whole.models.metrics.items()
    }
    assert broken.models.slices.report() == whole.models.slices.report()


def test_a_canary_that_is_judged_by_the_area_under_the_curve() -> None:
    step = CASES["auc"](inline=True)
    fed = feed(step, stream(1))
    assert (d.PROMOTED, "new") in actions(fed)
    evidence = next(entry[6] for entry in fed["decisions"] if entry[0] == d.PROMOTED)
    found = dict(re.findall(r"(\w+_loss)=([0-9.]+)", evidence))
    assert float(found["challenger_loss"]) < 0.1 < float(found["champion_loss"])  # of 1 - AUC


@pytest.mark.parametrize("inline", [False, True])
def test_a_canary_over_real_models(inline: bool) -> None:
    step = CASES["canary"](inline=inline)
    fed = feed(step, stream(1))
    assert actions(fed, d.STEPPED) == [
        (d.STARTED, "bad"), (d.ROLLED_BACK, "bad"), (d.STARTED, "new"), (d.PROMOTED, "new"),
    ]  # fmt: skip
    assert (d.STEPPED, "new") in actions(fed)
    assert step.models.champion == "new"
    assert list(step.models.learners) == ["old", "new"]
    assert set(fed["models"][-50:]) == {"new"}
    # Where the bad one was to serve when it raised, the champion did.
    ended = next(entry[-1] for entry in fed["decisions"] if entry[0] == d.ROLLED_BACK)
    assert "bad" not in fed["models"][ended:]
    assert all(instead in (None, "bad") for instead in fed["instead"])


def test_what_is_served_is_what_the_models_say() -> None:
    """Each row's answer and version are those of the model that is named."""
    step = CASES["canary"](inline=True)
    order, features, _, values = stream(2)
    fed = feed(step, stream(2))
    model = linear()
    for event in [i for i in order if i < SIZE]:
        x = dict(zip(NAMES, features[event].tolist(), strict=True))
        mine = model.predict_proba_one(x)[True]
        if fed["models"][event] == "new":
            assert float(fed["scores"][event]) == pytest.approx(mine, abs=1e-12)
            assert fed["versions"][event] == event
        else:
            assert float(fed["scores"][event]) in (0.1, 0.9, 0.5)
        model.learn_one(x, bool(values[event]))
    assert {"old", "new"} <= set(fed["models"])


def test_a_champion_that_fails_with_nobody_to_stand_in() -> None:
    for fallback, served in ((0.25, "0.25"), (None, "nan")):
        step = make(Shadow(), {}, champion=Raises(100), fallback=fallback, inline=True)
        fed = feed(step, stream(1))
        assert actions(fed) == [(d.CHAMPION_FAILED, "")]
        assert fed["models"][100:] == [FALLBACK] * 400
        assert set(fed["scores"][100:]) == {served}
        assert fed["instead"][100:] == ["old"] * 400
        assert fed["labels"][100] == (255 if fallback is None else 0)


def test_the_champion_before_stands_in() -> None:
    step = make(QUICK, {"new": Raises(400)}, champion=Mistaken(), inline=True)
    fed = feed(step, stream(1))
    assert actions(fed, d.STEPPED) == [
        (d.STARTED, "new"), (d.PROMOTED, "new"), (d.CHAMPION_FAILED, ""),
    ]  # fmt: skip
    assert fed["models"][400:] == ["old"] * 100
    assert fed["instead"][400:] == ["new"] * 100


def slow(_: Any) -> None:
    import time

    time.sleep(0.002)


class Slow(Mistaken):
    def learn_one(self, x: dict[str, float], y: Any) -> None:
        slow(x)


def test_a_slow_challenger_is_taken_out_at_the_end_of_a_batch() -> None:
    step = make(
        Canary(guardrails=Guardrails(latency_us=500)), {"slow": Slow()},
        inline=True,
    )  # fmt: skip
    fed = joined([feed(step, stream(1), low, low + 200) for low in range(0, 2 * SIZE, 200)])
    assert ("rolled_back", "slow") in actions(fed)
    assert "us for each prediction and update" in fed["decisions"][-1][4]
    assert list(step.models.learners) == ["old"]


# Commands.


def steered(step: Prequential, provide: Any = None) -> RolloutController:
    def nothing(command: Command) -> Learner:
        raise InputError(f"there is no {command.model or command.challenger}")

    return RolloutController(step.models, provide or nothing)


def say(
    steering: RolloutController, kind: str, challenger: str = "", **more: Any
) -> list[tuple[str, str]]:
    command = Command(kind=kind, id="1", challenger=challenger, **more)  # type: ignore[arg-type]
    return [(each.action, each.reason) for each in steering.command(command, 5000)]


def test_traffic_is_set_paused_and_resumed() -> None:
    step = make(Canary(steps=(0.1, 1.0), min_duration="10d"), {"new": linear()}, inline=True)
    steering = steered(step)
    feed(step, stream(1), 0, 100)
    assert say(steering, "set_traffic", "new", share=0.5)[0][0] == d.TRAFFIC
    served = feed(step, stream(1), 100, 600)["models"]
    assert 0.35 < served.count("new") / len(served) < 0.65
    assert say(steering, "pause") == [("rejected", "new is already paused")]
    assert say(steering, "resume")[0][0] == d.RESUMED
    assert say(steering, "set_traffic", "new", share=0.0)[0][0] == d.TRAFFIC
    assert set(feed(step, stream(1), 600, 800)["models"]) == {"old"}


def test_somebody_promotes_and_goes_back() -> None:
    step = make(Shadow(), {"new": linear()}, inline=True)
    steering = steered(step)
    feed(step, stream(1), 0, 100)
    assert say(steering, "rollback", "old") == [
        ("rejected", "there was no champion before old: none to revert to")
    ]
    assert say(steering, "promote", "new", requested_by="ann")[0] == (
        d.PROMOTED,
        "requested by ann",
    )
    assert set(feed(step, stream(1), 100, 200)["models"]) == {"new"}
    assert say(steering, "promote", "new") == [("rejected", "new is already the champion")]
    assert say(steering, "rollback")[0][0] == d.ROLLED_BACK
    assert set(feed(step, stream(1), 200, 300)["models"]) == {"old"}
    assert list(step.models.learners) == ["old"]
    assert say(steering, "promote", "new") == [("rejected", "new was removed: start it again")]


def test_a_model_is_added_while_it_runs_and_survives_a_restart() -> None:
    def provide(command: Command) -> Learner:
        return learner(naive_bayes.GaussianNB())

    step = make(Shadow(), {}, inline=False)
    steering = steered(step, provide)
    feed(step, stream(1), 0, 300)
    told = say(steering, "add", "bayes", model="bayes@3")
    assert [action for action, _ in told] == [d.ADDED, d.STARTED]
    assert say(steering, "add", "bayes", model="bayes@3")[0][0] == d.REJECTED
    first = feed(step, stream(1), 300, 500)
    assert set(first["models"]) == {"old"}
    image = through_the_disk([step.changes()])
    again = make(Shadow(), {}, inline=False)
    again.restore(image)
    assert list(again.models.learners) == ["old", "bayes"]
    assert feed(again, stream(1), 500, 900) == feed(step, stream(1), 500, 900)
    assert say(steering, "remove", "bayes")[0][0] == d.REMOVED
    assert list(step.models.learners) == ["old"]


def test_one_that_was_taken_out_is_started_anew() -> None:
    step = make(QUICK, {"new": linear()}, inline=True)
    steering = steered(step, lambda _: learner(linear()))
    feed(step, stream(1), 0, 10)
    assert say(steering, "start", "new") == [("rejected", "new is already in a rollout")]
    assert say(steering, "rollback", "new")[0][0] == d.ROLLED_BACK
    assert say(steering, "start", "new", policy={"alpha": 2}) == [
        ("rejected", "alpha=2.0 of Canary of the command: give one in (0, 0.5)")
    ]
    assert say(steering, "start", "new", policy={"colour": 2})[0][0] == d.REJECTED
    assert say(steering, "start", "new", policy={"min_labels": 2})[0][0] == d.STARTED
    assert step.models.rollouts is not None
    assert step.models.rollouts.deployment.policy.min_labels == 2  # type: ignore[union-attr]
    assert step.models.learners["new"].version == 0


# States of other declarations.


def stored(step: Prequential) -> Delta:
    feed(step, stream(1), 0, 400)
    return through_the_disk([step.changes()])


def plain() -> Prequential:
    return Prequential({"old": learner(Mistaken())}, PrequentialSettings(metrics=["LogLoss"]))


def test_rollouts_are_declared_for_a_state_that_had_none() -> None:
    image = stored(plain())
    step = make(QUICK, {"new": linear()})
    step.restore(image)
    assert list(step.models.learners) == ["old", "new"]
    fed = feed(step, stream(1), 400, 2 * SIZE)
    assert actions(fed)[0] == (d.STARTED, "new")


def test_a_challenger_is_declared_later() -> None:
    image = stored(make(Shadow(), {"new": linear()}))
    step = make(Shadow(), {"new": linear(), "bayes": naive_bayes.GaussianNB()})
    step.restore(image)
    assert list(step.models.learners) == ["old", "new", "bayes"]
    assert actions(feed(step, stream(1), 400, 600)) == [(d.STARTED, "bayes")]


def test_another_policy_is_declared_later() -> None:
    image = stored(make(Shadow(), {"new": linear()}))
    step = make(QUICK, {"new": linear()})
    step.restore(image)
    assert actions(feed(step, stream(1), 400, 420)) == [(d.STARTED, "new")]


def test_rollouts_are_declared_no_more() -> None:
    image = stored(make(Shadow(), {"new": linear()}))
    step = plain()
    step.restore(image)
    assert list(step.models.learners) == ["old"]
    outcome = feed(step, stream(1), 400, 600)
    assert outcome == {}
    led = make(QUICK, {"new": linear()}, inline=True)
    feed(led, stream(1))
    assert led.models.champion == "new"
    image = through_the_disk([led.changes()])
    with pytest.raises(StateError, match=r"in the state is model 'new'.*rollout=Shadow\(\)"):
        Prequential(
            {"old": learner(Mistaken())}, PrequentialSettings(metrics=["LogLoss"], inline=True)
        ).restore(image)


def test_a_challenger_that_is_declared_otherwise_begins_anew() -> None:
    image = stored(make(Shadow(), {"bayes": naive_bayes.GaussianNB(), "new": linear()}))
    step = make(Shadow(), {"bayes": naive_bayes.GaussianNB(), "new": Raises(10**9)})
    step.restore(image)
    assert list(step.models.learners) == ["old", "bayes", "new"]
    assert step.models.learners["new"].version == 0 < step.models.learners["bayes"].version
    assert actions(feed(step, stream(1), 400, 600)) == [(d.STARTED, "new")]
    again = make(Shadow(), {"bayes": naive_bayes.GaussianNB(), "new": Raises(10**9)})
    again.restore(through_the_disk([decode(encode(image)), step.changes()]))
    assert feed(again, stream(1), 600, 900) == feed(step, stream(1), 600, 900)


def test_one_that_leads_or_stands_by_must_be_as_it_was() -> None:
    led = make(QUICK, {"new": linear()}, inline=True)
    feed(led, stream(1))
    assert (led.models.champion, list(led.models.learners)) == ("new", ["old", "new"])
    image = through_the_disk([led.changes()])
    with pytest.raises(StateError, match="model 'new' is Pipeline"):
        make(QUICK, {"new": naive_bayes.GaussianNB()}, inline=True).restore(image)
    with pytest.raises(StateError, match="model 'old' is Mistaken"):
        make(QUICK, {"new": linear()}, champion=Raises(), inline=True).restore(image)
