"""Exponentially decayed sums: the weight of an event halves with every half-life of its age.

Each record holds the decayed sum and the sum of weights right after its event, so that the next
follows from the last one alone::

    record i    S = S(i-1) * 2**(-gap / half_life) + value
                W = W(i-1) * 2**(-gap / half_life) + 1

    time    ──●────────●─────────●──▶
                           ▲ late: computed from its predecessor; its decayed value is then added to
                                   the records after it

A gap of 50 half-lives or more starts the key anew. Sums are scaled by 2**-64, so that they can't
overflow before the value that is asked for does.
"""

from __future__ import annotations

import math

import numpy as np

from anabranch.state.compile import F64, I32, I64, U8, inlined, kernel
from anabranch.state.store.delta import Delta
from anabranch.state.windows.double_double import SCALE, UNSCALE
from anabranch.state.windows.event_log import (
    CHUNKS_LEFT,
    COLUMN,
    INSERT_ONLY,
    META,
    QUERY_ONLY,
    RETENTION,
    SlottedLog,
    after,
    keep_latest,
    locate,
    open_gap,
    sweep_latest,
    touch_chunk,
    watch,
)
from anabranch.state.windows.event_log_delta import changes_of, restore_log
from anabranch.state.windows.specs import DECAYED_STATS, FORGOTTEN_AFTER, DecayedSpec

STATISTICS = META
PLAN = META + 1
SUM, WEIGHT = 0, 1


@inlined
def decay(gap: int, retention: int) -> float:
    """What is left of a weight after `gap` ms; nothing after the retention."""
    if gap >= retention:
        return 0.0
    return math.exp(-math.log(2.0) * FORGOTTEN_AFTER * (gap / retention))


@kernel
def add_to_later(
    at: int, later: int, value: float, forgotten: float, ts: I64, val: F64, link: I32, meta: I64
) -> None:
    """Add the new record `at`, of one `value`, to the `later` records that follow it.

    Where the gap that it fell into had made the key start anew (`forgotten`), and it no longer
    does, all that the new record holds is added.
    """
    more, weight = value, 1.0
    for i in range(later):
        follower = after(link, at)
        left = decay(ts[follower] - ts[at], meta[RETENTION])
        if left == 0.0:
            return
        if i == 0 and forgotten:
            more, weight = val[at, SUM], val[at, WEIGHT]
        more *= left
        weight *= left
        val[follower, SUM] += more
        val[follower, WEIGHT] += weight
        touch_chunk(follower >> 3, link, meta)
        at = follower


@kernel
def update_decayed(
    row: int, slots: I64, times: I64, values: F64, mode: U8, out: F64, slot: I32, ts: I64,
    val: F64, link: I32, meta: I64,
) -> int:  # fmt: skip
    """Work through the rows from `row` on; returns as `update_windows` does."""
    rows = len(slots)
    while row < rows:
        if meta[CHUNKS_LEFT] < 1:
            return row
        s = slots[row]
        time = watch(times[row], mode[row], meta)
        total, weight = 0.0, 0.0
        later, last, previous = 0, -1, time
        if s >= 0:
            keep_latest(s, slot, ts, link, meta)
            later, last = locate(time, s, slot, ts, link)
        if last >= 0:
            previous = ts[last]
            left = decay(time - previous, meta[RETENTION])
            total, weight = left * val[last, SUM], left * val[last, WEIGHT]
        if mode[row] != QUERY_ONLY:
            value = values[row] * SCALE
            total += value
            weight += 1.0
            at = open_gap(later, s, slot, ts, val, link, meta)
            ts[at], val[at, SUM], val[at, WEIGHT] = time, total, weight
            if later > 0:
                gap = ts[after(link, at)] - previous
                forgotten = gap >= meta[RETENTION]
                add_to_later(at, later, value, forgotten, ts, val, link, meta)
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
    return rows + sweep_latest(rows, slot, ts, link, meta)


class DecayedState:
    """The decayed sums of all keys of a shard, for one `DecayedSpec`.

    Args:
        spec: what to compute.
        lateness_ms: how far behind the latest time a row may come and still be exact.
        column: of the output, where this aggregate's features begin.
    """

    dtype = np.float64

    def __init__(self, spec: DecayedSpec, lateness_ms: int, column: int) -> None:
        self.value = spec.value
        stats = [DECAYED_STATS.index(stat) for stat in spec.stats]
        size = PLAN + len(stats)
        self.log = SlottedLog(2, np.float64, lateness_ms, spec.retention_ms, size)
        meta = self.log.meta
        meta[COLUMN], meta[STATISTICS], meta[PLAN:] = column, len(stats), stats

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.log.nbytes

    def update(self, slots: I64, times: I64, values: F64, mode: U8, out: F64) -> int:
        """Work through rows; returns how many emptied slots the sweep has seen."""
        log, rows, row = self.log, len(slots), 0
        while True:
            row = update_decayed(
                row, slots, times, values, mode, out, log.slot, log.ts, log.val, log.link, log.meta
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
