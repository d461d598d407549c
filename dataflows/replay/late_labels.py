"""Labels that come after their rows: each waits on disk for the row that it belongs to.

The model step says what it learned, and of which row: from a label, from one that corrected an
earlier one, or from what is assumed when a wait is over. It is written to one small file per part
of the rows, and read with that part at the end; of several for a row, the last one counts, as it
did for the model. So memory holds some labels, and nothing that waits.
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

_FOUND = np.dtype(
    [("row", np.int64), ("time", np.int64), ("value", np.float64), ("origin", np.uint8)]
)
_MOST_IN_MEMORY = 500_000
_NONE, _LABEL, _ASSUMED, _CORRECTED = range(4)
_ALL = (1 << 32) - 1


class RowLabels:
    """Finds the row of every label that was learned; rows are numbered as they come.

    ``directory`` is for labels that wait for the end, ``part_rows`` are in each part of the rows.
    """

    def __init__(self, directory: Path, columns: RowColumns, part_rows: int) -> None:
        self._directory = directory
        self._columns = columns
        self._part_rows = part_rows
        self._found: list[NDArray[Any]] = []
        self._count = 0
        self._classes: dict[Any, int] = {}
        self._events = 0  # tags count them
        self._unserved = np.zeros(0, np.int64)  # those of them that are no rows, ascending

    def add(self, results: Results) -> int:
        """Take a batch; how many more rows have a label now.

        Raises:
            OSError: the disk does not take it.
        """
        learned, corrected = results.learned, results.corrected
        if results.unserved.size:
            unserved = self._events + results.unserved
            self._unserved = np.concatenate([self._unserved, unserved])
        self._events += len(results.batch) + results.unserved.size
        labelled = 0
        if learned is not None and len(learned.times):
            origin = np.where(learned.label == ASSUMED_LABEL, _ASSUMED, _LABEL)
            labelled = self._keep(learned.tags, learned.times, learned.target, origin)
        if corrected is not None:
            origin = np.full(len(corrected), _CORRECTED)
            self._keep(corrected.tags, corrected.times, corrected.target, origin)
        if self._count >= _MOST_IN_MEMORY:
            self.spill()
        return labelled

    def columns(self, part: int, times: pl.Series) -> list[pl.Series]:
        """The label columns of a part whose rows have these event times (epoch ms)."""
        rows = len(times)
        values, at, origin = np.zeros(rows), np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        path = self._file(part)
        if path.exists():
            found = np.fromfile(path, _FOUND)
            # Of one row's, numpy assigns the last.
            places = found["row"] - part * self._part_rows
            values[places], at[places] = found["value"], found["time"]
            origin[places] = found["origin"]
        known = pl.Series(origin != _NONE)
        none = pl.Series([None], dtype=pl.Int64)
        label_times = pl.Series(at).zip_with(known, none)
        origins = pl.Series([None, *LABEL_ORIGINS], dtype=pl.String).gather(origin)
        delays = label_times - times
        return self._columns.labels(self._typed(values, known), label_times, delays, origins)

    def spill(self) -> None:
        """Write what is in memory to disk.

        Raises:
            OSError: the disk does not take it.
        """
        if not self._found:
            return
        found = np.concatenate(self._found)
        self._found, self._count = [], 0
        parts = found["row"] // self._part_rows
        order = np.argsort(parts, kind="stable")
        found, parts = found[order], parts[order]
        for part in np.unique(parts).tolist():
            with self._file(part).open("ab") as file:
                file.write(found[parts == part].tobytes())

    def _keep(self, tags: NDArray[np.int32], times: I64, targets: Targets, origin: I64) -> int:
        """Keep labels of rows; how many there are."""
        found = np.empty(len(times), _FOUND)
        # A tag is the end of an event's number.
        numbers = self._events - ((self._events - tags.astype(np.int64)) & _ALL)
        before = np.searchsorted(self._unserved, numbers)
        found["row"] = numbers - before
        found["time"], found["origin"] = times, origin
        if self._columns.several:
            classes = self._classes
            targets = np.array([classes.setdefault(each, len(classes)) for each in targets])
        found["value"] = targets
        if self._unserved.size:
            found = found[~np.isin(numbers, self._unserved)]
        self._found.append(found)
        self._count += len(found)
        return len(found)

    def _typed(self, values: Any, known: pl.Series) -> pl.Series:
        if self._columns.several:
            classes = list(self._classes)
            pairs = zip(values.astype(np.int64).tolist(), known.to_list(), strict=True)
            found = [classes[code] if is_known else None for code, is_known in pairs]
            return pl.Series(found, dtype=self._columns.answer)
        if self._columns.task is Task.BINARY:
            values = values != 0
        typed = pl.Series(values)
        return typed.zip_with(known, pl.Series([None], dtype=typed.dtype))

    def _file(self, part: int) -> Path:
        return self._directory / f"labels-{part:06d}"
