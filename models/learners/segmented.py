"""A learner with one model per segment, each started as a copy of a model that all share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import (
    LEARN,
    PREDICT,
    Learner,
    LearnerWrapper,
    Predictions,
    StepFailed,
    Targets,
    Task,
)
from anabranch.models.learners.targets import select

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

SEGMENT: Final = "(segment)"
"""The name of the last column, which holds a row's segment and which the models do not see."""

_NEVER: Final = np.iinfo(np.int64).max


class SegmentedLearner(LearnerWrapper):
    """A shared model that learns everything, and one per segment that learns its segment's rows.

    A segment's model is created when the segment's label number `min_labels` is learned: it is a
    copy of the shared model, which has just learned that label. From then on it predicts the
    segment's rows and learns its labels; the shared model continues to learn them too. All other
    rows are predicted by the shared model. So this is the same, for each row::

        own = models.get(segment)
        predict: (own or shared).predict_proba_one(x)
        learn:   shared.learn_one(x, y)
                 if own: own.learn_one(x, y)
                 elif labels of the segment, this one included, == min_labels:
                     models[segment] = copy.deepcopy(shared)

    Args:
        inner: the shared model.
        max_segments: segments that can have a model: those numbered below it.
        min_labels: labels before a segment has a model of its own, 1 at least.

    Attributes:
        inner: the shared model.
        models: the segments' own, by segment.
        labels: `(max_segments + 1,) int64`, learned by segment; the last counts all further ones.
        names: the columns of the shared model, and `SEGMENT`: the segment's number as a float.
        version: labels that it was given.

    >>> from river import linear_model
    >>> from anabranch.models.learners.compiled import learner_for
    >>> shared = learner_for(linear_model.LinearRegression(), ("a",), Task.REGRESSION)
    >>> learner = SegmentedLearner(shared, max_segments=2)
    >>> rows = np.array([[1.0, 0], [1.0, 1], [1.0, 1]])
    >>> steps = np.array([1, 0, 1, 0], np.uint8), np.array([0, 1, 1, 2]), np.array([1.0, 0, 5.0, 0])
    >>> learner.run(rows, *steps).values, sorted(learner.models)
    (array([0.04  , 0.2384]), [0, 1])
    """

    def __init__(self, inner: Learner, max_segments: int, min_labels: int = 1) -> None:
        super().__init__(inner)
        self.names = (*inner.names, SEGMENT)
        self.models: dict[int, Learner] = {}
        self.labels = np.zeros(max_segments + 1, np.int64)
        self._max_segments, self._min_labels = max_segments, min_labels
        # The step after which a segment's rows go to its own model: -1 for a model that exists
        # since an earlier call, _NEVER where there is none.
        self._own_after = np.full(max_segments + 1, _NEVER)

    def run(
        self,
        features: NDArray[np.float64],
        op: U8,
        row: I64,
        target: Targets,
    ) -> Predictions:
        """See `Learner.run`; the last of the features is the segment."""
        rows = features[row]
        segment = rows[:, -1].astype(np.int64)
        rows = np.ascontiguousarray(rows[:, :-1])
        if self.can_fail:
            return self._run_in_order(rows, segment, op, target)
        learns = op == LEARN
        created = self._count(segment, learns)
        own = self._own_after[segment] < np.arange(op.size)
        parts = _PredictionParts(op, self.task)
        shared, done = (learns | ~own).nonzero()[0], 0
        for step, new in created:
            until = int(np.searchsorted(shared, step, side="right"))
            parts.run(self.inner, rows, op, shared[done:until], target)
            done = until
            self.models[new] = copy.deepcopy(self.inner)
        parts.run(self.inner, rows, op, shared[done:], target)
        for each, steps in _by_segment(segment, own.nonzero()[0]):
            parts.run(self.models[each], rows, op, steps, target)
        for _, new in created:
            self._own_after[new] = -1
        self.version += int(learns.sum())
        return parts.joined()

    def _run_in_order(
        self, rows: NDArray[np.float64], segment: I64, op: U8, target: Targets
    ) -> Predictions:
        """One step after the other, so that none has been run behind one that raises."""
        steps, parts, step = np.arange(op.size), _PredictionParts(op, self.task), 0
        try:
            for step, (each, operation) in enumerate(
                zip(segment.tolist(), op.tolist(), strict=True)
            ):
                own, here = self.models.get(each), steps[step : step + 1]
                if operation == PREDICT:
                    parts.run(self.inner if own is None else own, rows, op, here, target)
                    continue
                self.version += 1
                self.labels[each] += 1
                parts.run(self.inner, rows, op, here, target)
                if own is not None:
                    parts.run(own, rows, op, here, target)
                elif each < self._max_segments and self.labels[each] >= self._min_labels:
                    self.models[each] = copy.deepcopy(self.inner)
                    self._own_after[each] = -1
        except StepFailed as failed:
            raise StepFailed(step, parts.joined(op[:step]), failed.detail) from failed
        return parts.joined()

    def _count(self, segment: I64, learns: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Count labels; returns the step and segment of each new model, in order."""
        created = []
        without = learns & (self._own_after[segment] == _NEVER) & (segment < self._max_segments)
        for step in without.nonzero()[0].tolist():
            each = int(segment[step])
            self.labels[each] += 1
            if self.labels[each] == self._min_labels:
                self._own_after[each] = step
                created.append((step, each))
        others = segment[learns & ~without]
        self.labels += np.bincount(others, minlength=len(self.labels))
        return created


class _PredictionParts:
    """The predictions of several learners, joined in the order of the steps."""

    def __init__(self, op: U8, task: Task) -> None:
        predicts = op == PREDICT
        self._index = predicts.cumsum() - 1
        self._size = int(predicts.sum())
        self._lists = task is Task.MULTICLASS
        self._parts: list[tuple[I64, Predictions]] = []

    def run(
        self, learner: Learner, rows: NDArray[np.float64], op: U8, steps: I64, target: Targets
    ) -> None:
        """Run a learner on some of the steps; `rows` has one row for each step of all."""
        operations = op[steps]
        predictions = learner.run(rows, operations, steps, select(target, steps))
        self._parts.append((self._index[steps[operations == PREDICT]], predictions))

    def joined(self, op: U8 | None = None) -> Predictions:
        """One prediction per PREDICT step; of the first steps only, where their `op` is given."""
        if op is not None:
            self._size = int(np.count_nonzero(op == PREDICT))
        if self._lists:
            return self._joined_lists()
        values = np.empty(self._size)
        labels = None
        if self._parts and self._parts[0][1].labels is not None:
            labels = np.empty(self._size, np.uint8)
        for at, predictions in self._parts:
            values[at] = predictions.values
            if labels is not None:
                labels[at] = predictions.labels
        return Predictions(values, labels)

    def _joined_lists(self) -> Predictions:
        values: list[Any] = [None] * self._size
        labels: list[Any] = [None] * self._size
        for at, part in self._parts:
            for index, value, label in zip(at.tolist(), part.values, part.labels, strict=True):
                values[index], labels[index] = value, label
        return Predictions(values, labels)


def _by_segment(segment: I64, steps: I64) -> Iterator[tuple[int, I64]]:
    """Each segment among `steps` with its steps, in their order."""
    if not steps.size:
        return
    segments = segment[steps]
    order = np.argsort(segments, kind="stable")
    ends = np.flatnonzero(np.diff(segments[order])) + 1
    for part in np.split(order, ends):
        yield int(segments[part[0]]), steps[part]
