"""Aggregates over arbitrary ranges of a sequence, from precomputed blocks of size 1, 2, 4, …

::

    leaves      a  b  c  d  e  f  g  h          level 0: single leaves
                   ab bc cd de ef fg gh         level 1: runs of 2
                         abcd … efgh            level 2: runs of 4

    b to g is 6 leaves: fg (2), then bcde (4)

Each level is computed from the one below in one operation, and every range whose length has that
bit takes its block of it: O((rows + ranges) log longest) array operations. Nothing slides and
nothing is subtracted: a result combines only what is in its range, so no value that has left the
window, or belongs to another key, can leave a trace.

What is combined is a *measure*: a tuple of arrays, one entry per leaf. Variances are combined as in
Chan, Golub & LeVeque, *Updating formulae and a pairwise algorithm for computing sample variances*
(1979); rounding errors of sums are carried along by Knuth's TwoSum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Measure = tuple[NDArray[Any], ...]
Combine = Callable[[Measure, Measure], Measure]
"""Combines the measures of two adjacent ranges, left and right."""

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
SCALE = 2.0**-64
"""Sums are scaled down by it, so that intermediate sums don't overflow unless the result does."""


def fold(leaves: Measure, last: I64, length: I64, combine: Combine) -> Measure:
    """The measure of each range of ``length`` leaves that ends with the leaf ``last``.

    Args:
        leaves: arrays of ``(leaves,)``.
        last: ``(ranges,) int64``; ignored where the length is 0.
        length: ``(ranges,) int64``, 0 or more.
        combine: combines adjacent ranges; must be associative.

    Returns:
        Arrays of ``(ranges,)``; zeros where the length is 0.

    >>> values = np.array([1.0, 2.0, 4.0, 8.0])
    >>> fold((values,), np.array([3, 2]), np.array([3, 0]), lambda a, b: (a[0] + b[0],))
    (array([14.,  0.]),)
    """
    result = tuple(np.zeros(len(last), column.dtype) for column in leaves)
    started = np.zeros(len(last), np.bool_)
    at = last.copy()
    longest = int(length.max(initial=0))
    level, size = leaves, 1
    with np.errstate(all="ignore"):
        while size <= longest:
            rows = np.flatnonzero(length & size)
            block = tuple(column[at[rows]] for column in level)
            first = ~started[rows]
            so_far = tuple(column[rows] for column in result)
            both = combine(block, so_far)
            for column, alone, joined in zip(result, block, both, strict=True):
                column[rows] = np.where(first, alone, joined)
            started[rows] = True
            at[rows] -= size
            if 2 * size <= longest:
                level = _doubled(level, size, combine)
            size *= 2
    return result


def _doubled(level: Measure, size: int, combine: Combine) -> Measure:
    """The next level, indexed by last leaf; entries of runs that start before leaf 0 are unused."""
    left = tuple(column[:-size] for column in level)
    right = tuple(column[size:] for column in level)
    joined = combine(left, right)
    return tuple(np.concatenate([a[:size], b]) for a, b in zip(level, joined, strict=True))


def sum_leaves(values: F64) -> Measure:
    """Leaves for `add`: the scaled sum, and its rounding error."""
    return values * SCALE, np.zeros(len(values))


def add(left: Measure, right: Measure) -> Measure:
    """Add sums with about 32 digits of precision."""
    total, error = _two_sum(left[0], right[0])
    return _two_sum(total, error + (left[1] + right[1]))


def moment_leaves(values: F64) -> Measure:
    """Leaves for `pool`: count, mean, rounding error of the mean, sum of squared deviations.

    The squares of values beyond 1e154 are infinite, and so are variances over them.
    """
    zeros = np.zeros(len(values))
    return np.ones(len(values)), values, zeros, zeros


def pool(left: Measure, right: Measure) -> Measure:
    """Combine count, mean and squared deviations of two samples."""
    count = left[0] + right[0]
    apart = (right[1] - left[1]) + (right[2] - left[2])
    mean, error = _two_sum(left[1], apart * (right[0] / count))
    mean, error = _two_sum(mean, error + left[2])
    between = apart * apart * (left[0] * right[0] / count)
    return count, mean, error, left[3] + right[3] + between


def greatest(left: Measure, right: Measure) -> Measure:
    """Combine maxima."""
    return (np.maximum(left[0], right[0]),)


def least(left: Measure, right: Measure) -> Measure:
    """Combine minima."""
    return (np.minimum(left[0], right[0]),)


def decay_leaves(times: I64, values: F64) -> Measure:
    """Leaves for `fade`: time, weight, weighted sum, weighted sum of magnitudes (both scaled)."""
    scaled = values * SCALE
    return times, np.ones(len(values)), scaled, np.abs(scaled)


def fade(half_life_ms: int) -> Combine:
    """Combines decayed sums: the left one is decayed to the time of the right one."""

    def combine(left: Measure, right: Measure) -> Measure:
        factor = np.exp2((left[0] - right[0]) / half_life_ms)
        return right[0], *(factor * a + b for a, b in zip(left[1:], right[1:], strict=True))

    return combine


def _two_sum(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The rounded sum ``a + b`` and its rounding error, which is 0 where the sum overflows."""
    total = a + b
    back = total - a
    error = (a - (total - back)) + (b - back)
    return total, np.where(np.isfinite(error), error, 0.0)
