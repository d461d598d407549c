"""An interval for the mean difference out of the histogram: all means that no bet has refuted."""

from __future__ import annotations

import math

from models.evidence_kernels import BET_SIZES, BET_WEIGHTS, BETS, HISTOGRAM, NODES, node
from state.compile import F64, kernel


@kernel
def _log_wealth(mean: float, side: float, state: F64) -> float:
    """Log of the wealth of bets against "the mean is at most `mean`" (`side` 1), or least (-1).

    Differences and `mean` are shares of the scale.
    """
    best, total = -math.inf, 0.0
    for k in range(BETS):
        log_wealth = math.log(BET_WEIGHTS[k])
        for j in range(NODES):
            count = state[HISTOGRAM + j]
            if count > 0.0:
                x = side * (node(j) - mean) / (1.0 + side * mean)
                log_wealth += count * math.log1p(BET_SIZES[k] * x)
        if log_wealth > best:
            total = total * math.exp(best - log_wealth) + 1.0
            best = log_wealth
        else:
            total += math.exp(log_wealth - best)
    return best + math.log(total)


@kernel
def betting_bound(side: float, mean: float, alpha: float, state: F64) -> float:
    """The lowest mean that is not refuted at level `alpha` (`side` 1), or the highest (-1).

    `mean` is that of the clipped differences; it and the result are shares of the scale.
    """
    want = -math.log(alpha)
    refuted, kept = -side * (1.0 - 1e-9), mean
    if _log_wealth(refuted, side, state) < want:
        return -side
    for _ in range(40):
        middle = 0.5 * (refuted + kept)
        if _log_wealth(middle, side, state) < want:
            kept = middle
        else:
            refuted = middle
    return refuted
