"""Everything that is remembered of the keys of one kind of entity, in one shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from state.aggregates import DecayedSpec, DistinctSpec, SinceLastSpec, Spec, WindowSpec
from state.compile import F64, I64, U8
from state.decayed import DecayedState
from state.distinct import DistinctState
from state.errors import DeclarationError
from state.keys import KeySlots
from state.log import COUNT, EMPTIED, HAND, LATE_ROWS, QUERY_ONLY, RECORDS, larger
from state.since_last import SinceLastState
from state.windows import WindowState

AggregateState = WindowState | DistinctState | SinceLastState | DecayedState


class EntityState:
    """Aggregates over the events of each key, exact as of each event's own time.

    Rows are worked through in order: each sees exactly what its predecessors have left. How the
    stream is cut into calls, and when idle keys are swept, changes no bit of any feature.

    Args:
        specs: the aggregates; their columns are concatenated.
        lateness_ms: a row whose time is at most this much before the latest time seen is answered
            exactly. One beyond it is taken all the same, and counted in `late_rows`.

    >>> from state.aggregates import WindowSpec
    >>> cards = EntityState([WindowSpec("amount", (60_000,), ("count", "sum"))], lateness_ms=0)
    >>> cards.columns()
    ['amount_1m_count', 'amount_1m_sum']
    >>> cards.update(["ann", "bob", "ann"], np.array([0, 0, 59_999]),
    ...              {"amount": np.array([1.0, 10.0, 2.0])})
    array([[ 1.,  1.],
           [ 1., 10.],
           [ 2.,  3.]])
    """

    def __init__(self, specs: Sequence[Spec], lateness_ms: int) -> None:
        if lateness_ms < 0 or lateness_ms > 2**53:
            raise DeclarationError(
                f"the lateness can't be {lateness_ms} ms: 0 or more, below 2**53"
            )
        if not specs:
            raise DeclarationError("an entity needs at least one aggregate")
        self._columns = [column for spec in specs for column in spec.columns()]
        doubles = {name for name in self._columns if self._columns.count(name) > 1}
        if doubles:
            raise DeclarationError(f"features are declared twice: {', '.join(sorted(doubles))}")
        self._keys = KeySlots()
        self._states: list[AggregateState] = []
        column = 0
        for spec in specs:
            self._states.append(_state_of(spec, lateness_ms, column))
            column += len(spec.columns())
        self._no_values: dict[type, NDArray[Any]] = {
            np.float64: np.zeros(0),
            np.int64: np.zeros(0, np.int64),
        }
        self._insert: U8 = np.zeros(0, np.uint8)

    def columns(self) -> list[str]:
        """Names of the features, in the order of `update`'s columns."""
        return list(self._columns)

    @property
    def keys(self) -> int:
        """Keys that hold a slot: those with events in reach, and those not yet swept."""
        return len(self._keys)

    @property
    def events(self) -> int:
        """Records in the logs of all aggregates (an event, or a pane of events)."""
        return sum(int(state.log.meta[RECORDS]) for state in self._states)

    @property
    def late_rows(self) -> int:
        """Rows that came beyond the lateness: their features may lack events already dropped."""
        return int(self._states[0].log.meta[LATE_ROWS])

    @property
    def nbytes(self) -> int:
        """Bytes allocated in arrays; the dictionary of keys is not counted."""
        return sum(state.nbytes for state in self._states)

    def update(
        self,
        keys: list[str],
        times: I64,
        columns: Mapping[str, NDArray[Any]],
        mode: U8 | None = None,
    ) -> F64:
        """Take in rows, in order, and return their features.

        Args:
            keys: of the rows.
            times: `(rows,) int64`, epoch milliseconds.
            columns: `(rows,)` per value that is named in the specs: float64, finite; int64 codes
                for distinct counts.
            mode: `(rows,) uint8`, what each row does: 0 inserts itself and is answered, itself
                included; 1 only looks, and is answered by the events up to its time; 2 only
                inserts itself, and its features are NaN. None stands for zeros. A row that only
                looks must not lie ahead of the stream (moving on, a key's windows would have to
                be moved back).

        Returns:
            `(rows, features) float64`.

        Raises:
            KeyError: a value is missing in `columns`.
            ValueError: a column's length is not the number of rows.
        """
        rows = len(keys)
        times = self._checked(times, rows, np.int64, "times")
        values = [self._values(state, columns, rows) for state in self._states]
        if mode is None:
            if len(self._insert) < rows:
                self._insert = np.zeros(2 * rows, np.uint8)
            modes = self._insert
            slots = self._keys.slots(keys)
            out = np.empty((rows, len(self._columns)))
        else:
            modes = self._checked(mode, rows, np.uint8, "mode")
            inserted = [key for key, what in zip(keys, modes, strict=True) if what != QUERY_ONLY]
            self._keys.slots(inserted)
            slots = self._keys.known(keys)
            out = np.full((rows, len(self._columns)), np.nan)
        self._reserve_slots()
        hand = int(self._states[0].log.meta[HAND])
        swept = True
        for state, column in zip(self._states, values, strict=True):
            swept &= state.update(slots, times, column, modes, out) > 0
        if swept:
            self._release(hand, 2 * rows + 1)
        return out

    def evict(self) -> None:
        """Sweep all keys now. It changes no feature, only `keys`, `events` and the free room."""
        slots = self._states[0].log.slot.shape[0]
        for state in self._states:
            state.sweep(slots)
        self._release(0, slots)

    def _reserve_slots(self) -> None:
        slots = self._states[0].log.slot.shape[0]
        if self._keys.high_water > slots:
            while self._keys.high_water > slots:
                slots = larger(slots)
            for state in self._states:
                state.log.reserve_slots(slots)

    def _release(self, hand: int, steps: int) -> None:
        """Release those of the `steps` slots from `hand` on that no aggregate needs."""
        slots = self._states[0].log.slot.shape[0]
        swept = (hand + np.arange(min(steps, slots))) % max(slots, 1)
        for state in self._states:
            swept = swept[state.log.slot[swept, COUNT] == EMPTIED]
        for state in self._states:
            state.log.slot[swept, COUNT] = 0
        self._keys.release(swept)

    def _values(
        self, state: AggregateState, columns: Mapping[str, NDArray[Any]], rows: int
    ) -> NDArray[Any]:
        if state.value:
            return self._checked(columns[state.value], rows, state.dtype, state.value)
        if len(self._no_values[state.dtype]) < rows:
            self._no_values[state.dtype] = np.zeros(2 * rows, state.dtype)
        return self._no_values[state.dtype]

    @staticmethod
    def _checked(column: NDArray[Any], rows: int, dtype: type, name: str) -> NDArray[Any]:
        if column.dtype != dtype or not column.flags.c_contiguous or not column.flags.writeable:
            # One memory layout, so that one compiled kernel serves every caller.
            column = np.array(column, dtype, order="C")
        if column.shape != (rows,):
            raise ValueError(f"{name} has shape {column.shape} for {rows} rows")
        return column


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
    """Compile all kernels, or load them from the cache, before the first event is waited for."""
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
