"""One metric for each group of rows, all of them updated in one pass."""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Predictions, Targets, Task
from anabranch.models.learners.targets import select
from anabranch.models.metrics.metrics import KernelMetric, Metric, metric


class MetricGroups:
    """A number of metrics of one kind; each is, bit for bit, `metric(name, task)` of its own rows.

    Args:
        name, task: as `metric` takes them.
        groups: how many, 255 at most.

    >>> hits = MetricGroups("Accuracy", Task.BINARY, 2)
    >>> truths, answers = np.array([1.0, 1.0, 0.0]), Predictions(np.array([0.9, 0.1, 0.2]))
    >>> hits.update_many(truths, answers, np.array([0, 1, 0], np.uint8))
    >>> hits.value(0), hits.value(1)
    (1.0, 0.0)
    """

    def __init__(self, name: str, task: Task, groups: int) -> None:
        self._name, self._task = name, task
        self._fresh = fresh = metric(name, task)
        self._by_group: dict[int, Metric] = {}
        self._kernel = fresh if isinstance(fresh, KernelMetric) else None
        self._arrays: tuple[NDArray[np.float64], ...] = ()
        if self._kernel is not None:
            self._arrays = tuple(np.repeat(a[None], groups, axis=0) for a in self._kernel.arrays)

    def update_many(
        self, y_true: Targets, predictions: Predictions, group: NDArray[np.uint8]
    ) -> None:
        """Score predictions in order, each in its group; in none where there is no such group."""
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
            return self._by_group.get(group, self._fresh).value
        one = copy.copy(self._kernel)
        one.arrays = tuple(each[group] for each in self._arrays)
        return one.value
