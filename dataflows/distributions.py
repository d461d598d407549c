"""What the monitors of distributions look at in a batch, and the signals that they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataflows.batch import Batch
from dataflows.decisions import cause_of_row
from dataflows.encode import Results
from dataflows.features import DayOfWeek, HourOfDay
from dataflows.messages import Cause, Delayed, DriftSignal, Moved
from dataflows.metrics import WorkerMetrics
from dataflows.pipeline import Pipeline
from models.answered import as_scores
from models.learner import Task
from models.outcome import Outcome
from models.shift_declarations import Distributions, told
from models.shifts import Shift, Shifts
from state.delta import Delta
from state.hashing import hash64

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

DISTRIBUTIONS = "distributions"
"""What they are called among the parts of a pipeline's models."""

DETECTOR = "distribution"
"""What a signal calls them."""

_Rows = tuple[F64, I64, Callable[[int], Cause]]
"""Values by column, their times (ms), and where a row was read."""


@dataclass(slots=True)
class _Family:
    """Columns whose rows come together.

    ``kind`` is what they are of, ``subjects`` their names.
    """

    kind: str
    subjects: list[str]
    shifts: Shifts


class DistributionStep:
    """Monitors of all distributions of a pipeline.

    * feature: every column of the features, but hours and days;
    * prediction: what was served, as one number;
    * label: what was learned, where that is a number, and how long it took to come;
    * calibration: the label less the prediction, where one model serves alone;
    * keys: of each entity, by tenths of the places of their hashes; that a shop or a whole feed is
      gone shows there, though nothing else has changed;
    * missing: whether a field is null that may be;
    * invalid: whether an event became a dead letter instead of a row.
    """

    def __init__(self, pipeline: Pipeline, declared: Distributions, metrics: WorkerMetrics) -> None:
        self._pipeline, self._metrics = pipeline, metrics
        self._reference = told(declared)
        clocks = {
            name
            for feature in pipeline.features
            if isinstance(feature, HourOfDay | DayOfWeek)
            for name in feature.columns()
        }
        ignored = clocks | set(declared.ignore)
        self._kept = [at for at, name in enumerate(pipeline.columns) if name not in ignored]
        self._entities = list(pipeline.entities)
        fields = pipeline.schema.fields
        self._nullable = [name for name in pipeline.used_fields if fields[name].optional]
        self._judged = pipeline.task in (Task.BINARY, Task.REGRESSION)
        subjects = {
            "feature": [pipeline.columns[at] for at in self._kept],
            "keys": [f"{entity} keys" for entity in self._entities],
            "prediction": ["prediction"],
            "label": (["label"] if self._judged else [])
            + (["label delay"] if isinstance(pipeline.label, Delayed) else []),
            "calibration": ["residual"] if self._judged and pipeline.rollout is None else [],
            "missing": [f"missing {name}" for name in self._nullable],
            "invalid": ["invalid events"],
        }
        together = sum(map(len, subjects.values()))
        self._families = [
            _Family(kind, names, Shifts(declared, len(names), together))
            for kind, names in subjects.items()
            if names
        ]
        metrics.shifts.on_families({each.kind: each.subjects for each in self._families})

    def look(self, batch: Batch, outcome: Outcome, results: Results) -> list[DriftSignal]:
        """Look at a batch that was worked through; the signals, in the order of the families."""
        signals: list[DriftSignal] = []
        for family in self._families:
            rows = self._rows(family.kind, batch, outcome, results)
            if rows is None:
                continue
            values, times, cause = rows
            found = family.shifts.look(values, times)
            if found:
                signals += [self._signal(family, each, cause(each.row)) for each in found]
                self._metrics.shifts.on_shifts(
                    [(family.subjects[each.column], each.severity, each.psi) for each in found]
                )
        return signals

    def changes(self) -> Delta:
        """What changed since the last call; at first, everything."""
        delta = Delta()
        for family in self._families:
            delta.put(family.kind, family.shifts.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Take up what `changes` gave."""
        for family in self._families:
            family.shifts.restore(image.part(family.kind))

    def _rows(self, kind: str, batch: Batch, outcome: Outcome, results: Results) -> _Rows | None:
        if kind in ("label", "calibration"):
            return self._labels(batch, outcome, kind == "calibration")
        if kind == "invalid":
            return self._invalid(batch)
        if not batch.rows.values:
            return None
        if kind == "feature":
            values = batch.features
            if len(self._kept) < values.shape[1]:
                values = values[:, self._kept]
        elif kind == "keys":
            hashes = [hash64(batch.columns[entity]) for entity in self._entities]
            values = np.array(hashes, np.float64).T * 2.0**-64
        elif kind == "prediction":
            values = as_scores(self._pipeline.task, results.predictions)[:, None]
        else:
            columns = [[v is None for v in batch.columns[name]] for name in self._nullable]
            values = np.array(columns, np.float64).T
        return np.ascontiguousarray(values), batch.times, self._of_event(batch)

    def _of_event(self, batch: Batch) -> Callable[[int], Cause]:
        return lambda row: cause_of_row(self._pipeline, batch, row)

    def _labels(self, batch: Batch, outcome: Outcome, residuals: bool) -> _Rows | None:
        learned, task = outcome.learned, self._pipeline.task
        if not len(learned.times):
            return None
        columns = [np.asarray(learned.target, np.float64)] if self._judged else []
        if residuals:
            said = learned.predictions[self._pipeline.model_name]
            columns = [columns[0] - as_scores(task, said)]
        elif isinstance(self._pipeline.label, Delayed):
            columns.append(learned.delays / 1000.0)
        items = learned.label if learned.items is None else learned.items
        return (
            np.ascontiguousarray(np.array(columns).T),
            learned.times,
            lambda row: cause_of_row(self._pipeline, batch, int(items[row])),
        )

    def _invalid(self, batch: Batch) -> _Rows | None:
        raw = batch.raw.events
        if not len(raw):
            return None
        here, kept = raw.partitions << 48 | raw.offsets, batch.partitions << 48 | batch.offsets
        invalid = ~np.isin(here, kept) if len(here) != len(kept) else np.zeros(len(here), np.bool_)
        topic = self._pipeline.topics.events
        return (
            invalid.astype(np.float64)[:, None],
            raw.times,
            lambda row: Cause(topic, int(raw.partitions[row]), int(raw.offsets[row])),
        )

    def _signal(self, family: _Family, shift: Shift, cause: Cause) -> DriftSignal:
        return DriftSignal(
            pipeline=self._pipeline.name,
            subject=family.subjects[shift.column],
            detector=DETECTOR,
            ts=shift.time,
            statistic={
                "statistic": shift.statistic,
                "p": shift.p,
                "threshold": shift.threshold,
                "psi": shift.psi,
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
