"""One challenger against the champion: its evidence, and the first step at which that decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Task
from anabranch.models.rollout import decision as d
from anabranch.models.rollout.comparison import ComparedLabels, Comparison
from anabranch.models.rollout.decision import Evidence
from anabranch.models.rollout.guardrails import LOSS_WINDOW, PSI_WINDOW, GuardrailMonitors
from anabranch.models.rollout.observations import Arm, RolloutRows
from anabranch.models.rollout.policy import BETTER, Policy, Step, TrialProgress

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_ORDER: Final = (d.ROLLED_BACK, d.PROMOTED, d.FUTILE, d.ENDED, d.STEPPED, d.PROGRESS)
"""Which of several proposals at one step is decided."""
_NO_TRUTHS: Final = np.zeros(0)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a trial proposes to decide.

    Attributes:
        step: index of the step after which it holds.
        action: one of `models.rollout.decision.ACTIONS`.
        reason: a clause for people.
        time: event time, ms.
        share: the challenger's new share of the keys, of `STEPPED`.
    """

    step: int
    action: str
    reason: str
    time: int
    share: float = 0.0

    def __lt__(self, other: Proposal) -> bool:
        mine, its = _ORDER.index(self.action), _ORDER.index(other.action)
        return (self.step, mine) < (other.step, its)


@dataclass(frozen=True, slots=True)
class TrialKey:
    """What identifies a trial.

    Attributes:
        challenger: name of the model that is tried.
        arm_id: by which `RolloutRows.arms` knows it.
        rollout: a name that no other trial of the pipeline has had.
        index: the number of the trial, by which `RolloutRows.drafts` knows it.
    """

    challenger: str
    arm_id: int
    rollout: str
    index: int = 0


class Trial:
    """A trial at work.

    `peek` at what is decided first, then `commit` the rows up to there. Nothing depends on how the
    stream is cut. It pickles, and the copy continues identically.

    Args:
        key: what identifies it.
        policy: in force.
        task: of the models.
        time: when it starts, event time in ms.
        in_shadow: the challenger serves no keys, whatever the policy's shares are, until it is
            promoted.
        burn_in: labels that the challenger learns before it is compared.

    Attributes:
        challenger, arm_id, rollout, index: see `TrialKey`.
        share: of the keys that the challenger serves.
        paused: only guardrails decide.
        shown: it was shown to be better; that stays, whatever follows.
    """

    def __init__(
        self,
        key: TrialKey,
        policy: Policy,
        task: Task,
        time: int,
        in_shadow: bool = False,
        burn_in: int = 0,
    ) -> None:
        self.challenger, self.arm_id = key.challenger, key.arm_id
        self.rollout, self.index = key.rollout, key.index
        self.policy = policy
        self.guardrails = GuardrailMonitors(policy.guardrails)
        self._comparison = Comparison(policy, task)
        self._pairs = policy.label_pairs(key.index)
        self._start = self._share_since = time
        self.paused = self.shown = False
        self.labels = self.served = 0
        self._served_in_step = 0  # labels of events that it served, since `_share_since`
        self.in_shadow, self._burn_in = in_shadow, burn_in
        self.share = 0.0 if in_shadow else policy.initial_share()

    def peek(self, rows: RolloutRows, champion: Arm, first: int) -> Proposal | None:
        """What is decided first; None: nothing. The rows begin at step `first`."""
        proposals = self._breaches(rows, champion, first)
        compared = self._compared(rows, champion)
        losses = self._pairs.losses(rows, champion.name, self.challenger, compared)
        proposals += self._loss_ratio_breaches(rows, compared, losses)
        labels = self._compared_labels(rows, champion, compared, losses)
        proposals += self._decisions(rows, compared, labels)
        return min(proposals, default=None)

    def commit(self, rows: RolloutRows, champion: Arm, first: int) -> None:
        """Keep these rows, which begin at step `first` and end where a decision is made."""
        challenger, monitors = self.challenger, self.guardrails
        abstained = rows.event_steps[rows.abstained[challenger]]
        monitors.errors.commit(rows.raised[challenger], abstained, first, rows.steps)
        monitors.psi.commit(rows.scores[champion.name], rows.scores[challenger])
        compared = self._compared(rows, champion)
        self._burn_in -= min(self._burn_in, self._both_predicted(rows, champion).size)
        losses = self._pairs.losses(rows, champion.name, challenger, compared)
        monitors.loss_ratio.commit(*losses)
        labels = self._compared_labels(rows, champion, compared, losses)
        self._pairs.commit(rows, compared)
        self.shown |= self._comparison.commit(labels)
        served = int(np.count_nonzero(labels.served_by == self.arm_id))
        self.labels += len(compared)
        self.served += served
        self._served_in_step += served

    def set_share(self, share: float, time: int) -> None:
        """The challenger serves this share of the keys from `time` (ms) on."""
        self.share, self._share_since, self._served_in_step = share, time, 0

    def evidence(self) -> Evidence:
        """The evidence so far."""
        return self._comparison.summary(self.labels, self.served)

    def futile(self) -> bool:
        """Whether the trial ends because no improvement worth a change can be shown any more.

        To be called at the labels of a progress report only, so that the result does not depend on
        when it is called.
        """
        decides = self.policy.decides and not self.paused
        return decides and not self.shown and self._comparison.futile()

    def futile_reason(self) -> str:
        """In a clause."""
        return f"it is not better by {self.policy.min_effect:.1%} of the champion's loss: futile"

    def _breaches(self, rows: RolloutRows, champion: Arm, first: int) -> list[Proposal]:
        """Guardrails of predictions that were breached."""
        proposals = []
        abstained = rows.event_steps[rows.abstained[self.challenger]]
        raised = rows.raised[self.challenger]
        step = self.guardrails.errors.peek(raised, abstained, first)
        if step is not None:
            reason = "it raised an error" if step in raised else "it gave no prediction, or NaN"
            allowed = self.policy.guardrails.error_rate
            if allowed:
                reason += f", more often than at {allowed:.1%} of the rows"
            proposals.append(Proposal(step, d.ROLLED_BACK, reason, rows.time_at(step)))
        event = self.guardrails.psi.peek(rows.scores[champion.name], rows.scores[self.challenger])
        if event is not None:
            reason = f"its predictions over {PSI_WINDOW} events were too unlike the champion's"
            step, time = int(rows.event_steps[event]), int(rows.event_times[event])
            proposals.append(Proposal(step, d.ROLLED_BACK, reason, time))
        return proposals

    def _loss_ratio_breaches(
        self, rows: RolloutRows, compared: I64, losses: tuple[F64, F64]
    ) -> list[Proposal]:
        label = self.guardrails.loss_ratio.peek(*losses)
        if label is None:
            return []
        reason = (
            f"its loss over the last {LOSS_WINDOW} labels was more than "
            f"{self.policy.guardrails.loss_ratio:g} times the champion's"
        )
        return [_at_label(rows, compared, label, d.ROLLED_BACK, reason)]

    def _decisions(
        self, rows: RolloutRows, compared: I64, labels: ComparedLabels
    ) -> list[Proposal]:
        """What the evidence decides, and progress reports."""
        peek = self._comparison.peek(labels)
        proposals = []
        if peek.worse is not None:
            reason = "it was shown to be worse than the champion"
            proposals.append(_at_label(rows, compared, peek.worse, d.ROLLED_BACK, reason))
        report = self.policy.report_every - 1 - self.labels % self.policy.report_every
        if report < len(compared):
            proposals.append(_at_label(rows, compared, report, d.PROGRESS, "still undecided"))
        if self.paused or not self.policy.decides:
            return proposals
        better = 0 if self.shown and len(compared) else peek.better
        step = self._next_step(labels, rows.label_times[compared], better)
        if step is not None and step.share is None:
            proposals.append(_at_label(rows, compared, step.label, d.PROMOTED, step.reason))
        elif step is not None:
            stepped = _at_label(rows, compared, step.label, d.STEPPED, step.reason, step.share or 0)
            proposals.append(stepped)
        return proposals + self._end(rows)

    def _end(self, rows: RolloutRows) -> list[Proposal]:
        """That the time of the trial is over."""
        end = self.policy.ends_at(self._start)
        if end is None:
            return []
        past = np.flatnonzero(rows.event_times >= end)
        if not past.size:
            return []
        event, reason = int(past[0]), self.policy.end_reason()
        step, time = int(rows.event_steps[event]), int(rows.event_times[event])
        return [Proposal(step, d.ENDED, reason, time)]

    def _next_step(self, labels: ComparedLabels, times: I64, better: int | None) -> Step | None:
        """What the policy decides; in shadow only a promotion."""
        if self.in_shadow:
            return None if better is None else Step(better, None, BETTER)
        served = self._served_in_step + np.cumsum(labels.served_by == self.arm_id)
        return self.policy.next_step(
            TrialProgress(self.share, self._share_since, times, served, better)
        )

    def _compared(self, rows: RolloutRows, champion: Arm) -> I64:
        """Indices of the labels by which the models are compared."""
        return self._pairs.select(rows, self._both_predicted(rows, champion)[self._burn_in :])

    def _both_predicted(self, rows: RolloutRows, champion: Arm) -> I64:
        """Indices of the labels of events that both models had predicted."""
        losses, challenger = rows.losses, self.challenger
        return np.flatnonzero(np.isfinite(losses[champion.name]) & np.isfinite(losses[challenger]))

    def _compared_labels(
        self, rows: RolloutRows, champion: Arm, compared: I64, losses: tuple[F64, F64]
    ) -> ComparedLabels:
        """What is compared: losses, or scores and the truth."""
        (ours, theirs), truths = losses, _NO_TRUTHS
        if self._comparison.uses_scores:
            assert rows.truths is not None
            truths = rows.truths[compared]
            ours = rows.label_scores[champion.name][compared]
            theirs = rows.label_scores[self.challenger][compared]
        served_by = rows.arms[rows.label_rows[compared]]
        return ComparedLabels(ours, theirs, truths, served_by, champion.arm_id, self.arm_id)


def _at_label(
    rows: RolloutRows, compared: I64, label: int, action: str, reason: str, share: float = 0.0
) -> Proposal:
    """A proposal at one of the compared labels."""
    at = compared[label]
    return Proposal(int(rows.label_steps[at]), action, reason, int(rows.label_times[at]), share)
