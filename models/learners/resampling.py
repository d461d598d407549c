"""A learner that learns some rows of each class, or some of them several times; and its scores.

Which rows are drawn is decided as `river.imblearn.RandomUnderSampler` and `RandomOverSampler` do
it, with the same random numbers in the same order. So a model behind it is, bit for bit, the one
inside River's wrapper.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from river.utils.random import poisson

from anabranch.models.learners.learner import PREDICT, Label, Learner, Predictions, Targets, Task
from anabranch.models.learners.targets import select


class Sampler:
    """How often each row is to be learned, by its class; one row after another.

    It is rejection sampling in a stream: the class that is the furthest below what is desired (the
    *pivot*) is always learned, any other one with the probability that makes the shares of the
    classes those desired. See Max Halford, *Under-sampling a dataset with desired ratios* (2018).
    Over-sampling is the same upside down: a row is learned a Poisson number of times.

    Args:
        desired: share by class. A class without one is always learned, once.
        seed: of the random numbers.
        over: over-sample.

    Attributes:
        seen: rows by class, of the classes in `desired`.

    >>> sampler = Sampler({True: 0.5, False: 0.5}, seed=1)
    >>> [sampler.draw(y) for y in (False, False, True, True, True, False)]
    [0, 1, 0, 1, 1, 0]
    >>> sampler.rates()
    {False: 1.0, True: 1.0}
    """

    def __init__(self, desired: Mapping[Label, float], seed: int, over: bool = False) -> None:
        self._desired = dict(desired)
        self._over = over
        self._rng = random.Random(seed)
        self._pivot: Label = None
        self.seen: dict[Label, int] = {}

    def draw(self, label: Label) -> int:
        """How often a row of this class, which comes now, is learned."""
        desired, seen = self._desired, self.seen
        if label not in desired:
            return 1
        seen[label] = seen.get(label, 0) + 1
        if label == self._pivot:
            return 1
        # The order of the arithmetic is River's: a ratio of just 1 depends on it.
        if self._over:
            pivot = self._pivot = max(seen, key=lambda each: seen[each] / desired[each])
            rate = seen[pivot] / desired[pivot] * desired[label] / seen[label]
            return int(poisson(rate, self._rng))
        pivot = self._pivot = max(seen, key=lambda each: desired[each] / seen[each])
        ratio = desired[label] / (desired[pivot] / seen[pivot] * seen[label])
        return int(ratio < 1 and self._rng.random() < ratio)

    def rates(self) -> dict[Label, float]:
        """How often a row of each class seen is learned as things stand, on average.

        Under-sampling: the probability, and 1 of the class that is kept whole. Over-sampling: the
        mean number of times, and 1 of the class that is not repeated.
        """
        wanted = {label: self._desired[label] / count for label, count in self.seen.items()}
        unit = (min if self._over else max)(wanted.values(), default=1.0)
        return {label: each / unit for label, each in wanted.items()}


class Sampled:
    """A learner whose rows are drawn by class, and whose scores are those of the whole stream.

    A model that has learned with other shares of the classes than the stream has gives too large
    probabilities to the rare ones. With `correct` they are brought back: from `ps`, of a binary
    model,

        p = beta * ps / (beta * ps - ps + 1)

    where beta is the rate at which False is learned, over that of True (Dal Pozzolo, Caelen,
    Johnson, Bontempi, *Calibrating Probability with Undersampling for Unbalanced Classification*,
    2015). Of several classes each is divided by its rate, and all are brought to a sum of 1, which
    is the same for two (Saerens, Latinne, Decaestecker, *Adjusting the Outputs of a Classifier to
    New a Priori Probabilities*, 2002). Rates are those in force when the prediction is made (see
    `Sampler.rates`): they follow from the shares desired and the rows counted, and do not have the
    noise of what was drawn. Until every class was seen nothing is corrected.

    The predicted label stays what the model says of the classes as it has learned them, as River's
    `predict_one`; so it may be True at a score below 0.5.

    Args:
        learner: a classifier; taken over.
        desired: share by class; binary: of `True` and `False`.
        seed: of the random numbers.
        over: over-sample, instead of under-sample.
        correct: the scores.

    Attributes:
        learner: the one behind.
        version: labels that it was given, drawn or not.
        failures: see `RiverLearner`.

    >>> from river import linear_model
    >>> from anabranch.models.learners.linear import learner_for
    >>> inner = learner_for(linear_model.LogisticRegression(), ("a",), Task.BINARY)
    >>> learner = Sampled(inner, {True: 0.5, False: 0.5}, seed=1)
    >>> op, row = np.array([1, 1, 1, 1, 1, 0], np.uint8), np.zeros(6, np.int64)
    >>> learner.run(np.array([[0.0]]), op, row, np.array([1.0, 0, 0, 0, 0, 0])).values.round(3)
    array([0.199])
    """

    def __init__(
        self,
        learner: Learner,
        desired: Mapping[Label, float],
        seed: int,
        over: bool = False,
        correct: bool = True,
    ) -> None:
        self.learner = learner
        self.task, self.names, self.version = learner.task, learner.names, learner.version
        self._sampler = Sampler(desired, seed, over)
        self._classes = set(desired)
        self._correct = correct
        self.failures: Sequence[int] = ()

    def run(
        self,
        features: NDArray[np.float64],
        op: NDArray[np.uint8],
        row: NDArray[np.int64],
        target: Targets,
    ) -> Predictions:
        """See `Learner.run`."""
        draw, times, rates = self._sampler.draw, [], []
        known = self._rates()
        labels = (target == 1.0).tolist() if isinstance(target, np.ndarray) else target
        for operation, label in zip(op.tolist(), labels, strict=True):
            if operation == PREDICT:
                times.append(1)
                rates.append(known)
            else:
                times.append(draw(label))
                known = self._rates()
        at = np.repeat(np.arange(op.size), times)
        answers = self.learner.run(features, op[at], row[at], select(target, at))
        self.failures = np.unique(at[list(getattr(self.learner, "failures", ()))]).tolist()
        self.version += op.size - len(rates)
        return self._corrected(answers, rates) if self._correct else answers

    def _rates(self) -> dict[Label, float]:
        """Empty until every class was seen."""
        if not self._correct or len(self._sampler.seen) < len(self._classes):
            return {}
        return self._sampler.rates()

    def _corrected(self, answers: Predictions, rates: list[dict[Label, float]]) -> Predictions:
        if self.task is Task.MULTICLASS:
            pairs = zip(answers.values, rates, strict=True)
            return Predictions([corrected_many(p, each) for p, each in pairs], answers.labels)
        beta = np.array([each[False] / each[True] if each else 1.0 for each in rates])
        return Predictions(corrected(answers.values, beta), answers.binary_labels())


def corrected(
    probabilities: NDArray[np.float64], beta: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """Probabilities of True, `(rows,) float64`, where False was learned `beta` times as often.

    Dal Pozzolo et al. 2015, equation 4; NaN stays NaN.

    >>> corrected(np.array([0.5, 1.0, 0.0]), 0.01).round(4)
    array([0.0099, 1.    , 0.    ])
    """
    drawn: NDArray[np.float64] = beta * probabilities
    return drawn / (drawn + (1.0 - probabilities))  # so that 1 stays 1


def corrected_many(
    probabilities: dict[Label, float], rates: Mapping[Label, float]
) -> dict[Label, float]:
    """Probabilities by class, where each was learned at its rate (1 where there is none).

    >>> corrected_many({"a": 0.5, "b": 0.5}, {"a": 0.25})
    {'a': 0.8, 'b': 0.2}
    """
    if not rates:
        return probabilities
    weighed = {label: p / rates.get(label, 1.0) for label, p in probabilities.items()}
    total = sum(weighed.values())
    return {label: p / total for label, p in weighed.items()} if total else probabilities
