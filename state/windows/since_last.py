"""Time since a key's previous event, as of an event's own time.

::

    time    ──●────────●─────────●──▶ latest
              │        │◀─ late ─┤
              dropped  └─ the latest before all timely rows is kept, and those after it

The log keeps the times within the lateness, and one before: in order that is one or two records.
"""

from __future__ import annotations

import numpy as np

from anabranch.state.compile import F64, I32, I64, U8, kernel
from anabranch.state.store.delta import Delta
from anabranch.state.windows.event_log import (
    CHUNKS_LEFT,
    COLUMN,
    INSERT_ONLY,
    QUERY_ONLY,
    RETENTION,
    SlottedLog,
    keep_latest,
    locate,
    open_gap,
    sweep_latest,
    watch,
)
from anabranch.state.windows.event_log_delta import changes_of, restore_log
from anabranch.state.windows.specs import SinceLastSpec


@kernel
def update_since_last(
    row: int, slots: I64, times: I64, mode: U8, out: F64, slot: I32, ts: I64, val: F64, link: I32,
    meta: I64,
) -> int:  # fmt: skip
    """Work through the rows from `row` on; returns as `update_windows` does."""
    rows = len(slots)
    while row < rows:
        if meta[CHUNKS_LEFT] < 1:
            return row
        s = slots[row]
        time = watch(times[row], mode[row], meta)
        later, last = 0, -1
        if s >= 0:
            keep_latest(s, slot, ts, link, meta)
            later, last = locate(time, s, slot, ts, link)
        if mode[row] != INSERT_ONLY:
            since = meta[RETENTION]
            if last >= 0:
                since = min(since, time - ts[last])
            out[row, meta[COLUMN]] = since / 1000.0
        if mode[row] != QUERY_ONLY:
            ts[open_gap(later, s, slot, ts, val, link, meta)] = time
        row += 1
    return rows + sweep_latest(rows, slot, ts, link, meta)


class SinceLastState:
    """The latest times of all keys of a shard, for one `SinceLastSpec`.

    Args:
        spec: what to compute.
        lateness_ms: how far behind the latest time a row may come and still be exact.
        column: of the output, where the feature stands.
    """

    value = ""
    dtype = np.float64

    def __init__(self, spec: SinceLastSpec, lateness_ms: int, column: int) -> None:
        self.log = SlottedLog(0, np.float64, lateness_ms, spec.within_ms)
        self.log.meta[COLUMN] = column

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.log.nbytes

    def update(self, slots: I64, times: I64, values: F64, mode: U8, out: F64) -> int:
        """Work through rows; returns how many emptied slots the sweep has seen."""
        log, rows, row = self.log, len(slots), 0
        while True:
            row = update_since_last(
                row, slots, times, mode, out, log.slot, log.ts, log.val, log.link, log.meta
            )
            if row >= rows:
                return row - rows
            log.grow()

    def changes(self) -> Delta:
        """What was touched since the last call."""
        return changes_of(self.log, {}, {})

    def restore(self, image: Delta) -> None:
        """Read back into a fresh state what all calls of `changes` gave."""
        restore_log(self.log, image)

    def sweep(self, rows: int) -> int:
        """Sweep `2 * rows + 1` slots; returns how many are emptied."""
        log = self.log
        return sweep_latest(rows, log.slot, log.ts, log.link, log.meta)
