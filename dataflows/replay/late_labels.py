"""Joins labels that arrive after their events to training rows that are already on disk.

The model step reports each label that it learned, with the row it belongs to: a label that arrived,
one that updated an earlier label, or the default that is assumed when the timeout has passed. These
are appended to one small file per part of the rows, which is read together with that part at the
end. If a row has several, the last one counts, as it did for the model. So memory holds a limited
number of labels and no rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.replay.training_rows import LABEL_ORIGINS, RowColumns
from anabranch.models.learners.learner import Targets, Task
from anabranch.models.prequential.outcome import ASSUMED_LABEL

I64 = NDArray[np.int64]

_LABEL_ROW = np.dtype(
    [("row", np.int64), ("time", np.int64), ("value", np.float64), ("origin", np.uint8)]
)
_MAX_IN_MEMORY = 500_000
_NONE, _LABEL, _ASSUMED, _CORRECTED = range(4)
_TAG_MASK = (1 << 32) - 1


class LateLabels:
    """Assigns every learned label to its training row, by row number in order of arrival.

    ``directory`` is where labels are spilled; each part of the rows has ``part_rows`` of them.
    """

    def __init__(self, directory: Path, columns: RowColumns, part_rows: int) -> None:
        self._directory = directory
        self._columns = columns
        self._part_rows = part_rows
        self._labels: list[NDArray[Any]] = []
        self._count = 0
        self._classes: dict[Any, int] = {}
        self._events = 0  # tags count them
        self._unserved = np.zeros(0, np.int64)  # those of them that are no rows, ascending

    def add(self, results: Results) -> int:
        """Take the labels of a batch.

        Returns:
            How many rows have got their first label.

        Raises:
            OSError: labels can't be written to disk.
        """
        learned, corrected = results.learned, results.corrected
        if results.unserved.size:
            unserved = self._events + results.unserved
            self._unserved = np.concatenate([self._unserved, unserved])
        self._events += len(results.batch) + results.unserved.size
        labelled = 0
        if learned is not None and len(learned.times):
            origin = np.where(learned.label == ASSUMED_LABEL, _ASSUMED, _LABEL)
            labelled = self._append(learned.tags, learned.times, learned.target, origin)
        if corrected is not None:
            origin = np.full(len(corrected), _CORRECTED)
            self._append(corrected.tags, corrected.times, corrected.target, origin)
        if self._count >= _MAX_IN_MEMORY:
            self.spill()
        return labelled

    def columns(self, part: int, times: pl.Series) -> list[pl.Series]:
        """The label columns of one part; ``times`` are the event times of its rows (epoch ms)."""
        rows = len(times)
        values, at, origin = np.zeros(rows), np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        path = self._file(part)
        if path.exists():
            labels = np.fromfile(path, _LABEL_ROW)
            # If a row occurs several times, numpy keeps the last assignment.
            rows_of_part = labels["row"] - part * self._part_rows
            values[rows_of_part], at[rows_of_part] = labels["value"], labels["time"]
            origin[rows_of_part] = labels["origin"]
        labelled = pl.Series(origin != _NONE)
        none = pl.Series([None], dtype=pl.Int64)
        label_times = pl.Series(at).zip_with(labelled, none)
        origins = pl.Series([None, *LABEL_ORIGINS], dtype=pl.String).gather(origin)
        delays = label_times - times
        return self._columns.labels(self._typed(values, labelled), label_times, delays, origins)

    def spill(self) -> None:
        """Write the labels in memory to disk.

        Raises:
            OSError: they can't be written.
        """
        if not self._labels:
            return
        labels = np.concatenate(self._labels)
        self._labels, self._count = [], 0
        parts = labels["row"] // self._part_rows
        order = np.argsort(parts, kind="stable")
        labels, parts = labels[order], parts[order]
        for part in np.unique(parts).tolist():
            with self._file(part).open("ab") as file:
                file.write(labels[parts == part].tobytes())

    def _append(self, tags: NDArray[np.int32], times: I64, targets: Targets, origin: I64) -> int:
        """Append the labels of events that are rows; returns how many there are."""
        labels = np.empty(len(times), _LABEL_ROW)
        # A tag is the lowest 32 bits of an event's number.
        numbers = self._events - ((self._events - tags.astype(np.int64)) & _TAG_MASK)
        labels["row"] = numbers - np.searchsorted(self._unserved, numbers)
        labels["time"], labels["origin"] = times, origin
        if self._columns.multiclass:
            classes = self._classes
            targets = np.array([classes.setdefault(each, len(classes)) for each in targets])
        labels["value"] = targets
        if self._unserved.size:
            labels = labels[~np.isin(numbers, self._unserved)]
        self._labels.append(labels)
        self._count += len(labels)
        return len(labels)

    def _typed(self, values: Any, labelled: pl.Series) -> pl.Series:
        """Values in the type of the column ``label``, null where a row is not ``labelled``."""
        if self._columns.multiclass:
            classes = list(self._classes)
            pairs = zip(values.astype(np.int64).tolist(), labelled.to_list(), strict=True)
            names = [classes[code] if has_label else None for code, has_label in pairs]
            return pl.Series(names, dtype=self._columns.target_type)
        if self._columns.task is Task.BINARY:
            values = values != 0
        typed = pl.Series(values)
        return typed.zip_with(labelled, pl.Series([None], dtype=typed.dtype))

    def _file(self, part: int) -> Path:
        return self._directory / f"labels-{part:06d}"
