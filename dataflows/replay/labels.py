"""Labels that come after their rows: each finds its row as it comes, and waits for it on disk.

Which row a label is of is known when it comes, from the ids that wait. A pipeline forgets an id
after the label's ``wait``; so do two tables here, of which the older is dropped each time that
event time has gone on by that much. What is found is written to one small file per part of the
rows, and read with that part at the end. So memory holds ids that wait, and some labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dataflows.encode import Results
from dataflows.replay.rows import RowColumns
from models.learner import Task

_FOUND = np.dtype([("row", np.int64), ("time", np.int64), ("value", np.float64)])
_MOST_IN_MEMORY = 500_000
_NO_TIME = np.iinfo(np.int64).min


class LabelJoin:
    """Finds the row of every label that was used; rows are numbered as they come.

    ``directory`` is for labels that wait for the end, ``part_rows`` are in each part of the rows.
    ``labels_topic`` is where labels that could not be used are said to be from.
    """

    def __init__(
        self,
        directory: Path,
        columns: RowColumns,
        labels_topic: str,
        wait_ms: int,
        part_rows: int,
    ) -> None:
        self._directory = directory
        self._columns = columns
        self._topic = labels_topic
        self._wait_ms = wait_ms
        self._part_rows = part_rows
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}
        self._turn_at: int | None = None
        self._rows: list[int] = []
        self._times: list[int] = []
        self._values: list[float] = []
        self._classes: dict[Any, int] = {}

    def add(self, results: Results, first_row: int) -> int:
        """Take a batch whose first event is row ``first_row``; how many labels found a row."""
        batch, labels = results.batch, results.batch.labels
        events_alone = not len(labels)
        if batch.ids:
            self._turn(batch.span[1])
        twice = self._refused(results, results.batch.raw.events.topic)
        if events_alone and not twice:
            rows = range(first_row, first_row + len(batch))
            self._young.update(zip(batch.ids, rows, strict=True))
            return 0
        events = list(zip(batch.partitions.tolist(), batch.offsets.tolist(), strict=True))
        unused = self._refused(results, self._topic)
        places = list(zip(labels.partitions.tolist(), labels.offsets.tolist(), strict=True))
        count, found, times = len(batch), len(self._rows), labels.times.tolist()
        for turn in batch.order.tolist():
            if turn < count:
                if events[turn] not in twice:
                    self._young[batch.ids[turn]] = first_row + turn
            elif places[turn - count] not in unused:
                place = turn - count
                self._find(labels.ids[place], labels.values[place], times[place])
        found = len(self._rows) - found
        if len(self._rows) >= _MOST_IN_MEMORY:
            self.spill()
        return found

    def columns(self, part: int, times: pl.Series) -> list[pl.Series]:
        """The label columns of a part whose rows have these event times (epoch ms)."""
        rows = len(times)
        values, at = np.zeros(rows), np.full(rows, _NO_TIME)
        path = self._file(part)
        if path.exists():
            found = np.fromfile(path, _FOUND)
            places = found["row"] - part * self._part_rows
            values[places], at[places] = found["value"], found["time"]
        known = pl.Series(at != _NO_TIME)
        none = pl.Series([None], dtype=pl.Int64)
        label_times = pl.Series(at).zip_with(known, none)
        return self._columns.labels(self._typed(values, known), label_times, label_times - times)

    def spill(self) -> None:
        """Write what is in memory to disk.

        Raises:
            OSError: the disk does not take it.
        """
        found = np.zeros(len(self._rows), _FOUND)
        found["row"], found["time"], found["value"] = self._rows, self._times, self._values
        for kept in (self._rows, self._times, self._values):
            kept.clear()
        parts = found["row"] // self._part_rows
        order = np.argsort(parts, kind="stable")
        found, parts = found[order], parts[order]
        for part in np.unique(parts).tolist():
            with self._file(part).open("ab") as file:
                file.write(found[parts == part].tobytes())

    def _find(self, id: str, value: Any, time: int) -> None:
        row = self._young.pop(id, None)
        if row is None:
            row = self._old.pop(id, None)
        if row is None or value is None:
            return
        self._rows.append(row)
        self._times.append(time)
        if self._columns.several:
            value = self._classes.setdefault(value, len(self._classes))
        self._values.append(value)

    def _turn(self, newest: int) -> None:
        if self._turn_at is None:
            self._turn_at = newest + self._wait_ms
        elif newest > self._turn_at:
            self._old, self._young = self._young, {}
            self._turn_at = newest + self._wait_ms

    def _refused(self, results: Results, topic: str) -> set[tuple[int, int]]:
        """Places of what the model step did not use: labels, or events that are not learned."""
        return {(dead.partition, dead.offset) for dead in results.dead if dead.topic == topic}

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
