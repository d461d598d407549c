"""A learner that learns only a share of the labels, for models that are expensive to train."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import (
    LEARN,
    Learner,
    LearnerWrapper,
    Predictions,
    StepFailed,
    Targets,
)
from anabranch.models.learners.targets import select

U64 = NDArray[np.uint64]


class SubsampledLearner(LearnerWrapper):
    """Learns each label with the probability `sample_rate`, and predicts every row.

    Which labels are learned depends only on how many came before: their number is hashed (Steele,
    Lea, Flood, *Fast splittable pseudorandom number generators*, 2014), so that a periodic stream
    is sampled evenly.

    Args:
        inner: the learner to wrap.
        sample_rate: the share of labels to learn, in (0, 1].

    Attributes:
        version: labels that it was given, learned or not.

    >>> from river import linear_model
    >>> from anabranch.models.learners.learner import Task
    >>> from anabranch.models.learners.compiled import learner_for
    >>> inner = learner_for(linear_model.LinearRegression(), ("a",), Task.REGRESSION)
    >>> learner = SubsampledLearner(inner, 0.25)
    >>> op, row = np.ones(1000, np.uint8), np.zeros(1000, np.int64)
    >>> _ = learner.run(np.array([[1.0]]), op, row, np.ones(1000))
    >>> learner.version, inner.version
    (1000, 245)
    """

    def __init__(self, inner: Learner, sample_rate: float) -> None:
        super().__init__(inner)
        self.sample_rate = sample_rate

    def run(
        self,
        features: NDArray[np.float64],
        op: NDArray[np.uint8],
        row: NDArray[np.int64],
        target: Targets,
    ) -> Predictions:
        """See `Learner.run`."""
        learns = op == LEARN
        count = int(np.count_nonzero(learns))
        sampled = np.ones(op.size, np.bool_)
        sampled[learns] = _uniform(self.version, count) < self.sample_rate
        at = np.flatnonzero(sampled)
        try:
            predictions = self.inner.run(features, op[at], row[at], select(target, at))
        except StepFailed as failed:
            step = int(at[failed.step])
            self.version += int(np.count_nonzero(learns[: step + 1]))
            raise StepFailed(step, failed.predictions, failed.detail) from failed
        self.version += count
        return predictions

    def describe(self) -> str:
        """See `Learner.describe`."""
        return f"{self.inner.describe()}, sample_rate={self.sample_rate:g}"


def _uniform(first: int, count: int) -> NDArray[np.float64]:
    """`(count,) float64` in [0, 1): a hash of each integer from `first` on."""
    mixed: U64 = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
