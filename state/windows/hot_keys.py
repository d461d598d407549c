"""Hot records: a pool of rows, one for each key with many events, and its free list.

The first column of `hoti` is the record's edge while a slot holds it, and the next free record
while none does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.state.arrays import larger
from anabranch.state.compile import I64, inlined
from anabranch.state.store.delta import Delta
from anabranch.state.windows.event_log import COUNT, HOT, META, EventLog

# A key becomes hot with more records than COLD, and cold again with not more than COOLED.
COLD, COOLED = 16, 8

# Cells of `meta`: the first free record or -1, how many are free, how many were ever allocated.
HOT_FREE, HOTS_LEFT, HOTS_USED = META, META + 1, META + 2
HOTS_META = META + 3
EDGE = 0


@inlined
def allocate_hot(hoti: I64, meta: I64) -> int:
    """A free hot record; there must be one."""
    hot = meta[HOT_FREE]
    if hot >= 0:
        meta[HOT_FREE] = hoti[hot, EDGE]
    else:
        hot = meta[HOTS_USED]
        meta[HOTS_USED] += 1
    meta[HOTS_LEFT] -= 1
    return hot  # type: ignore[no-any-return]


@inlined
def free_hot(hot: int, hoti: I64, meta: I64) -> None:
    """Return a hot record to the free list."""
    hoti[hot, EDGE] = meta[HOT_FREE]
    meta[HOT_FREE] = hot
    meta[HOTS_LEFT] += 1


def reserve_hots(needed: int, meta: I64, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Have at least `needed` hot records, which have a row in each of the `arrays`."""
    before = capacity = len(arrays["hoti"])
    while capacity < needed:
        capacity = larger(capacity)
    meta[HOTS_LEFT] += capacity - before
    for array in arrays.values():
        array.resize((capacity, *array.shape[1:]), refcheck=False)


def restore_hots(log: EventLog, image: Delta, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Restore the hot records of a log that is restored itself; `hoti` is among the `arrays`."""
    rows = image.rows["hots"]
    needed = int(rows.index.max()) + 1 if len(rows) else 0
    reserve_hots(needed, log.meta, arrays)
    for name, array in arrays.items():
        array[rows.index] = rows.columns[name]
    _list_free(log, arrays["hoti"])


def _list_free(log: EventLog, hoti: I64) -> None:
    """Rebuild the free list from the hot records that no slot holds."""
    is_hot = (log.slot[:, COUNT] > 0) & (log.slot[:, HOT] >= 0)
    used = np.zeros(hoti.shape[0], np.bool_)
    used[log.slot[is_hot, HOT]] = True
    free = np.flatnonzero(~used)
    hoti[free, EDGE] = np.append(free[1:], -1)[: len(free)]
    log.meta[HOT_FREE] = free[0] if len(free) else -1
    log.meta[HOTS_LEFT], log.meta[HOTS_USED] = len(free), hoti.shape[0]
