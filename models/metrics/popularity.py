"""The popularity of each item of a stream, relative to the items before it.

Where a model decides what is shown, and learns from what is chosen of it, popular items become more
popular and the others are never learned: a degenerate feedback loop (Huyen, *Designing Machine
Learning Systems*, chapter 8). It shows as a shift of the distribution of popularity.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import F64, I64, kernel
from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta

U64 = NDArray[np.uint64]

CELLS: Final = 4096
DECAY_EVERY: Final = 1000  # items
DECAY_FACTOR: Final = 0.95


@kernel
def _popularity(buckets: I64, cells: F64, out: F64) -> Any:
    """Write the log2 ratio of each bucket's count to the mean of the non-empty ones; then count it.

    The last of `cells` counts the items since the last decay.
    """
    last = cells.size - 1
    total, used = 0.0, 0.0
    for i in range(last):
        total += cells[i]
        used += cells[i] > 0.0
    for i in range(buckets.size):
        at = buckets[i]
        mean = total / used if used > 0.0 else 0.0
        out[i] = np.log2((cells[at] + 1.0) / (mean + 1.0))
        used += cells[at] == 0.0
        cells[at] += 1.0
        total += 1.0
        cells[last] += 1.0
        if cells[last] >= DECAY_EVERY:
            cells[last] = 0.0
            total = used = 0.0
            for j in range(last):
                cells[j] *= DECAY_FACTOR
                if cells[j] < 0.01:
                    cells[j] = 0.0
                total += cells[j]
                used += cells[j] > 0.0
    return 0


class Popularity:
    """Decayed counts of items, by the hash of their names; half-life about 14,000 items.

    >>> from anabranch.state.keys.hashing import hash64
    >>> popularity = Popularity()
    >>> popularity.of(hash64(["a", "b", "a", "a"])).round(2).tolist()
    [0.0, -1.0, 0.0, 0.26]
    """

    def __init__(self) -> None:
        self._cells = np.zeros(CELLS + 1)
        self._touched = False

    def of(self, hashes: U64) -> F64:
        """Score and count items, in order.

        Args:
            hashes: `(items,) uint64`; items that share one of `CELLS` cells count as one.

        Returns:
            `(items,) float64`: log2 of each item's count so far plus 1, over the mean count plus 1.
        """
        out = np.empty(len(hashes))
        if len(hashes):
            self._touched = True
            _popularity((hashes % np.uint64(CELLS)).astype(np.int64), self._cells, out)
        return out

    def changes(self) -> Delta:
        """What changed since the last call."""
        delta = Delta()
        if self._touched:
            delta.blobs["cells"] = self._cells.tobytes()
            self._touched = False
        return delta

    def restore(self, image: Delta) -> None:
        """Restore what `changes` returned.

        Raises:
            StateError: it is damaged.
        """
        blob = image.blobs.get("cells")
        if blob is None:
            return
        if len(blob) != self._cells.nbytes:
            raise StateError(
                "the popularity of items in the state is damaged: restore the state from a backup"
            )
        self._cells[:] = np.frombuffer(blob)
