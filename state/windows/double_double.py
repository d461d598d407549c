"""Sums that do not drift: double-double arithmetic, about 32 significant digits.

A number is the unevaluated sum `high + low` of two doubles. References: Dekker, *A floating-point
technique for extending the available precision* (1971); Hida, Li & Bailey, *Algorithms for
quad-double precision floating point arithmetic* (2001).

A sum of values is kept scaled by 2**-64, which is exact, so that it can't overflow before the
result does. The square of a value beyond `HUGE` could overflow: such values are counted instead,
and the variance is infinite while there are any.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from anabranch.state.compile import inlined

SCALE = 2.0**-64
UNSCALE = 2.0**64
HUGE = 1e140
# What double-double can't resolve: a variance below this part of the mean square is zero.
UNRESOLVED = 1e-28


class Sums(NamedTuple):
    """Count, sum and sum of squares of some values, in double-double."""

    events: int
    total: float
    """The sum, scaled by `SCALE`."""
    total_low: float
    squares: float
    """The sum of the squares of the values up to `HUGE`."""
    squares_low: float
    huge: int
    """How many values are beyond `HUGE`."""


@inlined
def no_sums() -> Sums:
    """The sums of no values."""
    return Sums(0, 0.0, 0.0, 0.0, 0.0, 0)


@inlined
def dd_add(high: float, low: float, add_high: float, add_low: float) -> tuple[float, float]:
    """`(high, low) + (add_high, add_low)`; the error is 2**-104 of the larger operand."""
    total = high + add_high
    back = total - high
    error = (high - (total - back)) + (add_high - back) + low + add_low
    result = total + error
    return result, error - (result - total)


@inlined
def dd_product(a: float, b: float) -> tuple[float, float]:
    """`a * b` exactly, by Dekker's splitting; for magnitudes between 1e-140 and 1e290."""
    product = a * b
    split = 134217729.0 * a
    a_high = split - (split - a)
    a_low = a - a_high
    split = 134217729.0 * b
    b_high = split - (split - b)
    b_low = b - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


@inlined
def variance(sums: Sums) -> float:
    """Sample variance of values of which none is huge; zero for fewer than two values.

    It is `(n * sum of squares - sum**2) / (n * (n - 1))`, all in double-double: with plain doubles
    the difference would cancel for values such as 1e6 +- 1.
    """
    n = sums.events
    if n < 2:
        return 0.0
    square_high, square_low = dd_product(sums.squares, float(n))
    square_low += sums.squares_low * n
    high, low = sums.total * UNSCALE, sums.total_low * UNSCALE
    mean_high, mean_low = dd_product(high, high)
    mean_low += 2.0 * high * low
    rest, rest_low = dd_add(square_high, square_low, -mean_high, -mean_low)
    if not rest > UNRESOLVED * square_high:
        return 0.0
    return (rest + rest_low) / (float(n) * (n - 1.0))


@inlined
def value_sums(value: float) -> Sums:
    """The sums of one value."""
    if math.fabs(value) > HUGE:
        return Sums(1, value * SCALE, 0.0, 0.0, 0.0, 1)
    square, error = dd_product(value, value)
    return Sums(1, value * SCALE, 0.0, square, error, 0)


@inlined
def add_sums(a: Sums, b: Sums) -> Sums:
    """The sums of the values of both."""
    total, total_low = dd_add(a.total, a.total_low, b.total, b.total_low)
    squares, squares_low = dd_add(a.squares, a.squares_low, b.squares, b.squares_low)
    return Sums(a.events + b.events, total, total_low, squares, squares_low, a.huge + b.huge)


@inlined
def subtract_sums(a: Sums, b: Sums) -> Sums:
    """The sums of the values of `a` without those of `b`, which are among them."""
    total, total_low = dd_add(a.total, a.total_low, -b.total, -b.total_low)
    squares, squares_low = dd_add(a.squares, a.squares_low, -b.squares, -b.squares_low)
    return Sums(a.events - b.events, total, total_low, squares, squares_low, a.huge - b.huge)
