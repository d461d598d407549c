"""A deployment that only obeys commands, in place of one that compares models."""

from __future__ import annotations

from typing import Any

import pytest

from anabranch.dataflows.steps.model_step import ModelStep
from anabranch.models.rollout.command import Command
from anabranch.models.rollout.decision import REJECTED, Decision, Evidence

ACTIONS = {
    "start": "started",
    "pause": "paused",
    "resume": "resumed",
    "promote": "promoted",
    "rollback": "rolled_back",
    "set_traffic": "traffic_set",
    "add": "added",
    "remove": "removed",
}
EVIDENCE = Evidence(10, 4, 0.5, float("nan"), 0.1, float("-inf"), float("inf"), 3.0, 0.2, 0.05)


class Obedient:
    """Rejects invalid commands. A promotion also ends another rollout: two decisions.

    The text of a decision has the numbers of events predicted and labels learned before it.
    """

    def __init__(self, step: ModelStep) -> None:
        self._step = step

    def command(self, command: Command, time: int) -> list[Decision]:
        fault = command.problem()
        if fault is not None:
            return [self._decision(REJECTED, command, time, fault)]
        done = [self._decision(ACTIONS[command.kind], command, time, self._after())]
        if command.kind == "promote":
            done.append(self._decision("ended", command, time, self._after()))
        return done

    def _after(self) -> str:
        models = self._step.models
        learned = models.learners[models.champion].version
        return f"after {self._step.learning.events} events and {learned} labels"

    def _decision(self, action: str, command: Command, time: int, why: str) -> Decision:
        return Decision(
            action=action,
            rollout="rollout-1",
            challenger=command.challenger,
            champion=self._step.models.champion,
            share=float("nan") if command.share is None else command.share,
            reason=why,
            time=time,
            step=0,
            evidence=EVIDENCE if command.kind == "promote" else None,
            guardrails={"error_rate": 0.0, "psi": float("nan")},
            policy="Shadow",
        )


def obey(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use it in every model step."""
    begin = ModelStep.__init__

    def begin_obediently(step: ModelStep, *arguments: Any, **named: Any) -> None:
        begin(step, *arguments, **named)
        if step.commands is not None:
            step.commands.controller = Obedient(step)

    monkeypatch.setattr(ModelStep, "__init__", begin_obediently)
