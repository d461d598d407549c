"""Resampling by class for imbalanced labels, with probabilities corrected for it.

Rows are drawn as `river.imblearn.RandomUnderSampler` and `RandomOverSampler` draw them, with the
same random numbers in the same order. So the model inside is, bit for bit, the one inside River's
wrapper.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from river.utils.random import poisson

from anabranch.models.learners.learner import (
    LEARN,
    PREDICT,
    Label,
    Learner,
    LearnerWrapper,
    Predictions,
    StepFailed,
    Targets,
    Task,
)
from anabranch.models.learners.targets import select


class Sampler:
    """Decides for one row after another how often it is learned, by its class.

    Undersampling is rejection sampling on a stream: the class that is furthest below its desired
    share (the *pivot*) is always learned, any other one with the probability that brings the
    classes to their desired shares. See Max Halford, *Under-sampling a dataset with desired ratios*
    (2018). Oversampling is the reverse: a row is learned a Poisson number of times.

    Args:
        desired: share by class. A class without one is always learned, once.
        seed: of the random numbers.
        over: oversample instead of undersample.

    Attributes:
        seen: rows so far by class, for the classes in `desired`.

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
        """How often the next row, which is of this class, is learned."""
        desired, seen = self._desired, self.seen
        if label not in desired:
            return 1
        seen[label] = seen.get(label, 0) + 1
        if label == self._pivot:
            return 1
        # The arithmetic is in River's order: whether a ratio is exactly 1 depends on it.
        if self._over:
            pivot = self._pivot = max(seen, key=lambda each: seen[each] / desired[each])
            rate = seen[pivot] / desired[pivot] * desired[label] / seen[label]
            return int(poisson(rate, self._rng))
        pivot = self._pivot = max(seen, key=lambda each: desired[each] / seen[each])
        ratio = desired[label] / (desired[pivot] / seen[pivot] * seen[label])
        return int(ratio < 1 and self._rng.random() < ratio)

    def rates(self) -> dict[Label, float]:
        """How often a row of each class seen so far is currently learned, on average.

        Undersampling: the probability, 1 for the class of which every row is learned. Oversampling:
        the mean number of times, 1 for the class that is not repeated.
        """
        ratios = {label: self._desired[label] / count for label, count in self.seen.items()}
        unit = (min if self._over else max)(ratios.values(), default=1.0)
        return {label: ratio / unit for label, ratio in ratios.items()}


class ResampledLearner(LearnerWrapper):
    """Learns rows by class as a `Sampler` decides, and predicts for the class shares of the stream.

    A model that has learned with other class shares than the stream has gives the rare classes too
    large a probability. With `correct` that is undone: from `ps` of a binary model,

        p = beta * ps / (beta * ps - ps + 1)

    where beta is the rate at which False is learned, over that of True (Dal Pozzolo, Caelen,
    Johnson, Bontempi, *Calibrating Probability with Undersampling for Unbalanced Classification*,
    2015). With several classes each is divided by its rate, and all are normalised to a sum of 1,
    which is the same for two (Saerens, Latinne, Decaestecker, *Adjusting the Outputs of a
    Classifier to New a Priori Probabilities*, 2002). Rates are those in force when the prediction
    is made (see `Sampler.rates`): they follow from the desired shares and the rows counted, so they
    do not have the noise of the rows drawn. Until every class was seen nothing is corrected.

    The predicted label stays the one that the model gives for the classes as it has learned them,
    as River's `predict_one`; so it may be True at a score below 0.5.

    Args:
        inner: the classifier to wrap.
        desired: share by class; for a binary task of `True` and `False`.
        seed: of the random numbers.
        over: oversample instead of undersample.
        correct: correct the probabilities.

    Attributes:
        version: labels that it was given, drawn or not.

    >>> from river import linear_model
    >>> from anabranch.models.learners.compiled import learner_for
    >>> inner = learner_for(linear_model.LogisticRegression(), ("a",), Task.BINARY)
    >>> learner = ResampledLearner(inner, {True: 0.5, False: 0.5}, seed=1)
    >>> op, row = np.array([1, 1, 1, 1, 1, 0], np.uint8), np.zeros(6, np.int64)
    >>> learner.run(np.array([[0.0]]), op, row, np.array([1.0, 0, 0, 0, 0, 0])).values.round(3)
    array([0.199])
    """

    def __init__(
        self,
        inner: Learner,
        desired: Mapping[Label, float],
        seed: int,
        over: bool = False,
        correct: bool = True,
    ) -> None:
        super().__init__(inner)
        self._sampler = Sampler(desired, seed, over)
        self._classes = set(desired)
        self._correct = correct

    def run(
        self,
        features: NDArray[np.float64],
        op: NDArray[np.uint8],
        row: NDArray[np.int64],
        target: Targets,
    ) -> Predictions:
        """See `Learner.run`."""
        labels = (target == 1.0).tolist() if isinstance(target, np.ndarray) else target
        before = copy.deepcopy(self._sampler) if self.can_fail else None
        times, rates_by_row = self._draw(op, labels)
        at = np.repeat(np.arange(op.size), times)
        try:
            predictions = self.inner.run(features, op[at], row[at], select(target, at))
        except StepFailed as failed:
            step = int(at[failed.step])
            assert before is not None
            self._sampler = before  # and draw again, for no more than the steps that were run
            _, rates_by_row = self._draw(op[: step + 1], labels[: step + 1])
            self._count(op[: step + 1])
            predictions = self._corrected(
                failed.predictions, rates_by_row[: len(failed.predictions.values)]
            )
            raise StepFailed(step, predictions, failed.detail) from failed
        self._count(op)
        return self._corrected(predictions, rates_by_row)

    def _draw(
        self, op: NDArray[np.uint8], labels: Sequence[Label]
    ) -> tuple[list[int], list[dict[Label, float]]]:
        """How often each step is run, and the rates at each prediction."""
        draw, times, rates_by_row = self._sampler.draw, [], []
        rates = self._rates()
        for operation, label in zip(op.tolist(), labels, strict=True):
            if operation == PREDICT:
                times.append(1)
                rates_by_row.append(rates)
            else:
                times.append(draw(label))
                rates = self._rates()
        return times, rates_by_row

    def _count(self, op: NDArray[np.uint8]) -> None:
        self.version += int(np.count_nonzero(op == LEARN))

    def _rates(self) -> dict[Label, float]:
        """`Sampler.rates`; empty until every class was seen."""
        if not self._correct or len(self._sampler.seen) < len(self._classes):
            return {}
        return self._sampler.rates()

    def _corrected(
        self, predictions: Predictions, rates_by_row: list[dict[Label, float]]
    ) -> Predictions:
        if not self._correct:
            return predictions
        if self.task is Task.MULTICLASS:
            pairs = zip(predictions.values, rates_by_row, strict=True)
            values = [corrected_classes(probabilities, rates) for probabilities, rates in pairs]
            return Predictions(values, predictions.labels)
        beta = np.array([rates[False] / rates[True] if rates else 1.0 for rates in rates_by_row])
        return Predictions(corrected(predictions.values, beta), predictions.binary_labels())


def corrected(
    probabilities: NDArray[np.float64], beta: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """Probabilities of True, `(rows,) float64`, when False was learned `beta` times as often.

    Dal Pozzolo et al. 2015, equation 4; NaN stays NaN.

    >>> corrected(np.array([0.5, 1.0, 0.0]), 0.01).round(4)
    array([0.0099, 1.    , 0.    ])
    """
    scaled: NDArray[np.float64] = beta * probabilities
    return scaled / (scaled + (1.0 - probabilities))  # in this form 1 stays 1


def corrected_classes(
    probabilities: dict[Label, float], rates: Mapping[Label, float]
) -> dict[Label, float]:
    """Probabilities by class, where each class was learned at its rate, by default 1.

    >>> corrected_classes({"a": 0.5, "b": 0.5}, {"a": 0.25})
    {'a': 0.8, 'b': 0.2}
    """
    if not rates:
        return probabilities
    weighted = {label: p / rates.get(label, 1.0) for label, p in probabilities.items()}
    total = sum(weighted.values())
    return {label: p / total for label, p in weighted.items()} if total else probabilities
