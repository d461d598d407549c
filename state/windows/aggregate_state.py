"""What the states of all kinds of aggregates have in common: the log, kernels, persistence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import F64, I64, U8, entry
from anabranch.state.store.delta import Delta
from anabranch.state.windows.event_log import CHUNKS_LEFT, EventLog
from anabranch.state.windows.event_log_delta import (
    Columns,
    changes_of,
    restore_by_chunk,
    restore_log,
)
from anabranch.state.windows.hot_keys import HOTS_LEFT, reserve_hots, restore_hots


class AggregateState:
    """What is kept of all keys of a shard for one spec.

    A subclass makes the log and its own arrays, and names its two kernels:

    * `update(row, slots, times, values, mode, out, arrays)` processes the rows from `row` on, then
      sweeps some idle keys. It returns the row at which an array was full, to be called again from
      there; or the number of rows, plus the number of emptied slots that the sweep has seen.
    * `sweep(rows, arrays)` sweeps alone, see `event_log.sweeping`.

    Args:
        log: of the events.
        value: name of the column that is aggregated; "" for none.
        by_chunk, by_hot: arrays with a row per chunk of the log, and per hot record, by the names
            under which they are stored.
        starts: the columns of `by_hot["hoti"]` that are positions in the log.
    """

    def __init__(
        self,
        log: EventLog,
        value: str = "",
        by_chunk: Columns | None = None,
        by_hot: Columns | None = None,
        starts: range = range(0),
    ) -> None:
        self.log = log
        self.value = value
        self.by_chunk: Columns = by_chunk or {}
        self.by_hot: Columns = by_hot or {}
        self.starts = starts
        self.dtype: np.dtype[Any] = np.dtype(np.float64)

    def use(
        self,
        update: Callable[..., int],
        sweep: Callable[[int, Any], int],
        arrays: Any,
        dtype: type[np.float64] | type[np.int64] = np.float64,
    ) -> None:
        """Compile the kernels for `arrays`, a named tuple, and values of this dtype."""
        self.arrays: Any = arrays
        self.dtype = np.dtype(dtype)
        slots, values = np.zeros(0, np.int64), np.zeros(0, dtype)
        mode, out = np.zeros(0, np.uint8), np.zeros((0, 0))
        self._update = entry(update, 0, slots, slots, values, mode, out, arrays)
        self._sweep = sweep

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        arrays = (*self.by_chunk.values(), *self.by_hot.values())
        return self.log.nbytes + sum(array.nbytes for array in arrays)

    def update(self, slots: I64, times: I64, values: NDArray[Any], mode: U8, out: F64) -> int:
        """Process rows; returns how many emptied slots the sweep has seen."""
        rows = len(slots)
        row = self._update(0, slots, times, values, mode, out, self.arrays)
        while row < rows:
            self.grow()
            row = self._update(row, slots, times, values, mode, out, self.arrays)
        return row - rows

    def sweep(self, rows: int) -> int:
        """Sweep `2 * rows + 1` slots; returns how many are emptied."""
        return self._sweep(rows, self.arrays)

    def grow(self) -> None:
        """Enlarge the arrays that are full."""
        meta = self.log.meta
        if meta[CHUNKS_LEFT] < 1:
            self.log.grow()
            self._fit_chunks()
        if self.by_hot and meta[HOTS_LEFT] < 1:
            reserve_hots(len(self.by_hot["hoti"]) + 1, meta, self.by_hot)

    def _fit_chunks(self) -> None:
        chunks = self.log.link.shape[0]
        for array in self.by_chunk.values():
            array.resize((chunks, *array.shape[1:]), refcheck=False)

    def changes(self) -> Delta:
        """What changed since the last call."""
        return changes_of(self.log, self.by_chunk, self.by_hot)

    def restore(self, image: Delta) -> None:
        """Restore into a new state what all calls of `changes` returned."""
        restore_log(self.log, image)
        self._fit_chunks()
        for name, array in self.by_chunk.items():
            restore_by_chunk(array, name, image)
        if self.by_hot:
            restore_hots(self.log, image, self.by_hot)
