"""Two forecasts with heavy-tailed errors of equal mean, where clipping misleads.

Amounts are lognormal, and relative errors have Student's t distribution with three degrees of
freedom, as for durations or prices. The challenger's errors have thinner tails: clipped at any
scale, their mean is smaller.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_KEPT, _OWN = 0.95, 0.3


def equalizing_factor(seed: int = 0, count: int = 4_000_000) -> float:
    """The factor for the challenger's errors that makes both means equal."""
    shared, other = _errors(np.random.default_rng(seed), count)
    return float(np.abs(shared).mean() / np.abs(other).mean())


def losses_of_both(random: np.random.Generator, count: int, factor: float) -> tuple[F64, F64]:
    """Absolute errors `(count,)` of champion and challenger; `factor` is `equalizing_factor()`."""
    amounts = random.lognormal(6.0, 1.0, count)
    champion, challenger = _errors(random, count)
    return amounts * np.abs(champion), factor * amounts * np.abs(challenger)


def _errors(random: np.random.Generator, count: int) -> tuple[F64, F64]:
    shared = random.standard_t(3, count)
    return shared, _KEPT * shared + _OWN * random.standard_t(3, count)
