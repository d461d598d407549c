"""Two forecasts with heavy tails and equal mean absolute errors: where cutting may mislead.

Amounts are lognormal, relative errors Student's t with three degrees of freedom, as of durations or
prices. The challenger's errors are other ones with thinner tails: clipped anywhere, their mean is
smaller.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_KEPT, _OWN = 0.95, 0.3


def evened_out(seed: int = 0, count: int = 4_000_000) -> float:
    """What the challenger's errors are multiplied by, so that both have the same mean."""
    shared, other = _errors(np.random.default_rng(seed), count)
    return float(np.abs(shared).mean() / np.abs(other).mean())


def losses_of_both(random: np.random.Generator, count: int, factor: float) -> tuple[F64, F64]:
    """Absolute errors `(count,)` of champion and challenger; `factor` is `evened_out()`."""
    amounts = random.lognormal(6.0, 1.0, count)
    champion, challenger = _errors(random, count)
    return amounts * np.abs(champion), factor * amounts * np.abs(challenger)


def _errors(random: np.random.Generator, count: int) -> tuple[F64, F64]:
    shared = random.standard_t(3, count)
    return shared, _KEPT * shared + _OWN * random.standard_t(3, count)
