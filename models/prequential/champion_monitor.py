"""Loss monitors where several models may become champion: they follow the champion of the time.

A promotion is no drift. So when another model becomes champion, its loss is monitored by detectors
that start from scratch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import Alarm, DriftMonitor
from anabranch.models.learners.learner import Predictions, Targets, Task
from anabranch.models.metrics.losses import losses
from anabranch.models.prequential.monitors import AlarmsAt, Monitors

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class ChampionMonitor:
    """Runs the loss monitors on the labels of one batch, part by part.

    Args:
        monitors: those of the step.
        task: of the models.
        scored: per model, its stored predictions for the events of the labels; may grow.
        target: of the labels.
        steps: `(labels,) int64`, ascending: the step at which each was learned.
        times: `(labels,) int64` ms.

    Attributes:
        alarms: step, index of the monitor, and alarm, as they were raised.
    """

    def __init__(
        self,
        monitors: Monitors,
        task: Task,
        scored: Mapping[str, Predictions],
        target: Targets,
        steps: I64,
        times: I64,
    ) -> None:
        self.alarms: AlarmsAt = []
        self._monitors = monitors
        self._task, self._scored, self._target = task, scored, target
        self._steps, self._times = steps, times
        self._position = 0  # labels before this one were checked
        self._losses: dict[tuple[str, str | None], F64] = {}

    def check(self, champion: str, until: int, stop: bool) -> tuple[int, Alarm] | None:
        """Check the labels that follow those checked before, up to step `until`.

        Args:
            champion: the champion at all of these labels, whose losses are monitored.
            until: a step, inclusive.
            stop: stop after the first alarm of a loss that has increased.

        Returns:
            The step and the alarm at which it stopped; None if all labels were checked.
        """
        watches = self._monitors.of_champion(champion)
        end = int(np.searchsorted(self._steps, until, side="right"))
        if stop and len(watches) > 1:  # all of them have to stop at the same label
            copies = [copy.deepcopy(watch) for _, watch in watches]
            end = min(self._stop_of(watch, champion, end) for watch in copies)
        stopped = None
        for index, watch in watches:
            for alarm in self._update(watch, champion, end, stop):
                step = int(self._steps[alarm.row])
                self.alarms.append((step, index, alarm))
                if stop and alarm.increased and stopped is None:
                    stopped = step, alarm
                    end = alarm.row + 1
        self._position = max(end, self._position)
        return stopped

    def _stop_of(self, watch: DriftMonitor, champion: str, end: int) -> int:
        """The end of the part that a monitor would check before it stops."""
        rising = (alarm for alarm in self._update(watch, champion, end, True) if alarm.increased)
        return next((alarm.row + 1 for alarm in rising), end)

    def _update(self, watch: DriftMonitor, champion: str, end: int, stop: bool) -> list[Alarm]:
        part = slice(self._position, end)
        values = self._losses_of(champion, watch.monitor.loss)[part]
        alarms = watch.update_many(values, self._times[part], stop)
        return [replace(alarm, row=alarm.row + self._position) for alarm in alarms]

    def _losses_of(self, champion: str, kind: str | None) -> F64:
        values = self._losses.get((champion, kind))
        if values is None:
            values = losses(self._task, self._target, self._scored[champion], kind)
            self._losses[champion, kind] = values
        return values
