"""Bandit: a bandit policy of River pulls the model that serves each event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from river.bandit.base import Policy as RiverPolicy
from river.proba.base import BinaryDistribution

from anabranch.models.learners.learner import Task
from anabranch.models.rollout.observations import RolloutRows
from anabranch.models.rollout.policy import (
    CHANGEABLE,
    Policy,
    PolicyContext,
    bound_of,
    clip_of,
    loss_of,
)
from anabranch.state.errors import DeclarationError
from anabranch.state.renamed import renamed


@renamed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Bandit(Policy):
    """Each event is served by the arm that a River bandit policy pulls; no model is promoted.

    Its reward for a label is `1 - loss / bound` of the arm that served; a policy that counts
    successes (`ThompsonSampling` with `proba.Beta`) gets whether that is 0.5 or more.

    Attributes:
        policy: of `river.bandit`: `EpsilonGreedy`, `UCB`, `ThompsonSampling`, `Exp3`, …
    """

    decides: ClassVar[bool] = False
    assigns_events: ClassVar[bool] = True
    supports_auc: ClassVar[bool] = False

    policy: RiverPolicy = field(metadata={CHANGEABLE: False})

    def check(self, context: PolicyContext) -> None:
        """See `Policy.check`."""
        where = self.where(context)
        if not isinstance(self.policy, RiverPolicy):
            raise DeclarationError(
                f"policy={self.policy!r} of {where} is not of river.bandit: give an object, such "
                "as bandit.EpsilonGreedy(epsilon=0.1, seed=1)"
            )
        kind = type(self.policy).__name__
        if getattr(self.policy, "seed", 0) is None:
            raise DeclarationError(
                f"{kind} in {where} has no seed, so that a replay would pull other arms: give seed="
            )
        try:
            trial = self.policy.clone()
            trial.update(trial.pull(["a", "b"]), _reward(trial, 0.5))  # type: ignore[no-untyped-call]
        except Exception as error:
            raise DeclarationError(
                f"{kind} in {where} can't be used: {type(error).__name__}: {error}"
            ) from error
        if bound_of(context.task, loss_of(self, context.task)) is None and self.clip is None:
            raise DeclarationError(f"{where} needs clip=, by which a loss becomes a reward")
        if self.comparison != "paired":
            raise DeclarationError(f"comparison='unpaired' of {where}: a bandit compares paired")
        if context.ranking:
            raise DeclarationError(
                f"{where} pulls an arm for each candidate, and scores of different models make no "
                "list: use Interleave(…), or a policy that divides the keys"
            )

    def assign_events(self, rows: RolloutRows, arm_ids: Mapping[str, int], task: Task) -> None:
        """Pull an arm for each event, and update the policy with the reward of each label."""
        names = {arm_id: name for name, arm_id in arm_ids.items()}
        arms, choices = rows.arms, list[int | str](arm_ids)
        label_steps, label_rows = rows.label_steps.tolist(), rows.label_rows.tolist()
        losses = {name: rows.losses[name].tolist() for name in arm_ids}
        zero_reward_loss = clip_of(self, task) or 1.0
        label = 0

        def update_before(step: float) -> int:
            at = label
            while at < len(label_steps) and label_steps[at] < step:
                name = names.get(int(arms[label_rows[at]]))
                loss = np.nan if name is None else losses[name][at]
                if name is not None and loss == loss:
                    reward = _reward(self.policy, max(1.0 - loss / zero_reward_loss, 0.0))
                    self.policy.update(name, reward)  # type: ignore[no-untyped-call]
                at += 1
            return at

        for step, row in zip(rows.event_steps.tolist(), rows.event_rows.tolist(), strict=True):
            label = update_before(step)
            arms[row] = arm_ids[str(self.policy.pull(choices))]
        update_before(np.inf)


def _reward(policy: RiverPolicy, reward: float) -> float | bool:
    """A reward in [0, 1], or whether that is a success, as the policy takes it."""
    binary = isinstance(policy.reward_obj, BinaryDistribution)
    return reward >= 0.5 if binary else reward
