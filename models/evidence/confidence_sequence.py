"""Confidence sequence of the mean difference: all means that the bets have not refuted."""

from __future__ import annotations

import math

from anabranch.models.evidence.kernels import (
    BET_SIZES,
    BET_WEIGHTS,
    BETS,
    CLIP,
    HISTOGRAM,
    NODES,
    WIDE_CLIP,
    node,
)
from anabranch.state.compile import F64, kernel


@kernel
def _log_wealth(mean: float, side: float, cut: float, state: F64) -> float:
    """Log of the wealth of bets against "the mean is at most `mean`" (`side` 1), or least (-1)."""
    best, total = -math.inf, 0.0
    clip, wide, middle = state[CLIP], state[WIDE_CLIP], NODES // 2
    for k in range(BETS):
        log_wealth = math.log(BET_WEIGHTS[k])
        for j in range(NODES):
            count = state[HISTOGRAM + j]
            if count > 0.0:
                size = min(node(abs(j - middle), clip, wide), cut)
                d = size if j > middle else -size
                x = side * (d - mean) / (cut + side * mean)
                log_wealth += count * math.log1p(BET_SIZES[k] * x)
        if log_wealth > best:
            total = total * math.exp(best - log_wealth) + 1.0
            best = log_wealth
        else:
            total += math.exp(log_wealth - best)
    return best + math.log(total)


@kernel
def betting_bound(side: float, mean: float, cut: float, alpha: float, state: F64) -> float:
    """The lowest mean that is not refuted at level `alpha` (`side` 1), or the highest (-1).

    It is the mean of the differences clipped to ± `cut`, the clip or the wider one; `mean` is their
    mean so far.
    """
    threshold = -math.log(alpha)
    refuted, kept = -side * cut * (1.0 - 1e-9), mean
    if _log_wealth(refuted, side, cut, state) < threshold:
        return -side * cut
    for _ in range(40):
        middle = 0.5 * (refuted + kept)
        if _log_wealth(middle, side, cut, state) < threshold:
            kept = middle
        else:
            refuted = middle
    return refuted
