"""Monitors of distributions as stages: drift signals, quarantine, and triggers of retraining."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.outputs import Cause, DriftSignal, Moved
from anabranch.dataflows.steps.distribution_inputs import (
    KNOWN_BEFORE_LEARNING,
    DistributionInputs,
    Family,
    Observed,
)
from anabranch.dataflows.steps.stage import BatchWork, Stage
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.drift.declarations import DISTRIBUTIONS, Distributions
from anabranch.models.drift.detectors import Alarm
from anabranch.models.drift.distribution_shift import DistributionMonitor, DistributionShift
from anabranch.models.prequential.external_drift import ExternalDrift
from anabranch.models.prequential.outcome import LearnedLabels
from anabranch.state.store.delta import Delta

if TYPE_CHECKING:
    from anabranch.dataflows.recovery.state_directory import StateDirectory

DETECTOR = "distribution"
"""The detector that a signal names."""

_INPUTS = "values"
_NAMED = 5
LOG = logging.getLogger("anabranch.drift")


@dataclass(slots=True)
class _Monitor:
    """The monitor of one family of columns."""

    family: Family
    shifts: DistributionMonitor
    ready_logged: bool = False


class DistributionMonitors:
    """Monitors of all distributions of a pipeline: see `DistributionInputs`.

    `EventMonitors` and `OutcomeMonitors` are its two stages: values of events are observed before
    anything is learned from them, and what was predicted and learned after that.
    """

    def __init__(self, pipeline: Pipeline, declared: Distributions, metrics: WorkerMetrics) -> None:
        self._pipeline, self._metrics = pipeline, metrics.drift
        self._reference, self._quarantine = declared.reference_text, set(declared.quarantine)
        self._inputs = DistributionInputs(pipeline, declared.ignore, metrics.drift.feedback)
        families = self._inputs.families
        columns = sum(len(each.names) for each in families)
        self._monitors = [
            _Monitor(
                each, DistributionMonitor(declared, len(each.names), columns, each.memories_ms)
            )
            for each in families
        ]
        self._signals: list[DriftSignal] = []
        self._labels_observed = False
        self._metrics.on_families([(each.kind, each.names) for each in families])

    def observe_events(self, batch: Batch) -> ExternalDrift:
        """Drift in the events of a batch, and which of them are quarantined."""
        self._signals, self._labels_observed = [], False
        quarantined = np.zeros(len(batch), np.bool_) if self._quarantine else None
        triggers: list[tuple[int, Alarm]] = []
        for monitor in self._monitors:
            source = monitor.family.source
            if source not in KNOWN_BEFORE_LEARNING:
                continue
            observed = self._inputs.of_events(source, batch)
            if observed is not None:
                mask = quarantined if monitor.family.kind in self._quarantine else None
                drift = self._observe(monitor, observed, mask)
                if source != "invalid":  # its rows are not those of the batch
                    triggers += drift
        if quarantined is not None and not quarantined.any():
            quarantined = None
        return ExternalDrift(
            triggers, quarantined, lambda learned: self._observe_labels(batch, learned)
        )

    def observe_outcome(self, work: BatchWork) -> list[DriftSignal]:
        """All signals of a batch, those of its events included, in the order of the families."""
        outcome, predictions = work.outcome, work.results.predictions
        for monitor in self._monitors:
            source = monitor.family.source
            observed = None
            if source in ("prediction", "first"):
                observed = self._inputs.of_predictions(
                    source, work.batch, predictions, outcome.ranks
                )
            elif source not in KNOWN_BEFORE_LEARNING and not (
                source == "label" and self._labels_observed
            ):
                observed = self._inputs.of_labels(source, work.batch, outcome.learned)
            if observed is not None:
                self._observe(monitor, observed)
        return self._signals

    def changes(self) -> Delta:
        """What changed since the last call; at first, everything."""
        delta = Delta()
        for monitor in self._monitors:
            delta.put(monitor.family.source, monitor.shifts.changes())
        delta.put(_INPUTS, self._inputs.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Load what `changes` gave."""
        for monitor in self._monitors:
            monitor.shifts.restore(image.part(monitor.family.source))
            monitor.ready_logged = monitor.shifts.reference_ready
        self._inputs.restore(image.part(_INPUTS))

    def use_references(self, image: Delta) -> None:
        """Compare the first windows with the references in what `changes` gave elsewhere."""
        for monitor in self._monitors:
            monitor.shifts.restore_reference(image.part(monitor.family.source))

    def report(self) -> None:
        """Set the metrics; log each reference that is complete."""
        ready: dict[str, bool] = {}
        for monitor in self._monitors:
            family, shifts = monitor.family, monitor.shifts
            ready[family.kind] = ready.get(family.kind, True) and shifts.reference_ready
            if shifts.reference_ready and not monitor.ready_logged:
                monitor.ready_logged = True
                LOG.info(
                    "%s: windows are now compared with %s (%s)", family.kind, self._reference,
                    ", ".join(family.names[:_NAMED]),
                )  # fmt: skip
            if shifts.psi is not None:
                self._metrics.on_window(family.names, shifts.psi)
        self._metrics.on_references(ready)
        self._metrics.flush()

    def _observe_labels(self, batch: Batch, learned: LearnedLabels) -> list[tuple[int, Alarm]]:
        """Called with the labels of a batch before rollouts decide by them; see `_observe`."""
        self._labels_observed = True
        triggers: list[tuple[int, Alarm]] = []
        for monitor in self._monitors:
            if monitor.family.source == "label":
                observed = self._inputs.of_labels("label", batch, learned)
                if observed is not None:
                    triggers += self._observe(monitor, observed)
        return triggers

    def _observe(
        self, monitor: _Monitor, observed: Observed, quarantined: NDArray[np.bool_] | None = None
    ) -> list[tuple[int, Alarm]]:
        """Keep the signals of what has shifted; return drift as alarms, each with its row.

        ``quarantined`` is set for the rows of a window that drifts.
        """
        shifts = monitor.shifts.update(observed.values, observed.times, quarantined)
        if not shifts:
            return []
        family = monitor.family
        self._metrics.on_shifts((family.names[each.column], each.severity) for each in shifts)
        triggers = []
        for shift in shifts:
            row = shift.row if observed.indices is None else int(observed.indices[shift.row])
            self._signals.append(self._signal(family, shift, observed.cause(row)))
            if shift.severity == "drift":
                alarm = Alarm(
                    f"the distribution of {family.names[shift.column]}", DETECTOR, shift.time,
                    shift.psi, math.nan, math.nan, monitor.shifts.rows, row, family.kind,
                )  # fmt: skip
                triggers.append((row, alarm))
        return triggers

    def _signal(self, family: Family, shift: DistributionShift, cause: Cause) -> DriftSignal:
        return DriftSignal(
            pipeline=self._pipeline.name,
            subject=family.names[shift.column],
            detector=DETECTOR,
            ts=shift.time,
            statistic={
                "statistic": shift.statistic,
                "p": shift.p,
                "threshold": shift.threshold,
                "psi": shift.psi,
                "js": shift.js,
                "ks": shift.ks,
            },
            topic=cause.topic,
            partition=cause.partition,
            offset=cause.offset,
            kind=family.kind,
            severity=shift.severity,
            began=shift.began,
            reference=self._reference,
            top=[] if family.kind == "keys" else [Moved(*each) for each in shift.top],
        )


class EventMonitors(Stage):
    """Observes the events of a batch before learning; stores the state of all monitors."""

    def __init__(self, monitors: DistributionMonitors) -> None:
        self._monitors = monitors

    def process(self, work: BatchWork) -> None:
        work.external = self._monitors.observe_events(work.batch)

    def add_changes(self, delta: Delta) -> None:
        delta.put(DISTRIBUTIONS, self._monitors.changes())

    def restore(self, image: Delta) -> None:
        self._monitors.restore(image.part(DISTRIBUTIONS))

    def warm_start(self, state: StateDirectory) -> None:
        references = state.initial_distributions()
        if references is not None:
            self._monitors.use_references(references)

    def report(self) -> None:
        self._monitors.report()


class OutcomeMonitors(Stage):
    """Observes what was predicted and learned, and sends the signals of both stages."""

    def __init__(self, monitors: DistributionMonitors) -> None:
        self._monitors = monitors

    def process(self, work: BatchWork) -> None:
        work.results.signals += self._monitors.observe_outcome(work)
