"""What the model step runs: a learner predicts and learns, strictly in the order it is told."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.state.errors import AnabranchError

PREDICT, LEARN = 0, 1
"""The two operations of a step, as they stand in an `op` array."""

NO_LABEL = 255
"""In an array of binary labels: the model had no prediction yet."""

Label: TypeAlias = Hashable
Targets: TypeAlias = NDArray[np.float64] | Sequence[Label]


class ModelError(AnabranchError):
    """A model failed on a row, or does not fit the task that it was given."""


class Task(Enum):
    """What a model is asked: it decides the type of targets and of predictions.

    >>> Task("binary") is Task.BINARY
    True
    """

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"
    ANOMALY = "anomaly"


class Predictions(msgspec.Struct):
    """The answers of one model to a number of rows, in their order.

    Attributes:
        values: `(rows,) float64`. BINARY: probability of True; REGRESSION: the value; ANOMALY: the
            score. NaN where the model had no prediction yet. MULTICLASS: a list of
            `{label: probability}`, `{}` where there was none.
        labels: the predicted labels, by the model's own rule. BINARY: `(rows,) uint8` of 0, 1 or
            `NO_LABEL`, or None, which means `values > 0.5`. MULTICLASS: a list, None where there
            was none. Else None.

    A label is kept beside the probability because River breaks a tie of 0.5 in favour of the class
    that the model saw first, and because some classifiers (voting, one-vs-one) do not
    choose the most probable label.

    >>> Predictions(np.array([0.25, 0.75, np.nan])).binary_labels()
    array([  0,   1, 255], dtype=uint8)
    """

    values: Any
    labels: Any = None

    def binary_labels(self) -> NDArray[np.uint8]:
        """`(rows,) uint8` of 0, 1 or `NO_LABEL`; for BINARY only."""
        if self.labels is not None:
            return self.labels  # type: ignore[no-any-return]
        labels = (self.values > 0.5).view(np.uint8)
        missing = self.values != self.values
        if missing.any():
            labels[missing] = NO_LABEL
        return labels  # type: ignore[no-any-return]

    def take(self, rows: NDArray[np.int64]) -> Predictions:
        """The predictions at `rows`, in that order."""
        if isinstance(self.values, list):
            wanted = rows.tolist()
            labels = self.labels
            return Predictions(
                [self.values[i] for i in wanted], labels and [labels[i] for i in wanted]
            )
        return Predictions(self.values[rows], None if self.labels is None else self.labels[rows])


class Learner(Protocol):
    """A model of one task over float64 rows with fixed column names.

    Attributes:
        task: what it is asked.
        names: the feature columns, in order.
        version: rows that this learner has learned.

    A learner has one owner, is not thread-safe, and pickles: the copy continues identically.
    """

    task: Task
    names: tuple[str, ...]
    version: int

    def run(
        self,
        features: NDArray[np.float64],
        op: NDArray[np.uint8],
        row: NDArray[np.int64],
        target: Targets,
    ) -> Predictions:
        """Work through the steps, strictly in order.

        Args:
            features: `(capacity, features)`, C-contiguous. Step i reads `features[row[i]]`.
            op: `(steps,)`, `PREDICT` or `LEARN`.
            row: `(steps,)`.
            target: BINARY (0.0 or 1.0), REGRESSION and ANOMALY: `(steps,) float64`; MULTICLASS: a
                sequence of labels. What stands at a PREDICT step is ignored.

        Returns:
            One prediction per PREDICT step, in order.

        Raises:
            ModelError: the model failed; the message names the step. The steps before it are done,
                the failing one may be half done: go on from a checkpoint, not from here.
        """
        ...
