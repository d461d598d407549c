"""The loss monitors where several models could lead: they watch the one that does.

A promotion is no drift. So when another model leads, its loss is watched from then on by monitors
that begin anew.
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
from anabranch.models.prequential.monitors import Monitors

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class ChampionWatch:
    """Loss monitors at work on the labels of one batch.

    Args:
        monitors: those of the step.
        task: of the models.
        scored: per model, what it had answered to the events of the labels; may grow.
        target: of the labels.
        steps: `(labels,) int64`, ascending: when each was learned.
        times: `(labels,) int64` ms.

    Attributes:
        found: step, place among the monitors, and alarm, as they were found.
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
        self.found: list[tuple[int, int, Alarm]] = []
        self._monitors = monitors
        self._task, self._scored, self._target = task, scored, target
        self._steps, self._times = steps, times
        self._done = 0
        self._values: dict[tuple[str, str | None], F64] = {}

    def look(self, champion: str, until: int, stop: bool) -> tuple[int, Alarm] | None:
        """Look at the labels behind those looked at, up to step `until`; it leads at all of them.

        Args:
            champion: whose losses they are.
            until: a step.
            stop: look no further behind an alarm of a loss that has grown.

        Returns:
            The step and the alarm at which it stopped; None: it came to the end.
        """
        watches = self._monitors.of_loss(champion)
        end = int(np.searchsorted(self._steps, until, side="right"))
        if stop and len(watches) > 1:  # all of them go on to the same label
            copies = [copy.deepcopy(watch) for _, watch in watches]
            ends = [self._end_of(watch, champion, end) for watch in copies]
            end = min(ends)
        stopped = None
        for order, watch in watches:
            for alarm in self._update(watch, champion, end, stop):
                step = int(self._steps[alarm.row])
                self.found.append((step, order, alarm))
                if stop and alarm.increased and stopped is None:
                    stopped = step, alarm
                    end = alarm.row + 1
        self._done = max(end, self._done)
        return stopped

    def _end_of(self, watch: DriftMonitor, champion: str, end: int) -> int:
        """Behind the label at which it would stop."""
        rising = (alarm for alarm in self._update(watch, champion, end, True) if alarm.increased)
        return next((alarm.row + 1 for alarm in rising), end)

    def _update(self, watch: DriftMonitor, champion: str, end: int, stop: bool) -> list[Alarm]:
        some = slice(self._done, end)
        values = self._losses(champion, watch.monitor.loss)[some]
        found = watch.update_many(values, self._times[some], stop)
        return [replace(alarm, row=alarm.row + self._done) for alarm in found]

    def _losses(self, champion: str, kind: str | None) -> F64:
        values = self._values.get((champion, kind))
        if values is None:
            values = losses(self._task, self._target, self._scored[champion], kind)
            self._values[champion, kind] = values
        return values
