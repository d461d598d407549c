"""The loss of each prediction, as drift detectors and rollouts use it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import NO_LABEL, Predictions, Targets, Task
from anabranch.state.errors import DeclarationError

LOSSES = {
    Task.BINARY: ("error", "logloss", "brier", "absolute"),
    Task.MULTICLASS: ("error", "logloss", "brier"),
    Task.REGRESSION: ("absolute", "squared"),
    Task.ANOMALY: ("absolute", "squared"),
}
"""The losses of each task; the first is its default."""


def check_loss(task: Task, kind: str | None) -> str:
    """Validate the kind of loss; None stands for the task's default.

    Raises:
        DeclarationError: the task has no such loss.

    >>> check_loss(Task.REGRESSION, None)
    'absolute'
    """
    kinds = LOSSES[task]
    if kind is not None and kind not in kinds:
        raise DeclarationError(
            f"no loss {kind!r} for a {task.value} task: there are {', '.join(kinds)}"
        )
    return kind or kinds[0]


def losses(
    task: Task, y_true: Targets, predictions: Predictions, kind: str | None = None
) -> NDArray[np.float64]:
    """The loss of each row, `(rows,) float64`; NaN where there is no prediction.

    * error: 1 if the predicted label is wrong, else 0. In [0, 1].
    * brier: squared distance of the probabilities from the truth; in a binary task of True alone,
      in [0, 1]; in a multi-class task summed over the labels, in [0, 2].
    * logloss: in nats, clipped as River does: at most 34.6.
    * absolute, squared: of the difference; unbounded unless the values are probabilities.

    Raises:
        DeclarationError: the task has no such loss.

    >>> losses(Task.BINARY, np.array([1.0, 0.0]), Predictions(np.array([0.8, 0.6])))
    array([0., 1.])
    >>> losses(Task.BINARY, np.array([1.0, 0.0]), Predictions(np.array([0.5, 0.5])), "brier")
    array([0.25, 0.25])
    """
    kind = check_loss(task, kind)
    if task is Task.MULTICLASS:
        pairs = zip(y_true, predictions.values, predictions.labels, strict=True)
        return np.array([_multiclass(kind, *pair) for pair in pairs], np.float64)
    truth = np.asarray(y_true, np.float64)
    values: NDArray[np.float64] = predictions.values
    if kind == "error":
        labels = predictions.binary_labels()
        wrong: NDArray[np.float64] = (labels != truth).astype(np.float64)
        wrong[labels == NO_LABEL] = np.nan
        return wrong
    if kind == "logloss":
        p = np.clip(values, 1e-15, 1 - 1e-15)
        return -np.log(np.where(truth == 1.0, p, 1 - p))
    difference = np.abs(truth - values)
    return difference if kind == "absolute" else difference * difference


def _multiclass(
    kind: str, truth: object, probabilities: dict[object, float], label: object
) -> float:
    if not probabilities:
        return math.nan
    if kind == "error":
        return float(label != truth)
    p = probabilities.get(truth, 0.0)
    if kind == "logloss":
        return -math.log(min(max(p, 1e-15), 1 - 1e-15))
    others = sum(q * q for other, q in probabilities.items() if other != truth)
    return (1.0 - p) ** 2 + others
