"""The segment of each event, as a last column of its features; and what is told of segments."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.models.categories import Categories
from anabranch.models.learners.learner import Learner
from anabranch.models.learners.segmented import Segmented
from anabranch.state.errors import StateError

_log = logging.getLogger(__name__)


class _Stored(msgspec.Struct):
    """The segments by number, and `Segments.report`."""

    names: list[str]
    report: dict[str, dict[str, Any]]


class Segments:
    """Numbers the values of a field, for learners that are `Segmented`.

    The number stands behind an event's features. So it waits with them for the label, and is
    logged and restored with them.

    Args:
        field: of the event: text or a boolean.
        most: values that have a number of their own, the first that come; others are `most`.

    >>> segments = Segments("country", 2)
    >>> segments.add_to(np.array([[0.5], [0.6], [0.7]]), {"country": ["DE", "US", "FR"]})
    array([[0.5, 0. ],
           [0.6, 1. ],
           [0.7, 2. ]])
    """

    def __init__(self, field: str, most: int) -> None:
        self.field = field
        self._values = Categories(most)
        self._told = b""
        self._warned = False

    def add_to(
        self,
        features: NDArray[np.float64],
        fields: Mapping[str, Sequence[Any]],
        order: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """A copy of `(events, features) float64` with one column more.

        Args:
            features: of the events.
            fields: of the events.
            order: see `Categories.codes`.
        """
        wide = np.empty((len(features), features.shape[1] + 1))
        wide[:, :-1] = features
        wide[:, -1] = codes = self._values.codes(fields[self.field], order)
        if not self._warned and (codes == self._values.capacity).any():
            self._warned = True
            _log.warning(
                "%s has more than %d values: those that came later have no model of their own, and "
                "the shared one serves them; raise max_segments for more",
                self.field,
                self._values.capacity,
            )
        return wide

    def changes(self, learner: Learner) -> bytes | None:
        """What `restore` needs, and `stored_segments` tells; None if the last call gave the same.

        Args:
            learner: whose segments are told.
        """
        told = msgspec.json.encode(_Stored(self._values.names, self.report(learner)))
        if told == self._told:
            return None
        self._told = told
        return told

    def restore(self, blob: bytes) -> None:
        """Take up what `changes` gave.

        Raises:
            StateError: it is damaged.
        """
        self._told = blob
        self._values = Categories(self._values.capacity, _load(blob).names)

    def report(self, learner: Learner) -> dict[str, dict[str, Any]]:
        """By segment: ``labels``, and whether it has a model of its ``own``."""
        if not isinstance(learner, Segmented):
            return {}
        names, labels = self._values.names, learner.labels.tolist()
        found = {
            name: {"labels": labels[code], "own": code in learner.models}
            for code, name in enumerate(names)
        }
        if labels[-1]:
            found[self._values.name(self._values.capacity)] = {"labels": labels[-1], "own": False}
        return found


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
            f"the segments can't be read from the state: {error}; go on with the version that "
            "wrote it, or begin a new state directory"
        ) from None
