"""The predictions that each model made, stored until their label arrives."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Predictions
from anabranch.models.learners.pickling import pickled, unpickled
from anabranch.state.labels.pending_store import PendingStore
from anabranch.state.store.delta import Items

I64 = NDArray[np.int64]

STORED_PREDICTIONS: Final = "predictions"
"""The name of this part in the state of a model."""


class StoredPredictions:
    """One model's predictions, by the row of the pending store.

    Numbers are stored in the pending store's arrays. Multi-class predictions, which no array holds,
    are stored here: `{label: probability}` and the label.

    >>> stored = StoredPredictions(PendingStore(width=1, models=1))
    >>> stored.put(0, np.array([3]), Predictions([{"a": 1.0}], ["a"]))
    >>> stored.pop(0, np.array([3]), Predictions([], []))
    Predictions(values=[{'a': 1.0}], labels=['a'])
    """

    def __init__(self, pending: PendingStore) -> None:
        self._pending = pending
        self._by_row: dict[int, tuple[Any, Any]] = {}

    def put(self, model: int, rows: I64, predictions: Predictions) -> None:
        """Store the predictions for `rows`; `model` is the column of the pending store."""
        if isinstance(predictions.values, list):
            pairs = zip(predictions.values, predictions.labels, strict=True)
            self._by_row.update(zip(rows.tolist(), pairs, strict=True))
            return
        self._pending.values[rows, model] = predictions.values
        if predictions.labels is not None:
            self._pending.labels[rows, model] = predictions.labels

    def pop(self, model: int, rows: I64, like: Predictions) -> Predictions:
        """Return the predictions for `rows`, in the form of `like`; each row only once."""
        if isinstance(like.values, list):
            pairs = [self._by_row.pop(row, ({}, None)) for row in rows.tolist()]
            return Predictions([p for p, _ in pairs], [label for _, label in pairs])
        labels = None if like.labels is None else self._pending.labels[rows, model]
        return Predictions(self._pending.values[rows, model], labels)

    def discard(self, rows: list[int]) -> None:
        """Drop the predictions for `rows`, whose label will not arrive."""
        for row in rows:
            self._by_row.pop(row, None)

    def changes(self, rows: I64, pending: NDArray[np.uint8]) -> Items:
        """A pickle for each of `rows` that is pending, None for one that left; multi-class only."""
        stored = self._by_row
        values = [
            pickled(stored[row]) if is_pending and row in stored else None
            for row, is_pending in zip(rows.tolist(), pending.tolist(), strict=True)
        ]
        return Items(rows, values)

    def restore(self, items: Items) -> None:
        """Restore what `changes` returned. It is unpickled: pass only what this program wrote."""
        for row, value in zip(items.index.tolist(), items.values, strict=True):
            if value is not None:
                self._by_row[row] = unpickled(value)
