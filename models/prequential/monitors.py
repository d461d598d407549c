"""The drift monitors of a prequential step: on features, and on losses, by slice too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import LOSS, Alarm, DriftMonitor, Monitor
from anabranch.models.learners.learner import Predictions, Task
from anabranch.models.metrics.losses import check_loss, losses
from anabranch.models.metrics.sliced_metrics import SlicedMetrics
from anabranch.models.metrics.slices import SliceBy
from anabranch.models.prequential.outcome import LearnedLabels
from anabranch.state.errors import DeclarationError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

_LOSS_COLUMN, _SLICE_COLUMN = -1, -2
"""In place of a feature's column: monitors of the loss, and of the loss by slice."""

AlarmsAt = list[tuple[int, int, Alarm]]
"""Step, index of the monitor, and alarm."""


class SliceMonitor:
    """A monitor on the loss of each value of a slice; it raises alarms of increases only.

    It continues when another model becomes champion: a model with a lower loss raises no alarm.

    Args:
        declared: what it monitors, and how.
        watches: by group of the slice, those restored from state.
    """

    model = ""

    def __init__(self, declared: Monitor, watches: dict[int, DriftMonitor] | None = None) -> None:
        self.monitor = declared
        self.watches: dict[int, DriftMonitor] = {} if watches is None else watches

    def subject(self, group: int, slices: SlicedMetrics) -> str:
        """The subject of a group's alarms."""
        name = slices.name(slices.index(str(self.monitor.by)), group)
        return f"loss where {self.monitor.by}={name}"

    def subjects(self, slices: SlicedMetrics) -> list[str]:
        """The subjects of all groups that have had a label."""
        return [self.subject(group, slices) for group in self.watches]

    def check(self, values: F64, times: I64, groups: U8, slices: SlicedMetrics) -> list[Alarm]:
        """Alarms in losses `(labels,) float64` at `times`, by their `groups` in the slices."""
        index = slices.index(str(self.monitor.by))
        alarms: list[Alarm] = []
        for group in np.unique(groups[:, index]).tolist():
            if not slices.has_group(index, group):
                continue
            rows = np.flatnonzero(groups[:, index] == group)
            watch = self.watches.setdefault(group, DriftMonitor(self.monitor))
            for alarm in watch.update_many(values[rows], times[rows]):
                if alarm.increased:
                    subject, row = self.subject(group, slices), int(rows[alarm.row])
                    alarms.append(replace(alarm, subject=subject, row=row))
        return sorted(alarms, key=lambda alarm: alarm.row)


class Monitors:
    """The monitors of a step, with the state of their detectors.

    Args:
        declared: on the loss, or on one of the features.
        task: of the models.
        names: of the features.
        slices: those by which a loss can be monitored.

    Attributes:
        watches: the monitors, in the order of declaration.

    Raises:
        DeclarationError: no such feature or slice, or a loss that the task does not have.
    """

    def __init__(
        self,
        declared: Sequence[Monitor],
        task: Task,
        names: tuple[str, ...],
        slices: Sequence[SliceBy] = (),
    ) -> None:
        self._task = task
        self._columns = [_column(monitor, task, names, slices) for monitor in declared]
        self.watches: list[DriftMonitor | SliceMonitor] = [
            DriftMonitor(monitor) if monitor.by is None else SliceMonitor(monitor)
            for monitor in declared
        ]

    def __bool__(self) -> bool:
        return bool(self.watches)

    @property
    def recent_means(self) -> list[tuple[str, str, float]]:
        """Subject, detector and mean of the newest values, of monitors without a slice."""
        return [
            (watch.monitor.subject, watch.monitor.detector, watch.recent_mean)
            for watch in self.watches
            if isinstance(watch, DriftMonitor)
        ]

    def subjects(self, slices: SlicedMetrics) -> list[str]:
        """All subjects that can raise an alarm now."""
        subjects: list[str] = []
        for watch in self.watches:
            if isinstance(watch, SliceMonitor):
                subjects += watch.subjects(slices)
            else:
                subjects.append(watch.monitor.subject)
        return subjects

    def of_champion(self, champion: str) -> list[tuple[int, DriftMonitor]]:
        """The monitors on the loss, by index; those of a former champion are reset first."""
        of_loss = []
        for i, (watch, column) in enumerate(zip(self.watches, self._columns, strict=True)):
            if column == _LOSS_COLUMN and isinstance(watch, DriftMonitor):
                if watch.model not in ("", champion):
                    watch = self.watches[i] = DriftMonitor(watch.monitor)
                watch.model = champion
                of_loss.append((i, watch))
        return of_loss

    def resume(self, stored: Sequence[DriftMonitor | SliceMonitor]) -> None:
        """Continue from the state of stored monitors of equal declaration; others start now."""
        unused = list(stored)
        for i, watch in enumerate(self.watches):
            same = [old for old in unused if old.monitor == watch.monitor]
            if same:
                self.watches[i] = same[0]
                unused.remove(same[0])

    def check_features(self, features: F64, rows: I64, times: I64, steps: I64) -> AlarmsAt:
        """Alarms in features.

        Args:
            features: `(…, features) float64`, of which `rows` are the events.
            rows: `(events,) int64`.
            times: `(events,) int64` ms.
            steps: `(events,) int64`, at which each is predicted.
        """
        alarms: AlarmsAt = []
        for i, (watch, column) in enumerate(zip(self.watches, self._columns, strict=True)):
            if column >= 0 and isinstance(watch, DriftMonitor):
                raised = watch.update_many(features[rows, column], times)
                alarms += [(int(steps[alarm.row]), i, alarm) for alarm in raised]
        return alarms

    def check(
        self,
        learned: LearnedLabels,
        champion_predictions: Predictions,
        steps: I64,
        feature_alarms: AlarmsAt,
        groups: U8 | None,
        slices: SlicedMetrics,
        loss_alarms: AlarmsAt | None = None,
    ) -> list[Alarm]:
        """All alarms of a batch, by the step that raised them, then in the order of declaration.

        Args:
            learned: the labels that were scored.
            champion_predictions: for each label, the prediction of the champion of the time.
            steps: `(labels,) int64`, at which each was scored.
            feature_alarms: what `check_features` returned.
            groups: `(labels, slices) uint8`, None without slices.
            slices: those of the step.
            loss_alarms: those of the champion's loss, where `ChampionMonitor` has checked it.
        """
        alarms = feature_alarms + (loss_alarms or [])
        for i, (watch, column) in enumerate(zip(self.watches, self._columns, strict=True)):
            if column >= 0 or (column == _LOSS_COLUMN and loss_alarms is not None):
                continue
            kind = watch.monitor.loss
            values = losses(self._task, learned.target, champion_predictions, kind)
            if isinstance(watch, DriftMonitor):
                raised = watch.update_many(values, learned.times)
            else:
                assert groups is not None
                raised = watch.check(values, learned.times, groups, slices)
            alarms += [(int(steps[alarm.row]), i, alarm) for alarm in raised]
        return [alarm for *_, alarm in sorted(alarms, key=lambda entry: entry[:2])]


def _column(monitor: Monitor, task: Task, names: tuple[str, ...], slices: Sequence[SliceBy]) -> int:
    """The column of the feature that a monitor is on, or `_LOSS_COLUMN`, `_SLICE_COLUMN`."""
    if monitor.subject == LOSS:
        kind = check_loss(task, monitor.loss)
        if monitor.errors_only and kind != "error":
            raise DeclarationError(
                f"{monitor.detector} monitors whether predictions are right or wrong, which does "
                f"not apply to a {task.value} task: use ADWIN or PageHinkley"
            )
        if monitor.by is None:
            return _LOSS_COLUMN
        declared = [each.name for each in slices]
        if monitor.by not in declared:
            raise DeclarationError(
                f"by={monitor.by!r} of a monitor is not a slice: declared are "
                f"{', '.join(declared) or 'none'}; add slice_by({monitor.by!r}) to slices="
            )
        return _SLICE_COLUMN
    if monitor.subject not in names:
        raise DeclarationError(
            f"unknown subject {monitor.subject!r} of a monitor: there are {LOSS!r} and the "
            f"features {', '.join(names)}"
        )
    return names.index(monitor.subject)
