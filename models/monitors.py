"""What the monitors of a prequential step look at: the champion's loss, and features of events."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.drift import LOSS, Alarm, Monitor, Watch, of_errors
from models.learner import Predictions, Task
from models.losses import check_loss, losses
from models.outcome import Learned
from state.errors import DeclarationError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_OF_LOSS = -1


class Monitors:
    """Monitors at work.

    Args:
        declared: on the loss, or on one of the features.
        task: of the models.
        names: of the features.

    Attributes:
        watches: the monitors, as they were declared.

    Raises:
        DeclarationError: no such feature, or a loss that the task does not have.
    """

    def __init__(self, declared: Sequence[Monitor], task: Task, names: tuple[str, ...]) -> None:
        self.watches = [Watch(monitor) for monitor in declared]
        self._task = task
        self._columns = [_column(monitor, task, names) for monitor in declared]

    def __bool__(self) -> bool:
        return bool(self.watches)

    def of_loss(self, model: str) -> list[tuple[int, Watch]]:
        """Those on the loss, by their place: that of this model, which begin anew if it is another.

        One of no model in particular becomes this one's.
        """
        found = []
        for i, (watch, column) in enumerate(zip(self.watches, self._columns, strict=True)):
            if column == _OF_LOSS:
                if watch.model not in ("", model):
                    watch = self.watches[i] = Watch(watch.monitor)
                watch.model = model
                found.append((i, watch))
        return found

    def go_on(self, stored: Sequence[Watch]) -> None:
        """Take up what equal monitors have seen before; the others begin now."""
        left = list(stored)
        for i, watch in enumerate(self.watches):
            same = [old for old in left if old.monitor == watch.monitor]
            if same:
                self.watches[i] = same[0]
                left.remove(same[0])

    def look(
        self,
        learned: Learned,
        led: Predictions,
        taught: I64,
        features: F64,
        rows: I64,
        times: I64,
        asked: I64,
        of_loss: list[tuple[int, int, Alarm]] | None = None,
    ) -> list[Alarm]:
        """Alarms, merged by the step that gave them, then in the order of declaration.

        Args:
            learned: what was scored, in the steps `taught`.
            led: what the champion of the time had answered to each event; whose loss is watched.
            features: `(…, features) float64`, of which `rows` are the events, at `times` (ms),
                predicted in the steps `asked`.
            of_loss: what was found of the loss, if that was looked at (`ChampionWatch`).
        """
        found: list[tuple[int, int, Alarm]] = [] if of_loss is None else list(of_loss)
        for i, (watch, column) in enumerate(zip(self.watches, self._columns, strict=True)):
            if column == _OF_LOSS:
                if of_loss is not None:
                    continue
                values = losses(self._task, learned.target, led, watch.monitor.loss)
                alarms, steps = watch.update_many(values, learned.times), taught
            else:
                alarms, steps = watch.update_many(features[rows, column], times), asked
            found += [(int(steps[alarm.row]), i, alarm) for alarm in alarms]
        return [alarm for *_, alarm in sorted(found, key=lambda entry: entry[:2])]


def _column(monitor: Monitor, task: Task, names: tuple[str, ...]) -> int:
    """The feature that a monitor watches, or `_OF_LOSS`."""
    if monitor.subject == LOSS:
        kind = check_loss(task, monitor.loss)
        if of_errors(monitor) and kind != "error":
            raise DeclarationError(
                f"{monitor.detector} looks at right and wrong, which a {task.value} task has not: "
                "take ADWIN or PageHinkley"
            )
        return _OF_LOSS
    if monitor.subject not in names:
        raise DeclarationError(
            f"unknown subject {monitor.subject!r} of a monitor: there are {LOSS!r} and the "
            f"features {', '.join(names)}"
        )
    return names.index(monitor.subject)
