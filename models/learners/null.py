"""A learner without a model, for runs that need only features and labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import (
    LEARN,
    Learner,
    ModelError,
    Predictions,
    Targets,
    Task,
)
from anabranch.models.learners.targets import every_usable


class NullLearner(Learner):
    """Predicts nothing and learns nothing, so that labels are joined by the same rules as in a run.

    Args:
        names: the feature columns.
        task: the kind of prediction.

    >>> learner = NullLearner(("a",), Task.REGRESSION)
    >>> learner.run_each(np.zeros((2, 1)), np.array([1.0, 2.0])).values, learner.version
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
        """See `Learner.run`; every prediction is missing."""
        learned = int((op == LEARN).sum())
        self.version += learned
        return self._missing(len(op) - learned)

    def run_each(
        self, features: NDArray[np.float64], target: NDArray[np.float64]
    ) -> Predictions | None:
        """See `Learner.run_each`."""
        if not every_usable(target, self.task):
            return None
        self.version += len(target)
        return self._missing(len(target))

    def describe(self) -> str:
        """See `Learner.describe`."""
        return type(self).__name__

    def to_river(self) -> Any:
        """See `Learner.to_river`."""
        raise ModelError("a null learner has no model: run the pipeline itself to train one")

    @property
    def unchanged_by_predicting(self) -> bool:
        """See `Learner.unchanged_by_predicting`."""
        return True

    def _missing(self, rows: int) -> Predictions:
        if self.task is Task.MULTICLASS:
            return Predictions([{} for _ in range(rows)], [None] * rows)
        return Predictions(np.full(rows, np.nan))
