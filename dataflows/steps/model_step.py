"""The model step: puts the parts of a batch together again, predicts, learns, and tells of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from bytewax.operators import StatefulBatchLogic
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import IDLE, Batch, Progress, Wake
from anabranch.dataflows.batch.candidates import one_each, whole_events
from anabranch.dataflows.batch.dead_letters import dead_letter
from anabranch.dataflows.batch.row_ids import event_id
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.control import Control
from anabranch.dataflows.messages.inputs import Delayed, Inline
from anabranch.dataflows.messages.outputs import DeadLetter, DriftSignal, RolloutMessage
from anabranch.dataflows.recovery.state_partition import Place, Token
from anabranch.dataflows.rollout.messages import cause_of_control, rollout_message
from anabranch.dataflows.sharding.reassembly import Assembler
from anabranch.dataflows.sharding.worker_watermarks import Origins, extent_of
from anabranch.dataflows.sink.encoder import Results
from anabranch.dataflows.steps.distribution_step import DistributionStep
from anabranch.dataflows.steps.label_dead_letters import LabelTrouble
from anabranch.dataflows.steps.label_values import TargetReader
from anabranch.dataflows.steps.rollout_step import RolloutStep, rollouts_of
from anabranch.dataflows.steps.window_step import Item, WindowStep
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.drift.declarations import DISTRIBUTIONS
from anabranch.models.drift.detectors import LOSS, Alarm
from anabranch.models.learners.segments import Segments
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.external_drift import NO_EXTERNAL_DRIFT, ExternalDrift
from anabranch.models.prequential.label_join import FillFeatures
from anabranch.models.prequential.label_windows import LABEL_WINDOWS, LabelWindows
from anabranch.models.prequential.model_set import PrequentialSettings
from anabranch.models.prequential.outcome import Outcome
from anabranch.models.prequential.prequential import Prequential
from anabranch.models.rollout.command import Commanded
from anabranch.state.arrays import LARGEST, all_usable
from anabranch.state.compile import entry
from anabranch.state.durations import parse_duration_ms
from anabranch.state.labels.label_rules import LabelRules
from anabranch.state.store.delta import Delta

if TYPE_CHECKING:
    from anabranch.dataflows.recovery.state_directory import StateDirectory


class ModelStep(StatefulBatchLogic[Item, Results | Wake, Token | None]):
    """Predicts every event and learns every label of whole batches, in order.

    With several workers, batches of all ``origins`` come together here, and a backlog is aligned
    only within each. Waits for labels run out by the time of the slowest.

    With ``state`` it remembers, from ``token`` on.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        metrics: WorkerMetrics,
        state: StateDirectory | None = None,
        token: Token | None = None,
        origins: int = 1,
    ) -> None:
        self._pipeline = pipeline
        self._metrics = metrics
        self._origins = Origins(origins) if origins > 1 else None
        self._leaving: set[str] = set()
        self._assembler = Assembler(pipeline)
        label, key = pipeline.label, pipeline.model_key
        self._target = TargetReader(pipeline)
        self._inline = not isinstance(label, Delayed)
        self._labelled = isinstance(label, Inline)
        rollouts = rollouts_of(pipeline)
        self.prequential = Prequential(
            {pipeline.model_name: pipeline.learner(), **pipeline.challenger_learners()},
            PrequentialSettings(
                metrics=pipeline.metric_names,
                monitors=pipeline.monitors,
                rules=label.rules() if isinstance(label, Delayed) else LabelRules(),
                default=label.default if isinstance(label, Delayed) else None,
                inline=self._inline,
                slices=pipeline.slices,
                rollouts=rollouts,
                segments=Segments(key, pipeline.max_segments) if key is not None else None,
                on_drift=pipeline.starts_on_drift,
                ranking=pipeline.candidates is not None,
                quarantine=pipeline.quarantines,
            ),
        )
        self.models = self.prequential.models
        self._windows = label_windows(pipeline)
        self._rollouts: RolloutStep | None = None
        self.deployment: Commanded | None = None
        if rollouts is not None:
            self._rollouts = RolloutStep(pipeline, self.models, metrics, state)
            self.deployment = self._rollouts.steering
        self._labels = LabelTrouble(pipeline.topics)
        self._events = 0  # so many were predicted
        self._distributions: DistributionStep | None = None
        if pipeline.distributions is not None:
            self._distributions = DistributionStep(pipeline, pipeline.distributions, metrics)
        self._all_usable = entry(all_usable, np.zeros((0, 0)))
        metrics.ask(self._tell)
        self._place: Place | None = None
        if state is not None:
            self._place = state.models()
            image = self._place.open(token)
            self.prequential.restore(image)
            if self._windows is not None:
                self._windows.restore(image.part(LABEL_WINDOWS))
            if self._distributions is not None:
                self._distributions.restore(image.part(DISTRIBUTIONS))
            if not image and (learner := state.first_learner(pipeline)) is not None:
                self.models.replace(pipeline.model_name, learner)
                usual = state.first_distributions()
                if self._distributions is not None and usual is not None:
                    self._distributions.begin_with(usual)

    def on_batch(self, values: list[Item]) -> tuple[list[Results | Wake], bool]:
        made: list[Results | Wake] = []
        for item in values:
            if isinstance(item, Wake):
                made.append(item)
            elif isinstance(item, Progress):
                if item.watermark == IDLE:
                    self._leaving.add(item.origin)
                    self._let_go()
            else:
                if isinstance(item, Batch):
                    self._leaving.discard(item.origin)
                made += map(self._in_turn, self._assembler.add(item))
        return made, False

    def _in_turn(self, batch: Batch) -> Results:
        """`work`, by the time of the slowest worker."""
        origins, origin = self._origins, batch.origin
        if origins is None:
            return self.work_timed(batch)
        span, pending = extent_of(batch), self.models.pending
        # Where nobody has said yet how far time may move on, it stands still.
        floor = pending.watermark if pending.watermark is not None else span[0]
        pending.limit_time(max(origins.room(origin), floor))
        if self._windows is not None:
            self._windows.advance_watermark(origins.slowest())
        done = self.work_timed(batch)
        if span[0] <= span[1]:
            origins.advance(origin, span[1])
        self._let_go()
        return done

    def _let_go(self) -> None:
        """Nobody waits for workers that have nothing to read, once all that they read is done."""
        if self._origins is None:
            return
        for origin in [each for each in self._leaving if not self._assembler.waits_for(each)]:
            self._origins.note(origin, IDLE)

    def snapshot(self) -> Token | None:
        if self._place is None:
            return None
        return self._place.commit(self.changes())

    def changes(self) -> Delta:
        """What models, waiting labels and windows of labels came to know since the last call."""
        delta = self.prequential.changes()
        if self._windows is not None:
            delta.put(LABEL_WINDOWS, self._windows.changes())
        if self._distributions is not None:
            delta.put(DISTRIBUTIONS, self._distributions.changes())
        return delta

    def work_timed(self, batch: Batch) -> Results:
        """`work`, and the metrics are told how long it took."""
        latency = self._metrics.latency
        if not latency.timed:
            return self.work(batch)
        began = time.perf_counter()
        results = self.work(batch)
        latency.spent("models", began)
        return results

    def work(self, batch: Batch) -> Results:
        """What the models make of a batch that is whole."""
        dead: list[DeadLetter] = []
        if batch.rows.values and not self._all_usable(batch.features):
            dead, good = self._refuse_huge(batch)
            batch = batch.keep(good)
        outside = NO_EXTERNAL_DRIFT
        if self._distributions is not None:
            outside = self._distributions.foresee(batch)
        if self._inline:
            outcome = self._learn_inline(batch, outside)
        else:
            outcome = self._learn_delayed(batch, dead, outside)
        champion = self.models.champion
        signals = [self._signal(alarm, batch, outcome) for alarm in outcome.alarms]
        predictions, versions = outcome.predictions[champion], outcome.versions(champion)
        results = Results(batch, predictions, versions, dead, signals)
        results.ranks = outcome.ranks
        if not self._inline:
            results.learned, results.corrected = outcome.learned, outcome.corrected
        if self._rollouts is not None:
            self._rollouts.bring_in(outcome.served, results)
        if self._distributions is not None:
            results.signals += self._distributions.look(batch, outcome, results)
        if batch.control is not None:
            results.decisions += self._follow(batch, batch.control)
        self._metrics.on_results(results, len(outcome.learned.times), outcome.quarantined)
        return results

    def _follow(self, batch: Batch, control: Control) -> list[RolloutMessage]:
        """Do what a control message says, behind the rows of its batch."""
        assert self.deployment is not None
        decisions = self.deployment.command(control.command(), batch.control_time)
        cause, name = cause_of_control(batch.raw.controls), self._pipeline.name
        return [rollout_message(name, decision, cause, control) for decision in decisions]

    def _learn_inline(self, batch: Batch, outside: ExternalDrift) -> Outcome:
        targets = batch.targets if self._labelled else []
        values = self._target.read([] if targets is None else targets, len(batch))
        if self._windows is not None and len(batch):
            keys = [batch.columns[entity] for entity in self._windows.entities]
            self._windows.fill_inline(
                keys, batch.times, values, self._pipeline.task, batch.features
            )
        return self.prequential.run_inline(
            EventBatch(
                batch.features,
                batch.times,
                fields=batch.columns,
                keys=self._keys(batch),
                external_drift=outside,
            ),
            values,
        )

    def _keys(self, batch: Batch) -> Sequence[str]:
        return () if self._rollouts is None else self._rollouts.keys(batch)

    def _learn_delayed(
        self, batch: Batch, dead: list[DeadLetter], outside: ExternalDrift
    ) -> Outcome:
        labels, first, ranks = batch.labels, self._events, self.models.rank_quality is not None
        self._events = first + len(batch)
        outcome = self.prequential.run(
            EventBatch(
                features=batch.features,
                times=batch.times,
                ids=batch.ids,
                tags=None if ranks else np.arange(first, self._events).astype(np.int32),
                fields=batch.columns,
                keys=self._keys(batch),
                external_drift=outside,
            ),
            LabelBatch(
                ids=labels.ids,
                values=self._target.read(labels.values, None),
                times=labels.times,
                context=lambda row: self._labels.note(labels, row),
            ),
            order=batch.order,
            fill=self._filling(batch),
        )
        dead += [self._refuse_twice(batch, row) for row in one_each(batch, outcome.rejected_events)]
        dead += self._labels.letters(batch, outcome)
        self._metrics.on_labels(outcome)
        return outcome

    def _filling(self, batch: Batch) -> FillFeatures | None:
        """Writes the label windows of a batch's events, when it is known what its labels judge."""
        windows = self._windows
        if windows is None:
            return None
        keys = [batch.columns[entity] for entity in windows.entities] if batch.ids else []
        pending = self.models.pending
        return lambda joined: windows.fill(joined, pending, keys, batch.features)

    def _tell(self) -> None:
        if self._windows is not None:
            for entity, state in self._windows.states.items():
                name = f"{entity} labels"
                self._metrics.on_windows(self, name, state.keys, state.nbytes, 0)
        models = self.models
        self._metrics.state.on_waiting(
            models.pending_predictions, models.buffered_early_labels, models.pending.nbytes
        )
        self._metrics.on_quality(self._quality())
        monitors = self.models.monitors
        self._metrics.shifts.on_monitors(monitors.recent_means)
        self._metrics.on_monitors(monitors.subjects(self.models.slices))
        self._metrics.state.on_models(self.models.versions, self.models.sizes)
        if self._rollouts is not None:
            self._rollouts.tell()
        if self.models.slices:
            self._metrics.on_slices(self.models.slices.report())
        if self.models.segments is not None:
            learner = self.models.learners[self.models.champion]
            self._metrics.on_segments(self.models.segments.report(learner))

    def _quality(self) -> dict[tuple[str, str], float]:
        found = {
            (model, name): metric.value
            for model, metrics in self.models.metrics.items()
            for name, metric in metrics.items()
        }
        ranked = self.models.rank_quality
        return (
            found
            if ranked is None
            else found | {("served", name): value for name, value in ranked.values().items()}
        )

    def _refuse_huge(self, batch: Batch) -> tuple[list[DeadLetter], NDArray[np.bool_]]:
        """Events with a feature whose square a model could not hold; and what is left."""
        dead = []
        bad = ~(np.abs(batch.features) <= LARGEST)  # NaN compares as false
        rows: NDArray[np.bool_] = np.any(bad, axis=1)
        for row in one_each(batch, np.flatnonzero(rows).tolist()):
            column = int(np.argmax(bad[row]))
            name = self._pipeline.columns[column]
            what = f"feature {name} is beyond ±{LARGEST:g}, which no model can square"
            dead.append(dead_letter(batch.rows, row, "feature too large", what))
        return dead, ~whole_events(batch, rows)

    def _refuse_twice(self, batch: Batch, row: int) -> DeadLetter:
        """An id that came again after it was forgotten as a duplicate, but still waits."""
        own = batch.ids[row] if self.models.rank_quality is None else event_id(batch.ids[row])
        what = (
            f"an event with id {own!r} still waits for its label: this one was "
            "predicted, but will not be learned"
        )
        return dead_letter(batch.rows, row, "duplicate id", what)

    def _signal(self, alarm: Alarm, batch: Batch, outcome: Outcome) -> DriftSignal:
        """Where: the label or the event that gave the alarm."""
        topics = self._pipeline.topics
        topic, row = topics.events, min(alarm.row, len(batch) - 1)
        partitions, offsets = batch.partitions, batch.offsets
        if alarm.kind == LOSS and outcome.learned.items is not None:
            row = int(outcome.learned.items[alarm.row])
            if row >= len(batch):
                topic, row = topics.labels, row - len(batch)
                partitions, offsets = batch.labels.partitions, batch.labels.offsets
        return DriftSignal(
            pipeline=self._pipeline.name,
            subject=alarm.subject,
            detector=alarm.detector,
            ts=alarm.time,
            statistic={
                "statistic": alarm.statistic,
                "before": alarm.before,
                "after": alarm.after,
                "seen": float(alarm.seen),
            },
            topic=topic,
            partition=int(partitions[row]),
            offset=int(offsets[row]),
            kind=alarm.kind,
            severity="drift" if alarm.rises or alarm.kind != LOSS else "resolved",
        )


Tokens = tuple[Token | None, Token | None]
"""Of the windows and of the models."""


class WindowsAndModels(StatefulBatchLogic[Item, Results | Wake, Tokens]):
    """Both steps in one operator, for a single worker: each operator costs as much as some rows."""

    def __init__(self, windows: WindowStep, models: ModelStep) -> None:
        self._windows = windows
        self._models = models

    def on_batch(self, values: list[Item]) -> tuple[list[Results | Wake], bool]:
        made: list[Results | Wake] = []
        for item in values:  # of a single worker all batches are whole, and nobody tells progress
            if isinstance(item, Batch):
                self._windows.fill_timed(item)
                made.append(self._models.work_timed(item))
            elif isinstance(item, Wake):
                made.append(item)
        return made, False

    def snapshot(self) -> Tokens:
        return self._windows.snapshot(), self._models.snapshot()


def label_windows(pipeline: Pipeline) -> LabelWindows | None:
    """The windows over labels that a pipeline declares."""
    declared = {
        entity: [(feature.spec, place) for feature, place in features]
        for entity, features in pipeline.label_windows.items()
    }
    return (
        LabelWindows(declared, parse_duration_ms(pipeline.allowed_lateness)) if declared else None
    )
