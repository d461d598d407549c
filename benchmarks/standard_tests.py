"""The standard tests to compare with: z-tests with a fixed horizon, and with continuous peeking."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import kernel

F64 = NDArray[np.float64]
FIRST_LOOK = 100
"""Labels (of each arm) before the first look, so that a z-test is one."""


def fixed_horizon(variance: float, effect: float, alpha: float, power: float) -> float:
    """Labels that a one-sided z-test needs for a known effect and variance per label.

    >>> round(fixed_horizon(1.0, 0.1, 0.05, 0.8))
    618
    """
    normal = NormalDist()
    return (normal.inv_cdf(1.0 - alpha) + normal.inv_cdf(power)) ** 2 * variance / effect**2


@kernel
def peeked_paired(differences: F64, critical: float) -> bool:
    """Whether a one-sided z-test of the mean rejects at any label."""
    mean, squares = 0.0, 0.0
    for i in range(differences.size):
        old = mean
        mean += (differences[i] - old) / (i + 1)
        squares += (differences[i] - old) * (differences[i] - mean)
        if i + 1 >= FIRST_LOOK and mean * (i + 1) > critical * math.sqrt(squares):
            return True
    return False


@kernel
def peeked_two_samples(arm: NDArray[np.int8], losses: F64, critical: float) -> bool:
    """Whether a one-sided Welch test finds at any label that arm 1 has the lower loss."""
    n0, mean0, squares0 = 0, 0.0, 0.0
    n1, mean1, squares1 = 0, 0.0, 0.0
    for i in range(losses.size):
        loss = losses[i]
        if arm[i] == 0:
            n0 += 1
            old = mean0
            mean0 += (loss - old) / n0
            squares0 += (loss - old) * (loss - mean0)
        else:
            n1 += 1
            old = mean1
            mean1 += (loss - old) / n1
            squares1 += (loss - old) * (loss - mean1)
        if min(n0, n1) >= FIRST_LOOK:
            error = math.sqrt(squares0 / n0 / n0 + squares1 / n1 / n1)
            if mean0 - mean1 > critical * error:
                return True
    return False
