"""A set of offsets, kept as runs of neighbours: millions in a row take as much room as one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
_NONE: I64 = np.zeros(0, np.int64)


class OffsetRuns:
    """Offsets that are added in any order, several times or once.

    >>> runs = OffsetRuns()
    >>> runs.add(np.array([4, 2, 3, 9]))
    >>> runs.holds(np.array([1, 2, 4, 5, 9])).tolist()
    [False, True, True, False, True]
    """

    def __init__(self) -> None:
        self._firsts, self._lasts = _NONE, _NONE
        self._added: list[tuple[I64, I64]] = []

    def add(self, offsets: I64) -> None:
        """Add ``(n,) int64``."""
        if len(offsets):
            known = np.unique(offsets)
            cuts = np.flatnonzero(np.diff(known) > 1)
            firsts = known[np.concatenate([[0], cuts + 1])]
            lasts = known[np.concatenate([cuts, [len(known) - 1]])]
            self._added.append((firsts, lasts))
            if len(self._added) >= _FOLD:
                self._fold()

    def holds(self, offsets: I64) -> NDArray[np.bool_]:
        """``(n,) bool``: which of these are in the set."""
        self._fold()
        if not len(self._firsts):
            return np.zeros(len(offsets), np.bool_)
        run = np.searchsorted(self._firsts, offsets, side="right") - 1
        found: NDArray[np.bool_] = (run >= 0) & (offsets <= self._lasts[run])
        return found

    def _fold(self) -> None:
        if not self._added:
            return
        firsts = np.concatenate([self._firsts, *(each[0] for each in self._added)])
        lasts = np.concatenate([self._lasts, *(each[1] for each in self._added)])
        order = np.argsort(firsts, kind="stable")
        firsts, lasts = firsts[order], np.maximum.accumulate(lasts[order])
        apart = firsts[1:] > lasts[:-1] + 1
        self._firsts = firsts[np.concatenate([[True], apart])]
        self._lasts = lasts[np.concatenate([apart, [True]])]
        self._added.clear()


_FOLD = 256
