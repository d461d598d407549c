"""Metrics by slice: the slices that an event belongs to, and the metrics of each model in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.categories import Categories
from anabranch.models.learners.learner import Predictions, Targets, Task
from anabranch.models.learners.pickling import dumps, unpickled
from anabranch.models.metrics.grouped import GroupedMetric
from anabranch.models.metrics.kernels import count_by
from anabranch.models.metrics.slices import SliceBy
from anabranch.state.errors import DeclarationError, StateError

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Fields = Mapping[str, Sequence[Any]]
"""Field of the events → one value per event."""

NO_FIELDS: Fields = {}
"""For events whose fields are not used."""

Report = dict[str, dict[str, dict[str, Any]]]
"""Slice → value → ``labels`` and, by model and metric, ``quality``."""


class _Slice:
    """One declared slice: its groups, the number of labels in each, and the metrics by model."""

    def __init__(self, declared: SliceBy, column: int | None) -> None:
        self.declared = declared
        self.categories = Categories(declared.max_values, declared.names)
        # One more than the values: all others, or a number that is null.
        self.groups = declared.max_values + 1
        self.labels = np.zeros(self.groups, np.int64)
        self.metrics: dict[str, dict[str, GroupedMetric]] = {}
        self._column = column
        self._edges = None if declared.bins is None else np.array(declared.bins)

    def groups_of(self, fields: Fields, features: F64, rows: I64, order: I64 | None) -> Any:
        """The group of each event, `(events,) int64`."""
        edges = self._edges
        if edges is None:
            return self.categories.codes(fields[self.declared.subject], order)
        if self._column is not None:
            return np.searchsorted(edges, features[rows, self._column], side="right")
        numbers = np.array(fields[self.declared.subject], np.float64)  # null is NaN
        groups = np.searchsorted(edges, numbers, side="right")
        groups[np.isnan(numbers)] = self.declared.max_values
        return groups

    def name(self, group: int) -> str:
        """The name of a group."""
        if self.declared.bins is not None and group == self.declared.max_values:
            return "null"
        return self.categories.name(group)

    def dump(self) -> dict[str, Any]:
        """The declaration and the state as plain data."""
        return {
            "declared": astuple(self.declared),
            "names": self.categories.names,
            "labels": self.labels,
            "metrics": {
                model: {name: each.dump() for name, each in metrics.items()}
                for model, metrics in self.metrics.items()
            },
        }

    def load(self, stored: Mapping[str, Any]) -> None:
        """Continue from what `dump` returned for an equal declaration; metrics apart."""
        self.categories = Categories(self.declared.max_values, stored["names"])
        self.labels = stored["labels"]

    def report(self) -> dict[str, dict[str, Any]]:
        """By group that has a label: the number of labels, and the quality by model and metric."""
        return {
            self.name(group): {
                "labels": int(self.labels[group]),
                "quality": {
                    model: {name: metric.value(group) for name, metric in metrics.items()}
                    for model, metrics in self.metrics.items()
                },
            }
            for group in np.flatnonzero(self.labels).tolist()
        }


class SlicedMetrics:
    """The metrics of each model, by slice; updated by each label, with the stored prediction.

    Args:
        declared: the slices, in the order of the group columns.
        columns: names of the features.
        metrics: names, computed for every model.
        task: of the models.

    Raises:
        DeclarationError: two slices have the same name.

    >>> from anabranch.models.metrics.slices import slice_by
    >>> slices = SlicedMetrics([slice_by("country")], ("amount",), ("Accuracy",), Task.BINARY)
    >>> slices.add("m")
    >>> groups = slices.groups_of({"country": ["DE", "US", "DE"]}, np.zeros((3, 1)), np.arange(3))
    >>> y_true, predictions = np.array([1.0, 1.0, 0.0]), Predictions(np.array([0.9, 0.1, 0.7]))
    >>> slices.score(groups, y_true, {"m": predictions})
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
        indices = {name: index for index, name in enumerate(columns)}
        self._slices = [_Slice(each, _column(each, indices)) for each in declared]
        self._written = b""
        if len({each.name for each in declared}) < len(declared):
            raise DeclarationError("two slices have the same name: give one of them another name=")

    def __len__(self) -> int:
        return len(self._slices)

    def index(self, name: str) -> int:
        """The column of the slice of this name."""
        return [each.declared.name for each in self._slices].index(name)

    def has_group(self, index: int, group: int) -> bool:
        """Whether a slice has such a group; a row from before its declaration has none."""
        return group < self._slices[index].groups

    def name(self, index: int, group: int) -> str:
        """The name of a group of a slice."""
        return self._slices[index].name(group)

    def add(self, model: str) -> None:
        """Add a model, with empty metrics."""
        for each in self._slices:
            each.metrics[model] = self._new_metrics(each)

    def remove(self, model: str) -> None:
        """Remove a model and its metrics."""
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
            order: see `Categories.codes`.
        """
        groups = np.empty((len(rows), len(self._slices)), np.uint8)
        for index, each in enumerate(self._slices):
            groups[:, index] = each.groups_of(fields, features, rows, order)
        return groups

    def score(self, groups: U8, y_true: Targets, predictions: Mapping[str, Predictions]) -> None:
        """Update the metrics of all models.

        Args:
            groups: `(labels, slices) uint8`, as `groups_of` returned them for the events.
            y_true: `(labels,)`.
            predictions: by model, one per label.
        """
        if not len(groups):
            return
        for index, each in enumerate(self._slices):
            group = np.ascontiguousarray(groups[:, index])
            count_by(group, each.labels)
            for model, of_model in predictions.items():
                for metric in each.metrics[model].values():
                    metric.update_many(y_true, of_model, group)

    def changes(self) -> bytes | None:
        """The whole state, for `restore`; None if it is what the last call returned."""
        content = {"task": self._task.value, "slices": [each.dump() for each in self._slices]}
        blob = dumps("the metrics by slice", content)
        if blob == self._written:
            return None
        self._written = blob
        return blob

    def restore(self, blob: bytes | None, models: Sequence[str]) -> list[int]:
        """Continue from what `changes` returned; new slices and new metrics start empty.

        Args:
            blob: it is unpickled: pass only what this program wrote. None: nothing was stored.
            models: the models from now on, in their order.

        Returns:
            For each slice, its index among the stored ones; -1 for a new one.

        Raises:
            StateError: it can't be unpickled here.
        """
        if blob is None:
            return [-1] * len(self._slices)
        self._written = blob
        _, stored = _load(blob)
        declared = [SliceBy(*each["declared"]) for each in stored]
        indices = []
        for each in self._slices:
            index = declared.index(each.declared) if each.declared in declared else -1
            indices.append(index)
            metrics = {model: each.metrics[model] for model in models}
            if index >= 0:
                each.load(stored[index])
                for model in models:
                    self._load_metrics(metrics[model], stored[index]["metrics"].get(model, {}))
            each.metrics = metrics
        return indices

    def report(self) -> Report:
        """The quality in every group that has a label."""
        return {each.declared.name: each.report() for each in self._slices}

    def _new_metrics(self, each: _Slice) -> dict[str, GroupedMetric]:
        return {name: GroupedMetric(name, self._task, each.groups) for name in self._metrics}

    def _load_metrics(self, metrics: dict[str, GroupedMetric], stored: Mapping[str, Any]) -> None:
        for name, metric in metrics.items():
            if name in stored:
                metric.load(stored[name])


def stored_report(blob: bytes) -> Report:
    """`SlicedMetrics.report` of what `SlicedMetrics.changes` returned. It is unpickled.

    Raises:
        StateError: it can't be unpickled here.
    """
    report = {}
    task, slices = _load(blob)
    for stored in slices:
        declared = SliceBy(*stored["declared"])
        each = _Slice(declared, None)
        each.load(stored)
        for model, metrics in stored["metrics"].items():
            each.metrics[model] = {}
            for name, state in metrics.items():
                each.metrics[model][name] = GroupedMetric(name, task, each.groups)
                each.metrics[model][name].load(state)
        report[declared.name] = each.report()
    return report


def _column(declared: SliceBy, indices: Mapping[str, int]) -> int | None:
    return None if declared.bins is None else indices.get(declared.subject)


def _load(blob: bytes) -> tuple[Task, list[dict[str, Any]]]:
    """The task, and by slice what `_Slice.dump` returned."""
    try:
        content = unpickled(blob)
        if not isinstance(content, dict):
            raise StateError("it was written by another version")
        return Task(content["task"]), content["slices"]
    except Exception as error:
        raise StateError(
            f"the metrics by slice in the state can't be read ({error}): continue with the version "
            "that wrote them, or rebuild the state in a new directory with replay"
        ) from error
