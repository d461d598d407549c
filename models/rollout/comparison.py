"""The sequential test of a trial: what labels say of a challenger, paired or unpaired."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anabranch.models.evidence.auc import AucEvidence
from anabranch.models.evidence.paired import Finding, PairedEvidence
from anabranch.models.evidence.two_sample import TwoSampleEvidence
from anabranch.models.learners.learner import Task
from anabranch.models.rollout.decision import Evidence as Summary
from anabranch.models.rollout.policy import AUC, Policy, bound_of, clip_of, loss_of

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

_CHAMPION, _CHALLENGER = 0, 1  # arms, as `TwoSampleEvidence` has them

_Evidence = PairedEvidence | TwoSampleEvidence | AucEvidence


class ComparedLabels(NamedTuple):
    """Labels of events that both models predicted.

    Attributes:
        champion, challenger: losses of the two, or their scores (`Comparison.uses_scores`);
            `(labels,) float64`, finite.
        truths: `(labels,) float64`, only read with scores.
        served_by: `(labels,) uint8`, arm id of the model that served each.
        champion_arm, challenger_arm: their arm ids.
    """

    champion: F64
    challenger: F64
    truths: F64
    served_by: U8
    champion_arm: int
    challenger_arm: int


@dataclass(slots=True)
class Peek:
    """The indices of the labels at which a finding would become certain; None: at none."""

    better: int | None = None
    worse: int | None = None


class Comparison:
    """Keeps the evidence of one trial. It pickles, and the copy continues identically.

    Args:
        policy: how the models are compared.
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
        # The evidence after the labels of `peek`, and how many: `commit` keeps it, unless it gets
        # fewer labels.
        self._peeked: tuple[int, _Evidence] | None = None

    @property
    def uses_scores(self) -> bool:
        """Whether it compares scores, together with the truth, and not losses."""
        return isinstance(self._evidence, AucEvidence)

    def peek(self, labels: ComparedLabels) -> Peek:
        """What these labels would show for the first time; nothing is kept."""
        peek = Peek()
        evidence = type(self._evidence).from_array(self._evidence.to_array())
        before = evidence.findings
        for label, finding in self._update(evidence, labels):
            if finding is Finding.BETTER and Finding.BETTER not in before:
                peek.better = label
            if finding is Finding.WORSE and Finding.WORSE not in before:
                peek.worse = label
        self._peeked = len(labels.champion), evidence
        return peek

    def commit(self, labels: ComparedLabels) -> bool:
        """Keep these labels: the first of those that were peeked at, or all.

        Returns:
            Whether it is shown, now or before, that the challenger is better.
        """
        peeked, self._peeked = self._peeked, None
        if peeked is not None and peeked[0] == len(labels.champion):
            self._evidence = peeked[1]
        else:
            self._update(self._evidence, labels)
        return Finding.BETTER in self._evidence.findings

    def futile(self) -> bool:
        """Whether the improvement, whatever it is, is too small to be worth a change."""
        evidence, min_effect = self._evidence, self._policy.min_effect
        if not min_effect or math.isnan(evidence.champion_loss):
            return False
        return bool(evidence.interval[1] < min_effect * evidence.champion_loss)

    def summary(self, labels: int, served: int) -> Summary:
        """The evidence so far, as it is published."""
        evidence = self._evidence
        low, high = evidence.interval
        return Summary(
            labels, served, evidence.champion_loss, evidence.challenger_loss, evidence.difference,
            low, high, evidence.e_value, evidence.e_value_worse, evidence.alpha,
        )  # fmt: skip

    def _update(self, evidence: _Evidence, labels: ComparedLabels) -> list[tuple[int, Finding]]:
        """Findings, and the index of the label of each."""
        champion, challenger, truths, served_by, champion_arm, challenger_arm = labels
        if isinstance(evidence, AucEvidence):
            return [(c.row, c.finding) for c in evidence.update(truths, champion, challenger)]
        if isinstance(evidence, PairedEvidence):
            return [(c.row, c.finding) for c in evidence.update(champion, challenger)]
        by_challenger = served_by == challenger_arm
        used = np.flatnonzero(by_challenger | (served_by == champion_arm))
        by_challenger = by_challenger[used]
        losses = np.where(by_challenger, challenger[used], champion[used])
        arm = np.where(by_challenger, _CHALLENGER, _CHAMPION).astype(np.int8)
        return [(int(used[c.row]), c.finding) for c in evidence.update(arm, losses)]
