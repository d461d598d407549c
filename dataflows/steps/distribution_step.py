"""The monitors of distributions at work: signals, and what is to be done about what they found."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.outputs import Cause, DriftSignal, Moved
from anabranch.dataflows.sink.encoder import Results
from anabranch.dataflows.steps.distribution_inputs import BEFORE, Subjects, Watched, WatchedValues
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.drift.declarations import Distributions, told
from anabranch.models.drift.detectors import Alarm
from anabranch.models.drift.distribution_shift import Shift, Shifts
from anabranch.models.prequential.external_drift import ExternalDrift
from anabranch.models.prequential.outcome import LearnedLabels, Outcome
from anabranch.state.store.delta import Delta

DETECTOR = "distribution"
"""What a signal calls them."""

_VALUES = "values"
_NAMED = 5
LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Family:
    """Columns whose rows come together, at work."""

    of: Subjects
    shifts: Shifts
    told: bool = False  # that its reference is whole


class DistributionStep:
    """Monitors of all distributions of a pipeline: see `WatchedValues`.

    Of each batch it is asked twice: what its events tell before it is worked through, and then what
    became of it.
    """

    def __init__(self, pipeline: Pipeline, declared: Distributions, metrics: WorkerMetrics) -> None:
        self._pipeline, self._metrics = pipeline, metrics
        self._reference, self._quarantine = told(declared), set(declared.quarantine)
        self._values = WatchedValues(pipeline, declared.ignore, metrics.shifts.feedback)
        subjects = self._values.subjects
        together = sum(len(each.names) for each in subjects)
        self._families = [
            _Family(each, Shifts(declared, len(each.names), together, each.memories_ms))
            for each in subjects
        ]
        self._signals: list[DriftSignal] = []
        self._labels_seen = False
        metrics.shifts.on_families([(each.kind, each.names) for each in subjects])
        metrics.ask(self._tell_metrics)

    def foresee(self, batch: Batch) -> ExternalDrift:
        """What the events of a batch tell that is yet to be worked through."""
        self._signals, self._labels_seen = [], False
        suspect = np.zeros(len(batch), np.bool_) if self._quarantine else None
        calls: list[tuple[int, Alarm]] = []
        for family in self._families:
            source = family.of.source
            if source not in BEFORE:
                continue
            watched = self._values.of_events(source, batch)
            if watched is not None:
                marks = suspect if family.of.kind in self._quarantine else None
                found = family.shifts.look(watched.values, watched.times, marks)
                calling = self._tell(family, watched, found)
                if source != "invalid":  # its rows are not those of the batch
                    calls += calling
        if suspect is not None and not suspect.any():
            suspect = None
        return ExternalDrift(calls, suspect, lambda learned: self._look_at_labels(batch, learned))

    def look(self, batch: Batch, outcome: Outcome, results: Results) -> list[DriftSignal]:
        """All that was found in a batch, in the order of the families."""
        for family in self._families:
            source = family.of.source
            if source in ("prediction", "first"):
                watched = self._values.of_predictions(
                    source, batch, results.predictions, outcome.ranks
                )
                self._look(family, watched)
            elif source not in BEFORE and (source != "label" or not self._labels_seen):
                self._look(family, self._values.of_labels(source, batch, outcome.learned))
        return self._signals

    def _tell_metrics(self) -> None:
        whole: dict[str, bool] = {}
        for family in self._families:
            kind, is_whole = family.of.kind, family.shifts.whole
            whole[kind] = whole.get(kind, True) and is_whole
            if is_whole and not family.told:
                family.told = True
                LOG.info(
                    "%s: windows are compared from now on with %s (%s)", kind,
                    self._reference, ", ".join(family.of.names[:_NAMED]),
                )  # fmt: skip
            if family.shifts.psi is not None:
                self._metrics.shifts.on_window(family.of.names, family.shifts.psi)
        self._metrics.shifts.on_references(whole)
        self._metrics.shifts.flush()

    def changes(self) -> Delta:
        """What changed since the last call; at first, everything."""
        delta = Delta()
        for family in self._families:
            delta.put(family.of.source, family.shifts.changes())
        delta.put(_VALUES, self._values.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Take up what `changes` gave."""
        for family in self._families:
            family.shifts.restore(image.part(family.of.source))
            family.told = family.shifts.whole
        self._values.restore(image.part(_VALUES))

    def begin_with(self, image: Delta) -> None:
        """Compare, from the first window on, with what was usual when `changes` gave this."""
        for family in self._families:
            family.shifts.begin_with(image.part(family.of.source))

    def _look_at_labels(self, batch: Batch, learned: LearnedLabels) -> list[tuple[int, Alarm]]:
        """Before anything is decided by them; calls."""
        self._labels_seen = True
        calls: list[tuple[int, Alarm]] = []
        for family in self._families:
            if family.of.source == "label":
                calls += self._look(family, self._values.of_labels("label", batch, learned))
        return calls

    def _look(self, family: _Family, watched: Watched | None) -> list[tuple[int, Alarm]]:
        if watched is None:
            return []
        found = family.shifts.look(watched.values, watched.times)
        return self._tell(family, watched, found)

    def _tell(
        self, family: _Family, watched: Watched, found: list[Shift]
    ) -> list[tuple[int, Alarm]]:
        """Keep the signals of what was found; and what calls for a fresh model, by its row."""
        if not found:
            return []
        names = family.of.names
        self._metrics.shifts.on_shifts((names[each.column], each.severity) for each in found)
        calls = []
        for each in found:
            row = each.row if watched.places is None else int(watched.places[each.row])
            self._signals.append(self._signal(family, each, watched.cause(row)))
            if each.severity == "drift":
                alarm = Alarm(
                    f"the distribution of {names[each.column]}", DETECTOR, each.time, each.psi,
                    math.nan, math.nan, family.shifts.rows, row, family.of.kind,
                )  # fmt: skip
                calls.append((row, alarm))
        return calls

    def _signal(self, family: _Family, shift: Shift, cause: Cause) -> DriftSignal:
        return DriftSignal(
            pipeline=self._pipeline.name,
            subject=family.of.names[shift.column],
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
            kind=family.of.kind,
            severity=shift.severity,
            began=shift.began,
            reference=self._reference,
            top=[] if family.of.kind == "keys" else [Moved(*each) for each in shift.top],
        )
