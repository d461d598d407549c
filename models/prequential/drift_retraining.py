"""Fresh models that drift starts inside a batch, with the same result as if added at that row."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import LOSS, Alarm
from anabranch.models.learners.learner import LEARN, NO_LABEL, Predictions, Targets
from anabranch.models.learners.targets import select
from anabranch.models.prequential.champion_monitor import ChampionMonitor
from anabranch.models.prequential.model_set import ModelSet
from anabranch.models.prequential.monitors import AlarmsAt
from anabranch.models.rollout.served import ServedPredictions
from anabranch.models.rollout.serving import BatchPredictions

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(slots=True)
class TrainingBatch:
    """The steps that every model ran in a batch, for a fresh model to run in part.

    Attributes:
        features: `(rows, features) float64`.
        op, row, target: `(steps,)`, as `Learner.run` takes them.
        step_indices: `(steps,) int64`: the index of each, as `BatchPredictions` counts steps.
        dropped: rows that timed out; None where labels are inline.
        trainable: `(labels,) bool`, of the labels that are scored: those that train, too; None:
            all.
        signals: drift found elsewhere, by step, see `ExternalDrift`.
    """

    features: F64
    op: NDArray[np.uint8]
    row: I64
    target: Targets
    step_indices: I64
    dropped: list[int] | None
    trainable: Mask | None = None
    signals: list[tuple[int, Alarm]] = field(default_factory=list)


class DriftRetraining:
    """Monitors the champion's loss in one batch, and starts fresh models where it drifts.

    Args:
        models: those of the step.
        batch: what all models did in the batch; a fresh model's predictions are added.
        training: the steps that a fresh model runs; None where none can be started.

    Attributes:
        alarms: as `ChampionMonitor.alarms`.
        burn_in: number of labels a fresh model trains on before it is compared.
    """

    def __init__(
        self, models: ModelSet, batch: BatchPredictions, training: TrainingBatch | None
    ) -> None:
        self._models, self._batch, self._training = models, batch, training
        self._monitor = ChampionMonitor(
            models.monitors, models.task, batch.label_predictions, batch.target, batch.label_steps,
            batch.label_times,
        )  # fmt: skip
        self.alarms = self._monitor.alarms
        declared = None if models.on_drift is None else models.on_drift.declared
        self.burn_in = 0 if declared is None else declared.burn_in
        self._triggers = () if declared is None else declared.triggers
        signals = [] if training is None else training.signals
        triggering = [each for each in signals if each[1].kind in self._triggers]
        self._signals = sorted(triggering, key=lambda signal: signal[0])

    def check(self, champion: str, until: int, may_start: bool) -> tuple[int, Alarm] | None:
        """See `DriftReaction`."""
        may_start = may_start and self._models.on_drift is not None
        signals = self._signals
        while signals and not may_start and signals[0][0] <= until:
            signals.pop(0)  # a trial is running already
        signal = signals[0] if signals and signals[0][0] <= until else None
        if signal is not None:  # after it, another model may be the champion
            until = signal[0]
        alarm = self._monitor.check(champion, until, may_start and LOSS in self._triggers)
        if alarm is None and signal is not None:
            return signals.pop(0)
        return alarm

    def start_challenger(self, name: str, step: int) -> int:
        """See `DriftReaction`; its predictions are NaN for the events before."""
        models, batch, training = self._models, self._batch, self._training
        assert models.on_drift is not None
        assert models.replay_buffer is not None
        assert training is not None
        learner = models.on_drift.make()
        models.add(name, learner)
        before = batch.label_steps <= step
        if training.trainable is not None:
            before &= training.trainable
        features = training.features[batch.label_rows[before]]
        target = select(batch.target, np.flatnonzero(before))
        features, target = models.replay_buffer.last(features, target)
        rows = np.arange(len(features))
        checkpoint = models.checkpoints[name]
        checkpoint.isolation.siblings = models.checkpoints[models.champion].isolation.siblings
        checkpoint.run(features, np.full(len(rows), LEARN, np.uint8), rows, target)
        later = training.step_indices > step
        trained_before = int(np.count_nonzero((training.op == LEARN) & ~later))
        batch.versions_before[name] = learner.version - trained_before
        self._run_rest(training, name, np.flatnonzero(later), step)
        return len(rows)

    def _run_rest(self, training: TrainingBatch, name: str, later: I64, step: int) -> None:
        """Let a fresh model predict and train on the rest of the batch."""
        batch, models = self._batch, self._models
        start = time.perf_counter()
        predictions = models.checkpoints[name].run(
            training.features, training.op[later], training.row[later],
            select(training.target, later),
        )  # fmt: skip
        isolation = models.checkpoints[name].isolation
        batch.failed_steps[name] = training.step_indices[later[isolation.failed_steps]]
        if isolation.skipped.size:
            skipped = training.step_indices[later[isolation.skipped]]
            batch.learned_before_by[name] = batch.learned_before - np.searchsorted(
                skipped, batch.event_steps
            )
        predicted, labeled = batch.event_steps > step, batch.label_steps > step
        if training.dropped is None:  # each label is of an event of the batch, by its index
            of_events = _spread(predictions, predicted)
            scored = of_events.take(batch.label_rows)
        else:
            column = list(models.learners).index(name)
            stored = models.stored_predictions[name]
            stored.put(column, batch.event_rows[predicted], predictions)
            of_labels = stored.pop(column, batch.label_rows[labeled], predictions)
            stored.discard(training.dropped)
            of_events, scored = _spread(predictions, predicted), _spread(of_labels, labeled)
        batch.predictions[name], batch.label_predictions[name] = of_events, scored
        batch.seconds[name] = time.perf_counter() - start


def serve_batch(
    models: ModelSet, batch: BatchPredictions, training: TrainingBatch | None, position: I64
) -> tuple[ServedPredictions, Predictions, AlarmsAt]:
    """Decide what is served for a batch, and start fresh models where the champion's loss drifts.

    Returns:
        What `Serving.serve` returns, and the alarms of the champion's loss.
    """
    assert models.rollouts is not None
    retraining = DriftRetraining(models, batch, training)
    served, champion_predictions = models.rollouts.serve(batch, position, retraining)
    return served, champion_predictions, retraining.alarms


def _spread(predictions: Predictions, where: Mask) -> Predictions:
    """The predictions at the rows where the mask is true; the other rows have none."""
    if isinstance(predictions.values, list):
        values: list[Any] = [{}] * where.size
        labels: list[Any] = [None] * where.size
        for row, value, label in zip(
            np.flatnonzero(where).tolist(), predictions.values, predictions.labels, strict=True
        ):
            values[row], labels[row] = value, label
        return Predictions(values, labels)
    numbers = np.full(where.size, np.nan)
    numbers[where] = predictions.values
    if predictions.labels is None:
        return Predictions(numbers, None)
    codes = np.full(where.size, NO_LABEL, np.uint8)
    codes[where] = predictions.labels
    return Predictions(numbers, codes)
