"""The most recent labeled rows, for warming up a model that starts in the middle of a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Targets
from anabranch.models.learners.pickling import pickled, unpickled
from anabranch.models.learners.targets import select
from anabranch.state.store.delta import Delta, Items, Rows

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

REPLAY_BUFFER_PARTS = ("rows", "labels", "count")
"""The names of what `ReplayBuffer.changes` may return."""


class ReplayBuffer:
    """A ring of feature rows with their labels, in the order in which they were learned.

    Args:
        capacity: number of rows kept.
        width: features per row.
        numeric: whether labels are floats; otherwise they are any objects.

    Attributes:
        capacity: number of rows kept.
        count: rows ever added.

    >>> buffer = ReplayBuffer(2, 1, numeric=True)
    >>> buffer.add(np.array([[1.0], [2.0], [3.0]]), np.array([0.0, 1.0, 1.0]))
    >>> buffer.last()
    (array([[2.],
           [3.]]), array([1., 1.]))
    """

    def __init__(self, capacity: int, width: int, numeric: bool) -> None:
        self.capacity = capacity
        self.count = 0
        self._first = 0  # rows before this one were not restored
        self._features = np.zeros((capacity, width))
        self._targets: F64 | list[Any] = np.zeros(capacity) if numeric else [None] * capacity
        self._saved = 0  # value of `count` at the last `changes`

    def add(self, features: F64, targets: Targets) -> None:
        """Add rows `(n, width) float64` that were just learned, with their targets."""
        kept = slice(max(len(features) - self.capacity, 0), None)
        first = self.count + (kept.start or 0)
        self.count += len(features)
        slots = self._slots(first)
        self._features[slots] = features[kept]
        if isinstance(self._targets, np.ndarray):
            self._targets[slots] = np.asarray(targets[kept])
        else:
            for slot, target in zip(slots.tolist(), targets[kept], strict=True):
                self._targets[slot] = target

    def last(
        self, features: F64 | None = None, targets: Targets | None = None
    ) -> tuple[F64, Targets]:
        """The rows in the buffer, oldest first, as if the given ones had been added."""
        slots = self._slots(self.count - min(self.count - self._first, self.capacity))
        rows, labels = self._features[slots], select(self._targets, slots)
        if features is not None and targets is not None:
            rows = np.concatenate([rows, features])
            if isinstance(labels, np.ndarray):
                labels = np.concatenate([labels, targets])
            else:
                labels = [*labels, *targets]
        first = max(len(rows) - self.capacity, 0)
        return rows[first:], labels[first:]

    def changes(self) -> Delta:
        """What was added since the last call; everything at the first."""
        delta = Delta()
        if self.count == self._saved:
            return delta
        new = min(self.count - self._saved, self.capacity)
        slots = np.unique(self._slots(self.count - new))
        columns = {"features": self._features[slots]}
        if isinstance(self._targets, np.ndarray):
            columns["target"] = self._targets[slots]
        else:
            labels = [pickled(self._targets[slot]) for slot in slots.tolist()]
            delta.items["labels"] = Items(slots, list(labels))
        delta.rows["rows"] = Rows(slots, columns)
        delta.blobs["count"] = b"%d %d %d" % (self.count, self.capacity, self._first)
        self._saved = self.count
        return delta

    def restore(self, image: Delta) -> None:
        """Restore what `changes` returned, also from a buffer of another capacity.

        Labels are unpickled: pass only what this program wrote.
        """
        if "count" not in image.blobs:
            return
        count, capacity, first = map(int, image.blobs["count"].split())
        stored = image.rows["rows"]
        size = min(count - first, capacity)
        order = np.searchsorted(stored.index, np.arange(count - size, count) % capacity)
        features = stored.columns["features"][order]
        targets: Targets
        if "target" in stored.columns:
            targets = stored.columns["target"][order]
        else:
            labels = image.items["labels"].values
            targets = [unpickled(labels[at] or b"") for at in order.tolist()]
        self.count = self._first = count - size
        self.add(features, targets)
        self._saved = self.count if capacity == self.capacity else 0

    def _slots(self, first: int) -> I64:
        """The slots of rows `first` up to the newest."""
        return np.arange(first, self.count) % max(self.capacity, 1)
