"""Expands ranking events into one row per candidate.

::

    event    {"id": "e1", "visitor": "v", "items": ["a", "b"], "prices": [3.5, 2.0]}
    rows     id "e1" and "a",  visitor "v",  items "a",  prices 3.5
             id "e1" and "b",  visitor "v",  items "b",  prices 2.0

A list field as long as the candidates gives each of them its entry; any other field is repeated.
The windows of an entity that all rows of an event share (here the visitor) take in its first row
only, and all rows have the same features; the windows of an entity by candidate take in each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.batch.dead_letters import Fault, dead_letter
from anabranch.dataflows.batch.row_ids import contains_separator, row_id
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.models.metrics.ranking import EVENT, LIST
from anabranch.state.arrays import LARGEST
from anabranch.state.keys.hashing import hash64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

FIRST = "(first)"
"""A column: `(rows,) uint8`, 1 for the first row of each event."""


class Candidates:
    """Checks ranking events and expands them into rows.

    Args:
        pipeline: one with candidates.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        assert pipeline.candidates is not None
        self._field = pipeline.candidates
        self._max_candidates = pipeline.max_candidates
        fields = pipeline.schema.fields
        self._numbers = [
            name
            for name in pipeline.read_fields
            if fields[name].is_list and fields[name].kind == "number"
        ]
        self._lists = {name for name in pipeline.read_fields if fields[name].is_list}
        self._lists.add(self._field)
        self._row_features = list(pipeline.row_features)
        self._local_time = pipeline.local_time
        self._width = len(pipeline.columns)
        self._controlled = pipeline.has_rollouts

    def check(self, batch: Batch) -> Batch:
        """The batch without events that cannot be ranked; they become dead letters.

        Called before duplicates are filtered, so that a corrected event may use the same id again.
        """
        lists = {name: list(batch.columns[name]) for name in self._lists}
        faults = [self._fault(lists, row, each) for row, each in enumerate(batch.ids)]
        if any(faults):
            batch.dead_letters += [
                dead_letter(batch.rows, row, *fault) for row, fault in enumerate(faults) if fault
            ]
            batch = batch.keep(np.array([fault is None for fault in faults], np.bool_))
        return batch

    def expand(self, batch: Batch) -> Batch:
        """The batch with a row per candidate; its events were checked and filtered."""
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
            mixed_times = batch.times.astype(np.uint64) * _GOLDEN
            columns[LIST] = (hash64(batch.ids) ^ mixed_times)[events]
        batch.rows, batch.ids, batch.times = batch.rows.take(events), ids, batch.times[events]
        batch.columns = columns
        batch.features = np.zeros((len(events), self._width))
        local = self._local_time
        clock = batch.times if local is None else local.wall_ms(batch.times)
        for feature, place in self._row_features:
            feature.fill(batch.features[:, place], clock, columns)
        return batch

    def _reorder(self, batch: Batch, counts: NDArray[np.int64]) -> None:
        """Replace each event in the order by its rows."""
        events, rows = len(counts), int(counts.sum())
        starts = np.concatenate([np.cumsum(counts) - counts, rows + np.arange(len(batch.labels))])
        sizes = np.concatenate([counts, np.ones(len(batch.labels), np.int64)])
        order = batch.order
        size = sizes[order]
        first = np.repeat(starts[order] - (np.cumsum(size) - size), size)
        batch.order = first + np.arange(int(size.sum()))
        assert events == len(batch)

    def _fault(self, lists: dict[str, list[Any]], row: int, event: str) -> Fault | None:
        """Why an event cannot be ranked; None if it can."""
        name = self._field
        candidates = lists[name][row]
        if not candidates:
            return DeadLetterReason.NO_CANDIDATES, f"{name} is empty: there is nothing to rank"
        if len(candidates) > self._max_candidates:
            detail = (
                f"{name} has {len(candidates):,} candidates; max_candidates= of the pipeline is "
                f"{self._max_candidates:,}"
            )
            return DeadLetterReason.TOO_MANY_CANDIDATES, detail
        if len(set(candidates)) < len(candidates):
            detail = f"{name} holds the same candidate more than once"
            return DeadLetterReason.REPEATED_CANDIDATE, detail
        if contains_separator(event) or contains_separator("".join(candidates)):
            detail = f"its id, or one of {name}, contains the character U+001F"
            return DeadLetterReason.CONTROL_CHARACTER, detail
        for other, values in lists.items():
            if len(values[row]) != len(candidates):
                detail = (
                    f"{other} has {len(values[row]):,} entries for {len(candidates):,} candidates"
                )
                return DeadLetterReason.CANDIDATE_MISMATCH, detail
        for other in self._numbers:
            if any(value is not None and not abs(value) <= LARGEST for value in lists[other][row]):
                detail = f"{other} holds a number beyond ±{LARGEST:g}"
                return DeadLetterReason.NUMBER_TOO_LARGE, detail
        return None


def whole_events(batch: Batch, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """These rows, and in a ranking all other candidates of their events, `(rows,) bool`."""
    events = batch.columns.get(EVENT)
    return rows if events is None else np.isin(events, events[rows])


def first_of_each_event(batch: Batch, rows: list[int]) -> list[int]:
    """These rows; in a ranking only the first of them of each event."""
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
