"""How popular each item of a stream is when it comes, by those that came before.

Where a model decides what is seen, and learns from what is chosen of it, popular items become more
popular and the others are never learned: a degenerate feedback loop (Huyen, *Designing Machine
Learning Systems*, chapter 8). It shows as a distribution of popularity that moves.
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
FADES_EVERY: Final = 1000  # items
FADES_TO: Final = 0.95


@kernel
def _popularity(places: I64, cells: F64, out: F64) -> Any:
    """For each place how often it was there before, over the mean of those that were; then count.

    The last of `cells` counts the items since all faded.
    """
    last = cells.size - 1
    total, known = 0.0, 0.0
    for i in range(last):
        total += cells[i]
        known += cells[i] > 0.0
    for i in range(places.size):
        at = places[i]
        mean = total / known if known > 0.0 else 0.0
        out[i] = np.log2((cells[at] + 1.0) / (mean + 1.0))
        known += cells[at] == 0.0
        cells[at] += 1.0
        total += 1.0
        cells[last] += 1.0
        if cells[last] >= FADES_EVERY:
            cells[last] = 0.0
            total = known = 0.0
            for j in range(last):
                cells[j] *= FADES_TO
                if cells[j] < 0.01:
                    cells[j] = 0.0
                total += cells[j]
                known += cells[j] > 0.0
    return 0


class Popularity:
    """Counts items by the hash of their names, and forgets: by half in some 14,000 items.

    >>> from anabranch.state.keys.hashing import hash64
    >>> popularity = Popularity()
    >>> popularity.of(hash64(["a", "b", "a", "a"])).round(2).tolist()
    [0.0, -1.0, 0.0, 0.26]
    """

    def __init__(self) -> None:
        self._cells = np.zeros(CELLS + 1)
        self._touched = False

    def of(self, hashes: U64) -> F64:
        """`(items,) float64`, in order: log2 of how often each came before, over the mean of all.

        Those whose hashes share one of `CELLS` cells count as one.
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
        """Take up what `changes` gave. Raises StateError."""
        blob = image.blobs.get("cells")
        if blob is None:
            return
        if len(blob) != self._cells.nbytes:
            raise StateError("the popularity of items in the state is damaged")
        self._cells[:] = np.frombuffer(blob)
