"""What labels say of a challenger: paired, or of the models that served."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.models.evidence.auc import AucEvidence
from anabranch.models.evidence.paired import Finding, PairedEvidence
from anabranch.models.evidence.two_sample import TwoSampleEvidence
from anabranch.models.learners.learner import Task
from anabranch.models.rollout.decision import Evidence as Summary
from anabranch.models.rollout.policies import AUC, Policy, bound_of, clip_of, loss_of

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

_CHAMPION, _CHALLENGER = 0, 1  # arms, as `TwoSampleEvidence` has them


_Evidence = PairedEvidence | TwoSampleEvidence | AucEvidence


@dataclass(slots=True)
class Look:
    """The labels, by index, at which something would be shown for the first time; or None."""

    better: int | None = None
    worse: int | None = None


class Judge:
    """Keeps the evidence of one rollout.

    Args:
        policy: how it is to be judged.
        task: of the models.
    """

    def __init__(self, policy: Policy, task: Task) -> None:
        self._policy = policy
        self._evidence: _Evidence
        if policy.loss == AUC:
            self._evidence = AucEvidence(policy.alpha, policy.clip, window=policy.auc_window)
        else:
            kind = PairedEvidence if policy.comparison == "paired" else TwoSampleEvidence
            bound = bound_of(task, loss_of(policy, task))
            self._evidence = kind(policy.alpha, clip_of(policy, task), bound=bound)
        # What `look` made of so many labels: `take` has it, unless it is given fewer.
        self._looked: tuple[int, _Evidence] | None = None

    @property
    def by_scores(self) -> bool:
        """Whether it judges scores, beside what was true, and not losses."""
        return isinstance(self._evidence, AucEvidence)

    def look(
        self, ours: F64, theirs: F64, truth: F64, arms: U8, champion: int, challenger: int
    ) -> Look:
        """What would be shown by these labels; nothing is kept.

        Args:
            ours, theirs: the losses of champion and challenger, or their scores (`by_scores`);
                `(labels,) float64`, finite.
            truth: `(labels,) float64`, only looked at with scores.
            arms: `(labels,) uint8`, the number of the model that served each.
            champion, challenger: their numbers.
        """
        found = Look()
        evidence = type(self._evidence).from_array(self._evidence.to_array())
        known = evidence.found
        for at, finding in self._update(evidence, ours, theirs, truth, arms, champion, challenger):
            if finding is Finding.BETTER and Finding.BETTER not in known:
                found.better = at
            if finding is Finding.WORSE and Finding.WORSE not in known:
                found.worse = at
        self._looked = len(ours), evidence
        return found

    def take(
        self, ours: F64, theirs: F64, truth: F64, arms: U8, champion: int, challenger: int
    ) -> bool:
        """Keep these labels, the first of those that were looked at, or all.

        Whether it is shown, now or before, that the challenger is better.
        """
        looked, self._looked = self._looked, None
        if looked is not None and looked[0] == len(ours):
            self._evidence = looked[1]
        else:
            self._update(self._evidence, ours, theirs, truth, arms, champion, challenger)
        return Finding.BETTER in self._evidence.found

    def futile(self) -> bool:
        """Whether the improvement, whatever it is, is too small to be worth a change."""
        evidence, least = self._evidence, self._policy.min_effect
        if not least or math.isnan(evidence.champion_loss):
            return False
        return bool(evidence.interval[1] < least * evidence.champion_loss)

    def summary(self, labels: int, served: int) -> Summary:
        """All that is known, for people."""
        evidence = self._evidence
        low, high = evidence.interval
        return Summary(
            labels, served, evidence.champion_loss, evidence.challenger_loss, evidence.difference,
            low, high, evidence.e_value, evidence.e_value_worse, evidence.alpha,
        )  # fmt: skip

    def _update(
        self,
        evidence: _Evidence,
        ours: F64,
        theirs: F64,
        truth: F64,
        arms: U8,
        champion: int,
        challenger: int,
    ) -> list[tuple[int, Finding]]:
        """Findings, and the index of the label of each."""
        if isinstance(evidence, AucEvidence):
            return [(c.row, c.finding) for c in evidence.update(truth, ours, theirs)]
        if isinstance(evidence, PairedEvidence):
            return [(c.row, c.finding) for c in evidence.update(ours, theirs)]
        theirs_served = arms == challenger
        used = np.flatnonzero(theirs_served | (arms == champion))
        by_challenger = theirs_served[used]
        losses = np.where(by_challenger, theirs[used], ours[used])
        arm = np.where(by_challenger, _CHALLENGER, _CHAMPION).astype(np.int8)
        return [(int(used[c.row]), c.finding) for c in evidence.update(arm, losses)]
