"""The last labelled rows, for models that begin in the middle of a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Targets
from anabranch.models.learners.pickling import dumps, loads
from anabranch.models.learners.targets import select
from anabranch.state.store.delta import Delta, Items, Rows

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class LabelledRows:
    """A ring of rows with their labels, in the order in which they were learned.

    Args:
        most: rows that are kept.
        width: features per row.
        numbers: whether labels are floats; else they are any objects.

    >>> rows = LabelledRows(2, 1, numbers=True)
    >>> rows.add(np.array([[1.0], [2.0], [3.0]]), np.array([0.0, 1.0, 1.0]))
    >>> rows.last()
    (array([[2.],
           [3.]]), array([1., 1.]))
    """

    def __init__(self, most: int, width: int, numbers: bool) -> None:
        self.most = most
        self.count = self._since = 0  # rows that ever came; the first of those known
        self._features = np.zeros((most, width))
        self._targets: F64 | list[Any] = np.zeros(most) if numbers else [None] * most
        self._told = 0

    def add(self, features: F64, targets: Targets) -> None:
        """Rows `(n, width) float64` that were learned now, with what was learned of them."""
        kept = slice(max(len(features) - self.most, 0), None)
        first = self.count + (kept.start or 0)
        self.count += len(features)
        places = np.arange(first, self.count) % self.most if self.most else np.zeros(0, np.int64)
        self._features[places] = features[kept]
        if isinstance(self._targets, np.ndarray):
            self._targets[places] = np.asarray(targets[kept])
        else:
            for place, target in zip(places.tolist(), targets[kept], strict=True):
                self._targets[place] = target

    def last(
        self, features: F64 | None = None, targets: Targets | None = None
    ) -> tuple[F64, Targets]:
        """The rows that are kept, oldest first, as if these had come as well."""
        held = min(self.count - self._since, self.most)
        places = np.arange(self.count - held, self.count) % max(self.most, 1)
        rows, known = self._features[places], select(self._targets, places)
        if features is not None and targets is not None:
            rows = np.concatenate([rows, features])
            if isinstance(known, np.ndarray):
                known = np.concatenate([known, targets])
            else:
                known = [*known, *targets]
        first = max(len(rows) - self.most, 0)
        return rows[first:], known[first:]

    def changes(self) -> Delta:
        """What came since the last call; at first, everything."""
        delta = Delta()
        if self.count == self._told:
            return delta
        fresh = min(self.count - self._told, self.most)
        places = np.unique(np.arange(self.count - fresh, self.count) % max(self.most, 1))
        columns = {"features": self._features[places]}
        if isinstance(self._targets, np.ndarray):
            columns["target"] = self._targets[places]
        else:
            labels = [dumps(self._targets[at]) for at in places.tolist()]
            delta.items["labels"] = Items(places, list(labels))
        delta.rows["rows"] = Rows(places, columns)
        delta.blobs["count"] = b"%d %d %d" % (self.count, self.most, self._since)
        self._told = self.count
        return delta

    def restore(self, image: Delta) -> None:
        """Take up what `changes` gave, also where more or fewer were kept.

        Labels are unpickled: give only what this program wrote.
        """
        if "count" not in image.blobs:
            return
        count, most, since = map(int, image.blobs["count"].split())
        stored = image.rows["rows"]
        held = min(count - since, most)
        order = np.searchsorted(stored.index, np.arange(count - held, count) % most)
        features = stored.columns["features"][order]
        targets: Targets
        if "target" in stored.columns:
            targets = stored.columns["target"][order]
        else:
            labels = image.items["labels"].values
            targets = [loads(labels[at] or b"") for at in order.tolist()]
        self.count = self._since = count - held
        self.add(features, targets)
        self._told = self.count if most == self.most else 0
