"""Runs a learner so that a row on which its model raises is left out, and no other row notices.

An event whose prediction raises is not learned either: for the model it is as if it had never come.
A row that raises while it is learned is left as the model left it, which may be half done (a scaler
has counted the row, the classifier behind it has not), and the same at every repetition. The
result does not depend on how steps are cut into calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import (
    LEARN,
    NO_LABEL,
    PREDICT,
    Learner,
    Predictions,
    StepFailed,
    Targets,
    Task,
)
from anabranch.models.learners.targets import select

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

_STEPS_AFTER_FAILURE = 64
"""How many steps are tried at once in a call in which a step has failed already."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A step at which a model raised, and what it raised, with the place in the user's code."""

    step: int
    predicting: bool
    detail: str


class FaultIsolation:
    """The rows that a model could not predict, and the failures of its last call.

    Attributes:
        rows: rows whose prediction raised, so that their labels are not learned. A row that is
            predicted anew is another event's.
        siblings: from a row to all rows of its event, itself included, where an event has several;
            None where it has one. What one of them fails on, none of them is used for.
        failures: of the last call, in order.
        missing: `(n,) int64`: the PREDICT steps of the last call without a prediction.
        left_out: `(n,) int64`: the steps of the last call that the model was not given.
        skipped: those of them that are LEARN steps.
    """

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.siblings: Callable[[int], list[int]] | None = None
        self._reset()

    def _reset(self) -> None:
        self.failures: list[Failure] = []
        self.missing = self.left_out = self.skipped = _NONE

    @property
    def failed_steps(self) -> I64:
        """The steps of the last call that raised, or have no prediction since another one did."""
        raised = np.array([failure.step for failure in self.failures], np.int64)
        return np.union1d(raised, self.missing)

    def run(
        self,
        learner: Learner,
        features: NDArray[np.float64],
        op: U8,
        row: I64,
        target: Targets,
    ) -> Predictions:
        """As `Learner.run`, but a row on which the model raises has no prediction.

        The missing predictions are NaN, `{}` for several classes.
        """
        if self.failures or self.left_out.size:
            self._reset()
        left_out = self._of_failed_rows(op, row)
        if left_out is None:
            try:
                return learner.run(features, op, row, target)
            except StepFailed as failed:
                return self._continue(failed, learner, (features, op, row, target), _NONE)
        return self._continue(None, learner, (features, op, row, target), left_out)

    def _of_failed_rows(self, op: U8, row: I64) -> I64 | None:
        """The steps that learn rows whose prediction has raised in an earlier call; None: none."""
        if not self.rows:
            return None
        self.rows.difference_update(row[op == PREDICT].tolist())
        left_out = np.flatnonzero((op == LEARN) & np.isin(row, list(self.rows)))
        return left_out if left_out.size else None

    def _continue(
        self,
        failed: StepFailed | None,
        learner: Learner,
        arguments: tuple[NDArray[np.float64], U8, I64, Targets],
        skipped: I64,
    ) -> Predictions:
        """Run the steps that are left; `failed` tells what happened to the first ones."""
        features, op, row, target = arguments
        parts = _Parts(op, learner.task)
        queue = np.delete(np.arange(op.size), skipped)
        left_out, missing, size = [skipped], [_NONE], queue.size
        while queue.size:
            now = queue[:size]
            try:
                if failed is not None:
                    first, failed = failed, None
                    raise first
                parts.add(now, learner.run(features, op[now], row[now], select(target, now)))
                queue = queue[size:]
                continue
            except StepFailed as error:
                at, detail, predictions = error.step, error.detail, error.predictions
            step, size = int(now[at]), _STEPS_AFTER_FAILURE
            parts.add(now[:at], predictions)
            queue = queue[at + 1 :]
            predicting = bool(op[step] == PREDICT)
            self.failures.append(Failure(step, predicting, detail))
            if predicting:
                rows = [int(row[step])] if self.siblings is None else self.siblings(int(row[step]))
                self.rows.update(rows)
                of_event = np.isin(row, rows)
                missing.append(np.flatnonzero(of_event & (op == PREDICT)))
                unused = of_event[queue]
                left_out.append(queue[unused])
                queue = queue[~unused]
        self.left_out = np.unique(np.concatenate(left_out))
        self.skipped = self.left_out[op[self.left_out] == LEARN]
        self.missing = np.unique(np.concatenate(missing))
        return parts.joined(self.missing)


_NONE = np.zeros(0, np.int64)


class _Parts:
    """Predictions of several calls, joined in the order of the steps."""

    def __init__(self, op: U8, task: Task) -> None:
        self._op = op
        self._predicts = np.flatnonzero(op == PREDICT)
        self._lists = task is Task.MULTICLASS
        self._values: Any = [{} for _ in self._predicts]
        self._labels: Any = [None] * self._predicts.size
        if not self._lists:
            self._values = np.full(self._predicts.size, np.nan)
            self._labels = np.full(self._predicts.size, NO_LABEL, np.uint8)
        self._labelled = task in (Task.BINARY, Task.MULTICLASS)

    def add(self, steps: I64, predictions: Predictions) -> None:
        """Add what was predicted at the PREDICT steps among `steps`."""
        at = np.searchsorted(self._predicts, steps[self._op[steps] == PREDICT])
        if not self._lists:
            self._values[at] = predictions.values
            if self._labelled:
                self._labels[at] = predictions.binary_labels()
            return
        pairs = zip(at.tolist(), predictions.values, predictions.labels, strict=True)
        for index, value, label in pairs:
            self._values[index], self._labels[index] = value, label

    def joined(self, missing: I64) -> Predictions:
        """One prediction per PREDICT step; those at `missing` are taken back."""
        at = np.searchsorted(self._predicts, missing)
        if self._lists:
            for index in at.tolist():
                self._values[index], self._labels[index] = {}, None
        else:
            self._values[at], self._labels[at] = np.nan, NO_LABEL
        return Predictions(self._values, self._labels if self._labelled else None)
