"""The declaration of challengers and rollouts: what a valid one derives, and each mistake."""

from __future__ import annotations

from typing import Any

import pytest
from river import anomaly, bandit, linear_model, tree

import anabranch
from anabranch import (
    ABTest,
    Bandit,
    Canary,
    Challenger,
    Guardrails,
    Interleave,
    Pipeline,
    Shadow,
    field,
    inline,
    window,
)
from anabranch.dataflows.steps.rollout_step import rollouts_of
from anabranch.models.learners.subsampling import SubsampledLearner
from anabranch.state.errors import DeclarationError
from tests.dataflows.steps import test_control

TREE = tree.HoeffdingTreeClassifier()
LINE = linear_model.LinearRegression()
EGREEDY = bandit.EpsilonGreedy(epsilon=0.1, seed=1)


def orders(**changes: Any) -> Pipeline:
    return test_control.orders(**({"rollout": None, "challengers": {"tree": TREE}} | changes))


def test_challengers_alone_are_in_shadow():
    pipeline = orders()
    assert isinstance(pipeline.rollout, Shadow)
    assert pipeline.has_rollouts
    assert pipeline.inputs == ("p.events", "p.labels", "p.control")
    assert pipeline.topics.outputs[-1] == "p.rollouts"
    assert list(pipeline.challenger_learners()) == ["tree"]


def test_without_challengers_and_rollout_there_is_neither_topic():
    pipeline = orders(challengers={})
    assert not pipeline.has_rollouts
    assert pipeline.inputs == ("p.events", "p.labels")
    assert "p.rollouts" not in pipeline.topics.outputs
    assert "shop" in pipeline.read_fields
    assert "shop" not in orders(challengers={}, features=[field("amount")]).read_fields


@pytest.mark.parametrize(
    "rollout", [Shadow(), Canary(steps=(0.1, 1.0)), ABTest(split=0.3), Bandit(policy=EGREEDY)]
)
def test_every_policy_can_be_declared_with_challengers_or_without(rollout):
    assert orders(rollout=rollout).rollout is rollout
    assert orders(rollout=rollout, challengers={}).has_rollouts


def test_traffic_goes_by_the_field_that_is_published_by_unless_another_is_named():
    assert orders().traffic_field == "shop"
    assert orders(rollout_key="id").traffic_field == "id"
    assert orders(features=[field("amount")]).traffic_field == "id"
    assert orders(features=[field("amount")], key="shop").traffic_field == "shop"
    by_key = orders(features=[field("amount")], key="shop")
    assert by_key.read_fields == ["amount", "shop"]


def test_what_drift_starts_is_declared_with_a_monitor_and_climbs_by_evidence():
    watched = [anabranch.monitor("loss")]
    pipeline = orders(
        challengers={},
        monitors=watched,
        on_drift=Challenger(model=TREE, warmup_rows=7, sample_rate=0.5),
    )
    assert isinstance(pipeline.rollout, Canary)
    assert pipeline.has_rollouts
    starts = pipeline.starts_on_drift
    assert starts is not None
    one, other = starts.make(), starts.make()
    assert one is not other
    assert isinstance(one, SubsampledLearner)
    assert one.sample_rate == 0.5
    assert orders().starts_on_drift is None


def test_a_challenger_may_learn_a_share_of_the_labels():
    some = {"all": TREE, "some": Challenger(model=TREE, sample_rate=0.1, burn_in=50)}
    learners = orders(challengers=some).challenger_learners()
    assert isinstance(learners["some"], SubsampledLearner)
    assert not isinstance(learners["all"], SubsampledLearner)
    rollouts = rollouts_of(orders(challengers=some))
    assert rollouts is not None
    assert rollouts.deployment.burn_in == {"some": 50}


def test_a_challenger_is_fresh_each_time():
    pipeline = orders()
    one, other = pipeline.challenger_learners()["tree"], pipeline.challenger_learners()["tree"]
    assert one is not other
    assert one.names == tuple(pipeline.columns)


WRONG = {
    "such as {'tree': …}, not list": {"challengers": [TREE]},
    "'t/ree' can't be used": {"challengers": {"t/ree": TREE}},
    "model name 7 is not a text": {"challengers": {7: TREE}},
    "give it another name": {"challengers": {"LogisticRegression": TREE}},
    "which is not a River model": {"challengers": {"tree": "HoeffdingTree"}},
    "challenger 'line' of pipeline 'p': ": {"challengers": {"line": LINE}},
    "rollout='canary' of pipeline 'p' is no policy": {"rollout": "canary"},
    "split=0.9 of ABTest": {"rollout": ABTest(split=0.9), "challengers": {"a": TREE, "b": TREE}},
    "loss_ratio=0.5": {"rollout": Shadow(guardrails=Guardrails(loss_ratio=0.5))},
    "unknown field 'shoop'": {"rollout_key": "shoop"},
    "rollout_key= of pipeline 'p' is for rollouts": {"challengers": {}, "rollout_key": "shop"},
    "fallback=2 of pipeline 'p' must be the probability": {"challengers": {}, "fallback": 2},
    "fallback=1.5 of pipeline 'p' must be the probability": {"fallback": 1.5},
    "fallback='no' of pipeline 'p' must be the probability": {"fallback": "no"},
    "fallback=nan of pipeline 'p' must be the probability": {"fallback": float("nan")},
    "loss='auc' of Canary of pipeline 'p' compares both models": {
        "rollout": Canary(loss="auc", comparison="unpaired"),
    },
    "loss='auc' of Bandit of pipeline 'p' compares": {
        "rollout": Bandit(policy=EGREEDY, loss="auc"),
    },
    "auc_window=1 of Canary": {"rollout": Canary(loss="auc", auc_window=1)},
    "on_drift= of pipeline 'p' is 'tree': give Challenger": {"on_drift": "tree"},
    "on_drift= of pipeline 'p' is for drift of kind 'loss'": {"on_drift": Challenger(model=TREE)},
    "on_drift= of pipeline 'p' is 5, which is not a River model": {
        "on_drift": Challenger(model=5), "monitors": [anabranch.monitor("loss")],
    },
    "on_drift= of pipeline 'p': warmup_rows=-1": {
        "on_drift": Challenger(model=TREE, warmup_rows=-1), "monitors": [anabranch.monitor("loss")],
    },
    "challenger 'x' of pipeline 'p': sample_rate=2": {
        "challengers": {"x": Challenger(model=TREE, sample_rate=2)}
    },
    "challenger 'x' of pipeline 'p': LinearRegression": {
        "challengers": {"x": Challenger(model=LINE)}
    },
    "has no label, and models are compared": {
        "label": None,
        "model": anomaly.HalfSpaceTrees(seed=1),
        "challengers": {"other": anomaly.HalfSpaceTrees(seed=2)},
    },
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_work_is_one_sentence(words):
    with pytest.raises(DeclarationError) as raised:
        orders(**WRONG[words])
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("label", "model", "right", "wrong"),
    [
        ("odd", linear_model.LogisticRegression(), (0.2, 0, True), (-0.1, "0.2")),
        ("shop", TREE, ("s1",), (0.5, True)),
        ("amount", linear_model.LinearRegression(), (3.5, 0, -1.0), (float("inf"), "x", True)),
    ],
)
def test_a_fallback_is_of_the_kind_of_the_predictions(label, model, right, wrong):
    changes = {
        "label": inline(label),
        "model": model,
        "challengers": {},
        "rollout": Shadow(clip=1.0),
        "features": [field("amount")] if label != "amount" else [anabranch.hour_of_day("ts")],
    }
    for value in right:
        assert orders(**changes, fallback=value).fallback == value
    for value in wrong:
        with pytest.raises(DeclarationError, match="fallback="):
            orders(**changes, fallback=value)


def test_what_is_declared_of_a_rollout_is_no_part_of_what_state_depends_on():
    from anabranch.dataflows.recovery.manifest import describe

    plain = describe(orders(challengers={}))
    assert describe(orders()) == plain
    assert describe(orders(rollout=Canary(), rollout_key="id", fallback=0.1)) == plain
    assert describe(orders(features=[window("shop", "amount", over="2h")])) != plain


RENAMED = {
    "Challenger(fresh=) is now called model=": lambda: Challenger(fresh=TREE),
    "Challenger(warm=) is now called warmup_rows=": lambda: Challenger(model=TREE, warm=1),
    "Challenger(grace=) is now called burn_in=": lambda: Challenger(model=TREE, grace=1),
    "Challenger(learn=) is now called sample_rate=": lambda: Challenger(model=TREE, learn=0.5),
    "Challenger(after=) is now called triggers=": lambda: Challenger(model=TREE, after=["loss"]),
    "Canary(hold=) is now called min_duration=": lambda: Canary(hold="1h"),
    "Canary(hold_labels=) is now called min_labels=": lambda: Canary(hold_labels=1),
    "Canary(judge=) is now called comparison=": lambda: Canary(judge="paired"),
    "ABTest(scale=) is now called clip=": lambda: ABTest(scale=0.1),
    "Shadow(report=) is now called report_every=": lambda: Shadow(report=10),
    "Interleave(window=) is now called auc_window=": lambda: Interleave(window=10),
    "Bandit(judge=) is now called comparison=": lambda: Bandit(policy=EGREEDY, judge="served"),
    "Guardrails(errors=) is now called error_rate=": lambda: Guardrails(errors=0.1),
    "Guardrails(shift=) is now called psi=": lambda: Guardrails(shift=0.2),
}


@pytest.mark.parametrize("sentence", RENAMED)
def test_an_old_parameter_gives_the_new_name(sentence):
    with pytest.raises(DeclarationError) as raised:
        RENAMED[sentence]()
    assert str(raised.value) == sentence


def test_an_old_value_gives_the_new_one():
    with pytest.raises(DeclarationError, match="'paired' or 'unpaired'"):
        orders(rollout=Canary(comparison="served"))
