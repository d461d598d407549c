"""The model step: gathers the parts of each batch, and takes it through a list of stages.

::

    FeatureGuard ─▶ EventMonitors ─▶ InlineLearning or DelayedLearning ─▶ DriftSignals
                 ─▶ RolloutServing ─▶ ModelFailures ─▶ OutcomeMonitors ─▶ RolloutCommands

Which of them there are follows from the declaration: `build_stages`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bytewax.operators import StatefulBatchLogic

from anabranch.dataflows.batch.batch import IDLE, Batch, Bootstrap, WorkerWatermark
from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.dataflows.recovery.state_partition import StatePartition
from anabranch.dataflows.recovery.tokens import StepState, Token, encode
from anabranch.dataflows.sharding.reassembly import Reassembly
from anabranch.dataflows.sharding.router import Item
from anabranch.dataflows.sharding.worker_watermarks import WorkerWatermarks, time_span
from anabranch.dataflows.steps.distribution_step import (
    DistributionMonitors,
    EventMonitors,
    OutcomeMonitors,
)
from anabranch.dataflows.steps.drift_signals import DriftSignals
from anabranch.dataflows.steps.feature_guard import FeatureGuard
from anabranch.dataflows.steps.learning import (
    DelayedLearning,
    InlineLearning,
    Learning,
    build_prequential,
)
from anabranch.dataflows.steps.model_failures import ModelFailures, without
from anabranch.dataflows.steps.rollout_step import RolloutCommands, RolloutServing, rollouts_of
from anabranch.dataflows.steps.stage import BatchWork, Stage, StageContext
from anabranch.dataflows.steps.window_step import WindowStep
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.state.store.delta import Delta

if TYPE_CHECKING:
    from anabranch.dataflows.recovery.state_directory import StateDirectory


def build_stages(context: StageContext) -> list[Stage]:
    """The stages that a pipeline needs, in the order in which each batch passes them."""
    pipeline = context.pipeline
    rollouts = context.prequential.models.rollouts is not None
    monitors = None
    if pipeline.distributions is not None:
        monitors = DistributionMonitors(pipeline, pipeline.distributions, context.metrics)
    stages: list[Stage | None] = [
        FeatureGuard(context),
        None if monitors is None else EventMonitors(monitors),
        DelayedLearning(context)
        if isinstance(pipeline.label, Delayed)
        else InlineLearning(context),
        DriftSignals(context),
        RolloutServing(context) if rollouts else None,
        ModelFailures(context),
        None if monitors is None else OutcomeMonitors(monitors),
        RolloutCommands(context) if rollouts else None,
    ]
    return [stage for stage in stages if stage is not None]


class ModelStep(StatefulBatchLogic[Item, Results | Bootstrap, StepState]):
    """Predicts every event and learns every label of whole batches, in order.

    With several workers, batches of all of them are gathered here, and a backlog is only aligned
    within each worker. Timeouts of labels then follow the watermark of the slowest; once none has
    anything to read, that of the furthest.

    Args:
        pipeline: what it runs.
        metrics: of this worker.
        state: where it is stored; None in a run that keeps none.
        token: the generation to resume from; None in a new state.
        workers: how many send batches here.

    Attributes:
        prequential: predicts and learns.
        models: its models.
        stages: what each batch passes.
        learning: the one that predicts and learns.
        commands: the one for control messages; None without rollouts.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        metrics: WorkerMetrics,
        state: StateDirectory | None = None,
        token: Token | None = None,
        workers: int = 1,
    ) -> None:
        self._metrics = metrics
        self._watermarks = WorkerWatermarks(workers) if workers > 1 else None
        self._idle: set[str] = set()
        self._time_batches: dict[str, Batch] = {}  # by worker
        self._reassembly = Reassembly(pipeline)
        self.prequential = build_prequential(pipeline, rollouts_of(pipeline), workers)
        self.models = self.prequential.models
        self.stages = build_stages(StageContext(pipeline, self.prequential, metrics, state))
        self._process = [stage.process for stage in self.stages]
        self.learning = next(stage for stage in self.stages if isinstance(stage, Learning))
        commands = (stage for stage in self.stages if isinstance(stage, RolloutCommands))
        self.commands = next(commands, None)
        metrics.add_reporter(self._report)
        self._partition: StatePartition | None = None
        if state is not None:
            self._partition = state.models()
            self._restore(self._partition.open(token), state)

    def on_batch(self, values: list[Item]) -> tuple[list[Results | Bootstrap], bool]:
        results: list[Results | Bootstrap] = []
        for item in values:
            if isinstance(item, Bootstrap):
                results.append(item)
            elif isinstance(item, WorkerWatermark):
                if item.watermark == IDLE:
                    self._idle.add(item.worker_id)
                    if item.time_batch is not None:
                        self._time_batches[item.worker_id] = item.time_batch
                    self._note_idle()
            else:
                if isinstance(item, Batch):
                    self._idle.discard(item.worker_id)
                results += map(self._process_aligned, self._reassembly.add(item))
            if self._idle:
                results += self._let_time_pass()
        return results, False

    def snapshot(self) -> StepState:
        return encode(self.commit())

    def commit(self) -> Token | None:
        """Write what changed since the last time; None in a run without state."""
        return None if self._partition is None else self._partition.commit(self.changes())

    def changes(self) -> Delta:
        """What changed of models, pending labels and all stages since the last call."""
        delta = self.prequential.changes()
        for stage in self.stages:
            stage.add_changes(delta)
        return delta

    def process_timed(self, batch: Batch) -> Results:
        """`process`, with the time it took counted."""
        latency = self._metrics.latency
        if not latency.timed:
            return self.process(batch)
        started = time.perf_counter()
        results = self.process(batch)
        latency.spent("models", started)
        return results

    def process(self, batch: Batch) -> Results:
        """Take a whole batch through all stages."""
        work = BatchWork(batch)
        for process in self._process:
            process(work)
        outcome, results = work.outcome, work.results
        if work.unserved is not None:
            results = without(results, work.unserved)
        self._metrics.on_results(results, len(outcome.learned.times), outcome.quarantined)
        return results

    def _process_aligned(self, batch: Batch) -> Results:
        """`process`, with event time advanced by the slowest worker."""
        watermarks, worker = self._watermarks, batch.worker_id
        if watermarks is None:
            return self.process_timed(batch)
        span, pending = time_span(batch), self.models.pending
        # Until all workers have reported how far they are, event time stands still.
        floor = pending.watermark if pending.watermark is not None else -IDLE
        pending.limit_time(max(watermarks.limit(worker), floor))
        if self.learning.windows is not None:
            self.learning.windows.advance_watermark(watermarks.slowest())
        results = self.process_timed(batch)
        if span[0] <= span[1]:
            watermarks.advance(worker, span[1])
        self._note_idle()
        return results

    def _note_idle(self) -> None:
        """Stop waiting for workers with nothing to read, once all that they read is processed."""
        if self._watermarks is not None:
            for worker in self._idle:
                if not self._reassembly.is_waiting_for(worker):
                    self._watermarks.update(worker, IDLE)

    def _let_time_pass(self) -> list[Results]:
        """Once no worker has anything to read: time out what is due by the time of the furthest.

        Batches advance time only as far as the slowest worker had come when they were processed.
        """
        watermarks, pending = self._watermarks, self.models.pending
        if watermarks is None or not self._time_batches or pending.watermark is None:
            return []
        for batch in self._time_batches.values():
            watermarks.note_reached(int(batch.labels.times[0]))
        until = watermarks.furthest_if_idle()
        if until <= pending.watermark:
            return []
        # Which worker was idle first differs from run to run, and outputs are known by their cause.
        _, last = max(
            (rows.topic, int(rows.partitions[0]), int(rows.offsets[0]), worker)
            for worker, rows in ((w, b.raw.labels) for w, b in self._time_batches.items())
        )[2:]
        batch = self._time_batches.pop(last)
        batch.labels.times[0] = until
        pending.limit_time(until)
        if self.learning.windows is not None:
            self.learning.windows.advance_watermark(until)
        return [self.process_timed(batch)]

    def _restore(self, image: Delta, state: StateDirectory) -> None:
        self.prequential.restore(image)
        for stage in self.stages:
            stage.restore(image)
            if not image:
                stage.warm_start(state)

    def _report(self) -> None:
        for stage in self.stages:
            stage.report()


class WindowsAndModels(StatefulBatchLogic[Item, Results | Bootstrap, StepState]):
    """Both steps in one operator, for a single worker: an operator costs as much as some rows."""

    def __init__(self, windows: WindowStep, models: ModelStep) -> None:
        self._windows = windows
        self._models = models

    def on_batch(self, values: list[Item]) -> tuple[list[Results | Bootstrap], bool]:
        results: list[Results | Bootstrap] = []
        for item in values:  # all batches are whole, and no watermarks are sent
            if isinstance(item, Batch):
                self._windows.fill_timed(item)
                results.append(self._models.process_timed(item))
            elif isinstance(item, Bootstrap):
                results.append(item)
        return results, False

    def snapshot(self) -> StepState:
        return encode((self._windows.commit(), self._models.commit()))
