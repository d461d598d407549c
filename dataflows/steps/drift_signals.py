"""The stage that turns the alarms of the models' monitors into messages on the drift topic."""

from __future__ import annotations

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.messages.outputs import DriftSignal
from anabranch.dataflows.steps.stage import BatchWork, Stage, StageContext
from anabranch.models.drift.detectors import LOSS, Alarm
from anabranch.models.prequential.outcome import Outcome


class DriftSignals(Stage):
    """One signal for each alarm of a monitor on the champion's loss or on a feature."""

    def __init__(self, context: StageContext) -> None:
        self._pipeline = context.pipeline
        self._models = context.prequential.models
        self._metrics = context.metrics

    def process(self, work: BatchWork) -> None:
        outcome = work.outcome
        if outcome.alarms:
            work.results.signals += [
                self._signal(alarm, work.batch, outcome) for alarm in outcome.alarms
            ]

    def report(self) -> None:
        monitors = self._models.monitors
        self._metrics.drift.on_monitors(monitors.recent_means)
        self._metrics.on_monitors(monitors.subjects(self._models.slices))

    def _signal(self, alarm: Alarm, batch: Batch, outcome: Outcome) -> DriftSignal:
        """Its coordinates are those of the label or the event at which the alarm was raised."""
        row = min(alarm.row, len(batch) - 1)
        topic_of, partitions, offsets = batch.rows.topic_of, batch.partitions, batch.offsets
        if alarm.kind == LOSS and outcome.learned.items is not None:
            row = int(outcome.learned.items[alarm.row])
            if row >= len(batch):
                topic_of, row = batch.labels.topic_of, row - len(batch)
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
            topic=topic_of(row),
            partition=int(partitions[row]),
            offset=int(offsets[row]),
            kind=alarm.kind,
            severity="drift" if alarm.increased or alarm.kind != LOSS else "resolved",
        )
