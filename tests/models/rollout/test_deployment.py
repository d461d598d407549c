"""Who serves, and what is decided: on made-up predictions, however the stream is cut."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import bandit, proba

from anabranch.models.learners.learner import Task
from anabranch.models.rollout import decision as d
from anabranch.models.rollout.deployment import Deployment
from anabranch.models.rollout.policies import ABTest, Bandit, Canary, Guardrails, Policy, Shadow
from tests.support.rollout_stream import Stream, calibrated, decisions_of, noise, noisy, play


def deployment(policy: Policy, *challengers: str) -> Deployment:
    return Deployment("old", challengers or ("new",), policy, Task.BINARY, "payments")


def actions(run, without=(d.PROGRESS,)):
    return [action for action, *_ in run.actions if action not in without]


RAMP = Canary(steps=(0.05, 0.25, 0.5, 1.0), min_labels=30, report_every=500)


def test_a_better_model_climbs_and_is_promoted():
    stream = Stream(12_000, {"old": noisy(1.2), "new": calibrated})
    run = play(stream, deployment(RAMP))
    assert actions(run) == [d.STARTED, d.STEPPED, d.STEPPED, d.PROMOTED]
    assert [each.share for each in run.decisions if each.action == d.STEPPED] == [0.25, 0.5]
    promoted = run.decisions[-1]
    assert promoted.champion == "new"
    assert promoted.evidence.e_value >= 20
    assert promoted.evidence.challenger_loss < promoted.evidence.champion_loss
    assert run.served_by[-1000:] == ["new"] * 1000
    assert run.champions[-1] == "new"
    assert run.served_by[:20].count("new") <= 5


def test_the_share_that_serves_is_the_share_of_keys():
    stream = Stream(6000, {"old": calibrated, "new": calibrated}, keys=4000)
    run = play(stream, deployment(ABTest(split=0.3, min_effect=0.0)))
    assert abs(run.served_by.count("new") / 6000 - 0.3) < 0.03
    by_key = {}
    for key, who in zip(stream.key, run.served_by, strict=True):
        assert by_key.setdefault(key, who) == who  # a key keeps its model


def test_a_growing_share_takes_no_key_away():
    stream = Stream(8000, {"old": noisy(1.2), "new": calibrated})
    run = play(stream, deployment(RAMP))
    came = set()
    for key, who in zip(stream.key, run.served_by, strict=True):
        if who == "new":
            came.add(key)
        else:
            assert key not in came


@pytest.mark.parametrize(
    ("scores", "nan_from", "raised", "why"),
    [
        (noise, {}, {}, "worse"),
        (calibrated, {"new": 700}, {}, "NaN"),
        (calibrated, {}, {"new": [700]}, "raised an error"),
    ],
)
def test_a_bad_challenger_is_removed(scores, nan_from, raised, why):
    stream = Stream(3000, {"old": calibrated, "new": scores}, nan_from=nan_from, raised=raised)
    run = play(stream, deployment(Canary(steps=(0.01, 0.5, 1.0), min_duration="1h")))
    assert actions(run) == [d.STARTED, d.ROLLED_BACK]
    assert why in run.decisions[-1].reason
    ended = next(at for action, _, at in run.actions if action == d.ROLLED_BACK)
    events = sum(not is_label for _, is_label in stream.steps[: ended + 1])
    assert set(run.assigned[events:]) == {"old"}
    assert run.served_by.count("new") <= 0.02 * events
    if why != "worse":
        assert events == 701  # at the very event
        assert all(who == "old" for who in run.served_by[700:])


def test_equal_models_end_as_futile():
    stream = Stream(30_000, {"old": noisy(0.5), "new": noisy(0.5)})
    run = play(stream, deployment(Canary(steps=(0.5, 1.0), min_effect=0.2, report_every=500)))
    assert actions(run) == [d.STARTED, d.FUTILE]
    assert "20.0%" in run.decisions[-1].reason


def test_a_test_ends_at_its_horizon():
    stream = Stream(3000, {"old": noisy(0.5), "new": noisy(0.5)})
    run = play(stream, deployment(ABTest(horizon="40m", min_effect=0.0)))
    assert actions(run) == [d.STARTED, d.ENDED]
    assert run.decisions[-1].time == 2400_000
    assert set(run.assigned[2401:]) == {"old"}


def test_in_shadow_no_key_is_served_and_nothing_decided_but_by_guardrails():
    stream = Stream(6000, {"old": noisy(1.2), "new": calibrated, "bad": noise})
    run = play(stream, deployment(Shadow(report_every=1000), "new", "bad"))
    assert set(run.served_by) == {"old"}
    assert [pair[:2] for pair in run.actions if pair[0] != d.PROGRESS] == [
        (d.STARTED, "new"), (d.STARTED, "bad"), (d.ROLLED_BACK, "bad"),
    ]  # fmt: skip
    reports = [each for each in run.decisions if each.action == d.PROGRESS]
    assert [each.evidence.labels for each in reports if each.challenger == "new"] == [
        1000, 2000, 3000, 4000, 5000,
    ]  # fmt: skip
    assert reports[-1].evidence.e_value > 20


def test_challengers_are_tried_one_after_the_other():
    stream = Stream(20_000, {"old": noisy(1.0), "bad": noise, "new": calibrated})
    run = play(stream, deployment(RAMP, "bad", "new"))
    ends = (d.STARTED, d.ROLLED_BACK, d.PROMOTED)
    assert [pair[:2] for pair in run.actions if pair[0] in ends] == [
        (d.STARTED, "bad"), (d.ROLLED_BACK, "bad"), (d.STARTED, "new"), (d.PROMOTED, "new"),
    ]  # fmt: skip
    rollouts = [each.rollout for each in run.decisions if each.action == d.STARTED]
    assert rollouts == ["payments-1", "payments-2"]


def test_an_unpaired_comparison_uses_served_predictions_only():
    stream = Stream(40_000, {"old": noisy(2.5), "new": calibrated})
    served = play(stream, deployment(ABTest(comparison="unpaired", min_effect=0.0)))
    paired = play(stream, deployment(ABTest(min_effect=0.0)))
    assert actions(served) == actions(paired) == [d.STARTED, d.PROMOTED]
    assert served.decisions[-1].evidence.labels > paired.decisions[-1].evidence.labels


def test_a_bandit_finds_the_better_arm():
    stream = Stream(8000, {"old": noisy(3.0), "new": calibrated})
    policy = Bandit(
        policy=bandit.EpsilonGreedy(epsilon=0.1, seed=1), guardrails=Guardrails(loss_ratio=99)
    )
    run = play(stream, deployment(policy))
    assert actions(run) == [d.STARTED]
    assert Counter(run.served_by[4000:])["new"] > 3000
    again = play(stream, deployment(policy))  # the declared policy has learned nothing
    assert again.served_by == run.served_by


def test_a_failed_champion_falls_back_to_the_previous_one():
    stream = Stream(4000, {"old": noisy(1.2), "new": calibrated})
    made = deployment(Canary(steps=(0.5, 1.0), min_labels=10))
    run = play(stream, made)
    assert made.champion == "new"
    assert made.previous_champion == "old"
    broken = Stream(2500, {"old": noisy(1.2), "new": calibrated}, nan_from={"new": 100})
    run = play(broken, made)
    assert run.served_by[:100] == ["new"] * 100
    assert run.served_by[100:] == ["old"] * 2400
    assert run.assigned[100:] == ["new"] * 2400
    assert actions(run) == [d.CHAMPION_FAILED] * 3
    assert "old serves where it raises" in run.decisions[0].reason


def test_a_champion_that_fails_alone():
    stream = Stream(500, {"old": calibrated}, nan_from={"old": 100})
    run = play(stream, Deployment("old", (), Shadow(), Task.BINARY, "payments"))
    assert run.served_by[100:] == ["fallback"] * 400
    assert actions(run) == [d.CHAMPION_FAILED]


def test_the_shift_of_predictions_is_a_guardrail():
    def halved(p, y, rng):
        return p / 2

    stream = Stream(3000, {"old": calibrated, "new": halved})
    guardrails = Guardrails(psi=0.25, loss_ratio=99)
    run = play(stream, deployment(Shadow(guardrails=guardrails, alpha=1e-9)))
    assert actions(run) == [d.STARTED, d.ROLLED_BACK]
    assert "too unlike the champion's" in run.decisions[-1].reason
    assert run.decisions[-1].guardrails["psi"] > 0.25


POLICIES = [
    RAMP,
    ABTest(split=0.4, report_every=200),
    ABTest(comparison="unpaired", report_every=300),
    Shadow(report_every=100, guardrails=Guardrails(psi=0.2, error_rate=0.01)),
    Bandit(policy=bandit.ThompsonSampling(reward_obj=proba.Beta(), seed=3), report_every=400),
]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, len(POLICIES) - 1),  # by number: a bandit that is new has no repr
    st.lists(st.integers(1, 6000), max_size=12),
    st.integers(0, 3),
    st.booleans(),
)
def test_no_cut_of_the_stream_matters(number, cuts, seed, pickled):
    policy = POLICIES[number]

    def stream():
        return Stream(
            3500, {"old": noisy(1.0), "new": calibrated, "bad": noisy(2.0)}, seed=seed,
            raised={"bad": [900, 905, 910, 2000]}, nan_from={"old": 3400},
        )  # fmt: skip

    whole = play(stream(), deployment(policy, "bad", "new"))
    made = deployment(policy, "bad", "new")
    if pickled:
        made = pickle.loads(pickle.dumps(made))
    cut = play(stream(), made, cuts)
    assert cut.served_by == whole.served_by
    assert cut.assigned == whole.assigned
    assert cut.champions == whole.champions
    assert decisions_of(cut) == decisions_of(whole)
