"""Sums that do not drift: double-double arithmetic, about 32 significant digits.

A number is the unevaluated sum `high + low` of two doubles. References: Dekker, *A floating-point
technique for extending the available precision* (1971); Hida, Li & Bailey, *Algorithms for
quad-double precision floating point arithmetic* (2001).

A sum of values is kept scaled by 2**-64, which is exact, so that it can't overflow before the
value that is asked for does. A square of a value beyond `HUGE` could overflow: such values are
counted instead, and the variance is infinite while there are any.
"""

from __future__ import annotations

import math

from anabranch.state.compile import inlined

SCALE = 2.0**-64
UNSCALE = 2.0**64
HUGE = 1e140
# What double-double can't resolve: a variance below this part of the mean square is zero.
UNRESOLVED = 1e-28


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
def dd_variance(n: int, s1h: float, s1l: float, s2h: float, s2l: float) -> float:
    """Sample variance from `n`, the scaled sum and the sum of squares; zero below two values.

    It is `(n * sum of squares - sum**2) / (n * (n - 1))`, all in double-double: with plain doubles
    the difference would cancel for values such as 1e6 +- 1.
    """
    if n < 2:
        return 0.0
    square_high, square_low = dd_product(s2h, float(n))
    square_low += s2l * n
    high, low = s1h * UNSCALE, s1l * UNSCALE
    mean_high, mean_low = dd_product(high, high)
    mean_low += 2.0 * high * low
    rest, rest_low = dd_add(square_high, square_low, -mean_high, -mean_low)
    if not rest > UNRESOLVED * square_high:
        return 0.0
    return (rest + rest_low) / (float(n) * (n - 1.0))


@inlined
def value_sums(value: float) -> tuple[int, float, float, float, float, int]:
    """What one value adds: count, scaled sum (high, low), square (high, low), count of huge."""
    if math.fabs(value) > HUGE:
        return 1, value * SCALE, 0.0, 0.0, 0.0, 1
    square, error = dd_product(value, value)
    return 1, value * SCALE, 0.0, square, error, 0
