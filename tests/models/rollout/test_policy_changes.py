"""A control message that changes the policy: what can't be is refused, and the stream continues."""

from __future__ import annotations

from typing import Any

import pytest
from river import bandit, tree

from anabranch import ABTest, Bandit, Canary, Pipeline
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.messages.outputs import RolloutMessage
from anabranch.dataflows.steps.model_step import ModelStep
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.rollout.command import Command
from anabranch.models.rollout.policies import Guardrails
from tests.dataflows.steps.test_control import COMMANDS, decisions, orders, run

TREE = tree.HoeffdingTreeClassifier()


def canary(**changes: Any) -> Pipeline:
    return orders(challengers={"tree": TREE}, **({"rollout": Canary()} | changes))


def responses(bus: MemoryBus) -> list[RolloutMessage]:
    return [each for each in decisions(bus) if isinstance(each.request_id, str)]


NONSENSE: list[dict[str, Any]] = [
    {"alpha": "small"},
    {"alpha": 0.7},
    {"alpha": None},
    {"alpha": True},
    {"steps": 5},
    {"steps": ["a", "b"]},
    {"steps": [0.5, 0.1]},
    {"min_duration": 5},
    {"min_duration": "soon"},
    {"min_labels": [1]},
    {"guardrails": 1},
    {"guardrails": None},
    {"guardrails": {"error_rate": "many"}},
    {"guardrails": {"erors": 0.1}},
    {"loss": ["brier"]},
    {"loss": "nonsense"},
    {"comparison": {}},
    {"report_every": 0},
    {"nonsense": 1},
    {"clip": -1},
    {"hold": "1h"},
    {"guardrails": {"errors": 0.1}},
    {"": 0},
    {"__class__": "x"},
]


@pytest.mark.parametrize("change", NONSENSE, ids=str)
def test_nonsense_is_refused_in_one_sentence_and_changes_nothing(change: dict[str, Any]) -> None:
    pipeline = canary()
    step = ModelStep(pipeline, WorkerMetrics("p"))
    deployment = step.prequential.models.rollouts.deployment  # type: ignore[union-attr]
    command = Command(kind="start", id="1", challenger="tree", policy=change)
    assert step.commands is not None
    (rejected,) = step.commands.controller.command(command, 0)
    assert rejected.action == "rejected"
    assert rejected.reason
    assert "\n" not in rejected.reason
    assert deployment.policy == pipeline.rollout
    assert deployment.waiting == ["tree"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hold": "1h"}, "hold of Canary is now called min_duration"),
        ({"judge": "served"}, "judge of Canary is now called comparison"),
        ({"guardrails": {"shift": 0.1}}, "shift of Guardrails is now called psi"),
    ],
)
def test_an_old_attribute_gives_the_new_name(change: dict[str, Any], reason: str) -> None:
    step = ModelStep(canary(), WorkerMetrics("p"))
    assert step.commands is not None
    command = Command(kind="start", id="1", challenger="tree", policy=change)
    assert [each.reason for each in step.commands.controller.command(command, 0)] == [reason]


def test_the_stream_continues_after_all_of_them() -> None:
    bodies = [{"kind": "start", "challenger": "tree", "policy": each} for each in NONSENSE]
    bodies = [{"kind": "rollback"}, *bodies]
    bus = run(canary(), limit=5, commands=[(1, {"id": str(i), **b}) for i, b in enumerate(bodies)])
    decided = [each.action for each in responses(bus)]
    assert decided == ["rolled_back", *["rejected"] * len(NONSENSE)]
    assert len(bus.values("p.predictions")) == 12


def test_what_can_be_changed_is() -> None:
    pipeline = canary()
    step = ModelStep(pipeline, WorkerMetrics("p"))
    change = {
        "alpha": 0.01,
        "steps": [0.2, 1],
        "min_duration": "1h",
        "guardrails": {"error_rate": 0.1},
    }
    assert step.commands is not None
    (started,) = step.commands.controller.command(
        Command(kind="start", id="1", challenger="tree", policy=change), 0
    )
    assert started.action == "started"
    policy = step.prequential.models.rollouts.deployment.policy  # type: ignore[union-attr]
    assert isinstance(policy, Canary)
    assert (policy.alpha, list(policy.steps), policy.min_duration) == (0.01, [0.2, 1.0], "1h")
    assert policy.guardrails == Guardrails(error_rate=0.1)
    assert started.share == pytest.approx(0.2)


def test_a_start_that_is_refused_leaves_the_policy_as_it_was() -> None:
    pipeline = orders(challengers={"tree": TREE}, rollout=ABTest(split=0.9))
    step = ModelStep(pipeline, WorkerMetrics("p"))
    deployment = step.prequential.models.rollouts.deployment  # type: ignore[union-attr]
    command = Command(kind="start", id="1", challenger="bush", policy={"alpha": 0.01})
    assert step.commands is not None
    (rejected,) = step.commands.controller.command(command, 0)
    assert rejected.action == "rejected"
    assert deployment.policy == pipeline.rollout


def test_the_arms_of_a_bandit_are_no_business_of_a_message() -> None:
    policy = bandit.EpsilonGreedy(epsilon=0.1, seed=1)
    step = ModelStep(canary(rollout=Bandit(policy=policy)), WorkerMetrics("p"))
    command = Command(kind="start", id="1", challenger="tree", policy={"policy": "UCB"})
    assert step.commands is not None
    assert [each.action for each in step.commands.controller.command(command, 0)] == ["rejected"]


def test_commands_are_followed_by_the_real_deployment_however_the_stream_is_cut() -> None:
    found = []
    commands = [
        *COMMANDS,
        (10, {"kind": "rollback", "id": "e"}),
        (10, {"kind": "pause", "id": "f"}),
    ]
    for limit in (1, 4, 1000):
        bus = run(canary(), limit=limit, commands=commands)
        found.append((bus.values("p.rollouts"), bus.values("p.predictions")))
        assert [each.request_id for each in responses(bus)] == list("abcdef")
    assert found[0] == found[1] == found[2]
    assert [(each.request_id, each.action) for each in responses(bus)] == [
        ("a", "rejected"),  # it is tried already
        ("b", "traffic_set"),
        ("c", "promoted"),
        ("d", "rejected"),
        ("e", "rolled_back"),
        ("f", "rejected"),
    ]
