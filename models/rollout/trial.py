"""One challenger against the champion: what is known, and the first step at which that decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Task
from anabranch.models.rollout import decision as d
from anabranch.models.rollout.comparison import Judge
from anabranch.models.rollout.decision import Evidence
from anabranch.models.rollout.guardrails import LOSSES_OVER, SHIFT_OVER, Rails
from anabranch.models.rollout.observations import RANK_BITS, RolloutRows
from anabranch.models.rollout.policies import ABTest, Bandit, Canary, Interleave, Policy, Shadow
from anabranch.state.durations import parse_duration_ms

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
Add = Callable[[int | None, str, str], None]

_ORDER: Final = (d.ROLLED_BACK, d.PROMOTED, d.GIVEN_UP, d.ENDED, d.STEPPED, d.PROGRESS)
"""What goes first at one step."""

_LISTS: Final = 1024
"""Lists that have given their point, before those are looked for that can be forgotten."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """Something is decided at a step; `time` is event time, ms."""

    step: int
    action: str
    why: str
    time: int

    def __lt__(self, other: Trigger) -> bool:
        mine, its = _ORDER.index(self.action), _ORDER.index(other.action)
        return (self.step, mine) < (other.step, its)


class Contest:
    """A rollout at work.

    `find` what is decided first, then `take` the rows up to there. Nothing depends on how the
    stream is cut. It pickles, and the copy continues identically.

    Args:
        challenger: its name.
        number: by which `RolloutRows.arms` knows it.
        rollout: a name that no other one has had.
        policy: in force.
        task: of the models.
        time: when it begins, event time in ms.
        in_shadow: it serves nobody, whatever the policy's shares are, until it is promoted.
        grace: labels that it learns before it is judged.
        draft: its number, by which `RolloutRows.drafts` knows it.

    Attributes:
        share: of the keys that the challenger serves.
        paused: nothing is decided but by guardrails.
        shown: it was shown to be better; that stays, whatever comes later.
    """

    def __init__(
        self,
        challenger: str,
        number: int,
        rollout: str,
        policy: Policy,
        task: Task,
        time: int,
        in_shadow: bool = False,
        grace: int = 0,
        draft: int = 0,
    ) -> None:
        self.challenger, self.number, self.rollout = challenger, number, rollout
        self.draft = draft
        self.policy = policy
        self.rails = Rails(policy.guardrails)
        self.judge = Judge(policy, task)
        self.began = self.since = time
        self.paused = self.shown = False
        self.labels = self.served = 0
        self.held = 0  # labels of events that it served, since `since`
        self._counted: dict[int, None] = {}  # lists that have given their point
        self._room = _LISTS
        self.in_shadow, self._grace = in_shadow, grace
        self.shares: list[float] = []
        if in_shadow:
            pass
        elif isinstance(policy, Canary):
            self.shares = [share for share in policy.steps if share < 1]
        elif isinstance(policy, ABTest | Interleave):
            self.shares = [policy.split]
        self.share = self.shares[0] if self.shares else 0.0

    def find(self, rows: RolloutRows, champion: str, leads: int, first: int) -> Trigger | None:
        """What is decided first; None: nothing.

        Args:
            rows: they begin at step `first`.
            champion: its name.
            leads: its number.
        """
        found = self._breaches(rows, champion, first)
        judged = self._judged(rows, champion)
        times, steps = rows.label_times[judged], rows.label_steps[judged]
        ours, theirs = self._losses(rows, champion, judged)
        arms = rows.arms[rows.label_rows[judged]]
        look = self.judge.look(*self._evidence(rows, champion, judged), arms, leads, self.number)

        def add(at: int | None, action: str, why: str) -> None:
            if at is not None:
                found.append(Trigger(int(steps[at]), action, why, int(times[at])))

        ratio = self.rails.ratio.find(ours, theirs)
        add(ratio, d.ROLLED_BACK, f"its loss over the last {LOSSES_OVER} labels was more than "
            f"{self.policy.guardrails.loss_ratio:g} times the champion's")  # fmt: skip
        add(look.worse, d.ROLLED_BACK, "it was shown to be worse than the champion")
        report = self.policy.report_every - 1 - self.labels % self.policy.report_every
        add(report if report < len(steps) else None, d.PROGRESS, "still going on")
        if not self.paused and not isinstance(self.policy, Shadow | Bandit):
            better = 0 if self.shown and len(steps) else look.better
            self._find_end(better, arms, times, add)
            if isinstance(self.policy, ABTest | Interleave):
                end = self.began + parse_duration_ms(self.policy.horizon)
                past = np.flatnonzero(rows.event_times >= end)
                if past.size:
                    at = int(past[0])
                    found.append(Trigger(int(rows.event_steps[at]), d.ENDED, "the horizon of "
                        f"{self.policy.horizon} has come", int(rows.event_times[at])))  # fmt: skip
        return min(found, default=None)

    def _find_end(self, better: int | None, arms: U8, times: I64, add: Add) -> None:
        """The end of a canary's step, or that it may be promoted now."""
        promoted = "it was shown to be better than the champion"
        if not isinstance(self.policy, Canary) or self.in_shadow:
            add(better, d.PROMOTED, promoted)
            return
        served = self.held + np.cumsum(arms == self.number)
        due = self.since + parse_duration_ms(self.policy.min_duration)
        needed = self.policy.min_labels if self.share else 0
        over = np.flatnonzero((served >= needed) & (times >= due))
        if not over.size:
            return
        at, nxt = int(over[0]), self.next_share()
        if nxt is not None:
            add(at, d.STEPPED, f"its share grows from {self.share:.1%} to {nxt:.1%}")
        elif better is not None:
            add(max(at, better), d.PROMOTED, promoted)

    def next_share(self) -> float | None:
        """The next larger one of the steps; None at the last."""
        return min((share for share in self.shares if share > self.share), default=None)

    def step_up(self, time: int) -> None:
        """To the next share."""
        self.set_share(self.next_share() or self.share, time)

    def set_share(self, share: float, time: int) -> None:
        """From now on."""
        self.share, self.since, self.held = share, time, 0

    def take(self, rows: RolloutRows, champion: str, leads: int, first: int) -> None:
        """Keep what was seen; `rows` end where the next decision is made."""
        silent = rows.event_steps[rows.silent[self.challenger]]
        self.rails.errors.take(rows.raised[self.challenger], silent, first, rows.steps)
        self.rails.shift.take(rows.scores[champion], rows.scores[self.challenger])
        judged = self._judged(rows, champion)
        self._grace -= min(self._grace, self._both(rows, champion).size)
        ours, theirs = self._losses(rows, champion, judged)
        arms = rows.arms[rows.label_rows[judged]]
        self.rails.ratio.take(ours, theirs)
        if isinstance(self.policy, Interleave):
            self._count_lists(rows, judged)
        known = self._evidence(rows, champion, judged)
        self.shown |= self.judge.take(*known, arms, leads, self.number)
        by_it = int(np.count_nonzero(arms == self.number))
        self.labels += len(judged)
        self.served += by_it
        self.held += by_it

    def evidence(self) -> Evidence:
        """All that is known so far."""
        return self.judge.summary(self.labels, self.served)

    def futile(self) -> bool:
        """Whether it is to be given up because no improvement worth a change is left to be shown.

        To be asked at the labels of a report, so that it does not matter when one looks.
        """
        decides = isinstance(self.policy, Canary | ABTest | Interleave) and not self.paused
        return decides and not self.shown and self.judge.futile()

    def why_futile(self) -> str:
        """In a sentence."""
        return f"it is not better by {self.policy.min_effect:.1%} of the champion's loss: futile"

    def _breaches(self, rows: RolloutRows, champion: str, first: int) -> list[Trigger]:
        found = []
        silent = rows.event_steps[rows.silent[self.challenger]]
        raised = rows.raised[self.challenger]
        step = self.rails.errors.find(raised, silent, first)
        if step is not None:
            what = "it raised an error" if step in raised else "it gave no answer, or NaN"
            allowed = self.policy.guardrails.error_rate
            why = what if not allowed else f"{what}, more often than at {allowed:.1%} of the rows"
            found.append(Trigger(step, d.ROLLED_BACK, why, _time_at(rows, step)))
        event = self.rails.shift.find(rows.scores[champion], rows.scores[self.challenger])
        if event is not None:
            why = f"its predictions over {SHIFT_OVER} events were too unlike the champion's"
            at = int(rows.event_steps[event])
            found.append(Trigger(at, d.ROLLED_BACK, why, int(rows.event_times[event])))
        return found

    def _judged(self, rows: RolloutRows, champion: str) -> I64:
        """The labels by which they are compared."""
        judged = self._both(rows, champion)[self._grace :]
        if not isinstance(self.policy, Interleave):
            return judged
        assert rows.chosen is not None
        ours = self._drafts(rows, judged) >> 1 == self.draft
        choices = judged[np.flatnonzero(rows.chosen[judged] & ours)]
        seen: set[int] = set()
        first = []
        for at, number in enumerate(_lists(rows, choices)):
            if number not in self._counted and number not in seen:
                seen.add(number)
                first.append(at)
        return choices[first]

    def _count_lists(self, rows: RolloutRows, judged: I64) -> None:
        """Lists that have given their point, and give no other."""
        assert rows.listed is not None
        self._counted.update(dict.fromkeys(_lists(rows, judged)))
        if len(self._counted) > max(self._room, len(rows.listed) // 8):
            # None of a list waits any more: nothing of it can be chosen.
            known = np.array(list(self._counted), np.uint64)
            waits = np.isin(known, rows.listed).tolist()
            kept = zip(self._counted, waits, strict=True)
            self._counted = {number: None for number, is_there in kept if is_there}
            self._room = max(_LISTS, 2 * len(self._counted))

    def _drafts(self, rows: RolloutRows, judged: I64) -> I64:
        """In which rollout each was drafted, and by whom: an odd number, by the challenger."""
        assert rows.drafts is not None
        drafts: I64 = rows.drafts[rows.label_rows[judged]].astype(np.int64) >> RANK_BITS
        return drafts

    def _both(self, rows: RolloutRows, champion: str) -> I64:
        """The labels of events that both had answered."""
        both = np.isfinite(rows.losses[champion]) & np.isfinite(rows.losses[self.challenger])
        return np.flatnonzero(both)

    def _losses(self, rows: RolloutRows, champion: str, judged: I64) -> tuple[F64, F64]:
        """Of champion and challenger; of an interleaved list, whose entry was not chosen has 1."""
        if isinstance(self.policy, Interleave):
            by_it = (self._drafts(rows, judged) & 1).astype(np.float64)
            return by_it, 1.0 - by_it
        return rows.losses[champion][judged], rows.losses[self.challenger][judged]

    def _evidence(self, rows: RolloutRows, champion: str, judged: I64) -> tuple[F64, F64, F64]:
        """What is judged: losses, or scores and what was true."""
        if not self.judge.by_scores:
            return (*self._losses(rows, champion, judged), np.zeros(0))
        assert rows.truths is not None
        ours, theirs = rows.scored[champion], rows.scored[self.challenger]
        return ours[judged], theirs[judged], rows.truths[judged]


def _lists(rows: RolloutRows, labels: I64) -> list[int]:
    """The number of the list on which each was chosen."""
    assert rows.listed is not None
    numbers: list[int] = rows.listed[rows.label_rows[labels]].tolist()
    return numbers


def _time_at(rows: RolloutRows, step: int) -> int:
    """Event time of a step that is an event's or a label's; of the last before it, if neither."""
    for steps, times in (
        (rows.event_steps, rows.event_times),
        (rows.label_steps, rows.label_times),
    ):
        at = int(np.searchsorted(steps, step))
        if at < len(steps) and steps[at] == step:
            return int(times[at])
    before = rows.event_times[rows.event_steps <= step]
    return int(before[-1]) if len(before) else 0
