"""Who serves: the champion, the challengers that are tried, and what is decided about them.

All models predict every event and learn every label. So a deployment works on what they answered,
after the fact: it goes through events and labels in their order, up to the first step at which
something is decided, and on from there with other shares or another champion. What comes out does
not depend on how the stream is cut.
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
from anabranch.models.rollout.interleaving import draft
from anabranch.models.rollout.observations import RolloutRows
from anabranch.models.rollout.policies import (
    ABTest,
    Bandit,
    Canary,
    Interleave,
    Policy,
    described,
    reward_unit,
)
from anabranch.models.rollout.traffic import divide, pull_arms
from anabranch.models.rollout.trial import Contest, Trigger

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

NOBODY: Final = 255
"""In place of a model's number: none answered, and what was declared for that case is served."""

_QUIET_EVENTS = 1000  # between two decisions that tell of a failing champion


@dataclass(slots=True)
class Served:
    """Who served the events of a batch, and what was decided in it.

    Attributes:
        by: `(events,) uint8`: number of the model whose answer goes out, or `NOBODY`.
        meant: `(events,) uint8`: of the one that was to serve.
        leads: `(labels,) uint8`: number of the champion when each label came.
        ranks: of rankings, `(events,) int64`: where an interleaved row stands, from 1; 0: the rows
            of its event stand by what was answered.
        decisions: in order.
    """

    by: U8
    meant: U8
    leads: U8
    ranks: I64 | None = None
    decisions: list[Decision] = field(default_factory=list)


class DriftWatch(Protocol):
    """Looks at the loss of whoever leads, in the batch that is served.

    Attributes:
        grace: labels that a model learns before it is judged.
    """

    grace: int

    def look(self, champion: str, until: int, may_bear: bool) -> tuple[int, Alarm] | None:
        """Look at the labels up to a step; the step and the drift at which a model is started."""
        ...

    def bear(self, name: str, step: int) -> int:
        """Make a fresh model that begins after a step; the rows that it has learned already."""
        ...


class Deployment:
    """The models of a pipeline, and who of them serves.

    It has one owner, and pickles: the copy continues identically.

    Args:
        champion: name of the model that leads at first.
        challengers: names of those that want to.
        policy: in force at first.
        task: of the models.
        pipeline: its name; rollouts are called after it.
        grace: see below.

    Attributes:
        champion: who leads now.
        standby: the champion before; it serves where the present one can't, and is gone back to.
        contests: the rollouts at work.
        waiting: challengers whose turn has not come.
        retired: challengers that were taken out.
        leaving: models that are not needed any more, to be removed by whoever runs them.
        numbers: of the models, by which `RolloutRows.arms` knows them.
        known: all models there ever were.
        born: those that drift has started.
        grace: labels that challengers learn before they are judged; 0 of those that are not here.
    """

    def __init__(
        self,
        champion: str,
        challengers: Sequence[str],
        policy: Policy,
        task: Task,
        pipeline: str,
        grace: Mapping[str, int] | None = None,
    ) -> None:
        self._task, self._pipeline = task, pipeline
        self.policy = copy.deepcopy(policy)  # a bandit's learns
        self.champion = champion
        self.standby: str | None = None
        self.contests: list[Contest] = []
        self.waiting: list[str] = []
        self.retired: set[str] = set()
        self.leaving: list[str] = []
        self.numbers = {champion: 0}
        self.known = {champion}
        self.born: set[str] = set()
        self.grace = dict(grace or {})
        self._declared = copy.deepcopy(policy)
        self._next_number = 1
        self._rollouts = 0
        self._events = 0
        self._told_at: int | None = None  # the event at which a failing champion was told of
        for name in challengers:
            self.add(name)

    def add(self, name: str) -> None:
        """A challenger more; it waits for its turn."""
        while self._next_number in self.numbers.values():
            self._next_number = (self._next_number + 1) % NOBODY
        self.numbers[name] = self._next_number
        self._next_number = (self._next_number + 1) % NOBODY
        self.retired.discard(name)
        self.known.add(name)
        self.waiting.append(name)

    def forget(self, name: str) -> None:
        """A challenger is not there any more, and its name is free."""
        self.contests = [each for each in self.contests if each.challenger != name]
        self.waiting = [each for each in self.waiting if each != name]
        self.numbers.pop(name, None)
        self.known.discard(name)

    def declare(self, policy: Policy) -> None:
        """The policy that is declared now. If it is another one, what is tried begins anew."""
        if described(policy) == described(self._declared):
            return
        self._declared = copy.deepcopy(policy)
        self.policy = copy.deepcopy(policy)
        self.waiting = [each.challenger for each in self.contests] + self.waiting
        self.contests = []

    def contest(self, name: str) -> Contest | None:
        """The rollout of a challenger that is tried now."""
        return next((each for each in self.contests if each.challenger == name), None)

    def shares(self) -> dict[str, float]:
        """Of the keys that each model serves; NaN under a bandit, who decides event by event."""
        if isinstance(self.policy, Bandit) and self.contests:
            return dict.fromkeys([self.champion, *(c.challenger for c in self.contests)], np.nan)
        found = {contest.challenger: contest.share for contest in self.contests}
        return {self.champion: 1.0 - sum(found.values()), **found}

    def serve(self, rows: RolloutRows, time: int, drift: DriftWatch | None = None) -> Served:
        """Say who serves the events of a batch, and decide what its labels decide.

        Args:
            rows: all of the batch; `rows.arms` is written for its events.
            time: of its first row, ms.
            drift: looks at the champion's loss, and starts models where that drifts.
        """
        events, labels = len(rows.event_steps), len(rows.label_steps)
        served = Served(
            np.empty(events, np.uint8), np.empty(events, np.uint8), np.empty(labels, np.uint8),
            None if rows.groups is None else np.zeros(events, np.int64),
        )  # fmt: skip
        if rows.steps and self.waiting:
            served.decisions += self.begin(time, -1)
        first = event = label = 0
        while first < rows.steps:
            part, trigger, contest, meant, ranks, alarm = self._next(rows, first, drift)
            here, there = slice(event, event + len(meant)), len(part.label_steps)
            served.meant[here] = meant
            served.by[here] = part.arms[part.event_rows]
            if served.ranks is not None and ranks.size:
                served.ranks[here] = ranks
            served.leads[label : label + there] = self.numbers[self.champion]
            served.decisions += self._tell_of_failures(part, meant)
            for each in self.contests:
                each.take(part, self.champion, self.numbers[self.champion], first)
            event, label, first = event + len(meant), label + there, first + part.steps
            self._events += len(meant)
            if trigger is not None and contest is not None:
                served.decisions += self._decide(trigger, contest)
            if alarm is not None and drift is not None:
                served.decisions.append(self._bear(*alarm, drift))
        return served

    def _bear(self, step: int, alarm: Alarm, drift: DriftWatch) -> Decision:
        """Start a fresh model, in shadow where it can be judged there."""
        count = 1
        while (name := f"fresh-{count}") in self.known:
            count += 1
        self.born.add(name)
        self.grace[name] = drift.grace
        warm = drift.bear(name, step)
        self.add(name)
        what = f"the loss of {self.champion}" if alarm.kind == LOSS else alarm.subject
        why = (
            f"{what} has drifted ({alarm.detector}: {alarm.change}): a fresh model begins, warmed "
            f"with {warm:,} labelled rows"
        )
        return self.start(name, alarm.time, step, why)

    def begin(self, time: int, step: int) -> list[Decision]:
        """Try the challengers whose turn has come."""
        begun: list[Decision] = []
        for name in sorted(self.waiting, key=lambda each: not self._stays_in_shadow(each)):
            if self._stays_in_shadow(name):
                begun.append(self.start(name, time, step))
                continue
            one_at_a_time = isinstance(self.policy, Canary | Interleave)
            if one_at_a_time and not all(c.in_shadow for c in self.contests):
                break
            if isinstance(self.policy, ABTest):
                taken = sum(contest.share for contest in self.contests) + self.policy.split
                if taken > 1:
                    break
            begun.append(self.start(name, time, step))
        return begun

    def start(self, name: str, time: int, step: int, why: str = "") -> Decision:
        """Try a challenger that waits, from now on."""
        self.waiting.remove(name)
        self._rollouts += 1
        rollout = f"{self._pipeline}-{self._rollouts}"
        contest = Contest(
            name, self.numbers[name], rollout, self.policy, self._task, time,
            self._stays_in_shadow(name), self.grace.get(name, 0), self._rollouts,
        )  # fmt: skip
        self.contests.append(contest)
        why = why or f"{type(self.policy).__name__} begins"
        return self.decision(d.STARTED, contest, why, time, step)

    def _stays_in_shadow(self, name: str) -> bool:
        """Whether a challenger serves nobody before it is promoted: one that drift has started.

        Where a label judges the model that served alone, it has to serve.
        """
        decides = isinstance(self.policy, Canary | ABTest) and self.policy.comparison == "paired"
        return decides and name in self.born

    def promote(self, contest: Contest, why: str, time: int, step: int) -> list[Decision]:
        """Let a challenger lead. Those that are still tried begin anew, against it."""
        if self.standby is not None:
            self._leave(self.standby)
        self.standby, self.champion = self.champion, contest.challenger
        self.contests.remove(contest)
        contest.share = 1.0
        decisions = [self.decision(d.PROMOTED, contest, why, time, step)]
        self.waiting = [each.challenger for each in self.contests] + self.waiting
        self.contests = []
        return decisions + self.begin(time, step)

    def go_back(self, why: str, time: int, step: int) -> Decision:
        """Let the champion before lead again, and the present one go."""
        assert self.standby is not None
        gone, self.champion, self.standby = self.champion, self.standby, None
        self.retire(gone)
        return Decision(
            d.ROLLED_BACK, "", gone, self.champion, 0.0, why, time, step, None, {},
            type(self.policy).__name__,
        )  # fmt: skip

    def retire(self, name: str) -> None:
        """Take a challenger out."""
        self.contests = [each for each in self.contests if each.challenger != name]
        self.waiting = [each for each in self.waiting if each != name]
        self.retired.add(name)
        self._leave(name)

    def decision(self, action: str, contest: Contest, why: str, time: int, step: int) -> Decision:
        """One about a rollout, with all that is known of it."""
        return Decision(
            action, contest.rollout, contest.challenger, self.champion, contest.share, why, time,
            step, contest.evidence(), contest.rails.figures(), type(self.policy).__name__,
        )  # fmt: skip

    def _next(
        self, rows: RolloutRows, first: int, drift: DriftWatch | None
    ) -> tuple[RolloutRows, Trigger | None, Contest | None, U8, I64, tuple[int, Alarm] | None]:
        """The rows from `first` up to the next decision, assigned; and what is decided there.

        The last three are who was meant to serve (`arms` holds who does), see `Served.ranks`, and
        the step and the drift for which a fresh model is to be started, after anything else that is
        decided there. Nothing is decided in the middle of an event's candidates.
        """
        part = rows if first == 0 else rows.part(first, rows.steps)
        leads = self.numbers[self.champion]
        pulls = isinstance(self.policy, Bandit) and bool(self.contests)
        ranks = np.zeros(0, np.int64)
        if not pulls:
            meant = divide(part.hashes, self.contests, leads)
            if isinstance(self.policy, Interleave):
                ranks = draft(part, self.contests, (self.champion, leads), meant)
            part.arms[part.event_rows] = self._answering(part, meant)
        found = [(each.find(part, self.champion, leads, first), each) for each in self.contests]
        known = [(trigger, each) for trigger, each in found if trigger is not None]
        trigger, contest = min(known, key=lambda pair: pair[0], default=(None, None))
        alarm = None
        if trigger is not None:
            trigger = replace(trigger, step=rows.whole(trigger.step))
        if drift is not None:
            last = rows.steps - 1 if trigger is None else trigger.step
            tried = {*self.waiting, *(each.challenger for each in self.contests)}
            alarm = drift.look(self.champion, last, not tried & self.born)
            if alarm is not None:
                alarm = rows.whole(alarm[0]), alarm[1]
                if alarm[0] < last:
                    trigger, contest = None, None
        if trigger is not None:
            part = rows.part(first, trigger.step + 1)
        elif alarm is not None:
            part = rows.part(first, alarm[0] + 1)
        if pulls:
            assert isinstance(self.policy, Bandit)
            pulled = [self.champion, *(each.challenger for each in self.contests)]
            numbers = {name: self.numbers[name] for name in pulled}
            pull_arms(part, self.policy.policy, numbers, reward_unit(self.policy, self._task))
            meant = part.arms[part.event_rows]
            part.arms[part.event_rows] = self._answering(part, meant)
        events = len(part.event_steps)
        return part, trigger, contest, meant[:events], ranks[:events], alarm

    def _answering(self, part: RolloutRows, meant: U8) -> U8:
        """Who answers in place of those that can't: the champion, or the one before it."""
        by = meant.copy()
        leads = self.numbers[self.champion]
        for contest in self.contests:
            by[(meant == contest.number) & np.isnan(part.scores[contest.challenger])] = leads
        failed = (by == leads) & part.silent[self.champion]
        if failed.any():
            by[failed] = NOBODY
            if self.standby is not None:
                by[failed & np.isfinite(part.scores[self.standby])] = self.numbers[self.standby]
        return by

    def _tell_of_failures(self, part: RolloutRows, meant: U8) -> list[Decision]:
        """That the champion could not answer, every thousand events at most."""
        decisions = []
        for event in np.flatnonzero(part.silent[self.champion]).tolist():
            at = self._events + event
            if self._told_at is not None and at < self._told_at + _QUIET_EVENTS:
                continue
            self._told_at = at
            stands_in = int(part.arms[part.event_rows[event]])
            name = {number: name for name, number in self.numbers.items()}.get(stands_in)
            why = f"{name or 'nobody'} serves where it raises, or answers with NaN"
            decisions.append(Decision(
                d.CHAMPION_FAILED, "", "", self.champion, 0.0, why,
                int(part.event_times[event]), int(part.event_steps[event]), None, {},
                type(self.policy).__name__,
            ))  # fmt: skip
        return decisions

    def _decide(self, trigger: Trigger, contest: Contest) -> list[Decision]:
        action, why, time, step = trigger.action, trigger.why, trigger.time, trigger.step
        if action == d.PROMOTED:
            return self.promote(contest, why, time, step)
        if action == d.STEPPED:
            contest.step_up(time)
            return [self.decision(action, contest, why, time, step)]
        if action == d.PROGRESS:
            if not contest.futile():
                return [self.decision(action, contest, why, time, step)]
            action, why = d.GIVEN_UP, contest.why_futile()
        self.retire(contest.challenger)
        contest.share = 0.0
        return [self.decision(action, contest, why, time, step), *self.begin(time, step)]

    def _leave(self, name: str) -> None:
        self.numbers.pop(name)
        self.leaving.append(name)
