"""Exponentially decayed sums: the weight of an event halves with every half-life of its age.

Each record holds the decayed sum and the sum of weights right after its event, so that the next
follows from the last one alone::

    record i    S = S(i-1) * 2**(-gap / half_life) + value
                W = W(i-1) * 2**(-gap / half_life) + 1

    time    ──●────────●─────────●──▶
                           ▲ late: computed from its predecessor; its decayed value is then added to
                                   the records after it

A gap of 50 half-lives or more resets the key. Sums are scaled by 2**-64, so that they can't
overflow before the result does.
"""

from __future__ import annotations

import math

import numpy as np

from anabranch.state.compile import F64, I64, U8, inlined, kernel
from anabranch.state.windows.aggregate_state import AggregateState
from anabranch.state.windows.double_double import SCALE, UNSCALE
from anabranch.state.windows.event_log import (
    CHUNKS_LEFT,
    COLUMN,
    INSERT_ONLY,
    META,
    QUERY_ONLY,
    RETENTION,
    EventLog,
    LogArrays,
    after,
    expire_all_but_latest,
    locate,
    observe_time,
    open_gap,
    sweep_latest,
    touch_chunk,
)
from anabranch.state.windows.specs import DECAYED_STATS, FORGOTTEN_AFTER, DecayedSpec

# Cells of `meta`: how many statistics there are, and from PLAN on which ones.
STATISTICS = META
PLAN = META + 1
# Columns of a record.
SUM, WEIGHT = 0, 1


@inlined
def decay(gap: int, retention: int) -> float:
    """What remains of a weight after `gap` ms; nothing after the retention."""
    if gap >= retention:
        return 0.0
    return math.exp(-math.log(2.0) * FORGOTTEN_AFTER * (gap / retention))


@kernel
def add_to_later(at: int, later: int, value: float, reset: bool, log: LogArrays) -> None:
    """Add the new record `at`, of one `value`, to the `later` records that follow it.

    Where the gap that it fell into had reset the key (`reset`), and no longer does, all that the
    new record holds is added.
    """
    ts, val = log.ts, log.val
    more, weight = value, 1.0
    for i in range(later):
        follower = after(log.link, at)
        left = decay(ts[follower] - ts[at], log.meta[RETENTION])
        if left == 0.0:
            return
        if i == 0 and reset:
            more, weight = val[at, SUM], val[at, WEIGHT]
        more *= left
        weight *= left
        val[follower, SUM] += more
        val[follower, WEIGHT] += weight
        touch_chunk(follower >> 3, log)
        at = follower


@kernel
def update_decayed(
    row: int, slots: I64, times: I64, values: F64, mode: U8, out: F64, log: LogArrays
) -> int:
    """Process rows, see `AggregateState`."""
    ts, val, meta = log.ts, log.val, log.meta
    rows = len(slots)
    while row < rows:
        if meta[CHUNKS_LEFT] < 1:
            return row
        s = slots[row]
        time = observe_time(times[row], mode[row], log)
        total, weight = 0.0, 0.0
        later, last, previous = 0, -1, time
        if s >= 0:
            expire_all_but_latest(s, log)
            later, last = locate(time, s, log)
        if last >= 0:
            previous = ts[last]
            left = decay(time - previous, meta[RETENTION])
            total, weight = left * val[last, SUM], left * val[last, WEIGHT]
        if mode[row] != QUERY_ONLY:
            value = values[row] * SCALE
            total += value
            weight += 1.0
            at = open_gap(later, s, log)
            ts[at], val[at, SUM], val[at, WEIGHT] = time, total, weight
            if later > 0:
                gap = ts[after(log.link, at)] - previous
                add_to_later(at, later, value, gap >= meta[RETENTION], log)
        if mode[row] != INSERT_ONLY:
            for i in range(meta[STATISTICS]):
                stat = meta[PLAN + i]
                if stat == 0:
                    result = total / weight * UNSCALE if weight > 0.0 else 0.0
                elif stat == 1:
                    result = weight
                else:
                    result = total * UNSCALE
                out[row, meta[COLUMN] + i] = result
        row += 1
    return rows + sweep_latest(rows, log)


class DecayedState(AggregateState):
    """The decayed sums of all keys of a shard, for one `DecayedSpec`.

    Args:
        spec: what to compute.
        lateness_ms: how far behind the latest time a row may arrive and still be exact.
        column: of the output, where this aggregate's features begin.
    """

    def __init__(self, spec: DecayedSpec, lateness_ms: int, column: int) -> None:
        stats = [DECAYED_STATS.index(stat) for stat in spec.stats]
        log = EventLog(2, np.float64, lateness_ms, spec.retention_ms, PLAN + len(stats))
        meta = log.meta
        meta[COLUMN], meta[STATISTICS], meta[PLAN:] = column, len(stats), stats
        super().__init__(log, spec.value)
        self.use(update_decayed, sweep_latest, log.arrays)
