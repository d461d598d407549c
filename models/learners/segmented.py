"""A learner with a model per segment, each of which begins as a copy of the one that all share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import LEARN, PREDICT, Learner, Predictions, Targets, Task
from anabranch.models.learners.targets import select

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

SEGMENT: Final = "(segment)"
"""The name of the last column, which holds a row's segment and which the models do not see."""

_NEVER: Final = np.iinfo(np.int64).max


class Segmented:
    """One model that learns everything, and one per segment that learns the segment's own.

    A segment's model is made when the segment's label number `after` is learned: it is a copy of
    the shared model, which has just learned that label. From then on it predicts the segment's rows
    and learns its labels; the shared model goes on to learn them too. All other rows are predicted
    by the shared model. So this is the same, for each row::

        mine = models.get(segment)
        predict: (mine or shared).predict_proba_one(x)
        learn:   shared.learn_one(x, y)
                 if mine: mine.learn_one(x, y)
                 elif labels of the segment, this one included, == after:
                     models[segment] = copy.deepcopy(shared)

    Args:
        learner: the shared one; taken over.
        most: segments that can have a model: those numbered below it.
        after: labels, 1 at least.

    Attributes:
        shared: the model that learns everything.
        models: by segment.
        labels: `(most + 1,) int64`, learned of each segment; the last are of all beyond.
        names: the columns of the shared one, and `SEGMENT`: the segment's number as a float.
        version: labels that it was given.

    >>> from river import linear_model
    >>> from anabranch.models.learners.linear import learner_for
    >>> shared = learner_for(linear_model.LinearRegression(), ("a",), Task.REGRESSION)
    >>> learner = Segmented(shared, most=2)
    >>> rows = np.array([[1.0, 0], [1.0, 1], [1.0, 1]])
    >>> steps = np.array([1, 0, 1, 0], np.uint8), np.array([0, 1, 1, 2]), np.array([1.0, 0, 5.0, 0])
    >>> learner.run(rows, *steps).values, sorted(learner.models)
    (array([0.04  , 0.2384]), [0, 1])
    """

    def __init__(self, learner: Learner, most: int, after: int = 1) -> None:
        self.shared = learner
        self.task, self.version = learner.task, learner.version
        self.names = (*learner.names, SEGMENT)
        self.models: dict[int, Learner] = {}
        self.labels = np.zeros(most + 1, np.int64)
        self._most, self._after = most, after
        # The step after which a segment's rows are its model's; between calls there is none, or
        # there is a model.
        self._born = np.full(most + 1, _NEVER)

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
        learns = op == LEARN
        children = self._count(segment, learns)
        own = self._born[segment] < np.arange(op.size)
        answers = _Answers(op, self.task)
        shared, done = (learns | ~own).nonzero()[0], 0
        for step, child in children:
            until = int(np.searchsorted(shared, step, side="right"))
            answers.ask(self.shared, rows, op, shared[done:until], target)
            done = until
            self.models[child] = copy.deepcopy(self.shared)
        answers.ask(self.shared, rows, op, shared[done:], target)
        for child, steps in _by_segment(segment, own.nonzero()[0]):
            answers.ask(self.models[child], rows, op, steps, target)
        for _, child in children:
            self._born[child] = -1
        self.version += int(learns.sum())
        return answers.joined()

    def _count(self, segment: I64, learns: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Count labels; the segments that come to have a model, each with the step, in order."""
        children = []
        single = learns & (self._born[segment] == _NEVER) & (segment < self._most)
        for step in single.nonzero()[0].tolist():
            child = int(segment[step])
            self.labels[child] += 1
            if self.labels[child] == self._after:
                self._born[child] = step
                children.append((step, child))
        others = segment[learns & ~single]
        self.labels += np.bincount(others, minlength=len(self.labels))
        return children


class _Answers:
    """What the models answer, put together in the order of the steps."""

    def __init__(self, op: U8, task: Task) -> None:
        predicts = op == PREDICT
        self._place = predicts.cumsum() - 1
        self._size = int(predicts.sum())
        self._several = task is Task.MULTICLASS
        self._parts: list[tuple[I64, Predictions]] = []

    def ask(
        self, learner: Learner, rows: NDArray[np.float64], op: U8, steps: I64, target: Targets
    ) -> None:
        """Let a learner work through some of the steps; `rows` has one for each step of all."""
        operations = op[steps]
        found = learner.run(rows, operations, steps, select(target, steps))
        self._parts.append((self._place[steps[operations == PREDICT]], found))

    def joined(self) -> Predictions:
        """One per step that predicts."""
        if self._several:
            return self._joined_lists()
        values = np.empty(self._size)
        labels = None if self._parts[0][1].labels is None else np.empty(self._size, np.uint8)
        for places, found in self._parts:
            values[places] = found.values
            if labels is not None:
                labels[places] = found.labels
        return Predictions(values, labels)

    def _joined_lists(self) -> Predictions:
        values: list[Any] = [None] * self._size
        labels: list[Any] = [None] * self._size
        for places, found in self._parts:
            for at, value, label in zip(places.tolist(), found.values, found.labels, strict=True):
                values[at], labels[at] = value, label
        return Predictions(values, labels)


def _by_segment(segment: I64, steps: I64) -> Iterator[tuple[int, I64]]:
    """Each segment in `steps` with its own, in their order."""
    if not steps.size:
        return
    kinds = segment[steps]
    turn = np.argsort(kinds, kind="stable")
    ends = np.flatnonzero(np.diff(kinds[turn])) + 1
    for part in np.split(turn, ends):
        yield int(kinds[part[0]]), steps[part]
