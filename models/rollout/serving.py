"""Serving with rollouts: which of the models' predictions for a batch are published."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import Alarm
from anabranch.models.learners.learner import Label, Predictions, Targets, Task
from anabranch.models.metrics.losses import losses
from anabranch.models.rollout import decision as d
from anabranch.models.rollout.decision import Decision
from anabranch.models.rollout.deployment import Assignments, Deployment, DriftReaction
from anabranch.models.rollout.observations import BatchSteps, RolloutRows
from anabranch.models.rollout.policy import loss_of
from anabranch.models.rollout.served import FALLBACK, ServedPredictions, as_scores, choose

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@dataclass(slots=True, kw_only=True)
class BatchPredictions(BatchSteps):
    """What the models predicted and learned in a batch.

    Attributes:
        items: `(steps,) int64`: the event, or events + label, that each step is of.
        predictions: per model, in the order of `event_steps`.
        label_predictions: per model, what it had predicted for the events of the labels.
        target: of the labels.
        versions_before: per model, rows that it had learned before the batch.
        learned_before: `(events,) int64`: rows learned in this batch before each event.
        learned_before_by: the same per model, of those that were not given all rows to learn.
        failed_steps: per model, the steps at which it raised.
        seconds: per model, the time that it took.
    """

    items: I64
    predictions: dict[str, Predictions]
    label_predictions: dict[str, Predictions]
    target: Targets
    versions_before: dict[str, int]
    learned_before: I64
    failed_steps: dict[str, I64]
    seconds: dict[str, float]
    learned_before_by: dict[str, I64] = field(default_factory=dict)

    def learned_before_of(self, model: str) -> I64:
        """`(events,) int64`: rows that a model has learned in this batch before each event."""
        return self.learned_before_by.get(model, self.learned_before)


_STEP_FIELDS = [each.name for each in fields(BatchSteps)]


class Timings:
    """The time that each model took for a batch, and the steps at which it failed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed_steps: dict[str, I64] = {}
        self._since = time.perf_counter()

    def record(self, model: str, failed: I64, steps: I64 | None = None) -> None:
        """Record a model that has worked since the last call.

        Args:
            model: its name.
            failed: `(n,) int64`: the steps at which it failed.
            steps: `(n,) int64`: the steps of the batch that it has worked on; None: all.
        """
        now = time.perf_counter()
        self.seconds[model], self._since = now - self._since, now
        self.failed_steps[model] = failed if steps is None else steps[failed]


class _DriftReaction:
    """A drift reaction that also adds its new models to the rows of the batch."""

    def __init__(
        self, drift: DriftReaction, serving: Serving, batch: BatchPredictions, rows: RolloutRows
    ) -> None:
        self.burn_in = drift.burn_in
        self._drift, self._serving, self._batch, self._rows = drift, serving, batch, rows

    def check(self, champion: str, until: int, may_start: bool) -> tuple[int, Alarm] | None:
        """See `DriftReaction`."""
        return self._drift.check(champion, until, may_start)

    def start_challenger(self, name: str, step: int) -> int:
        """See `DriftReaction`."""
        rows = self._drift.start_challenger(name, step)
        self._serving.add_model(name, self._batch, self._rows, step)
        return rows


class Serving:
    """A deployment at work on the predictions of its models.

    Args:
        deployment: which it owns from now on.
        task: of the models.
        fallback: what is served where no model can predict; None: no prediction.

    Attributes:
        deployment: it pickles, this does not need to.
    """

    def __init__(self, deployment: Deployment, task: Task, fallback: Label = None) -> None:
        self.deployment = deployment
        self._task = task
        self._fallback = fallback

    def serve(
        self, batch: BatchPredictions, positions: I64, drift: DriftReaction | None = None
    ) -> tuple[ServedPredictions, Predictions]:
        """Choose what is published for each event.

        Args:
            batch: what the models predicted and learned.
            positions: `(events,) int64`: the index in `batch.event_steps` of each event.
            drift: checks the champion for drift; models that it starts are added to `batch`.

        Returns:
            What is published, by event; and what the champion at each label had predicted for it.
        """
        names = {arm_id: name for name, arm_id in self.deployment.arm_ids.items()}
        rows = self._rows(batch)
        pairs = ((batch.event_steps, batch.event_times), (batch.label_steps, batch.label_times))
        starts = [(int(steps[0]), int(times[0])) for steps, times in pairs if len(steps)]
        reaction = None if drift is None else _DriftReaction(drift, self, batch, rows)
        assignments = self.deployment.serve(rows, min(starts, default=(0, 0))[1], reaction)
        names |= {arm_id: name for name, arm_id in self.deployment.arm_ids.items()}
        served = self._served(batch, assignments, names, positions)
        for name, steps in rows.raised.items():
            abstained = rows.event_steps[rows.abstained[name]]
            if len(steps) or len(abstained):
                served.failures[name] = len(np.union1d(steps, abstained))
        decisions = assignments.decisions + self._check_latency(batch)
        served.decisions = [
            (decision, int(batch.items[max(decision.step, 0)])) for decision in decisions
        ]
        served.champions = assignments.champions, names
        of_champions = {arm_id: batch.label_predictions[name] for arm_id, name in names.items()}
        return served, choose(self._task, of_champions, assignments.champions, None)

    def add_model(
        self, name: str, batch: BatchPredictions, rows: RolloutRows, after: int = -1
    ) -> None:
        """Add a model's predictions of a batch to its rows; it joined after a step."""
        loss = loss_of(self.deployment.policy, self._task)
        scores = rows.scores[name] = as_scores(self._task, batch.predictions[name])
        failed = rows.raised[name] = batch.failed_steps[name]
        trained = batch.versions_before[name] + batch.learned_before_of(name) > 0
        abstained = np.isnan(scores) & (trained | np.isin(batch.event_steps, failed))
        rows.abstained[name] = abstained & (batch.event_steps > after)
        label_predictions = batch.label_predictions[name]
        rows.label_scores[name] = as_scores(self._task, label_predictions)
        rows.losses[name] = losses(self._task, batch.target, label_predictions, loss)

    def _rows(self, batch: BatchPredictions) -> RolloutRows:
        truths = batch.target if isinstance(batch.target, np.ndarray) else None
        chosen = None if batch.groups is None or truths is None else truths == 1.0
        steps = {name: getattr(batch, name) for name in _STEP_FIELDS}
        rows = RolloutRows(**steps, truths=truths, chosen=chosen)
        for name in batch.predictions:
            self.add_model(name, batch, rows)
        return rows

    def _served(
        self,
        batch: BatchPredictions,
        assignments: Assignments,
        names: Mapping[int, str],
        positions: I64,
    ) -> ServedPredictions:
        served_by, assigned = assignments.served_by[positions], assignments.assigned[positions]
        chosen = {
            arm_id: batch.predictions[names[arm_id]].take(positions)
            for arm_id in np.unique(served_by).tolist()
            if arm_id in names
        }
        predictions = choose(self._task, chosen, served_by, self._fallback)
        models = [names.get(arm_id, FALLBACK) for arm_id in served_by.tolist()]
        before = batch.versions_before
        learned = {
            name: batch.learned_before_of(name)[positions].tolist()
            for name in before.keys() & set(models)
        }
        versions = [
            before[name] + learned[name][row] if name in before else 0
            for row, name in enumerate(models)
        ]
        instead_of: list[str | None] | None = None
        if not np.array_equal(served_by, assigned):
            pairs = zip(served_by.tolist(), assigned.tolist(), strict=True)
            instead_of = [None if one == other else names[other] for one, other in pairs]
        ranks = None if assignments.ranks is None else assignments.ranks[positions]
        return ServedPredictions(predictions, models, versions, instead_of, ranks=ranks)

    def _check_latency(self, batch: BatchPredictions) -> list[Decision]:
        """Roll back challengers that were too slow, by the clock, at the batch's end."""
        decisions: list[Decision] = []
        deployment = self.deployment
        for trial in list(deployment.trials):
            latency = trial.guardrails.latency
            if not latency.commit(batch.seconds.get(trial.challenger, 0.0), batch.steps):
                continue
            reason = (
                f"it took {latency.value:,.0f} us for each prediction and update, above the limit "
                f"of {trial.policy.guardrails.latency_us:g}"
            )
            last = [*batch.event_times[-1:].tolist(), *batch.label_times[-1:].tolist()]
            decisions += deployment.end_trial(
                d.ROLLED_BACK, trial, reason, max(last), batch.steps - 1
            )
        return decisions
