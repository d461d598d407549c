"""Counting values by bins whose bounds are given: for histograms of metrics."""

from __future__ import annotations

from state.compile import F64, kernel


@kernel
def count_by_bounds(values: F64, bounds: F64, counts: F64) -> float:
    """Count each of ``values`` at the first of ``bounds`` that it does not pass; their sum.

    ``bounds`` rise, ``(n,) float64``; ``counts`` has as many cells, the last one for all beyond.

    >>> import numpy as np
    >>> counts = np.zeros(3)
    >>> count_by_bounds(np.array([0.5, 2.0, 9.0]), np.array([1.0, 2.0, np.inf]), counts), counts
    (11.5, array([1., 1., 1.]))
    """
    total, last, at = 0.0, bounds.size - 1, 0
    for value in values:  # mostly beside the one before
        while at < last and value > bounds[at]:
            at += 1
        while at > 0 and value <= bounds[at - 1]:
            at -= 1
        counts[at] += 1.0
        total += value
    return total
