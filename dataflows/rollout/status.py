"""How rollouts stand, as the messages about them tell."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from anabranch.dataflows.messages.outputs import ComparedModels, RolloutMessage
from anabranch.models.rollout.decision import CHAMPION_FAILED, PROGRESS, REFUSED, REMOVED


class ChallengerStatus(msgspec.Struct, kw_only=True):
    """One challenger: what was decided about it last, and how it compares since.

    ``since`` is when that was (event time, epoch ms). All but the name is None for one of which
    nothing was heard yet.
    """

    name: str
    action: str | None = None
    since: int | None = None
    rollout: str | None = None
    share: float | None = None
    why: str | None = None
    evidence: ComparedModels | None = None
    guardrails: dict[str, float | None] = {}


class RolloutStatus(msgspec.Struct, kw_only=True):
    """All challengers of a pipeline. ``messages`` is how many it is made of."""

    pipeline: str
    champion: str
    policy: str
    challengers: dict[str, ChallengerStatus]
    messages: int = 0

    def take(self, messages: Iterable[RolloutMessage]) -> None:
        """Go on with these, oldest first."""
        for message in messages:
            self._take(message)

    def _take(self, message: RolloutMessage) -> None:
        self.messages += 1
        if message.action == REFUSED:
            return
        self.champion, self.policy = message.champion, message.policy
        self.challengers.pop(self.champion, None)
        name = message.challenger
        if message.action == REMOVED:
            self.challengers.pop(name, None)
        elif name and name != self.champion and message.action != CHAMPION_FAILED:
            self._note(self.challengers.setdefault(name, ChallengerStatus(name=name)), message)

    def _note(self, known: ChallengerStatus, message: RolloutMessage) -> None:
        if message.action != PROGRESS or known.rollout != message.rollout:
            known.action, known.since, known.why = message.action, message.ts, message.why
        known.rollout, known.share = message.rollout, message.share
        known.guardrails = message.guardrails
        if message.evidence is not None:
            known.evidence = message.evidence
