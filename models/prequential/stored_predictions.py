"""The answers that were served and wait for their label, by the row of the pending store."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Predictions
from anabranch.models.learners.pickling import dumps, loads
from anabranch.state.labels.pending_store import PendingStore
from anabranch.state.store.delta import Items

I64 = NDArray[np.int64]


class Answers:
    """What one model answered, row by row.

    Numbers live in the store's own arrays. Multi-class answers, which no array holds, are kept
    here: `{label: probability}` and the label.

    >>> answers = Answers(PendingStore(width=1, models=1))
    >>> answers.keep(0, np.array([3]), Predictions([{"a": 1.0}], ["a"]))
    >>> answers.recall(0, np.array([3]), Predictions([], []))
    Predictions(values=[{'a': 1.0}], labels=['a'])
    """

    def __init__(self, pending: PendingStore) -> None:
        self._pending = pending
        self._by_row: dict[int, tuple[Any, Any]] = {}

    def keep(self, model: int, rows: I64, answers: Predictions) -> None:
        """Remember the answers to `rows`; `model` is the column of the store."""
        if isinstance(answers.values, list):
            pairs = zip(answers.values, answers.labels, strict=True)
            self._by_row.update(zip(rows.tolist(), pairs, strict=True))
            return
        self._pending.values[rows, model] = answers.values
        if answers.labels is not None:
            self._pending.labels[rows, model] = answers.labels

    def recall(self, model: int, rows: I64, like: Predictions) -> Predictions:
        """The answers to `rows`, in the form of `like`; no row is asked for twice."""
        if isinstance(like.values, list):
            pairs = [self._by_row.pop(row, ({}, None)) for row in rows.tolist()]
            return Predictions([p for p, _ in pairs], [label for _, label in pairs])
        labels = None if like.labels is None else self._pending.labels[rows, model]
        return Predictions(self._pending.values[rows, model], labels)

    def forget(self, rows: list[int]) -> None:
        """No label will come for `rows`."""
        for row in rows:
            self._by_row.pop(row, None)

    def changes(self, rows: I64, waits: NDArray[np.uint8]) -> Items:
        """A pickle for each of `rows` that waits, None for one that left; multi-class only."""
        kept = self._by_row
        values = [
            dumps(kept[row]) if waiting and row in kept else None
            for row, waiting in zip(rows.tolist(), waits.tolist(), strict=True)
        ]
        return Items(rows, values)

    def restore(self, items: Items) -> None:
        """Take what `changes` gave. It is unpickled: give only what this program wrote."""
        for row, value in zip(items.index.tolist(), items.values, strict=True):
            if value is not None:
                self._by_row[row] = loads(value)
