"""A learner that learns a share of the labels, for models that are dear to teach."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import LEARN, Learner, Predictions, Targets
from anabranch.models.learners.targets import select

U64 = NDArray[np.uint64]


class Thinned:
    """Learns each label with the probability `share`, and predicts everything.

    Which labels those are depends on how many came before, and on nothing else: by a mix of their
    number (Steele, Lea, Flood, *Fast splittable pseudorandom number generators*, 2014), so that no
    rhythm of the stream is met.

    Args:
        learner: taken over.
        share: in (0, 1].

    Attributes:
        learner: the one behind.
        version: labels that it was given, learned or not.
        failures: see `RiverLearner`.

    >>> from river import linear_model
    >>> from anabranch.models.learners.linear import learner_for
    >>> from anabranch.models.learners.learner import Task
    >>> inner = learner_for(linear_model.LinearRegression(), ("a",), Task.REGRESSION)
    >>> thinned = Thinned(inner, 0.25)
    >>> op, row = np.ones(1000, np.uint8), np.zeros(1000, np.int64)
    >>> _ = thinned.run(np.array([[1.0]]), op, row, np.ones(1000))
    >>> thinned.version, inner.version
    (1000, 245)
    """

    def __init__(self, learner: Learner, share: float) -> None:
        self.learner, self.share = learner, share
        self.task, self.names, self.version = learner.task, learner.names, learner.version
        self.failures: Sequence[int] = ()

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
        drawn = np.ones(op.size, np.bool_)
        drawn[learns] = _draws(self.version, count) < self.share
        at = np.flatnonzero(drawn)
        answers = self.learner.run(features, op[at], row[at], select(target, at))
        self.failures = at[list(getattr(self.learner, "failures", ()))].tolist()
        self.version += count
        return answers


def _draws(first: int, count: int) -> NDArray[np.float64]:
    """`(count,) float64` in [0, 1): of the numbers from `first` on."""
    mixed: U64 = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
