"""The asymptotic e-value: a mixture of normal likelihood ratios of a standardised sum.

It treats the differences as normal with the variance so far. By the central limit theorem it is
valid in the limit of many samples, whatever their distribution, and whether or not their mean
drifts (it is about the average of the means so far). Small samples have no guarantee, so that a
burn-in is needed.

References:
    Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas: *Time-uniform central limit theory and asymptotic
    confidence sequences*, Annals of Statistics 2024 (the one-sided boundary).
    Robbins: *Statistical methods related to the law of the iterated logarithm*, 1970.
    Johari, Koomen, Pekelis, Walsh: *Always valid inference*, Operations Research 2022 (the mixture
    sequential probability ratio test in A/B testing).
"""

from __future__ import annotations

import math

from anabranch.state.compile import kernel

RHO = 0.05
"""Width of the mixture, in means per standard deviation: sharpest at about 1 / RHO² samples."""


@kernel
def log_normal_e_value(total: float, count: float) -> float:
    """Log of the e-value against "the mean is at most zero".

    Args:
        total: sum of the differences, divided by their standard deviation.
        count: number of differences.

    >>> log_normal_e_value(0.0, 1e6) < 0.0 < math.log(20) < log_normal_e_value(4_000.0, 1e6)
    True
    """
    spread = count * RHO * RHO + 1.0
    x = RHO * total / math.sqrt(spread)
    front = math.log(2.0) - 0.5 * math.log(spread)
    if x < -25.0:  # x²/2 + log Φ(x), where the two would over- and underflow
        return front - math.log(-x * math.sqrt(2.0 * math.pi))
    return front + 0.5 * x * x + math.log(0.5 * math.erfc(-x * math.sqrt(0.5)))


def normal_half_width(count: float, deviation: float, alpha: float) -> float:
    """Half the width of the confidence interval at level `alpha`, after `count` differences.

    >>> 0.0 < normal_half_width(10_000, 1.0, 0.025) - 1.96 / 100 < 0.02
    True
    """
    threshold = -math.log(alpha)
    low, high = 0.0, 1.0
    while log_normal_e_value(high, count) < threshold:
        high *= 2.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if log_normal_e_value(middle, count) < threshold:
            low = middle
        else:
            high = middle
    return high * deviation / count
