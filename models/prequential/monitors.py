"""What the monitors of a prequential step look at: features, and losses, by slices too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import LOSS, Alarm, DriftMonitor, Monitor
from anabranch.models.learners.learner import Predictions, Task
from anabranch.models.metrics.losses import check_loss, losses
from anabranch.models.metrics.sliced_metrics import Slices
from anabranch.models.metrics.slices import SliceBy
from anabranch.models.prequential.outcome import Learned
from anabranch.state.errors import DeclarationError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

_OF_LOSS, _OF_SLICES = -1, -2
AlarmsAt = list[tuple[int, int, Alarm]]
"""Step, place among the monitors, and alarm."""


class SliceWatch:
    """A monitor on the loss of each part of a slice, at work. It tells what has become worse alone.

    It goes on when another model leads: one that is better is told of by nobody.
    """

    model = ""

    def __init__(self, declared: Monitor) -> None:
        self.monitor = declared
        self._watches: dict[int, DriftMonitor] = {}

    def subject(self, group: int, slices: Slices) -> str:
        """What alarms call a group."""
        name = slices.name(slices.place(str(self.monitor.by)), group)
        return f"loss where {self.monitor.by}={name}"

    def subjects(self, slices: Slices) -> list[str]:
        """All that have had a label."""
        return [self.subject(group, slices) for group in self._watches]

    def look(self, values: F64, times: I64, groups: U8, slices: Slices) -> list[Alarm]:
        """Alarms in losses `(labels,) float64` at `times`, of the `groups` of the slices."""
        place = slices.place(str(self.monitor.by))
        found: list[Alarm] = []
        for group in np.unique(groups[:, place]).tolist():
            if not slices.known(place, group):
                continue
            rows = np.flatnonzero(groups[:, place] == group)
            watch = self._watches.setdefault(group, DriftMonitor(self.monitor))
            for alarm in watch.update_many(values[rows], times[rows]):
                if alarm.increased:
                    subject, row = self.subject(group, slices), int(rows[alarm.row])
                    found.append(replace(alarm, subject=subject, row=row))
        return sorted(found, key=lambda alarm: alarm.row)


class Monitors:
    """Monitors at work.

    Args:
        declared: on the loss, or on one of the features.
        task: of the models.
        names: of the features.
        slices: those by which a loss can be watched.

    Attributes:
        watches: the monitors, as they were declared.

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
        self.watches: list[DriftMonitor | SliceWatch] = [
            DriftMonitor(monitor) if monitor.by is None else SliceWatch(monitor)
            for monitor in declared
        ]

    def __bool__(self) -> bool:
        return bool(self.watches)

    @property
    def newest(self) -> list[tuple[str, str, float]]:
        """Subject, detector and mean of the newest values, of monitors that are of no slice."""
        return [
            (watch.monitor.subject, watch.monitor.detector, watch.recent_mean)
            for watch in self.watches
            if isinstance(watch, DriftMonitor)
        ]

    def subjects(self, slices: Slices) -> list[str]:
        """All that can give an alarm now."""
        found: list[str] = []
        for watch in self.watches:
            if isinstance(watch, SliceWatch):
                found += watch.subjects(slices)
            else:
                found.append(watch.monitor.subject)
        return found

    def of_loss(self, model: str) -> list[tuple[int, DriftMonitor]]:
        """Those on the loss, by their place: that of this model, which begin anew if it is another.

        One of no model in particular becomes this one's.
        """
        found = []
        for i, (watch, column) in enumerate(zip(self.watches, self._columns, strict=True)):
            if column == _OF_LOSS and isinstance(watch, DriftMonitor):
                if watch.model not in ("", model):
                    watch = self.watches[i] = DriftMonitor(watch.monitor)
                watch.model = model
                found.append((i, watch))
        return found

    def go_on(self, stored: Sequence[DriftMonitor | SliceWatch]) -> None:
        """Take up what equal monitors have seen before; the others begin now."""
        left = list(stored)
        for i, watch in enumerate(self.watches):
            same = [old for old in left if old.monitor == watch.monitor]
            if same:
                self.watches[i] = same[0]
                left.remove(same[0])

    def look_at_features(self, features: F64, rows: I64, times: I64, asked: I64) -> AlarmsAt:
        """What is found in features.

        Args:
            features: `(…, features) float64`, of which `rows` are the events, at `times` (ms),
                predicted in the steps `asked`.
        """
        found: AlarmsAt = []
        for i, (watch, column) in enumerate(zip(self.watches, self._columns, strict=True)):
            if column >= 0 and isinstance(watch, DriftMonitor):
                alarms = watch.update_many(features[rows, column], times)
                found += [(int(asked[alarm.row]), i, alarm) for alarm in alarms]
        return found

    def look(
        self,
        learned: Learned,
        led: Predictions,
        taught: I64,
        of_features: AlarmsAt,
        groups: U8 | None,
        slices: Slices,
        of_loss: AlarmsAt | None = None,
    ) -> list[Alarm]:
        """Alarms, merged by the step that gave them, then in the order of declaration.

        Args:
            learned: what was scored, in the steps `taught`.
            led: what the champion of the time had answered to each event; whose loss is watched.
            of_features: what `look_at_features` found.
            groups: those of the labels in the `slices`.
            of_loss: what was found of the loss, if that was looked at (`ChampionWatch`).
        """
        found = of_features + (of_loss or [])
        for i, (watch, column) in enumerate(zip(self.watches, self._columns, strict=True)):
            if column >= 0 or (column == _OF_LOSS and of_loss is not None):
                continue
            values = losses(self._task, learned.target, led, watch.monitor.loss)
            if isinstance(watch, DriftMonitor):
                alarms = watch.update_many(values, learned.times)
            else:
                assert groups is not None
                alarms = watch.look(values, learned.times, groups, slices)
            found += [(int(taught[alarm.row]), i, alarm) for alarm in alarms]
        return [alarm for *_, alarm in sorted(found, key=lambda entry: entry[:2])]


def _column(monitor: Monitor, task: Task, names: tuple[str, ...], slices: Sequence[SliceBy]) -> int:
    """The feature that a monitor watches, or `_OF_LOSS`, `_OF_SLICES`."""
    if monitor.subject == LOSS:
        kind = check_loss(task, monitor.loss)
        if monitor.errors_only and kind != "error":
            raise DeclarationError(
                f"{monitor.detector} looks at right and wrong, which a {task.value} task has not: "
                "take ADWIN or PageHinkley"
            )
        if monitor.by is None:
            return _OF_LOSS
        declared = [each.name for each in slices]
        if monitor.by not in declared:
            raise DeclarationError(
                f"by={monitor.by!r} of a monitor is no slice: declared are "
                f"{', '.join(declared) or 'none'}; add slice_by({monitor.by!r}) to slices="
            )
        return _OF_SLICES
    if monitor.subject not in names:
        raise DeclarationError(
            f"unknown subject {monitor.subject!r} of a monitor: there are {LOSS!r} and the "
            f"features {', '.join(names)}"
        )
    return names.index(monitor.subject)
