"""Runs a batch whose labels arrive later: predict, train, score, serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import Alarm
from anabranch.models.learners.learner import LEARN, Predictions, Targets
from anabranch.models.learners.targets import select
from anabranch.models.metrics.ranking import EVENT, LIST, final_ranks, run_numbers
from anabranch.models.prequential.batch import EventBatch
from anabranch.models.prequential.drift_retraining import TrainingBatch, serve_batch
from anabranch.models.prequential.joined_steps import JoinedSteps
from anabranch.models.prequential.model_set import ModelSet
from anabranch.models.prequential.monitors import AlarmsAt
from anabranch.models.prequential.outcome import (
    BUFFERED_LABEL,
    MODEL_FAILED_ON_EVENT,
    ExpiredLabel,
    LearnedLabels,
    Outcome,
)
from anabranch.models.rollout.observations import RANK_BITS
from anabranch.models.rollout.served import ServedPredictions, is_unserved
from anabranch.models.rollout.serving import BatchPredictions, Timings
from anabranch.models.rollout.traffic import key_hashes

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(slots=True)
class _Steps:
    """The steps that models run: those joined, without training on quarantined events.

    Attributes:
        op, row, target: as `Learner.run` takes them.
        kept: indices of the joined steps that are left; None: all.
        trainable: `(labels,) bool`: which of `JoinedSteps.scored_steps` are left; None: all.
    """

    op: U8
    row: I64
    target: Targets
    kept: I64 | None = None
    trainable: Mask | None = None


@dataclass(slots=True)
class _Failures:
    """Of one model: the joined steps at which it could not predict, or learn, with the reason."""

    events: dict[int, str] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)


class _Batch:
    """A batch on its way through the models.

    Attributes:
        position: `(events,) int64`: the index of each event among the steps that predict. Events
            are predicted in the order of the stream, but the caller counts them by index.
        predicted_rows: `(events,) int64`: their pending rows, in the order of the steps.
        event_rows: the same, in the order of the events.
        scored_rows: `(labels,) int64`: pending rows of the labels that are scored.
        steps: those that models run.
        versions_before: per model, the rows learned before the batch.
        learned_before: `(events,) int64`: in the order of the steps, the rows learned in this batch
            before each.
        predictions: per model, in the order of the steps.
        scored: per model, the stored predictions for the events of the labels.
        learned_before_by: see `BatchPredictions`.
        champion: the champion at the beginning.
        timings: with rollouts, the time and the failures of each model.
    """

    def __init__(self, models: ModelSet, joined: JoinedSteps, events: EventBatch) -> None:
        self.models, self.joined, self.events = models, joined, events
        self.champion = models.champion
        predicted = joined.predict_steps
        self.position = np.empty(len(events.times), np.int64)
        self.position[joined.source[predicted]] = np.arange(predicted.size)
        self.predicted_rows = joined.row[predicted]
        self.event_rows = self.predicted_rows[self.position]
        self.scored_rows = joined.row[joined.scored_steps]
        self.steps = _trainable_steps(models, joined, events, self.event_rows)
        self.versions_before = models.versions
        self.learned_before = _trained_up_to(joined, self.steps)[predicted]
        self.predictions: dict[str, Predictions] = {}
        self.scored: dict[str, Predictions] = {}
        self.learned_before_by: dict[str, I64] = {}
        self.timings = None if models.rollouts is None else Timings()
        if models.rank_quality is not None:
            models.set_siblings(self._rows_of_event)

    def _rows_of_event(self, row: int) -> list[int]:
        """The pending rows of all candidates of the event of one of them."""
        events = np.asarray(self.events.fields[EVENT])
        of_event = events == events[self.event_rows == row]
        rows: list[int] = self.event_rows[of_event].tolist()
        return rows

    def run_models(self) -> LearnedLabels:
        """Let every model predict and train; returns the labels that were learned."""
        models, joined, steps, pending = self.models, self.joined, self.steps, self.models.pending
        for column, (name, checkpoint) in enumerate(models.checkpoints.items()):
            predictions = checkpoint.run(pending.features, steps.op, steps.row, steps.target)
            self.predictions[name] = predictions
            isolation = checkpoint.isolation
            if self.timings is not None:
                self.timings.record(name, isolation.failed_steps, steps.kept)
            if isolation.skipped.size:
                self.learned_before_by[name] = self.learned_before - np.searchsorted(
                    self._joined_steps(isolation.skipped), joined.predict_steps
                )
            stored = models.stored_predictions[name]
            stored.put(column, self.predicted_rows, predictions)
            self.scored[name] = stored.pop(column, self.scored_rows, predictions)
            stored.discard(joined.dropped)
        scored = joined.scored_steps
        return LearnedLabels(
            joined.source[scored], select(joined.target, scored), self.scored,
            pending.times[self.scored_rows], joined.time[scored], pending.tags[self.scored_rows],
            joined.item[scored],
        )  # fmt: skip

    def _joined_steps(self, steps: I64) -> I64:
        """The joined steps that these of the models' are."""
        kept = self.steps.kept
        return steps if kept is None else kept[steps]

    def failures_of(self, name: str) -> _Failures:
        """The joined steps at which a model could not predict or learn, with the reasons."""
        isolation, joined = self.models.checkpoints[name].isolation, self.joined
        failed = _Failures()
        for failure in isolation.failures:
            step = int(self._joined_steps(np.array([failure.step]))[0])
            if not failure.predicting:
                failed.labels[step] = failure.detail
                continue
            rows = [int(joined.row[step])]
            if isolation.siblings is not None:
                rows = isolation.siblings(rows[0])
            for each in np.flatnonzero(np.isin(joined.row, rows) & (joined.op != LEARN)).tolist():
                failed.events[each] = failure.detail
        for step in self._joined_steps(isolation.skipped).tolist():
            failed.labels[step] = MODEL_FAILED_ON_EVENT
        return failed

    def add_failures(self, outcome: Outcome, served: ServedPredictions | None) -> None:
        """Add to an outcome the events and labels on which the model that counts has failed."""
        joined = self.joined
        failures = {
            name: self.failures_of(name)
            for name, each in self.models.checkpoints.items()
            if each.isolation.failures or each.isolation.skipped.size
        }
        if not failures:
            return
        outcome.failed_steps = {
            name: len(self.models.checkpoints[name].isolation.failures) for name in failures
        }
        outcome.learned_before_by = {
            name: counts[self.position] for name, counts in self.learned_before_by.items()
        }
        champions: Callable[[int], str] = lambda step: self.champion  # noqa: E731
        if served is not None and served.champions is not None:
            arms, names = served.champions
            by_step = dict(zip(joined.scored_steps.tolist(), arms.tolist(), strict=True))
            champions = lambda step: names.get(by_step.get(step, -1), self.champion)  # noqa: E731
        for name, failed in failures.items():
            for step, detail in failed.events.items():
                event = int(joined.source[step])
                if is_unserved(event, name, self.champion, served):
                    outcome.failed_events.setdefault(event, detail)
            for step, detail in sorted(failed.labels.items()):
                if champions(step) == name:
                    self._add_failed_label(outcome, step, detail)

    def _add_failed_label(self, outcome: Outcome, step: int, detail: str) -> None:
        joined, label = self.joined, int(self.joined.source[step])
        if label >= 0:
            outcome.failed_labels.append((label, detail))
        elif label == BUFFERED_LABEL:
            context = joined.contexts[int(joined.row[step])]
            outcome.expired_labels.append(
                ExpiredLabel(context, int(joined.item[step]), detail, failed=True)
            )
        elif detail != MODEL_FAILED_ON_EVENT:  # an assumed label is no message
            outcome.failed_defaults.append(detail)

    def slice_groups(self, order: I64) -> U8 | None:
        """Store the slice groups of the events; `(labels, slices) uint8` of the labels."""
        models, pending = self.models, self.models.pending
        if not models.slices:
            return None
        columns, rows = slice(len(models.slices)), self.event_rows
        pending.groups[rows, columns] = models.slices.groups_of(
            self.events.fields, pending.features, rows, order
        )
        groups: U8 = pending.groups[self.scored_rows, columns]
        return groups

    def feature_alarms(self) -> AlarmsAt:
        """The alarms of monitors on features."""
        if not self.models.monitors:
            return []
        predicted = self.joined.predict_steps
        return self.models.monitors.check_features(
            self.models.pending.features, self.predicted_rows, self.joined.time[predicted],
            predicted,
        )  # fmt: skip

    def serve(
        self, learned: LearnedLabels, feature_alarms: AlarmsAt
    ) -> tuple[ServedPredictions, Predictions, AlarmsAt]:
        """Decide what rollouts serve; see `serve_batch`."""
        joined, steps = self.joined, self.steps
        signals = self._signals(learned)
        signals += [(step, alarm) for step, _, alarm in feature_alarms]
        kept = np.arange(joined.op.size) if steps.kept is None else steps.kept
        training = TrainingBatch(
            self.models.pending.features, steps.op, steps.row, steps.target, kept, joined.dropped,
            steps.trainable, signals,
        )  # fmt: skip
        return serve_batch(self.models, self._batch_predictions(learned), training, self.position)

    def _signals(self, learned: LearnedLabels) -> list[tuple[int, Alarm]]:
        """External drift, by step."""
        external, joined = self.events.external_drift, self.joined
        predicted = joined.predict_steps[self.position]
        signals = [(int(predicted[event]), alarm) for event, alarm in external.signals]
        if external.check_labels is not None and self.models.on_drift is not None:
            for label, alarm in external.check_labels(learned):
                signals.append((int(joined.scored_steps[label]), alarm))
        return signals

    def _batch_predictions(self, learned: LearnedLabels) -> BatchPredictions:
        models, joined, timings = self.models, self.joined, self.timings
        assert timings is not None
        predicted, scored = joined.predict_steps, joined.scored_steps
        event, pending = joined.source[predicted], models.pending
        batch = BatchPredictions(
            steps=joined.op.size,
            items=joined.item,
            event_steps=predicted,
            event_times=joined.time[predicted],
            event_rows=self.predicted_rows,
            key_hashes=key_hashes(self.events.keys)[event],
            label_steps=scored,
            label_times=joined.time[scored],
            label_rows=self.scored_rows,
            arms=pending.groups[:, -1],
            predictions=self.predictions,
            label_predictions=self.scored,
            target=learned.target,
            versions_before=self.versions_before,
            learned_before=self.learned_before,
            failed_steps=timings.failed_steps,
            seconds=timings.seconds,
            learned_before_by=self.learned_before_by,
        )
        if models.rank_quality is not None:
            batch.groups = run_numbers(np.asarray(self.events.fields[EVENT])[event])
            batch.drafts = pending.tags
            batch.list_ids = np.asarray(self.events.fields[LIST])[event]
            batch.drafted_lists = pending.lists
        return batch

    def rank(self, learned: LearnedLabels, served: Predictions, drafted: I64 | None) -> I64:
        """Rank the candidates and store the ranks; score the ranks of those that were chosen."""
        quality, tags = self.models.rank_quality, self.models.pending.tags
        assert quality is not None
        values, failed = served.values, self.models.checkpoints[self.champion].isolation.rows
        unranked = None
        if failed and self.models.rollouts is None:
            fallback, lost = self.models.settings.fallback, np.isin(self.event_rows, list(failed))
            if fallback is None:
                unranked = lost
            else:
                values = np.where(lost, float(fallback), values)  # type: ignore[arg-type]
        ranks = final_ranks(np.asarray(self.events.fields[EVENT]), values, drafted)
        if unranked is not None:
            ranks[unranked] = 0
        tags[self.event_rows] = tags[self.event_rows] >> RANK_BITS << RANK_BITS | ranks
        learned.tags = tags[self.scored_rows]
        chosen = np.asarray(learned.target) == 1.0
        of_chosen = learned.tags[chosen] & (1 << RANK_BITS) - 1
        quality.update(of_chosen[of_chosen > 0])
        return ranks


def run_delayed(models: ModelSet, joined: JoinedSteps, events: EventBatch, order: I64) -> Outcome:
    """Predict and train on the joined steps of a batch; see `Prequential.run`."""
    pending, batch = models.pending, _Batch(models, joined, events)
    learned = batch.run_models()
    groups, feature_alarms = batch.slice_groups(order), batch.feature_alarms()
    served: ServedPredictions | None = None
    loss_alarms: AlarmsAt | None = None
    champion_predictions = batch.scored[models.champion]
    if models.rollouts is not None and joined.op.size:
        served, champion_predictions, loss_alarms = batch.serve(learned, feature_alarms)
    predictions = {name: each.take(batch.position) for name, each in batch.predictions.items()}
    trainable = batch.steps.trainable
    features = None if models.replay_buffer is None else pending.features[batch.scored_rows]
    models.score(learned, groups, features, trainable)
    alarms: list[Alarm] = []
    if models.monitors:
        alarms = models.monitors.check(
            learned, champion_predictions, joined.scored_steps, feature_alarms, groups,
            models.slices, loss_alarms,
        )  # fmt: skip
    ranks = None
    if models.rank_quality is not None:
        shown = predictions[models.champion] if served is None else served.predictions
        ranks = batch.rank(learned, shown, None if served is None else served.ranks)
    outcome = Outcome(
        predictions, learned, alarms, joined.rejected_labels, joined.rejected_events,
        len(joined.dropped), batch.versions_before, batch.learned_before[batch.position],
        joined.expired_labels, joined.corrections(pending.tags), joined.confirmed, joined.buffered,
        served, ranks, 0 if trainable is None else int(np.count_nonzero(~trainable)),
    )  # fmt: skip
    batch.add_failures(outcome, served)
    models.apply_decisions()
    return outcome


def _trainable_steps(
    models: ModelSet, joined: JoinedSteps, events: EventBatch, event_rows: I64
) -> _Steps:
    """Mark the quarantined events, and leave out training on them."""
    op, row, target = joined.op, joined.row, joined.target
    if not models.settings.quarantine:
        return _Steps(op, row, target)
    quarantined = events.external_drift.quarantined
    marks = models.quarantine_marks
    marks[event_rows] = 0 if quarantined is None else quarantined
    left_out = (op == LEARN) & (marks[row] == 1)
    if not left_out.any():
        return _Steps(op, row, target)
    kept = np.flatnonzero(~left_out)
    trainable = ~left_out[joined.scored_steps]
    return _Steps(op[kept], row[kept], select(target, kept), kept, trainable)


def _trained_up_to(joined: JoinedSteps, steps: _Steps) -> I64:
    """`(steps,) int64`: the number of training steps up to each joined step."""
    if steps.kept is None:
        return joined.op.cumsum(dtype=np.int64)
    trained = np.zeros(joined.op.size, np.int64)
    trained[steps.kept] = steps.op
    return trained.cumsum()
