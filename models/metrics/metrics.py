"""Running metrics by River's names, equal to River bit for bit; common ones are compiled."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from river import linear_model, naive_bayes
from river import metrics as river_metrics
from river.anomaly import HalfSpaceTrees

from anabranch.models.learners.learner import NO_LABEL, Predictions, Targets, Task
from anabranch.models.metrics.kernels import (
    update_absolute,
    update_absolute_by,
    update_confusion,
    update_confusion_by,
    update_log_loss,
    update_log_loss_by,
    update_squared,
    update_squared_by,
    update_thresholds,
    update_thresholds_by,
)
from anabranch.state.errors import DeclarationError

_NONE = np.empty(0, np.uint8)
Arrays = tuple[NDArray[np.float64], ...]


class Metric(Protocol):
    """A running number over scored predictions.

    Attributes:
        name: River's class name.
        bigger_is_better: whether a larger value is a better one.
    """

    name: str
    bigger_is_better: bool

    def update_many(self, y_true: Targets, predictions: Predictions) -> None:
        """Score predictions in order; rows without a prediction are skipped."""
        ...

    def dump(self) -> Any:
        """The state, as numpy arrays or a River object with plain data, for `load`."""
        ...

    def load(self, state: Any) -> None:
        """Continue from the state that `dump` returned."""
        ...

    @property
    def value(self) -> float:
        """The metric over all scored predictions; River's own value before the first."""
        ...

    @property
    def scored(self) -> bool:
        """Whether enough was scored for `value` to say something."""
        ...


@runtime_checkable
class KernelMetric(Metric, Protocol):
    """A metric whose state is arrays, so that many of its kind can be updated in one pass.

    Attributes:
        arrays: the state.
    """

    arrays: Arrays

    def update_by(
        self, y_true: Targets, predictions: Predictions, group: NDArray[np.uint8], arrays: Arrays
    ) -> None:
        """`update_many` of several metrics at once.

        Args:
            y_true: `(rows,)`.
            predictions: one per row.
            group: `(rows,) uint8`: the metric that each row belongs to.
            arrays: the stacked states; ``each[group[row]] for each in arrays`` is the metric's.
        """
        ...


class _ArrayMetric:
    """What metrics whose state is arrays have in common."""

    arrays: Arrays

    def dump(self) -> Arrays:
        """See `Metric.dump`."""
        return tuple(self.arrays)

    def load(self, state: Arrays) -> None:
        """See `Metric.load`."""
        self.arrays = state


class _Mean(_ArrayMetric):
    """The mean of a loss, by the recurrence of `river.stats.Mean`."""

    bigger_is_better = False

    def __init__(self, name: str) -> None:
        self.name = name
        # Count, mean, and the exponent of a squared loss (see `update_squared`).
        self._state = np.array([0.0, 0.0, 2.0])

    def update_many(self, y_true: Targets, predictions: Predictions) -> None:
        """See `Metric.update_many`."""
        _MEANS[self.name][0](y_true, predictions.values, self._state)

    def update_by(
        self, y_true: Targets, predictions: Predictions, group: NDArray[np.uint8], arrays: Arrays
    ) -> None:
        """See `KernelMetric.update_by`."""
        _MEANS[self.name][1](y_true, predictions.values, group, *arrays)

    @property
    def arrays(self) -> Arrays:
        """See `KernelMetric.arrays`."""
        return (self._state,)

    @arrays.setter
    def arrays(self, arrays: Arrays) -> None:
        (self._state,) = arrays

    @property
    def value(self) -> float:
        """The mean, for RMSE its square root; 0 before the first."""
        mean = float(self._state[1])
        return mean**0.5 if self.name == "RMSE" else mean

    @property
    def scored(self) -> bool:
        """See `Metric.scored`."""
        return bool(self._state[0])


class _Confusion(_ArrayMetric):
    """Accuracy, precision, recall and F1 of a binary task, from one table of counts."""

    bigger_is_better = True

    def __init__(self, name: str) -> None:
        self.name = name
        self._counts = np.zeros((2, 2))  # [truth, prediction]

    def update_many(self, y_true: Targets, predictions: Predictions) -> None:
        """See `Metric.update_many`."""
        labels = _NONE if predictions.labels is None else predictions.labels
        update_confusion(np.asarray(y_true), predictions.values, labels, self._counts)

    def update_by(
        self, y_true: Targets, predictions: Predictions, group: NDArray[np.uint8], arrays: Arrays
    ) -> None:
        """See `KernelMetric.update_by`."""
        labels = _NONE if predictions.labels is None else predictions.labels
        update_confusion_by(np.asarray(y_true), predictions.values, labels, group, *arrays)

    @property
    def arrays(self) -> Arrays:
        """See `KernelMetric.arrays`."""
        return (self._counts,)

    @arrays.setter
    def arrays(self, arrays: Arrays) -> None:
        (self._counts,) = arrays

    @property
    def value(self) -> float:
        """As River's formula of that name; 0 where that divides by zero."""
        (tn, fp), (fn, tp) = self._counts.tolist()
        if self.name == "Accuracy":
            return _divide(tp + tn, tp + tn + fp + fn)
        precision, recall = _divide(tp, tp + fp), _divide(tp, tp + fn)
        if self.name == "F1":
            return _divide(2.0 * precision * recall, precision + recall)
        return precision if self.name == "Precision" else recall

    @property
    def scored(self) -> bool:
        """See `Metric.scored`."""
        return bool(self._counts.any())


class _Thresholds(_ArrayMetric):
    """ROC AUC from counts at ten thresholds, as `river.metrics.ROCAUC`."""

    name = "ROCAUC"
    bigger_is_better = True

    def __init__(self) -> None:
        self._thresholds = np.array(_make_river("ROCAUC", Task.BINARY).thresholds)
        self._counts = np.zeros((self._thresholds.size, 2))  # true and false positives
        self._truths = np.zeros(2)  # positives and negatives

    def update_many(self, y_true: Targets, predictions: Predictions) -> None:
        """See `Metric.update_many`."""
        truths = np.asarray(y_true)
        update_thresholds(truths, predictions.values, self._thresholds, self._counts, self._truths)

    def update_by(
        self, y_true: Targets, predictions: Predictions, group: NDArray[np.uint8], arrays: Arrays
    ) -> None:
        """See `KernelMetric.update_by`."""
        truths = np.asarray(y_true)
        update_thresholds_by(truths, predictions.values, self._thresholds, group, *arrays)

    @property
    def arrays(self) -> Arrays:
        """See `KernelMetric.arrays`."""
        return self._counts, self._truths

    @arrays.setter
    def arrays(self, arrays: Arrays) -> None:
        self._counts, self._truths = arrays

    @property
    def value(self) -> float:
        """The area; 0 when one class is missing."""
        positives, negatives = self._truths.tolist()
        true_rates = [_divide(n, positives) for n in self._counts[:, 0].tolist()]
        false_rates = [_divide(n, negatives) for n in self._counts[:, 1].tolist()]
        return float(-np.trapezoid(x=false_rates, y=true_rates))

    @property
    def scored(self) -> bool:
        """Whether there were labels of both classes."""
        return bool(self._truths.all())


def _divide(a: float, b: float) -> float:
    return a / b if b else 0.0


class RiverMetric:
    """Any other metric, computed by River, one prediction at a time.

    River's averages over classes (`MacroF1`) sum in the order of a set: over text labels their last
    bit may differ from one process to the next.

    Attributes:
        metric: the River object.
        skipped: number of pairs that the metric could not score (for example the logarithm of a
            negative number in RMSLE); River itself would raise.
        updates: number of pairs that it scored.
    """

    def __init__(self, river_metric: Any, task: Task) -> None:
        self.metric = river_metric
        self.name = type(river_metric).__name__
        self.bigger_is_better = bool(river_metric.bigger_is_better)
        self.skipped = 0
        self.updates = 0
        self._task = task
        self._labels = bool(getattr(river_metric, "requires_labels", False))

    def update_many(self, y_true: Targets, predictions: Predictions) -> None:
        """See `Metric.update_many`."""
        truths = y_true.tolist() if isinstance(y_true, np.ndarray) else y_true
        for truth, predicted in zip(truths, self._as_river(predictions), strict=True):
            if predicted is None or predicted == {} or predicted != predicted:
                continue
            if self._task in (Task.BINARY, Task.ANOMALY):
                if truth != truth:
                    continue
                truth = truth == 1.0
            try:
                self.metric.update(truth, predicted)
                self.updates += 1
            except (ArithmeticError, ValueError):
                self.skipped += 1

    def dump(self) -> tuple[Any, int, int]:
        """See `Metric.dump`."""
        return self.metric, self.skipped, self.updates

    def load(self, state: tuple[Any, ...]) -> None:
        """See `Metric.load`."""
        # What an earlier version stored has no number of updates.
        self.metric, self.skipped, self.updates = (*state, 1)[:3]

    def _as_river(self, predictions: Predictions) -> list[Any]:
        """What `evaluate.progressive_val_score` would pass to the metric."""
        if self._task is Task.MULTICLASS:
            return predictions.labels if self._labels else predictions.values  # type: ignore[no-any-return]
        if self._task is not Task.BINARY:
            return predictions.values.tolist()  # type: ignore[no-any-return]
        if self._labels:
            named = {0: False, 1: True, NO_LABEL: None}
            return [named[label] for label in predictions.binary_labels().tolist()]
        return [
            None if math.isnan(p) else {False: 1.0 - p, True: p}
            for p in predictions.values.tolist()
        ]

    @property
    def value(self) -> float:
        """River's `get()`."""
        return float(self.metric.get())

    @property
    def scored(self) -> bool:
        """See `Metric.scored`."""
        return self.updates > 0


def reported(metric: Metric) -> float:
    """The value of a metric for people and monitoring: NaN before anything was scored."""
    return metric.value + 0.0 if metric.scored else math.nan  # + 0.0 makes 0.0 of -0.0


_MEANS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "LogLoss": (update_log_loss, update_log_loss_by),
    "MAE": (update_absolute, update_absolute_by),
    "MSE": (update_squared, update_squared_by),
    "RMSE": (update_squared, update_squared_by),
}
_CONFUSION = ("Accuracy", "Precision", "Recall", "F1")
_TYPICAL = {
    Task.BINARY: linear_model.LogisticRegression,
    Task.MULTICLASS: naive_bayes.GaussianNB,
    Task.REGRESSION: linear_model.LinearRegression,
    Task.ANOMALY: HalfSpaceTrees,
}


def _make_river(name: str, task: Task) -> Any:
    """The River metric of that name; None if there is none that fits the task."""
    kind = getattr(river_metrics, name, None)
    if not isinstance(kind, type) or kind in (
        # Tables, not numbers.
        river_metrics.ConfusionMatrix,
        river_metrics.ClassificationReport,
    ):
        return None
    try:
        river_metric = kind()
    except TypeError:  # it requires an argument
        return None
    if not river_metric.works_with(_TYPICAL[task]()):
        return None
    if task is Task.MULTICLASS and isinstance(river_metric, river_metrics.base.BinaryMetric):
        return None
    return river_metric


def names_for(task: Task) -> list[str]:
    """The metrics that fit a task, sorted.

    >>> names_for(Task.ANOMALY)
    ['ROCAUC', 'RollingPRAUC', 'RollingROCAUC']
    """
    return sorted({n for n in river_metrics.__all__ if _make_river(n, task) is not None})


def metric(name: str, task: Task = Task.BINARY) -> Metric:
    """A new metric by its name in `river.metrics`; any that requires no arguments.

    Raises:
        DeclarationError: there is no such metric, or it does not fit the task.

    >>> accuracy = metric("Accuracy")
    >>> accuracy.update_many(np.array([1.0, 0.0, 1.0]), Predictions(np.array([0.9, 0.6, np.nan])))
    >>> accuracy.value
    0.5
    >>> metric("Acuracy")
    Traceback (most recent call last):
    ...
    anabranch.state.errors.DeclarationError: no metric 'Acuracy' for a binary task: did you mean \
Accuracy, BalancedAccuracy?
    """
    river_metric = _make_river(name, task)
    if river_metric is None:
        fitting = names_for(task)
        close = difflib.get_close_matches(name, fitting, n=3, cutoff=0.5)
        close += [n for n in fitting if name and name.lower() in n.lower() and n not in close]
        hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(fitting)}"
        raise DeclarationError(f"no metric {name!r} for a {task.value} task: {hint}")
    if name in _MEANS:
        return _Mean(name)
    if name in _CONFUSION and task is Task.BINARY:
        return _Confusion(name)
    return _Thresholds() if name == "ROCAUC" else RiverMetric(river_metric, task)
