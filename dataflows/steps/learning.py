"""The stage that predicts every event and learns every label of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.batch.candidates import first_of_each_event
from anabranch.dataflows.batch.columns import NumberColumn
from anabranch.dataflows.batch.dead_letters import dead_letter
from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.batch.row_ids import event_id, readable_row_id
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.messages.inputs import Delayed, Inline
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.steps.label_dead_letters import LabelDeadLetters
from anabranch.dataflows.steps.rollout_step import traffic_keys
from anabranch.dataflows.steps.stage import BatchWork, Stage, StageContext
from anabranch.models.learners.learner import Task
from anabranch.models.learners.segments import Segments
from anabranch.models.metrics.metrics import reported
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.joined_steps import FillFeatures
from anabranch.models.prequential.label_windows import LABEL_WINDOWS, LabelWindows
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.outcome import EVENT_MISSING, UNKNOWN_ID, Outcome
from anabranch.models.prequential.prequential import Prequential
from anabranch.models.rollout.serving import Serving
from anabranch.state.durations import parse_duration_ms
from anabranch.state.keys.hashing import keys_of
from anabranch.state.labels.label_limits import MAX_EARLY_OF_SEVERAL_WORKERS, LabelLimits
from anabranch.state.store.delta import Delta

if TYPE_CHECKING:
    from anabranch.dataflows.recovery.state_directory import StateDirectory

_FLOAT64 = np.dtype(np.float64)  # making a dtype of a type is expensive


def build_prequential(
    pipeline: Pipeline, rollouts: Serving | None, workers: int = 1
) -> Prequential:
    """The models that a pipeline declares, with their metrics and monitors.

    Of several ``workers`` one may read all of its labels before another reads their events, so that
    more of them are buffered.
    """
    label, key = pipeline.label, pipeline.model_key
    delayed = label if isinstance(label, Delayed) else None
    rules = delayed.rules() if delayed is not None else LabelLimits()
    if workers > 1:
        rules = replace(rules, max_early=MAX_EARLY_OF_SEVERAL_WORKERS)
    return Prequential(
        {pipeline.model_name: pipeline.learner(), **pipeline.challenger_learners()},
        PrequentialSettings(
            metrics=pipeline.metric_names,
            monitors=pipeline.monitors,
            rules=rules,
            default=delayed.default if delayed is not None else None,
            inline=delayed is None,
            slices=pipeline.slices,
            rollouts=rollouts,
            segments=Segments(key, pipeline.max_segments) if key is not None else None,
            on_drift=pipeline.starts_on_drift,
            ranking=pipeline.candidates is not None,
            quarantine=pipeline.quarantines,
            fallback=pipeline.fallback,
        ),
    )


def label_windows(pipeline: Pipeline) -> LabelWindows | None:
    """The windows over labels that a pipeline declares; None: none."""
    declared = {
        entity: [(feature.spec, place) for feature, place in features]
        for entity, features in pipeline.label_windows.items()
    }
    if not declared:
        return None
    return LabelWindows(declared, parse_duration_ms(pipeline.allowed_lateness))


class Learning(Stage):
    """What `InlineLearning` and `DelayedLearning` have in common.

    Attributes:
        windows: the windows over labels; None where the pipeline declares none.
        events: how many were predicted whose labels come later; the next one's tag.
    """

    def __init__(self, context: StageContext) -> None:
        self._pipeline, self._metrics = context.pipeline, context.metrics
        self._prequential, self._models = context.prequential, context.prequential.models
        self._task = context.pipeline.task
        self._keys = traffic_keys(context.pipeline)
        self.windows = label_windows(context.pipeline)
        self.events = 0

    def add_changes(self, delta: Delta) -> None:
        if self.windows is not None:
            delta.put(LABEL_WINDOWS, self.windows.changes())

    def restore(self, image: Delta) -> None:
        if self.windows is not None:
            self.windows.restore(image.part(LABEL_WINDOWS))

    def warm_start(self, state: StateDirectory) -> None:
        learner = state.initial_learner(self._pipeline)
        if learner is not None:
            self._models.replace(self._pipeline.model_name, learner)

    def report(self) -> None:
        models, metrics = self._models, self._metrics
        if self.windows is not None:
            for entity, windows in self.windows.states.items():
                metrics.on_windows(self, f"{entity} labels", windows.keys, windows.nbytes, 0)
        metrics.state.on_pending(
            models.pending_predictions, models.buffered_early_labels, models.pending.nbytes
        )
        metrics.on_quality(self._quality())
        metrics.state.on_models(models.versions, models.sizes)
        if models.slices:
            metrics.on_slices(models.slices.report())
        if models.segments is not None:
            champion = models.learners[models.champion]
            metrics.on_segments(models.segments.report(champion))

    def _quality(self) -> dict[tuple[str, str], float]:
        """By model and metric name, NaN before the first label; of rankings as served, too."""
        quality = {
            (model, name): reported(metric)
            for model, metrics in self._models.metrics.items()
            for name, metric in metrics.items()
        }
        if self._models.rank_quality is not None:
            served = self._models.rank_quality.values()
            quality |= {("served", name): value for name, value in served.items()}
        return quality

    def _results(self, work: BatchWork, outcome: Outcome) -> Results:
        champion = self._models.champion
        results = Results(
            work.batch,
            outcome.predictions[champion],
            outcome.versions(champion),
            work.dead_letters,
        )
        results.ranks = outcome.ranks
        return results


class InlineLearning(Learning):
    """For labels that come with their events, and for pipelines without labels."""

    def __init__(self, context: StageContext) -> None:
        super().__init__(context)
        self._labelled = isinstance(context.pipeline.label, Inline)

    def process(self, work: BatchWork) -> None:
        batch = work.batch
        values = batch.targets if self._labelled else []
        targets = read_targets(self._task, [] if values is None else values, len(batch))
        if self.windows is not None and len(batch):
            keys = [keys_of(batch.columns[entity]) for entity in self.windows.entities]
            self.windows.fill_inline(keys, batch.times, targets, self._task, batch.features)
        outcome = self._prequential.run_inline(
            EventBatch(
                batch.features,
                batch.times,
                fields=batch.columns,
                keys=self._keys(batch),
                external_drift=work.external,
            ),
            targets,
        )
        work.outcome, work.results = outcome, self._results(work, outcome)


class DelayedLearning(Learning):
    """For labels on a topic of their own: each is joined to the prediction of its event."""

    def __init__(self, context: StageContext) -> None:
        super().__init__(context)
        self._dead_letters = LabelDeadLetters(context.pipeline.topics)
        self._event_id: str | None = None  # of an event
        self._unjoined_id: str | None = None  # of a label that found no event
        context.metrics.add_final_reporter(self._report_unjoined)

    def process(self, work: BatchWork) -> None:
        batch, first = work.batch, self.events
        if self._event_id is None and len(batch):
            self._event_id = readable_row_id(batch.ids[0])
        labels, ranks = batch.labels, self._models.rank_quality is not None
        self.events = first + len(batch)
        outcome = self._prequential.run(
            EventBatch(
                features=batch.features,
                times=batch.times,
                ids=batch.ids,
                tags=None if ranks else np.arange(first, self.events).astype(np.int32),
                fields=batch.columns,
                keys=self._keys(batch),
                external_drift=work.external,
            ),
            LabelBatch(
                ids=labels.ids,
                values=read_targets(self._task, labels.values, None),
                times=labels.times,
                context=lambda row: self._dead_letters.context(labels, row),
            ),
            order=batch.order,
            fill=self._fill(batch),
        )
        if batch.lets_time_pass:
            outcome.rejected_labels.clear()
        rejected = first_of_each_event(batch, outcome.rejected_events)
        work.dead_letters += [self._still_pending(batch, row) for row in rejected]
        work.dead_letters += self._dead_letters.of(batch, outcome)
        self._metrics.on_labels(outcome)
        if self._unjoined_id is None:
            self._unjoined_id = self._first_unjoined(batch, outcome)
        work.outcome, work.results = outcome, self._results(work, outcome)
        work.results.learned, work.results.corrected = outcome.learned, outcome.corrected

    def _first_unjoined(self, batch: Batch, outcome: Outcome) -> str | None:
        """The id of a label of which it is known by now that it finds no event."""
        for row, reason in outcome.rejected_labels:
            if reason == UNKNOWN_ID:
                return readable_row_id(batch.labels.ids[row])
        for each in outcome.expired_labels:
            if each.reason == EVENT_MISSING:
                return self._dead_letters.id_of(each.context)
        return None

    def _report_unjoined(self) -> None:
        """Tell of a label that found no event, or that still waits for one."""
        label_id, waiting = self._unjoined_id, self._models.label_join.early.oldest()
        if label_id is None and waiting is not None:
            label_id = self._dead_letters.id_of(waiting)
        if label_id is not None:
            self._metrics.on_unjoined_label(label_id, self._event_id or "")

    def _fill(self, batch: Batch) -> FillFeatures | None:
        """Writes the label windows of a batch's events, once its labels are joined to events."""
        windows = self.windows
        if windows is None:
            return None
        entities = windows.entities if batch.ids else ()
        keys = [keys_of(batch.columns[entity]) for entity in entities]
        pending = self._models.pending
        return lambda joined: windows.fill(joined, pending, keys, batch.features)

    def _still_pending(self, batch: Batch, row: int) -> DeadLetter:
        """For an id that came again after deduplication forgot it, but before its label came."""
        own = batch.ids[row] if self._models.rank_quality is None else event_id(batch.ids[row])
        detail = (
            f"an event with id {own!r} still waits for its label: this one was "
            "predicted, but will not be learned"
        )
        return dead_letter(batch.rows, row, DeadLetterReason.DUPLICATE_ID, detail)


def read_targets(task: Task, values: Sequence[Any] | NDArray[Any], unlabelled: int | None) -> Any:
    """Label values as learners take them: floats, or the labels themselves for multi-class.

    ``unlabelled`` is how many rows there are where there may be no labels at all: they are NaN.
    """
    if task is Task.MULTICLASS:
        return values.tolist() if isinstance(values, np.ndarray) else list(values)
    if type(values) is NumberColumn:
        return values.floats()
    if not len(values) and unlabelled:
        return np.full(unlabelled, np.nan)
    return np.array(values, _FLOAT64)
