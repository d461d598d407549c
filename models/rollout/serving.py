"""Rollouts inside a prequential step: what its models answered becomes what is served."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Label, Learner, Predictions, Targets, Task
from anabranch.models.metrics.losses import losses
from anabranch.models.rollout import decision as d
from anabranch.models.rollout.decision import Decision
from anabranch.models.rollout.deployment import Deployment, DriftWatch, Served
from anabranch.models.rollout.observations import RolloutRows
from anabranch.models.rollout.policies import loss_of
from anabranch.models.rollout.served import FALLBACK, Answered, as_scores, choose

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]


@dataclass(slots=True)
class Worked:
    """What models made of the steps of a batch.

    Attributes:
        steps: how many.
        items: `(steps,) int64`: the event, or events + label, that each step is of.
        asked, asked_times, asked_rows: `(events,) int64`: the steps that predict, the times of
            their events (ms), and where each is kept.
        hashes: `(events,) uint64` of the keys that traffic goes by, in the order of `asked`.
        taught, taught_times, taught_rows: `(labels,) int64`, of the steps that are scored.
        arms: `(rows,) uint8`, see `RolloutRows`.
        answers: per model, in the order of `asked`.
        scored: per model, what it had answered to the events of the labels.
        target: of the labels.
        before: per model, rows that it had learned before the batch.
        learned: `(events,) int64`: lessons of this batch before each of `asked`.
        failed: per model, the steps at which it raised.
        seconds: per model, how long it took.
        groups: of rankings, `(events,) int64`: the event that each row is a candidate of.
        drafts, lists, listed: of rankings, see `RolloutRows`.
    """

    steps: int
    items: I64
    asked: I64
    asked_times: I64
    asked_rows: I64
    hashes: U64
    taught: I64
    taught_times: I64
    taught_rows: I64
    arms: U8
    answers: dict[str, Predictions]
    scored: dict[str, Predictions]
    target: Targets
    before: dict[str, int]
    learned: I64
    failed: dict[str, I64]
    seconds: dict[str, float]
    groups: I64 | None = None
    drafts: NDArray[np.int32] | None = None
    lists: U64 | None = None
    listed: U64 | None = None


class Spent:
    """What it took each model to work through a batch, and where it failed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, I64] = {}
        self._since = time.perf_counter()

    def note(self, model: str, learner: Learner, steps: I64 | None = None) -> None:
        """A model has worked since the last call; `steps` are the numbers of what it did."""
        now = time.perf_counter()
        self.seconds[model], self._since = now - self._since, now
        failed = np.array(learner.failures, np.int64)
        self.failed[model] = failed if steps is None else steps[failed]


class _Enrolling:
    """A drift watch whose fresh models are brought into the rows of the batch as well."""

    def __init__(
        self, drift: DriftWatch, rollouts: Rollouts, worked: Worked, rows: RolloutRows
    ) -> None:
        self.grace, self.look = drift.grace, drift.look
        self._drift, self._rollouts, self._worked, self._rows = drift, rollouts, worked, rows

    def bear(self, name: str, step: int) -> int:
        """See `DriftWatch`."""
        warm = self._drift.bear(name, step)
        self._rollouts.enroll(name, self._worked, self._rows, step)
        return warm


class Rollouts:
    """A deployment at work on what models answer.

    Args:
        deployment: taken over.
        task: of the models.
        fallback: what is served where no model can answer; None: no prediction.

    Attributes:
        deployment: it pickles, this does not need to.
    """

    def __init__(self, deployment: Deployment, task: Task, fallback: Label = None) -> None:
        self.deployment = deployment
        self._task = task
        self._fallback = fallback

    def serve(
        self, worked: Worked, turn: I64, drift: DriftWatch | None = None
    ) -> tuple[Answered, Predictions]:
        """What goes out, by event; and what those who led had answered, by label.

        Args:
            worked: see there.
            turn: `(events,) int64`: the place in `worked.asked` of each event.
            drift: looks at the loss of those who lead; models that it starts are in `worked` then.
        """
        names = {number: name for name, number in self.deployment.numbers.items()}
        rows = self._rows(worked)
        pairs = ((worked.asked, worked.asked_times), (worked.taught, worked.taught_times))
        first = [(int(steps[0]), int(times[0])) for steps, times in pairs if len(steps)]
        enrolling = None if drift is None else _Enrolling(drift, self, worked, rows)
        served = self.deployment.serve(rows, min(first, default=(0, 0))[1], enrolling)
        names |= {number: name for name, number in self.deployment.numbers.items()}
        answered = self._answered(worked, served, names, turn)
        for name, steps in rows.raised.items():
            silent = rows.event_steps[rows.silent[name]]
            if len(steps) or len(silent):
                answered.failures[name] = len(np.union1d(steps, silent))
        decisions = served.decisions + self._too_slow(worked)
        answered.decisions = [
            (decision, int(worked.items[max(decision.step, 0)])) for decision in decisions
        ]
        led = {number: worked.scored[name] for number, name in names.items()}
        return answered, choose(self._task, led, served.leads, None)

    def _rows(self, worked: Worked) -> RolloutRows:
        truths = worked.target if isinstance(worked.target, np.ndarray) else None
        chosen = None if worked.groups is None or truths is None else truths == 1.0
        rows = RolloutRows(
            worked.steps, worked.asked, worked.asked_times, worked.asked_rows, worked.hashes,
            worked.taught, worked.taught_times, worked.taught_rows, worked.arms, {}, {}, {}, {},
            {}, truths, worked.groups, chosen, worked.drafts, worked.lists, worked.listed,
        )  # fmt: skip
        for name in worked.answers:
            self.enroll(name, worked, rows)
        return rows

    def enroll(self, name: str, worked: Worked, rows: RolloutRows, after: int = -1) -> None:
        """Add what a model made of a batch to its rows; it was not there up to a step."""
        kind = loss_of(self.deployment.policy, self._task)
        found = rows.scores[name] = as_scores(self._task, worked.answers[name])
        failed = rows.raised[name] = worked.failed[name]
        had_learned = worked.before[name] + worked.learned > 0
        there = worked.asked > after
        silent = np.isnan(found) & (had_learned | np.isin(worked.asked, failed))
        rows.silent[name] = silent & there
        rows.scored[name] = as_scores(self._task, worked.scored[name])
        rows.losses[name] = losses(self._task, worked.target, worked.scored[name], kind)

    def _answered(
        self, worked: Worked, served: Served, names: Mapping[int, str], turn: I64
    ) -> Answered:
        by, meant = served.by[turn], served.meant[turn]
        answers = {
            number: worked.answers[names[number]].take(turn)
            for number in np.unique(by).tolist()
            if number in names
        }
        predictions = choose(self._task, answers, by, self._fallback)
        models = [names.get(number, FALLBACK) for number in by.tolist()]
        versions = [
            worked.before[name] + learned if name in worked.before else 0
            for name, learned in zip(models, worked.learned[turn].tolist(), strict=True)
        ]
        instead: list[str | None] | None = None
        if not np.array_equal(by, meant):
            pairs = zip(by.tolist(), meant.tolist(), strict=True)
            instead = [None if one == other else names[other] for one, other in pairs]
        ranks = None if served.ranks is None else served.ranks[turn]
        return Answered(predictions, models, versions, instead, ranks=ranks)

    def _too_slow(self, worked: Worked) -> list[Decision]:
        """Challengers that took longer than they may; found by the clock, at the batch's end."""
        decisions: list[Decision] = []
        deployment = self.deployment
        for contest in list(deployment.contests):
            latency = contest.rails.latency
            if not latency.take(worked.seconds.get(contest.challenger, 0.0), worked.steps):
                continue
            why = (
                f"it took {latency.value:,.0f} us for each prediction and lesson, and may take "
                f"{contest.policy.guardrails.latency_us:g}"
            )
            last = worked.steps - 1
            times = [*worked.asked_times[-1:].tolist(), *worked.taught_times[-1:].tolist()]
            contest.share = 0.0
            deployment.retire(contest.challenger)
            gone = deployment.decision(d.ROLLED_BACK, contest, why, max(times), last)
            decisions += [gone, *deployment.begin(max(times), last)]
        return decisions
