"""Which models serve: the champion, the challengers' trials, and the decisions about them.

All models predict every event and learn every label. So a deployment works on predictions that
exist already: it goes through events and labels in their order, up to the first step at which
something is decided, and on from there with other shares or another champion. The result does not
depend on how the stream is cut into batches.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import LOSS, Alarm
from anabranch.models.learners.learner import Task
from anabranch.models.rollout import decision as d
from anabranch.models.rollout.decision import Decision
from anabranch.models.rollout.observations import Arm, RolloutRows
from anabranch.models.rollout.policy import Policy
from anabranch.models.rollout.traffic import split_traffic
from anabranch.models.rollout.trial import Proposal, Trial, TrialKey

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

NO_MODEL: Final = 255
"""In place of an arm id: no model could predict, and the declared fallback is served."""

_REPORT_EVENTS = 1000  # between two reports of a failing champion
_NO_ARMS, _NO_RANKS = np.zeros(0, np.uint8), np.zeros(0, np.int64)


@dataclass(slots=True)
class Assignments:
    """Which models serve the events of a batch, and what was decided in it.

    Attributes:
        served_by: `(events,) uint8`: arm id of the model whose prediction is published, or
            `NO_MODEL`.
        assigned: `(events,) uint8`: arm id of the model that was to serve.
        champions: `(labels,) uint8`: arm id of the champion when each label arrived.
        ranks: of rankings, `(events,) int64`: the position of an interleaved row, from 1; 0: the
            rows of its event are ordered by their scores.
        decisions: in order.
    """

    served_by: U8
    assigned: U8
    champions: U8
    ranks: I64 | None = None
    decisions: list[Decision] = field(default_factory=list)


class DriftReaction(Protocol):
    """Checks the champion for drift in the batch that is served, and trains new challengers.

    Attributes:
        burn_in: labels that a new challenger learns before it is compared.
    """

    burn_in: int

    def check(self, champion: str, until: int, may_start: bool) -> tuple[int, Alarm] | None:
        """Check the labels up to step `until`; the step and the drift that start a challenger."""
        ...

    def start_challenger(self, name: str, step: int) -> int:
        """Train a new model that joins after a step; returns the rows that it has learned."""
        ...


@dataclass(slots=True)
class _Part:
    """The rows up to the next decision, and that decision.

    Attributes:
        rows: with `arms` written for the events.
        champion: at these rows.
        assigned: `(events,) uint8`, see `Assignments`.
        ranks: `(events,) int64`, see `Assignments`; empty where nothing is interleaved.
        proposal, trial: what is decided at the last step, and of which trial.
        alarm: the step and the drift for which a challenger starts, after any other decision.
    """

    rows: RolloutRows
    champion: Arm
    assigned: U8
    ranks: I64
    proposal: Proposal | None
    trial: Trial | None
    alarm: tuple[int, Alarm] | None


class Deployment:
    """The models of a pipeline, and which of them serve.

    It has one owner, and pickles: the copy continues identically.

    Args:
        champion: name of the first champion.
        challengers: names of the challengers.
        policy: in force at first.
        task: of the models.
        pipeline: its name; rollouts are named after it.
        burn_in: see below.

    Attributes:
        champion: name of the champion.
        previous_champion: the champion before; it serves where the present one can't, and a
            rollback restores it.
        trials: those at work.
        waiting: challengers that are not tried yet.
        retired: challengers that were taken out.
        pending_removal: models that are not needed any more, to be removed by the caller.
        arm_ids: of the models, by name; see `RolloutRows.arms`.
        models: names of all models that there are or were.
        auto_started: those that drift has started.
        burn_in: per challenger, labels that it learns before it is compared; 0 of others.
    """

    def __init__(
        self,
        champion: str,
        challengers: Sequence[str],
        policy: Policy,
        task: Task,
        pipeline: str,
        burn_in: Mapping[str, int] | None = None,
    ) -> None:
        self._task, self._pipeline = task, pipeline
        self.policy = copy.deepcopy(policy)  # a bandit's learns
        self.champion = champion
        self.previous_champion: str | None = None
        self.trials: list[Trial] = []
        self.waiting: list[str] = []
        self.retired: set[str] = set()
        self.pending_removal: list[str] = []
        self.arm_ids = {champion: 0}
        self.models = {champion}
        self.auto_started: set[str] = set()
        self.burn_in = dict(burn_in or {})
        self._declared = copy.deepcopy(policy)
        self._next_arm_id = 1
        self._trial_count = 0
        self._events = 0
        self._failure_reported_at: int | None = None  # the event with the last such report
        for name in challengers:
            self.add(name)

    def add(self, name: str) -> None:
        """Add a challenger, which waits for its trial."""
        while self._next_arm_id in self.arm_ids.values():
            self._next_arm_id = (self._next_arm_id + 1) % NO_MODEL
        self.arm_ids[name] = self._next_arm_id
        self._next_arm_id = (self._next_arm_id + 1) % NO_MODEL
        self.retired.discard(name)
        self.models.add(name)
        self.waiting.append(name)

    def forget(self, name: str) -> None:
        """Remove a challenger without a trace; its name is free again."""
        self._drop(name)
        self.arm_ids.pop(name, None)
        self.models.discard(name)

    def declare(self, policy: Policy) -> None:
        """Set the declared policy. If it differs from the one before, all trials restart."""
        if policy.fingerprint() == self._declared.fingerprint():
            return
        self._declared = copy.deepcopy(policy)
        self.policy = copy.deepcopy(policy)
        self._requeue_trials()

    def trial(self, name: str) -> Trial | None:
        """The trial of a challenger, if it is tried now."""
        return next((trial for trial in self.trials if trial.challenger == name), None)

    def shares(self) -> dict[str, float]:
        """The share of the keys that each model serves; NaN where a policy assigns events."""
        if self._assigns_events:
            return dict.fromkeys([self.champion, *(t.challenger for t in self.trials)], np.nan)
        shares = {trial.challenger: trial.share for trial in self.trials}
        return {self.champion: 1.0 - sum(shares.values()), **shares}

    def serve(
        self, rows: RolloutRows, time: int, drift: DriftReaction | None = None
    ) -> Assignments:
        """Assign the events of a batch to models, and decide what its labels decide.

        Args:
            rows: all of the batch; `rows.arms` is written for its events.
            time: of its first row, ms.
            drift: checks the champion for drift, and trains new challengers.
        """
        events, labels = len(rows.event_steps), len(rows.label_steps)
        served = Assignments(
            np.empty(events, np.uint8), np.empty(events, np.uint8), np.empty(labels, np.uint8),
            None if rows.groups is None else np.zeros(events, np.int64),
        )  # fmt: skip
        if rows.steps and self.waiting:
            served.decisions += self.start_waiting(time, -1)
        first = event = label = 0
        while first < rows.steps:
            part = self._next(rows, first, drift)
            end = event + len(part.assigned), label + len(part.rows.label_steps)
            here, champion = slice(event, end[0]), part.champion
            served.assigned[here] = part.assigned
            served.served_by[here] = part.rows.arms[part.rows.event_rows]
            if served.ranks is not None and part.ranks.size:
                served.ranks[here] = part.ranks
            served.champions[label : end[1]] = champion.arm_id
            served.decisions += self._report_failures(part.rows)
            for trial in self.trials:
                trial.commit(part.rows, champion, first)
            (event, label), first = end, first + part.rows.steps
            self._events += len(part.assigned)
            served.decisions += self._apply(part, drift)
        return served

    def start_waiting(self, time: int, step: int) -> list[Decision]:
        """Start the trials of waiting challengers, as many as the policy allows."""
        started: list[Decision] = []
        for name in sorted(self.waiting, key=lambda each: not self._starts_in_shadow(each)):
            in_shadow = self._starts_in_shadow(name)
            if not in_shadow and self.policy.may_start(self.trials) is not None:
                break
            started.append(self.start(name, time, step))
        return started

    def start(self, name: str, time: int, step: int, reason: str = "") -> Decision:
        """Start the trial of a waiting challenger."""
        self.waiting.remove(name)
        self._trial_count += 1
        rollout = f"{self._pipeline}-{self._trial_count}"
        trial = Trial(
            TrialKey(name, self.arm_ids[name], rollout, self._trial_count), self.policy,
            self._task, time, self._starts_in_shadow(name), self.burn_in.get(name, 0),
        )  # fmt: skip
        self.trials.append(trial)
        reason = reason or f"{self.policy.name} starts"
        return self.decision(d.STARTED, trial, reason, time, step)

    def promote(self, trial: Trial, reason: str, time: int, step: int) -> list[Decision]:
        """Make a challenger the champion. The other trials restart against it."""
        if self.previous_champion is not None:
            self._schedule_removal(self.previous_champion)
        self.previous_champion, self.champion = self.champion, trial.challenger
        self.trials.remove(trial)
        trial.share = 1.0
        decisions = [self.decision(d.PROMOTED, trial, reason, time, step)]
        self._requeue_trials()
        return decisions + self.start_waiting(time, step)

    def restore_previous(self, reason: str, time: int, step: int) -> Decision:
        """Make the previous champion the champion again, and take the present one out."""
        assert self.previous_champion is not None
        failed = self.champion
        self.champion, self.previous_champion = self.previous_champion, None
        self.retire(failed)
        return self.plain_decision(d.ROLLED_BACK, failed, reason, time, step)

    def retire(self, name: str) -> None:
        """Take a challenger out."""
        self._drop(name)
        self.retired.add(name)
        self._schedule_removal(name)

    def end_trial(
        self, action: str, trial: Trial, reason: str, time: int, step: int
    ) -> list[Decision]:
        """Take the challenger of a trial out, and start waiting ones."""
        self.retire(trial.challenger)
        trial.share = 0.0
        ended = self.decision(action, trial, reason, time, step)
        return [ended, *self.start_waiting(time, step)]

    def decision(self, action: str, trial: Trial, reason: str, time: int, step: int) -> Decision:
        """A decision about a trial, with its evidence and guardrails."""
        return Decision(
            action, trial.rollout, trial.challenger, self.champion, trial.share, reason, time,
            step, trial.evidence(), trial.guardrails.values(), self.policy.name,
        )  # fmt: skip

    def plain_decision(
        self, action: str, challenger: str, reason: str, time: int, step: int = -1
    ) -> Decision:
        """A decision that is about no trial."""
        return Decision(
            action, "", challenger, self.champion, 0.0, reason, time, step, None, {},
            self.policy.name,
        )  # fmt: skip

    @property
    def _assigns_events(self) -> bool:
        return self.policy.assigns_events and bool(self.trials)

    def _starts_in_shadow(self, name: str) -> bool:
        """Whether a challenger serves no keys before it is promoted: one that drift has started."""
        return name in self.auto_started and self.policy.starts_in_shadow()

    def _next(self, rows: RolloutRows, first: int, drift: DriftReaction | None) -> _Part:
        """The rows from `first` up to the next decision, assigned to models."""
        part = rows if first == 0 else rows.part(first, rows.steps)
        champion, by_event = Arm(self.champion, self.arm_ids[self.champion]), self._assigns_events
        assigned, ranks = _NO_ARMS, _NO_RANKS
        if not by_event:
            assigned = split_traffic(part.key_hashes, self.trials, champion.arm_id)
            ranks = self.policy.arrange_candidates(part, self.trials, champion, assigned)
            part.arms[part.event_rows] = self._able_to_serve(part, assigned)
        proposal, trial = self._first_proposal(part, champion, first)
        if proposal is not None:
            proposal = replace(proposal, step=rows.end_of_event(proposal.step))
        alarm = None
        if drift is not None:
            last = rows.steps - 1 if proposal is None else proposal.step
            alarm = self._check_drift(rows, drift, last)
            if alarm is not None and alarm[0] < last:
                proposal, trial = None, None
        if proposal is not None:
            part = rows.part(first, proposal.step + 1)
        elif alarm is not None:
            part = rows.part(first, alarm[0] + 1)
        if by_event:  # only now, since the policy learns from the rows that it gets
            names = [self.champion, *(each.challenger for each in self.trials)]
            arm_ids = {name: self.arm_ids[name] for name in names}
            self.policy.assign_events(part, arm_ids, self._task)
            assigned = part.arms[part.event_rows]
            part.arms[part.event_rows] = self._able_to_serve(part, assigned)
        events = len(part.event_steps)
        return _Part(part, champion, assigned[:events], ranks[:events], proposal, trial, alarm)

    def _first_proposal(
        self, part: RolloutRows, champion: Arm, first: int
    ) -> tuple[Proposal | None, Trial | None]:
        """What is decided first, and of which trial."""
        proposals = []
        for trial in self.trials:
            proposal = trial.peek(part, champion, first)
            if proposal is not None:
                proposals.append((proposal, trial))
        return min(proposals, key=lambda pair: pair[0], default=(None, None))

    def _check_drift(
        self, rows: RolloutRows, drift: DriftReaction, last: int
    ) -> tuple[int, Alarm] | None:
        """The step, up to `last`, and the drift for which a challenger starts."""
        competing = {*self.waiting, *(trial.challenger for trial in self.trials)}
        alarm = drift.check(self.champion, last, not competing & self.auto_started)
        return None if alarm is None else (rows.end_of_event(alarm[0]), alarm[1])

    def _able_to_serve(self, part: RolloutRows, assigned: U8) -> U8:
        """`assigned`, with the champion, or the one before, in place of models that abstained."""
        served_by, champion = assigned.copy(), self.arm_ids[self.champion]
        for trial in self.trials:
            missing = np.isnan(part.scores[trial.challenger])
            served_by[(assigned == trial.arm_id) & missing] = champion
        failed = (served_by == champion) & part.abstained[self.champion]
        if failed.any():
            served_by[failed] = NO_MODEL
            previous = self.previous_champion
            if previous is not None:
                served_by[failed & np.isfinite(part.scores[previous])] = self.arm_ids[previous]
        return served_by

    def _report_failures(self, part: RolloutRows) -> list[Decision]:
        """Decisions that report that the champion could not predict, one in a thousand events."""
        decisions = []
        for event in np.flatnonzero(part.abstained[self.champion]).tolist():
            at, last = self._events + event, self._failure_reported_at
            if last is not None and at < last + _REPORT_EVENTS:
                continue
            self._failure_reported_at = at
            names = {arm_id: name for name, arm_id in self.arm_ids.items()}
            server = names.get(int(part.arms[part.event_rows[event]]), "the fallback")
            reason = f"{server} serves where it raises, or predicts NaN"
            time, step = int(part.event_times[event]), int(part.event_steps[event])
            decisions.append(self.plain_decision(d.CHAMPION_FAILED, "", reason, time, step))
        return decisions

    def _apply(self, part: _Part, drift: DriftReaction | None) -> list[Decision]:
        """Apply what is decided at the end of a part."""
        decisions: list[Decision] = []
        if part.proposal is not None and part.trial is not None:
            decisions += self._decide(part.proposal, part.trial)
        if part.alarm is not None and drift is not None:
            decisions.append(self._start_challenger(*part.alarm, drift))
        return decisions

    def _decide(self, proposal: Proposal, trial: Trial) -> list[Decision]:
        action, reason, time, step = (
            proposal.action, proposal.reason, proposal.time, proposal.step,
        )  # fmt: skip
        if action == d.PROMOTED:
            return self.promote(trial, reason, time, step)
        if action == d.STEPPED:
            trial.set_share(proposal.share, time)
            return [self.decision(action, trial, reason, time, step)]
        if action == d.PROGRESS:
            if not trial.futile():
                return [self.decision(action, trial, reason, time, step)]
            action, reason = d.FUTILE, trial.futile_reason()
        return self.end_trial(action, trial, reason, time, step)

    def _start_challenger(self, step: int, alarm: Alarm, drift: DriftReaction) -> Decision:
        """Train a new model and start its trial, in shadow where the policy allows it."""
        count = 1
        while (name := f"fresh-{count}") in self.models:
            count += 1
        self.auto_started.add(name)
        self.burn_in[name] = drift.burn_in
        rows = drift.start_challenger(name, step)
        self.add(name)
        subject = f"the loss of {self.champion}" if alarm.kind == LOSS else alarm.subject
        reason = (
            f"{subject} has drifted ({alarm.detector}: {alarm.change}): a new model starts, "
            f"trained on the last {rows:,} labelled rows"
        )
        return self.start(name, alarm.time, step, reason)

    def _requeue_trials(self) -> None:
        """Stop all trials; their challengers wait again, before the others."""
        self.waiting = [trial.challenger for trial in self.trials] + self.waiting
        self.trials = []

    def _drop(self, name: str) -> None:
        """A challenger is neither tried nor waiting any more."""
        self.trials = [trial for trial in self.trials if trial.challenger != name]
        self.waiting = [waiting for waiting in self.waiting if waiting != name]

    def _schedule_removal(self, name: str) -> None:
        self.arm_ids.pop(name)
        self.pending_removal.append(name)
