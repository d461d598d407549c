"""A fingerprint of the content of windows, independent of memory layout.

Two states with the same fingerprint hold the same keys, the same events in the same order, and the
same running sums, to the last bit: they give the same features. Positions in the arrays and expired
events that have not been removed yet make no difference.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I32, I64, kernel
from anabranch.state.windows.aggregate_state import AggregateState
from anabranch.state.windows.entity_state import EntityState
from anabranch.state.windows.event_log import COUNT, HEAD, HOT, LATE_ROWS, MAX_SEEN, after


@kernel
def walk_chains(slots: I64, slot: I32, link: I32, out: I64) -> None:
    """Write the positions of the records of `slots` into `out`, slot by slot, oldest first."""
    written = 0
    for s in slots:
        at = slot[s, HEAD]
        for left in range(slot[s, COUNT], 0, -1):
            out[written] = at
            written += 1
            if left > 1:
                at = after(link, at)


def fingerprint(state: EntityState) -> str:
    """The fingerprint, 32 hex digits; expired events are removed first."""
    state.evict()
    digest = hashlib.blake2b(digest_size=16)
    slots = state.slots_by_key()
    for key in slots:
        digest.update(key.encode("utf-8", "surrogatepass") + b"\0")
    order = np.fromiter(slots.values(), np.int64, len(slots))
    for aggregate in state.aggregates:
        for array in _contents(aggregate, order):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _contents(aggregate: AggregateState, slots: I64) -> list[NDArray[Any]]:
    log = aggregate.log
    counts = np.maximum(log.slot[slots, COUNT], 0)
    positions = np.empty(int(counts.sum()), np.int64)
    walk_chains(slots, log.slot, log.link, positions)
    found = [log.meta[[MAX_SEEN, LATE_ROWS]], counts, log.ts[positions], log.val[positions]]
    hot = np.where(counts > 0, log.slot[slots, HOT], -1)
    hots = hot[hot >= 0]
    places = np.full(log.ts.shape[0] + 1, -1)  # a start of -1 finds the last cell
    places[positions] = np.arange(len(positions))
    found.append(hot >= 0)
    if "hotf" in aggregate.by_hot:
        found.append(aggregate.by_hot["hotf"][hots])
    if aggregate.by_hot:
        cells = aggregate.by_hot["hoti"][hots]
        for start in aggregate.starts:
            cells[:, start] = places[cells[:, start]]
        found.append(cells)
    return found
