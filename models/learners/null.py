"""A learner that says nothing and learns nothing: where only features and labels are wanted."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import LEARN, Predictions, Targets, Task


class SilentLearner:
    """Stands where a model would, so that labels find their events by the same rules.

    >>> silent = SilentLearner(("a",), Task.REGRESSION)
    >>> silent.run_each(np.zeros((2, 1)), np.array([1.0, 2.0])).values, silent.version
    (array([nan, nan]), 2)
    """

    def __init__(self, names: Iterable[str], task: Task) -> None:
        self.names = tuple(names)
        self.task = task
        self.version = 0

    def run(
        self,
        features: NDArray[np.float64],
        op: NDArray[np.uint8],
        row: NDArray[np.int64],
        target: Targets,
    ) -> Predictions:
        """See `Learner.run`; no answer to anything."""
        learned = int((op == LEARN).sum())
        self.version += learned
        return self._nothing(len(op) - learned)

    def run_each(
        self, features: NDArray[np.float64], target: NDArray[np.float64]
    ) -> Predictions | None:
        """See `CompiledLinear.run_each`."""
        if self.task is Task.MULTICLASS or np.isnan(target).any():
            return None
        self.version += len(target)
        return self._nothing(len(target))

    def _nothing(self, rows: int) -> Predictions:
        if self.task is Task.MULTICLASS:
            return Predictions([{} for _ in range(rows)], [None] * rows)
        return Predictions(np.full(rows, np.nan))
