"""The status of a pipeline's rollouts, built from the messages about them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from anabranch.dataflows.messages.outputs import ComparedModels, RolloutMessage
from anabranch.models.rollout.decision import CHAMPION_FAILED, PROGRESS, REJECTED, REMOVED


class ChallengerStatus(msgspec.Struct, kw_only=True):
    """One challenger: the last decision about it, and the evidence and guardrails since.

    ``since`` is the event time of that decision (epoch ms). All but the name is None before the
    first message about it.
    """

    name: str
    action: str | None = None
    since: int | None = None
    rollout: str | None = None
    share: float | None = None
    reason: str | None = None
    evidence: ComparedModels | None = None
    guardrails: dict[str, float | None] = {}


class RolloutStatus(msgspec.Struct, kw_only=True):
    """The champion and all challengers of a pipeline.

    ``messages`` is the number of messages that it is built from.
    """

    pipeline: str
    champion: str
    policy: str
    challengers: dict[str, ChallengerStatus]
    messages: int = 0

    def update(self, messages: Iterable[RolloutMessage]) -> None:
        """Apply further messages, oldest first."""
        for message in messages:
            self._apply(message)

    def _apply(self, message: RolloutMessage) -> None:
        self.messages += 1
        if message.action == REJECTED:
            return
        self.champion, self.policy = message.champion, message.policy
        self.challengers.pop(self.champion, None)
        name = message.challenger
        if message.action == REMOVED:
            self.challengers.pop(name, None)
        elif name and name != self.champion and message.action != CHAMPION_FAILED:
            challenger = self.challengers.setdefault(name, ChallengerStatus(name=name))
            _apply_decision(challenger, message)


def _apply_decision(challenger: ChallengerStatus, message: RolloutMessage) -> None:
    if message.action != PROGRESS or challenger.rollout != message.rollout:
        challenger.action, challenger.since = message.action, message.ts
        challenger.reason = message.reason
    challenger.rollout, challenger.share = message.rollout, message.share
    challenger.guardrails = message.guardrails
    if message.evidence is not None:
        challenger.evidence = message.evidence
