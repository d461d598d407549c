"""One metric for each group of rows, all updated in one pass."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Predictions, Targets, Task
from anabranch.models.learners.targets import select
from anabranch.models.metrics.metrics import KernelMetric, Metric, metric


class GroupedMetric:
    """A metric by group; each is, bit for bit, `metric(name, task)` over the rows of its group.

    Args:
        name, task: as `metric` takes them.
        groups: number of groups, 255 at most.

    >>> accuracy = GroupedMetric("Accuracy", Task.BINARY, 2)
    >>> y_true, predictions = np.array([1.0, 1.0, 0.0]), Predictions(np.array([0.9, 0.1, 0.2]))
    >>> accuracy.update_many(y_true, predictions, np.array([0, 1, 0], np.uint8))
    >>> accuracy.value(0), accuracy.value(1)
    (1.0, 0.0)
    """

    def __init__(self, name: str, task: Task, groups: int) -> None:
        self._name, self._task = name, task
        self._empty = empty = metric(name, task)
        self._by_group: dict[int, Metric] = {}
        self._kernel = empty if isinstance(empty, KernelMetric) else None
        self._arrays: tuple[NDArray[np.float64], ...] = ()
        if self._kernel is not None:
            self._arrays = tuple(np.repeat(a[None], groups, axis=0) for a in self._kernel.arrays)

    def update_many(
        self, y_true: Targets, predictions: Predictions, group: NDArray[np.uint8]
    ) -> None:
        """Score predictions in order, each in its group.

        Args:
            y_true: `(rows,)`.
            predictions: one per row.
            group: `(rows,) uint8`; rows of a group beyond the last are skipped.
        """
        if self._kernel is not None:
            self._kernel.update_by(y_true, predictions, group, self._arrays)
            return
        for each in np.unique(group).tolist():
            if each not in self._by_group:
                self._by_group[each] = metric(self._name, self._task)
            rows = np.flatnonzero(group == each)
            self._by_group[each].update_many(select(y_true, rows), predictions.take(rows))

    def value(self, group: int) -> float:
        """See `Metric.value`."""
        if self._kernel is None:
            return self._by_group.get(group, self._empty).value
        one = copy.copy(self._kernel)
        one.arrays = tuple(each[group] for each in self._arrays)
        return one.value

    def dump(self) -> tuple[Any, dict[int, Any]]:
        """The state, for `load`: stacked arrays, and by group what `Metric.dump` returns."""
        return self._arrays, {group: each.dump() for group, each in self._by_group.items()}

    def load(self, state: tuple[Any, dict[int, Any]]) -> None:
        """Continue from the state that `dump` returned."""
        self._arrays, by_group = state
        for group, each in by_group.items():
            self._by_group[group] = metric(self._name, self._task)
            self._by_group[group].load(each)
