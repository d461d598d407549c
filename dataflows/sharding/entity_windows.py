"""The windows of one entity for one shard of its keys, and the values that go into them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.candidates import FIRST
from anabranch.dataflows.batch.columns import NumberColumn, take_rows
from anabranch.dataflows.declaration.features import EntityFeature
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.state.durations import parse_duration_ms
from anabranch.state.keys.hashing import NO_KEY_HASH, hash64
from anabranch.state.keys.text_column import Texts
from anabranch.state.store.delta import Delta
from anabranch.state.windows.entity_state import EntityState

INSERT, QUERY_ONLY = 0, 1  # modes of `EntityState.update`
NULL_CODE = np.iinfo(np.int64).min
_FLOAT64, _INT64 = np.dtype(np.float64), np.dtype(np.int64)  # making a dtype of a type is slow


class ValueReader:
    """Makes arrays of the columns that are aggregated in windows, once for all entities."""

    def __init__(self, pipeline: Pipeline) -> None:
        named = {
            str(feature.value): feature.text_value
            for features in pipeline.entities.values()
            for feature, _ in features
            if feature.value is not None
        }
        self._converters = [(name, _codes if text else _numbers) for name, text in named.items()]
        self._ranks = pipeline.candidates is not None

    def read(self, columns: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """Value name → ``(rows,)`` float64 (null is NaN) or int64 codes (null is `NULL_CODE`)."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, convert in self._converters:
            values = columns[name]
            as_is = type(values) is NumberColumn and values.array.dtype is _FLOAT64
            arrays[name] = values.array if as_is else convert(values)
        if self._ranks:
            arrays[FIRST] = columns[FIRST]
        return arrays


class EntityWindows:
    """All window features of one entity, for the keys of one shard.

    A null value is left out of its windows: the row only queries them. Values that may be null
    therefore have an `EntityState` of their own. A row whose key is `NO_KEY` enters no windows, and
    its features are those of empty ones.

    Args:
        entity: the field that holds the keys.
        in_place: whether features are written into their columns of full rows, or contiguously into
            rows of the entity's own.
    """

    def __init__(self, pipeline: Pipeline, entity: str, in_place: bool) -> None:
        lateness_ms = parse_duration_ms(pipeline.allowed_lateness)
        groups: dict[str | None, list[tuple[int, EntityFeature]]] = {}
        self.width = 0
        # The columns that all candidates of an event share.
        self._shared: NDArray[np.int64] | None = None
        shared: list[int] = []
        for feature, columns in pipeline.entities[entity]:
            value = feature.value
            nullable = value is not None and pipeline.schema.fields[value].optional
            start = columns.start if in_place else self.width
            groups.setdefault(value if nullable else None, []).append((start, feature))
            shared += range(start, start + columns.stop - columns.start)
            self.width += columns.stop - columns.start
        self._may_be_null = pipeline.schema.fields[entity].optional
        if pipeline.candidates is not None and not pipeline.schema.fields[entity].is_list:
            self._shared = np.array(shared)
        self.groups = [
            (
                value,
                EntityState(
                    [feature.spec for _, feature in members],
                    lateness_ms,
                    [start for start, _ in members],
                ),
            )
            for value, members in groups.items()
        ]

    def changes(self) -> Delta:
        """See `EntityState.changes`."""
        delta = Delta()
        for number, (_, state) in enumerate(self.groups):
            delta.put(str(number), state.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """See `EntityState.restore`."""
        for number, (_, state) in enumerate(self.groups):
            state.restore(image.part(str(number)))

    def advance_watermark(self, watermark: int) -> None:
        """See `EntityState.advance_watermark`."""
        for _, state in self.groups:
            state.advance_watermark(watermark)

    def fill(
        self,
        keys: Sequence[str],
        times: NDArray[np.int64],
        columns: dict[str, NDArray[Any]],
        features: NDArray[np.float64],
    ) -> None:
        """Write the features of rows into ``features``, ``(rows, width) float64``, in order."""
        if self._shared is not None:
            self._fill_shared(self._shared, keys, times, columns, features)
            return
        no_key = hash64(keys) == NO_KEY_HASH if self._may_be_null else None
        if no_key is not None and not no_key.any():
            no_key = None
        for value, state in self.groups:
            if value is None and no_key is None:
                state.insert(keys, times, columns, features)
                continue
            filled, mode = columns, np.zeros(len(times), np.uint8)
            if value is not None:
                filled, mode = _without_nulls(columns, value)
            if no_key is not None:
                mode[no_key] = QUERY_ONLY
            state.update(keys, times, filled, mode, features)

    def _fill_shared(
        self,
        own: NDArray[np.int64],
        keys: Sequence[str],
        times: NDArray[np.int64],
        columns: dict[str, NDArray[Any]],
        features: NDArray[np.float64],
    ) -> None:
        """Insert only the first row of each event; the others get its features."""
        first = columns[FIRST] != 0
        rows = np.flatnonzero(first)
        of_first = features[rows]
        values = {name: column[rows] for name, column in columns.items()}
        self._shared = None
        self.fill(take_rows(keys, rows), times[rows], values, of_first)
        self._shared = own
        features[:, own] = of_first[np.cumsum(first) - 1][:, own]


def _without_nulls(
    columns: dict[str, NDArray[Any]], value: str
) -> tuple[dict[str, NDArray[Any]], NDArray[np.uint8]]:
    values = columns[value]
    null = np.isnan(values) if values.dtype == np.float64 else values == NULL_CODE
    mode = np.where(null, QUERY_ONLY, INSERT).astype(np.uint8)
    filled = np.where(null, 0, values) if null.any() else values
    return {**columns, value: filled}, mode


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    return values.floats() if type(values) is NumberColumn else np.array(values, _FLOAT64)


def _codes(values: Sequence[Any]) -> NDArray[np.int64]:
    if type(values) is not Texts and None in values:
        codes = hash64(["" if value is None else value for value in values]).view(np.int64).copy()
        codes[[row for row, value in enumerate(values) if value is None]] = NULL_CODE
        return codes
    return hash64(values).view(_INT64)


def run_in_threads(tasks: Sequence[Callable[[], None]]) -> None:
    """Run all tasks, in as many threads as there are cores; returns when all are done.

    Raises:
        Exception: the first one that a task raised.
    """
    *others, own = tasks
    started = [_pool().submit(task) for task in others]
    try:
        own()
    finally:
        failures = [future.exception() for future in started]
    for failure in failures:
        if failure is not None:
            raise failure


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "entity-windows")
