"""Time since a key's previous event, as of an event's own time.

::

    time    ──●────────●─────────●──▶ latest
              │        │◀─ late ─┤
              dropped  └─ the latest before all timely rows is kept, and those after it

The log keeps the times within the lateness, and one before: without late events one or two records.
"""

from __future__ import annotations

import numpy as np

from anabranch.state.compile import F64, I64, U8, kernel
from anabranch.state.windows.aggregate_state import AggregateState
from anabranch.state.windows.event_log import (
    CHUNKS_LEFT,
    COLUMN,
    INSERT_ONLY,
    QUERY_ONLY,
    RETENTION,
    EventLog,
    LogArrays,
    expire_all_but_latest,
    locate,
    observe_time,
    open_gap,
    sweep_latest,
)
from anabranch.state.windows.specs import SinceLastSpec


@kernel
def update_since_last(
    row: int, slots: I64, times: I64, values: F64, mode: U8, out: F64, log: LogArrays
) -> int:
    """Process rows, see `AggregateState`; `values` are not read."""
    meta = log.meta
    rows = len(slots)
    while row < rows:
        if meta[CHUNKS_LEFT] < 1:
            return row
        s = slots[row]
        time = observe_time(times[row], mode[row], log)
        later, last = 0, -1
        if s >= 0:
            expire_all_but_latest(s, log)
            later, last = locate(time, s, log)
        if mode[row] != INSERT_ONLY:
            since = meta[RETENTION]
            if last >= 0:
                since = min(since, time - log.ts[last])
            out[row, meta[COLUMN]] = since / 1000.0
        if mode[row] != QUERY_ONLY:
            log.ts[open_gap(later, s, log)] = time
        row += 1
    return rows + sweep_latest(rows, log)


class SinceLastState(AggregateState):
    """The latest times of all keys of a shard, for one `SinceLastSpec`.

    Args:
        spec: what to compute.
        lateness_ms: how far behind the latest time a row may arrive and still be exact.
        column: of the output, where the feature is written.
    """

    def __init__(self, spec: SinceLastSpec, lateness_ms: int, column: int) -> None:
        log = EventLog(0, np.float64, lateness_ms, spec.within_ms)
        log.meta[COLUMN] = column
        super().__init__(log)
        self.use(update_since_last, sweep_latest, log.arrays)
