"""Quality by slices: which slices an event is in, and how good predictions are in each."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.categories import Vocabulary
from anabranch.models.learners.learner import Predictions, Targets, Task
from anabranch.models.metrics.grouped import MetricGroups
from anabranch.models.metrics.kernels import count_by
from anabranch.models.metrics.slices import SliceBy
from anabranch.state.errors import DeclarationError, StateError

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Fields = Mapping[str, Sequence[Any]]
"""Field of the events → one value per event."""

NO_FIELDS: Fields = {}
"""For events of which no field is asked."""

Report = dict[str, dict[str, dict[str, Any]]]
"""Slice → value → ``labels`` and, by model and metric, ``quality``."""


class _Slice:
    """One declared slice: its groups, the labels in each, and the metrics by model."""

    def __init__(self, declared: SliceBy, column: int | None) -> None:
        self.declared = declared
        self.values = Vocabulary(declared.most, declared.names)
        # Beside the values: all others, or a number that is null.
        self.groups = declared.most + 1
        self.labels = np.zeros(self.groups, np.int64)
        self.metrics: dict[str, dict[str, MetricGroups]] = {}
        self._column = column
        self._edges = None if declared.edges is None else np.array(declared.edges)

    def groups_of(self, fields: Fields, features: F64, rows: I64, order: I64 | None) -> Any:
        edges = self._edges
        if edges is None:
            return self.values.codes(fields[self.declared.subject], order)
        if self._column is not None:
            return np.searchsorted(edges, features[rows, self._column], side="right")
        numbers = np.array(fields[self.declared.subject], np.float64)  # null is NaN
        found = np.searchsorted(edges, numbers, side="right")
        found[np.isnan(numbers)] = self.declared.most
        return found

    def name(self, group: int) -> str:
        """What a group is called."""
        if self.declared.edges is not None and group == self.declared.most:
            return "null"
        return self.values.name(group)


class Slices:
    """The slices at work, all of which learn at the label, from the prediction that was served.

    Args:
        declared: in the order of the groups.
        columns: names of the features.
        metrics: names, kept for every model.
        task: of the models.

    Raises:
        DeclarationError: two slices have one name.

    >>> from anabranch.models.metrics.slices import slice_by
    >>> slices = Slices([slice_by("country")], ("amount",), ("Accuracy",), Task.BINARY)
    >>> slices.add("m")
    >>> groups = slices.groups_of({"country": ["DE", "US", "DE"]}, np.zeros((3, 1)), np.arange(3))
    >>> truths, answers = np.array([1.0, 1.0, 0.0]), Predictions(np.array([0.9, 0.1, 0.7]))
    >>> slices.score(groups, truths, {"m": answers})
    >>> slices.report()["country"]["DE"]
    {'labels': 2, 'quality': {'m': {'Accuracy': 0.5}}}
    """

    def __init__(
        self,
        declared: Sequence[SliceBy],
        columns: Sequence[str],
        metrics: Sequence[str],
        task: Task,
    ) -> None:
        self._metrics, self._task = tuple(metrics), task
        places = {name: place for place, name in enumerate(columns)}
        self._slices = [_Slice(each, _column(each, places)) for each in declared]
        self._told = b""
        if len({each.name for each in declared}) < len(declared):
            raise DeclarationError("two slices have one name: say called= of one of them")

    def __len__(self) -> int:
        return len(self._slices)

    def place(self, name: str) -> int:
        """That of the slice of this name."""
        return [each.declared.name for each in self._slices].index(name)

    def known(self, place: int, group: int) -> bool:
        """Whether a slice has such a group; not that of a row from before it was declared."""
        return group < self._slices[place].groups

    def name(self, place: int, group: int) -> str:
        """What a group of a slice is called."""
        return self._slices[place].name(group)

    def add(self, model: str) -> None:
        """A model from now on."""
        for each in self._slices:
            each.metrics[model] = {
                name: MetricGroups(name, self._task, each.groups) for name in self._metrics
            }

    def remove(self, model: str) -> None:
        """Forget a model."""
        for each in self._slices:
            each.metrics.pop(model)

    def groups_of(
        self,
        fields: Fields,
        features: F64,
        rows: I64,
        order: I64 | None = None,
    ) -> U8:
        """The group of each event in each slice, `(events, slices) uint8`.

        Args:
            fields: of the events.
            features: `(capacity, features) float64`; those of the events are at `rows`.
            rows: `(events,) int64`.
            order: see `Vocabulary.codes`.
        """
        groups = np.empty((len(rows), len(self._slices)), np.uint8)
        for place, each in enumerate(self._slices):
            groups[:, place] = each.groups_of(fields, features, rows, order)
        return groups

    def score(self, groups: U8, truths: Targets, predictions: Mapping[str, Predictions]) -> None:
        """Score the predictions of all models by their labels; ``groups`` as `groups_of` gave."""
        if not len(groups):
            return
        for place, each in enumerate(self._slices):
            group = np.ascontiguousarray(groups[:, place])
            count_by(group, each.labels)
            for model, answers in predictions.items():
                for metric in each.metrics[model].values():
                    metric.update_many(truths, answers, group)

    def changes(self) -> bytes | None:
        """All that it knows, for `restore`; None if that is what the last call gave."""
        told = pickle.dumps(
            [(each.declared, each.values, each.labels, each.metrics) for each in self._slices],
            protocol=5,
        )
        if told == self._told:
            return None
        self._told = told
        return told

    def restore(self, blob: bytes | None, models: Sequence[str]) -> list[int]:
        """Take up what `changes` gave; a slice or a metric that is new begins now.

        Args:
            blob: it is unpickled: give only what this program wrote. None: nothing was stored.
            models: in their order from now on.

        Returns:
            By slice, its place among those that were stored; -1 for a new one.

        Raises:
            StateError: it can't be unpickled here.
        """
        if blob is None:
            return [-1] * len(self._slices)
        self._told = blob
        stored = _load(blob)
        declared = [each[0] for each in stored]
        places = []
        for each in self._slices:
            place = declared.index(each.declared) if each.declared in declared else -1
            places.append(place)
            kept: Mapping[str, dict[str, MetricGroups]] = {}
            if place >= 0:
                _, each.values, each.labels, kept = stored[place]
            each.metrics = {
                model: each.metrics[model] | _known(kept.get(model, {}), self._metrics)
                for model in models
            }
        return places

    def report(self) -> Report:
        """What is known of every group that has a label."""
        return {each.declared.name: _report(each) for each in self._slices}


def stored_report(blob: bytes) -> Report:
    """`Slices.report` of what `Slices.changes` gave. It is unpickled.

    Raises:
        StateError: it can't be unpickled here.
    """
    found = {}
    for declared, values, labels, metrics in _load(blob):
        each = _Slice(declared, None)
        each.values, each.labels, each.metrics = values, labels, metrics
        found[declared.name] = _report(each)
    return found


def _report(each: _Slice) -> dict[str, dict[str, Any]]:
    return {
        each.name(group): {
            "labels": int(each.labels[group]),
            "quality": {
                model: {name: metric.value(group) for name, metric in metrics.items()}
                for model, metrics in each.metrics.items()
            },
        }
        for group in np.flatnonzero(each.labels).tolist()
    }


def _column(declared: SliceBy, places: Mapping[str, int]) -> int | None:
    return None if declared.edges is None else places.get(declared.subject)


def _known(metrics: dict[str, MetricGroups], names: Sequence[str]) -> dict[str, MetricGroups]:
    return {name: metric for name, metric in metrics.items() if name in names}


def _load(blob: bytes) -> list[Any]:
    try:
        found: list[Any] = pickle.loads(blob)
    except Exception as error:
        raise StateError(
            f"the quality by slices can't be read from the state: {error}; go on with the version "
            "that wrote it, or begin a new state directory"
        ) from error
    return found
