"""The state of all keys of one kind of entity, in one shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import F64, I64, U8
from anabranch.state.errors import DeclarationError
from anabranch.state.keys.slots import KeySlots
from anabranch.state.store.delta import Delta
from anabranch.state.windows.aggregate_state import AggregateState
from anabranch.state.windows.decayed import DecayedState
from anabranch.state.windows.distinct import DistinctState
from anabranch.state.windows.event_log import (
    CLOCK,
    COUNT,
    EMPTIED,
    HAND,
    LATE_ROWS,
    MAX_SEEN,
    QUERY_CLOCK,
    QUERY_ONLY,
    RECORDS,
    WATERMARK_CLOCK,
)
from anabranch.state.windows.event_log_delta import clear_slots
from anabranch.state.windows.since_last import SinceLastState
from anabranch.state.windows.sliding import WindowState
from anabranch.state.windows.specs import DecayedSpec, DistinctSpec, SinceLastSpec, Spec, WindowSpec

# Created once: a comparison with a type creates a dtype each time.
_FLOAT, _INT, _BYTE = np.dtype(np.float64), np.dtype(np.int64), np.dtype(np.uint8)


class EntityState:
    """Aggregates over the events of each key, exact as of each event's own time.

    Rows are processed in order: each sees exactly the state after its predecessors. How the stream
    is cut into calls, and when idle keys are swept, changes no bit of any feature.

    Args:
        specs: the aggregates; their columns are concatenated.
        lateness_ms: a row whose time is at most this much before the latest time seen has exact
            features. One beyond it is processed all the same, and counted in `late_rows`.
        first_columns: the column at which each aggregate's features begin in the `out` that a
            caller passes to `update`; by default they are side by side.

    >>> from anabranch.state.windows.specs import WindowSpec
    >>> cards = EntityState([WindowSpec("amount", (60_000,), ("count", "sum"))], lateness_ms=0)
    >>> cards.columns()
    ['amount_1m_count', 'amount_1m_sum']
    >>> cards.update(["ann", "bob", "ann"], np.array([0, 0, 59_999]),
    ...              {"amount": np.array([1.0, 10.0, 2.0])})
    array([[ 1.,  1.],
           [ 1., 10.],
           [ 2.,  3.]])
    """

    def __init__(
        self, specs: Sequence[Spec], lateness_ms: int, first_columns: Sequence[int] | None = None
    ) -> None:
        if lateness_ms < 0 or lateness_ms > 2**53:
            raise DeclarationError(
                f"the allowed lateness can't be {lateness_ms} ms: it is 0 or more, up to 2**53"
            )
        if not specs:
            raise DeclarationError("an entity needs at least one aggregate")
        self._columns = [column for spec in specs for column in spec.columns()]
        repeated = {name for name in self._columns if self._columns.count(name) > 1}
        if repeated:
            raise DeclarationError(f"features are declared twice: {', '.join(sorted(repeated))}")
        self._keys = KeySlots()
        if first_columns is None:
            first_columns = _side_by_side(specs)
        self._states: list[AggregateState] = [
            _state_of(spec, lateness_ms, column)
            for spec, column in zip(specs, first_columns, strict=True)
        ]
        self._plan = [(state, state.value, state.dtype) for state in self._states]
        self._slots = 0
        self._no_values = {dtype: np.zeros(0, dtype) for dtype in (_FLOAT, _INT)}
        self._insert: U8 = np.zeros(0, np.uint8)

    def columns(self) -> list[str]:
        """Names of the features, in the order of `update`'s columns."""
        return list(self._columns)

    @property
    def keys(self) -> int:
        """Number of keys with events in their windows, and of those not yet swept."""
        return len(self._keys)

    @property
    def events(self) -> int:
        """Records in the logs of all aggregates (an event, or a pane of events)."""
        return sum(int(state.log.meta[RECORDS]) for state in self._states)

    @property
    def late_rows(self) -> int:
        """Rows beyond the allowed lateness: their features may lack events already expired."""
        return int(self._states[0].log.meta[LATE_ROWS])

    @property
    def nbytes(self) -> int:
        """Bytes allocated, the keys themselves included."""
        return self._keys.nbytes + sum(state.nbytes for state in self._states)

    @property
    def aggregates(self) -> Sequence[AggregateState]:
        """The state of each spec, in their order."""
        return self._states

    def slots_by_key(self) -> dict[str, int]:
        """The slot of every key, sorted by key."""
        return self._keys.by_key()

    def update(
        self,
        keys: Sequence[str],
        times: I64,
        columns: Mapping[str, NDArray[Any]],
        mode: U8 | None = None,
        out: F64 | None = None,
    ) -> F64:
        """Process rows, in order, and return their features.

        Args:
            keys: of the rows.
            times: `(rows,) int64`, epoch milliseconds.
            columns: `(rows,)` per value that is named in the specs: float64, finite; int64 codes
                for distinct counts.
            mode: `(rows,) uint8`, what each row does: `INSERT` (0) inserts the event, and its
                features include it; `QUERY_ONLY` (1) has features of the events up to its time;
                `INSERT_ONLY` (2) inserts the event, and its features are NaN. None: all insert. A
                query must not be ahead of the stream (a key's windows can't be moved back).
            out: `(rows, columns) float64`, C-contiguous, into which the features are written from
                `first_columns` on; by default a new array of the features alone.

        Returns:
            `out`, or `(rows, features) float64`.

        Raises:
            KeyError: `columns` lacks a value.
            ValueError: a column's length is not the number of rows.
        """
        rows = len(keys)
        times = _checked(times, rows, _INT, "times")
        checked = {
            state.value: _checked(columns[state.value], rows, state.dtype, state.value)
            for state in self._states
            if state.value
        }
        if out is None:
            out = np.full((rows, len(self._columns)), np.nan)
        if mode is None:
            self.insert(keys, times, checked, out)
            return out
        modes = _checked(mode, rows, _BYTE, "mode")
        inserted = [key for key, what in zip(keys, modes, strict=True) if what != QUERY_ONLY]
        self._keys.slots(inserted)
        self._process(self._keys.find(keys), times, checked, modes, out)
        return out

    def insert(
        self, keys: Sequence[str], times: I64, columns: Mapping[str, NDArray[Any]], out: F64
    ) -> None:
        """`update` without a mode and without checks.

        Shapes, dtypes and layouts must be exactly those that `update` describes.
        """
        self._process(self._keys.slots(keys), times, columns, None, out)

    def _process(
        self,
        slots: I64,
        times: I64,
        columns: Mapping[str, NDArray[Any]],
        modes: U8 | None,
        out: F64,
    ) -> None:
        rows = len(slots)
        if self._keys.capacity > self._slots:
            self._reserve_slots()
        if len(self._insert) < rows:
            self._insert = np.zeros(2 * rows, _BYTE)
            self._no_values = {dtype: np.zeros(2 * rows, dtype) for dtype in (_FLOAT, _INT)}
        if modes is None:
            modes = self._insert
        swept = True
        for state, name, dtype in self._plan:
            values: NDArray[Any] = columns[name] if name else self._no_values[dtype]
            if not state.update(slots, times, values, modes, out):
                swept = False
        if swept:
            self._release_swept(2 * rows + 1)

    def advance_watermark(self, watermark: int) -> None:
        """From now on expire events by this time (epoch ms), not by the latest time of a row.

        For streams that are merged here and are not aligned: the watermark is that of the one
        which is furthest behind. It never decreases.
        """
        for state in self._states:
            state.log.meta[CLOCK] = WATERMARK_CLOCK
            state.log.meta[MAX_SEEN] = max(int(state.log.meta[MAX_SEEN]), watermark)

    def follow_queries(self) -> None:
        """Expire events by the times of query-only rows, and never by those of inserts.

        For events that arrive ahead of the rows that query, or long after them: a query is exact
        if it is within the allowed lateness of all earlier ones.
        """
        for state in self._states:
            state.log.meta[CLOCK] = QUERY_CLOCK

    def evict(self) -> None:
        """Sweep all keys now. It changes no feature, only `keys`, `events` and the free space."""
        for state in self._states:
            state.sweep(self._slots)
        self._release_swept(self._slots)

    def changes(self) -> Delta:
        """What changed since the last call; everything on the first one."""
        delta = self._keys.changes()
        for number, state in enumerate(self._states):
            delta.put(str(number), state.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Restore, into a new object of the same specs, what all calls of `changes` returned.

        Raises:
            StateError: the image is damaged.
        """
        self._keys.restore(image)
        if not self._keys.high_water:
            return
        self._reserve_slots()
        for number, state in enumerate(self._states):
            state.restore(image.part(str(number)))

    def _reserve_slots(self) -> None:
        self._slots = self._keys.capacity
        for state in self._states:
            state.log.reserve_slots(self._slots)

    def _release_swept(self, steps: int) -> None:
        """Release those of the last `steps` slots under the clock hand that no aggregate needs."""
        steps = min(steps, self._slots)
        first = int(self._states[0].log.meta[HAND]) - steps
        swept = np.arange(first, first + steps) % max(self._slots, 1)
        for state in self._states:
            swept = swept[state.log.slot[swept, COUNT] == EMPTIED]
        if not len(swept):
            return
        for state in self._states:
            clear_slots(swept, state.log.arrays)
        self._keys.release(swept)


def _checked(column: NDArray[Any], rows: int, dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    if column.dtype != dtype or not column.flags.carray:
        # One memory layout: kernels are compiled for it alone.
        column = np.array(column, dtype, order="C")
    if len(column) != rows or column.ndim != 1:
        raise ValueError(f"{name} has shape {column.shape} for {rows} rows")
    return column


def _side_by_side(specs: Sequence[Spec]) -> list[int]:
    return [0, *accumulate(len(spec.columns()) for spec in specs)][:-1]


def _state_of(spec: Spec, lateness_ms: int, column: int) -> AggregateState:
    match spec:
        case WindowSpec():
            return WindowState(spec, lateness_ms, column)
        case DistinctSpec():
            return DistinctState(spec, lateness_ms, column)
        case SinceLastSpec():
            return SinceLastState(spec, lateness_ms, column)
        case DecayedSpec():
            return DecayedState(spec, lateness_ms, column)


def warm() -> None:
    """Compile all kernels, or load them from the cache, before the first event arrives."""
    specs: list[Spec] = [
        WindowSpec("value", (1_000,), ("mean",)),
        DistinctSpec("code", (1_000,)),
        SinceLastSpec(1_000),
        DecayedSpec("value", 1_000),
    ]
    columns = {"value": np.zeros(1), "code": np.zeros(1, np.int64)}
    state = EntityState(specs, 0)
    state.update([""], np.zeros(1, np.int64), columns)
    state.evict()
