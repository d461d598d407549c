"""The segments of a stream: numbers for the values of a field, and a report by segment."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.models.categories import Categories
from anabranch.models.learners.learner import Learner, find_learner
from anabranch.models.learners.segmented import SegmentedLearner
from anabranch.state.errors import StateError

_log = logging.getLogger("anabranch.models")


class _Stored(msgspec.Struct):
    """What is persisted: the segments by number, and `Segments.report`."""

    names: list[str]
    report: dict[str, dict[str, Any]]


class Segments:
    """Numbers the values of a field, for a `SegmentedLearner`.

    The number is appended to an event's features. So it is pending with them until the label
    arrives, and is logged and restored with them.

    Args:
        field: a field of the event: text or a boolean.
        max_segments: values that have a number of their own, in order of first appearance; all
            further ones have the number `max_segments`.

    >>> segments = Segments("country", 2)
    >>> segments.add_to(np.array([[0.5], [0.6], [0.7]]), {"country": ["DE", "US", "FR"]})
    array([[0.5, 0. ],
           [0.6, 1. ],
           [0.7, 2. ]])
    """

    def __init__(self, field: str, max_segments: int) -> None:
        self.field = field
        self._values = Categories(max_segments)
        self._stored = b""
        self._warned = False

    def add_to(
        self,
        features: NDArray[np.float64],
        fields: Mapping[str, Sequence[Any]],
        order: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """A copy of `(events, features) float64` with the segment as a further column.

        Args:
            features: of the events.
            fields: of the events, by name.
            order: see `Categories.codes`.
        """
        wide = np.empty((len(features), features.shape[1] + 1))
        wide[:, :-1] = features
        wide[:, -1] = codes = self._values.codes(fields[self.field], order)
        if not self._warned and (codes == self._values.capacity).any():
            self._warned = True
            _log.warning(
                "%s has more than %d values: later ones get no model of their own, and the shared "
                "model serves them; raise max_segments for more",
                self.field,
                self._values.capacity,
            )
        return wide

    def changes(self, learner: Learner) -> bytes | None:
        """What `restore` and `stored_segments` take; None if the last call gave the same.

        Args:
            learner: the learner to report on.
        """
        blob = msgspec.json.encode(_Stored(self._values.names, self.report(learner)))
        if blob == self._stored:
            return None
        self._stored = blob
        return blob

    def restore(self, blob: bytes) -> None:
        """Restore what `changes` gave.

        Raises:
            StateError: it is damaged.
        """
        self._stored = blob
        self._values = Categories(self._values.capacity, _load(blob).names)

    def report(self, learner: Learner) -> dict[str, dict[str, Any]]:
        """By segment: ``labels``, and whether it has a model of its ``own``."""
        segmented = find_learner(learner, SegmentedLearner)
        if segmented is None:
            return {}
        names, labels = self._values.names, segmented.labels.tolist()
        report = {
            name: {"labels": labels[code], "own": code in segmented.models}
            for code, name in enumerate(names)
        }
        if labels[-1]:
            report[self._values.name(self._values.capacity)] = {"labels": labels[-1], "own": False}
        return report


def stored_segments(blob: bytes) -> dict[str, dict[str, Any]]:
    """`Segments.report` of what `Segments.changes` gave.

    Raises:
        StateError: it is damaged.
    """
    return _load(blob).report


def _load(blob: bytes) -> _Stored:
    try:
        return msgspec.json.decode(blob, type=_Stored)
    except msgspec.MsgspecError as error:
        raise StateError(
            f"the segments can't be read from the state: {error}; continue with the version that "
            "wrote it, or use a new state directory"
        ) from None
