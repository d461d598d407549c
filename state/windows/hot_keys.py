"""The hot records of a log: a pool of rows, handed out to the keys that need one.

The first column of `hoti` is the record's edge while a slot holds it, and the next free record
while none does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I64, inlined
from anabranch.state.store.delta import Delta
from anabranch.state.windows.event_log import COUNT, HOT, META, SlottedLog, larger

# More records than COLD make a key hot; not more than COOLED make it cold again.
COLD, COOLED = 16, 8

# Cells of `meta`: the first free record or -1, how many are left, how many were ever handed out.
HOT_FREE, HOTS_LEFT, HOTS_USED = META, META + 1, META + 2
HOTS_META = META + 3
EDGE = 0


@inlined
def take_hot(hoti: I64, meta: I64) -> int:
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
    """Hand a hot record back."""
    hoti[hot, EDGE] = meta[HOT_FREE]
    meta[HOT_FREE] = hot
    meta[HOTS_LEFT] += 1


def reserve_hots(needed: int, meta: I64, *arrays: NDArray[Any]) -> None:
    """Have at least so many hot records, in all ``arrays``, which have a row for each."""
    before = hots = arrays[0].shape[0]
    while hots < needed:
        hots = larger(hots)
    meta[HOTS_LEFT] += hots - before
    for array in arrays:
        array.resize((hots, *array.shape[1:]), refcheck=False)


def restore_hots(log: SlottedLog, image: Delta, **arrays: NDArray[Any]) -> None:
    """Read back the hot records of a log that was restored; `hoti` is among the ``arrays``."""
    rows = image.rows["hots"]
    needed = int(rows.index.max()) + 1 if len(rows) else 0
    reserve_hots(needed, log.meta, *arrays.values())
    for name, array in arrays.items():
        array[rows.index] = rows.columns[name]
    _chain_free(log, arrays["hoti"])


def _chain_free(log: SlottedLog, hoti: I64) -> None:
    """Chain up the hot records that no slot holds."""
    held = (log.slot[:, COUNT] > 0) & (log.slot[:, HOT] >= 0)
    used = np.zeros(hoti.shape[0], np.bool_)
    used[log.slot[held, HOT]] = True
    free = np.flatnonzero(~used)
    hoti[free, EDGE] = np.append(free[1:], -1)[: len(free)]
    log.meta[HOT_FREE] = free[0] if len(free) else -1
    log.meta[HOTS_LEFT], log.meta[HOTS_USED] = len(free), hoti.shape[0]
