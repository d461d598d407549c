"""The learner protocol: what the model step runs, whatever kind of model is behind it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

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

L = TypeVar("L", bound="Learner")


class ModelError(AnabranchError):
    """A model failed on a row, or can't do what is asked of it."""


class StepFailed(ModelError):
    """A model raised at a step of `Learner.run`.

    The learner is as after the steps before it, and what the model has half done at this one stays.

    Attributes:
        step: the index of the step.
        predictions: those of the PREDICT steps before it.
        detail: what was raised, and where in the user's code.
    """

    def __init__(self, step: int, predictions: Predictions, detail: str) -> None:
        super().__init__(detail)
        self.step, self.predictions, self.detail = step, predictions, detail


class Task(Enum):
    """The kind of prediction problem: it decides the type of targets and of predictions.

    >>> Task("binary") is Task.BINARY
    True
    """

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"
    ANOMALY = "anomaly"


class Predictions(msgspec.Struct):
    """The predictions of one model for a number of rows, in their order.

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
            indices = rows.tolist()
            labels = self.labels
            return Predictions(
                [self.values[i] for i in indices], labels and [labels[i] for i in indices]
            )
        return Predictions(self.values[rows], None if self.labels is None else self.labels[rows])


class Learner(Protocol):
    """A model of one task over float64 rows with fixed column names.

    A model (`RiverLearner`, `CompiledLinear`, `NullLearner`) implements `run`, `describe` and
    `to_river`, and what else it can do. What wraps another learner extends `LearnerWrapper`, which
    leaves all but `run` to the learner inside.

    A learner has one owner, is not thread-safe, and can be pickled: the copy continues
    identically. Its class must be in the table of `models.learners.pickling`.

    Attributes:
        task: the kind of prediction.
        names: the feature columns, in order.
        version: labels that it has been given to learn.
        inner: the learner that this one wraps; None for a model.
        run_each: predict each row and learn it before the next, as `run` would in so many steps,
            but faster; None for a learner that has only `run`. Takes `features (rows, features)
            float64` and `target (rows,) float64`, and returns one prediction per row; or None,
            with nothing done, when a target can't be learned.
    """

    task: Task
    names: tuple[str, ...]
    version: int
    inner: Learner | None = None
    run_each: ClassVar[Callable[..., Predictions | None] | None] = None

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
                sequence of labels. The value at a PREDICT step is ignored.

        Returns:
            One prediction per PREDICT step, in order.

        Raises:
            StepFailed: the model raised. The steps before it are done, the failing one may be half
                done, and those behind it have left no trace: so one can go on with them
                (`models.learners.fault_isolation`).
        """
        ...

    def describe(self) -> str:
        """How the model was declared, the same text in every process and after any training."""
        ...

    def to_river(self) -> Any:
        """The River model behind this learner, trained as far as the learner is.

        Raises:
            ModelError: there is none.
        """
        ...

    def weigh_classes(self, weights: Mapping[Label, float]) -> None:
        """Let each row learned from now on count as much as its class weighs, 1 by default.

        Raises:
            ModelError: the model takes no weights.
        """
        raise ModelError(
            f"{self.describe()} takes no class weights: use undersample(…) or oversample(…)"
        )

    @property
    def can_fail(self) -> bool:
        """Whether `run` may raise `StepFailed`."""
        return False

    @property
    def unchanged_by_predicting(self) -> bool:
        """Whether predictions are known to leave the model as it was.

        If so, the rows that it has learned suffice to rebuild it; else its predictions have to be
        repeated too.
        """
        return False


class LearnerWrapper(Learner):
    """A learner around another one; the base class of all wrappers.

    Override `run`, and keep `version` up to date there; everything else is left to the learner
    inside. If the one inside raises `StepFailed`, the wrapper is as after the steps before, too,
    and raises one with its own number of the step.

    Args:
        inner: the learner to wrap; it belongs to this one from now on.
    """

    inner: Learner

    def __init__(self, inner: Learner) -> None:
        self.inner = inner
        self.task, self.names, self.version = inner.task, inner.names, inner.version

    def describe(self) -> str:
        """See `Learner.describe`."""
        return self.inner.describe()

    def to_river(self) -> Any:
        """See `Learner.to_river`."""
        return self.inner.to_river()

    def weigh_classes(self, weights: Mapping[Label, float]) -> None:
        """See `Learner.weigh_classes`."""
        self.inner.weigh_classes(weights)

    @property
    def can_fail(self) -> bool:
        """See `Learner.can_fail`."""
        return self.inner.can_fail

    @property
    def unchanged_by_predicting(self) -> bool:
        """See `Learner.unchanged_by_predicting`."""
        return self.inner.unchanged_by_predicting


def unwrapped(learner: Learner) -> Iterator[Learner]:
    """The learner, then the one inside it, and so on down to the model."""
    each: Learner | None = learner
    while each is not None:
        yield each
        each = each.inner


def find_learner(learner: Learner, kind: type[L]) -> L | None:
    """The outermost learner of a class among a learner and those inside it; None: there is none."""
    return next((each for each in unwrapped(learner) if isinstance(each, kind)), None)
