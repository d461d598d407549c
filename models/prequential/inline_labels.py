"""Runs a batch whose labels come with the events: each event is predicted, then learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import Alarm
from anabranch.models.learners.checkpoint import Checkpoint
from anabranch.models.learners.fault_isolation import FaultIsolation
from anabranch.models.learners.learner import LEARN, PREDICT, Predictions, Targets, Task
from anabranch.models.learners.targets import as_targets, every_usable, select, usable
from anabranch.models.prequential.batch import EventBatch
from anabranch.models.prequential.drift_retraining import TrainingBatch, serve_batch
from anabranch.models.prequential.model_set import ModelSet
from anabranch.models.prequential.monitors import AlarmsAt
from anabranch.models.prequential.outcome import NO_VALUE, LearnedLabels, Outcome
from anabranch.models.rollout.served import ServedPredictions, is_unserved
from anabranch.models.rollout.serving import BatchPredictions, Timings
from anabranch.models.rollout.traffic import key_hashes

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(slots=True)
class InlineSteps:
    """The steps of a batch with inline labels.

    Attributes:
        op, row, target: as `Learner.run` takes them.
        learned: `(learned,) int64`: events whose label is scored.
        rejected: `(event, reason)` of those whose label is not usable.
    """

    op: NDArray[np.uint8]
    row: I64
    target: Targets
    learned: I64
    rejected: list[tuple[int, str]]


def inline_steps(values: Targets, task: Task, quarantined: Mask | None = None) -> InlineSteps:
    """Order the steps that predict each event and train on it.

    An anomaly detector trains on every event. A quarantined event is scored all the same.

    >>> steps = inline_steps(np.array([1.0, np.nan]), Task.REGRESSION)
    >>> steps.op, steps.row, steps.learned, steps.rejected
    (array([0, 1, 0], dtype=uint8), array([0, 0, 1]), array([0]), [(1, 'the label has no usable \
value')])
    """
    events = len(values)
    row = np.repeat(np.arange(events), 2)
    op = np.tile(np.array([PREDICT, LEARN], np.uint8), events)
    target: Targets
    if isinstance(values, np.ndarray):
        target = np.empty(2 * events)
        target[1::2] = values
    else:
        target = [value for value in values for _ in (PREDICT, LEARN)]
    steps = InlineSteps(op, row, target, row[::2], [])
    if task is not Task.ANOMALY and not every_usable(values, task):
        is_usable = usable(values, task)
        keep = np.ones(2 * events, np.bool_)
        keep[1::2] = is_usable
        rejected = [(event, NO_VALUE) for event in np.flatnonzero(is_usable == 0).tolist()]
        target = select(target, np.flatnonzero(keep))
        steps = InlineSteps(op[keep], row[keep], target, np.flatnonzero(is_usable), rejected)
    if quarantined is not None:
        kept = np.flatnonzero((steps.op != LEARN) | ~quarantined[steps.row])
        steps.op, steps.row = steps.op[kept], steps.row[kept]
        steps.target = select(steps.target, kept)
    return steps


class _Batch:
    """A batch on its way through the models.

    Attributes:
        values: the targets of the events.
        rows: `(events,) int64`, ascending from 0.
        tags: `(events,) int32`.
        learned_rows: `(learned,) int64`: the events whose label is scored.
        rejected: see `InlineSteps`.
        versions_before: per model, the rows learned before the batch.
        learned_before: rows learned in this batch before each event.
        predictions: per model, one per event.
        timings: with rollouts, the time and the failures of each model.
        trainable: `(learned,) bool`: those not quarantined; None: all.
        failures: per model that failed, the event, whether at its prediction, and the reason.
        skipped: per model that failed, the events that it was not given to learn.
        learned_before_by: see `BatchPredictions`.
    """

    # Set only where they differ: every batch makes one of these, however small it is.
    timings: Timings | None = None
    trainable: Mask | None = None
    predictions: dict[str, Predictions]
    failures: Mapping[str, list[tuple[int, bool, str]]] = MappingProxyType({})
    skipped: Mapping[str, I64] = MappingProxyType({})
    learned_before_by: Mapping[str, I64] = MappingProxyType({})

    def __init__(
        self,
        models: ModelSet,
        events: EventBatch,
        values: Targets,
        rows: I64,
        tags: NDArray[np.int32],
    ) -> None:
        self.models, self.events, self.rows, self.tags = models, events, rows, tags
        self.values = as_targets(values, models.task)
        self.learned_rows = rows
        self.rejected: list[tuple[int, str]] = []
        self.versions_before = models.versions
        self.learned_before: I64 | range = range(len(rows))
        if models.rollouts is not None:
            self.timings = Timings()

    def run_models(self) -> LearnedLabels:
        """Let every model predict and train; returns the labels that were learned."""
        models, values = self.models, self.values
        quarantined, features = self.events.external_drift.quarantined, self.events.features
        predictions = None
        if quarantined is None:
            predictions = run_row_by_row(models.checkpoints, features, values, self.timings)
        if predictions is None:
            steps = inline_steps(values, models.task, quarantined)
            self.learned_rows, self.rejected = steps.learned, steps.rejected
            predictions = {}
            for name, checkpoint in models.checkpoints.items():
                predictions[name] = checkpoint.run(features, steps.op, steps.row, steps.target)
                isolation = checkpoint.isolation
                if self.timings is not None:
                    at = 2 * steps.row + steps.op
                    self.timings.record(name, isolation.failed_steps, at)
                if isolation.failures:
                    self._note_failures(name, isolation, steps)
        self.predictions = predictions
        return self._learned(quarantined)

    def _note_failures(self, name: str, isolation: FaultIsolation, steps: InlineSteps) -> None:
        isolation.rows.clear()  # the rows of the next batch are others
        failures = [
            (int(steps.row[each.step]), each.predicting, each.detail) for each in isolation.failures
        ]
        self.failures = {**self.failures, name: failures}
        if isolation.skipped.size:
            self.skipped = {**self.skipped, name: steps.row[isolation.skipped]}

    def add_failures(self, outcome: Outcome) -> None:
        """Add to an outcome the events on which the model that counts has failed."""
        served = outcome.served
        outcome.failed_steps = {name: len(failures) for name, failures in self.failures.items()}
        outcome.learned_before_by = dict(self.learned_before_by)
        for name, failures in self.failures.items():
            for event, predicting, detail in failures:
                if not predicting:
                    if self._champion_at(event, served) == name:
                        outcome.failed_labels.append((event, detail))
                elif is_unserved(event, name, self.models.champion, served):
                    outcome.failed_events.setdefault(event, detail)

    def _champion_at(self, event: int, served: ServedPredictions | None) -> str:
        """The champion at the label of an event."""
        label = int(np.searchsorted(self.learned_rows, event))
        if served is None or served.champions is None or label >= len(self.learned_rows):
            return self.models.champion
        arms, names = served.champions
        return names.get(int(arms[label]), self.models.champion)

    def _learned(self, quarantined: Mask | None) -> LearnedLabels:
        rows, times, tags = self.learned_rows, self.events.times, self.tags
        if len(rows) == len(times):
            learned = LearnedLabels(rows, self.values, self.predictions, times, times, tags)
        else:
            scored = {name: each.take(rows) for name, each in self.predictions.items()}
            target, times = select(self.values, rows), times[rows]
            learned = LearnedLabels(rows, target, scored, times, times, tags[rows])
            self.learned_before = np.searchsorted(rows, self.rows)
        if quarantined is not None:
            self.trainable = ~quarantined[rows]
            self.learned_before = np.searchsorted(rows[self.trainable], self.rows)
        if self.skipped:
            before = np.asarray(self.learned_before)
            self.learned_before_by = {
                name: before - np.searchsorted(skipped, self.rows)
                for name, skipped in self.skipped.items()
            }
        return learned

    def serve(
        self, learned: LearnedLabels, feature_alarms: AlarmsAt
    ) -> tuple[ServedPredictions, Predictions, AlarmsAt]:
        """Decide what rollouts serve; see `serve_batch`."""
        training = None
        if self.models.on_drift is not None:
            signals = self._signals(learned)
            signals += [(step, alarm) for step, _, alarm in feature_alarms]
            quarantined = self.events.external_drift.quarantined
            steps = inline_steps(self.values, self.models.task, quarantined)
            training = TrainingBatch(
                self.events.features, steps.op, steps.row, steps.target,
                2 * steps.row + steps.op, None, self.trainable, signals,
            )  # fmt: skip
        return serve_batch(self.models, self._batch_predictions(learned), training, self.rows)

    def _signals(self, learned: LearnedLabels) -> list[tuple[int, Alarm]]:
        """External drift, by step."""
        external = self.events.external_drift
        signals = [(2 * event, alarm) for event, alarm in external.signals]
        if external.check_labels is not None:
            for label, alarm in external.check_labels(learned):
                signals.append((2 * int(self.learned_rows[label]) + 1, alarm))
        return signals

    def _batch_predictions(self, learned: LearnedLabels) -> BatchPredictions:
        timings = self.timings
        assert timings is not None
        return BatchPredictions(
            steps=2 * len(self.rows),
            items=self.rows.repeat(2),
            event_steps=2 * self.rows,
            event_times=self.events.times,
            event_rows=self.rows,
            key_hashes=key_hashes(self.events.keys),
            label_steps=2 * self.learned_rows + 1,
            label_times=learned.times,
            label_rows=self.learned_rows,
            arms=np.empty(len(self.rows), np.uint8),
            predictions=self.predictions,
            label_predictions=learned.predictions,
            target=learned.target,
            versions_before=self.versions_before,
            learned_before=np.asarray(self.learned_before),
            failed_steps=timings.failed_steps,
            seconds=timings.seconds,
            learned_before_by=dict(self.learned_before_by),
        )


def run_inline(
    models: ModelSet, events: EventBatch, values: Targets, rows: I64, tags: NDArray[np.int32]
) -> Outcome:
    """Predict and train on each event of a batch; see `Prequential.run_inline`.

    Args:
        models: those of the step.
        events: of the batch.
        values: the targets of the events.
        rows: `(events,) int64`, ascending from 0.
        tags: `(events,) int32`, in place of those of `events`.
    """
    if models.scores_only and events.external_drift.quarantined is None:
        outcome = _run_simple(models, events, as_targets(values, models.task), rows, tags)
        if outcome is not None:
            return outcome
    batch = _Batch(models, events, values, rows, tags)
    learned = batch.run_models()
    learned_rows, features = batch.learned_rows, events.features
    groups = None
    feature_alarms: AlarmsAt = []
    if models.slices:
        groups = models.slices.groups_of(events.fields, features, rows)[learned_rows]
    if models.monitors:
        feature_alarms = models.monitors.check_features(features, rows, events.times, 2 * rows)
    served: ServedPredictions | None = None
    loss_alarms: AlarmsAt | None = None
    champion_predictions = learned.predictions[models.champion]
    if models.rollouts is not None and len(rows):
        served, champion_predictions, loss_alarms = batch.serve(learned, feature_alarms)
    learned_features = None if models.replay_buffer is None else features[learned_rows]
    models.score(learned, groups, learned_features, batch.trainable)
    alarms: list[Alarm] = []
    if models.monitors:
        alarms = models.monitors.check(
            learned, champion_predictions, 2 * learned_rows + 1, feature_alarms, groups,
            models.slices, loss_alarms,
        )  # fmt: skip
    quarantined = 0 if batch.trainable is None else int(np.count_nonzero(~batch.trainable))
    outcome = Outcome(
        batch.predictions, learned, alarms, batch.rejected, [], 0, batch.versions_before,
        batch.learned_before, served=served, quarantined=quarantined,
    )  # fmt: skip
    if batch.failures:
        batch.add_failures(outcome)
    models.apply_decisions()
    return outcome


def _run_simple(
    models: ModelSet, events: EventBatch, values: Targets, rows: I64, tags: NDArray[np.int32]
) -> Outcome | None:
    """`run_inline` where labels do nothing but train and score compiled models; else None.

    Small batches take a fifth less time than with `_Batch`, which they do not need.
    """
    versions_before = models.versions
    predictions = run_row_by_row(models.checkpoints, events.features, values, None)
    if predictions is None:
        return None
    learned = LearnedLabels(rows, values, predictions, events.times, events.times, tags)
    models.score(learned, None, None)
    return Outcome(predictions, learned, [], [], [], 0, versions_before, range(len(rows)))


def run_row_by_row(
    checkpoints: Mapping[str, Checkpoint], features: F64, values: Targets, timings: Timings | None
) -> dict[str, Predictions] | None:
    """The predictions of all models, if all can run row by row and every target is usable."""
    predictions: dict[str, Predictions] = {}
    if any(each.run_each is None for each in checkpoints.values()):
        return None
    for name, each in checkpoints.items():
        of_model = None if each.run_each is None else each.run_each(features, values)
        if of_model is None:
            return None  # at the first model or never: the targets are the same
        predictions[name] = of_model
        if timings is not None:
            timings.record(name, each.isolation.failed_steps)
    return predictions
