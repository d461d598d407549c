"""Counts the recent rows of each key, for simulators."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class RecentCounts:
    """For each row, the number of rows of the same key with a time in ``(t - width_ms, t]``.

    Times rise from call to call, and are sorted within one. A row counts itself and the rows before
    it in its own call, not those after it with the same time.

    >>> counts = RecentCounts(1000)
    >>> counts.add(np.array([1, 2, 1]), np.array([0, 10, 20])).tolist()
    [1, 1, 2]
    >>> counts.add(np.array([1, 1]), np.array([1000, 1500])).tolist()
    [2, 2]
    """

    def __init__(self, width_ms: int) -> None:
        self._width_ms = width_ms
        self._keys = np.empty(0, np.int64)
        self._times = np.empty(0, np.int64)

    def add(self, keys: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Add sorted rows; returns their counts, ``(n,) int64``."""
        old = len(self._keys)
        keys = np.concatenate([self._keys, keys])
        times = np.concatenate([self._times, times])
        if not len(times):
            return np.empty(0, np.int64)
        first = (
            int(times.min()) - self._width_ms
        )  # so that no window reaches into another key's rows
        span = int(times.max()) - first + 1
        order = np.argsort(keys, kind="stable")
        position = keys[order] * span + (times[order] - first)
        start = np.searchsorted(position, position - self._width_ms, side="right")
        counts = np.empty(len(keys), np.int64)
        counts[order] = np.arange(len(keys)) - start + 1
        keep = times > times.max() - self._width_ms
        self._keys, self._times = keys[keep], times[keep]
        return counts[old:]
