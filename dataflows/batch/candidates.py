"""Ranking events become one row per candidate, between admission and windows.

::

    event    {"id": "e1", "visitor": "v", "items": ["a", "b"], "prices": [3.5, 2.0]}
    rows     id "e1" and "a",  visitor "v",  items "a",  prices 3.5
             id "e1" and "b",  visitor "v",  items "b",  prices 2.0

A list of the event that is as long as its candidates is spread over them, any other field is
repeated. The windows of what the rows of an event share, here of the visitor, are entered by the
first of them, and all have the same features; those by candidate are entered by each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.batch.dead_letters import dead_letter
from anabranch.dataflows.batch.row_ids import parts_ids, row_id
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.models.metrics.ranking import EVENT, LIST
from anabranch.state.arrays import LARGEST
from anabranch.state.keys.hashing import hash64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

FIRST = "(first)"
"""Among the columns: `(rows,) uint8`, 1 for the first row of each event."""


class Candidates:
    """Spreads events over their candidates.

    Args:
        pipeline: one that ranks.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        assert pipeline.candidates is not None
        self._field = pipeline.candidates
        self._most = pipeline.max_candidates
        fields = pipeline.schema.fields
        self._numbers = [
            name
            for name in pipeline.read_fields
            if fields[name].is_list and fields[name].kind == "number"
        ]
        self._lists = {name for name in pipeline.read_fields if fields[name].is_list}
        self._lists.add(self._field)
        self._row_features = list(pipeline.row_features)
        self._width = len(pipeline.columns)
        self._controlled = pipeline.has_rollouts

    def check(self, batch: Batch) -> Batch:
        """The batch without events that can't be ranked, which are dead letters.

        Before they are admitted, so that one may come again, put right, under the same id.
        """
        lists = {name: list(batch.columns[name]) for name in self._lists}
        faults = [self._fault(lists, row, each) for row, each in enumerate(batch.ids)]
        if any(faults):
            batch.dead += [
                dead_letter(batch.rows, row, *fault) for row, fault in enumerate(faults) if fault
            ]
            batch = batch.keep(np.array([fault is None for fault in faults], np.bool_))
        return batch

    def spread(self, batch: Batch) -> Batch:
        """The batch with a row per candidate, of events that were checked and admitted."""
        lists = {name: list(batch.columns[name]) for name in self._lists}
        counts = np.array(list(map(len, lists[self._field])), np.int64)
        events = np.repeat(np.arange(len(batch)), counts)
        self._reorder(batch, counts)
        columns: dict[str, Any] = {
            name: list(chain.from_iterable(values))
            if (values := lists.get(name)) is not None
            else _repeated(column, events)
            for name, column in batch.columns.items()
        }
        ids = list(map(row_id, _repeated(batch.ids, events), columns[self._field]))
        first = np.ones(len(events), np.bool_)
        first[1:] = events[1:] != events[:-1]
        columns[EVENT], columns[FIRST] = events, first.astype(np.uint8)
        if self._controlled:
            moments = batch.times.astype(np.uint64) * _GOLDEN
            columns[LIST] = (hash64(batch.ids) ^ moments)[events]
        batch.rows, batch.ids, batch.times = batch.rows.take(events), ids, batch.times[events]
        batch.columns = columns
        batch.features = np.zeros((len(events), self._width))
        for feature, place in self._row_features:
            feature.fill(batch.features[:, place], batch.times, columns)
        return batch

    def _reorder(self, batch: Batch, counts: NDArray[np.int64]) -> None:
        """Every event in the order becomes its rows."""
        events, rows = len(counts), int(counts.sum())
        starts = np.concatenate([np.cumsum(counts) - counts, rows + np.arange(len(batch.labels))])
        sizes = np.concatenate([counts, np.ones(len(batch.labels), np.int64)])
        order = batch.order
        size = sizes[order]
        begins = np.repeat(starts[order] - (np.cumsum(size) - size), size)
        batch.order = begins + np.arange(int(size.sum()))
        assert events == len(batch)

    def _fault(self, lists: dict[str, list[Any]], row: int, own: str) -> tuple[str, str] | None:
        """Why an event can't be ranked; None where it can."""
        name = self._field
        candidates = lists[name][row]
        if not candidates:
            return "no candidates", f"{name} is empty: there is nothing to rank"
        if len(candidates) > self._most:
            most = f"max_candidates= of the pipeline is {self._most:,}"
            return "too many candidates", f"{name} has {len(candidates):,} of them, and {most}"
        if len(set(candidates)) < len(candidates):
            return "repeated candidate", f"{name} holds the same candidate more than once"
        if parts_ids(own) or parts_ids("".join(candidates)):
            return "control character", f"its id, or one of {name}, holds the character U+001F"
        for other, values in lists.items():
            if len(values[row]) != len(candidates):
                return (
                    "does not fit the candidates",
                    f"{other} has {len(values[row]):,} entries for {len(candidates):,} candidates",
                )
        for other in self._numbers:
            if any(value is not None and not abs(value) <= LARGEST for value in lists[other][row]):
                return "number too large", f"{other} holds a number beyond ±{LARGEST:g}"
        return None


def whole_events(batch: Batch, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """These rows, and in a ranking all other candidates of their events: `(rows,) bool`."""
    events = batch.columns.get(EVENT)
    return rows if events is None else np.isin(events, events[rows])


def one_each(batch: Batch, rows: list[int]) -> list[int]:
    """These rows; in a ranking the first of them of each event, which is told of once."""
    events = batch.columns.get(EVENT)
    if events is None or not rows:
        return rows
    first = np.unique(events[rows], return_index=True)[1]
    return [rows[at] for at in sorted(first.tolist())]


def _repeated(column: Sequence[Any] | NDArray[Any], rows: NDArray[np.int64]) -> Any:
    if isinstance(column, np.ndarray):
        return column[rows]
    values = list(column)
    return [values[row] for row in rows.tolist()]
