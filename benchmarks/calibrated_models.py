"""Two simulated calibrated models with known mean losses, on which sequential tests are tried.

The label is positive if a hidden variable exceeds a threshold, as for 5 % of events. A model
observes the variable with noise, and predicts the probability of the label given its observation:
so it is calibrated, and the less noise, the sharper. The two models share most of their noise, like
models that are trained on the same features; even if they are equally good, their losses differ on
every event. Losses are Brier scores.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import kernel

F64 = NDArray[np.float64]

_THRESHOLD = 1.6448536269514722  # passed by 5 %
_SHARED_NOISE = 0.98
CHAMPION = 0.7
"""Correlation of the champion's observation with the hidden variable."""


@kernel
def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x * math.sqrt(0.5))


@kernel
def _brier_losses(quality: F64, noise: F64, sharpness: float, out: F64) -> None:
    blur = math.sqrt(1.0 - sharpness * sharpness)
    for i in range(quality.size):
        seen = sharpness * quality[i] + blur * noise[i]
        probability = _normal_cdf((sharpness * seen - _THRESHOLD) / blur)
        happened = 1.0 if quality[i] > _THRESHOLD else 0.0
        out[i] = (happened - probability) ** 2


def expected_loss(sharpness: float) -> float:
    """Mean Brier score of a model, by quadrature."""
    seen = np.linspace(-8.0, 8.0, 4001)
    weight = np.exp(-0.5 * seen * seen)
    blur = math.sqrt(1.0 - sharpness * sharpness)
    p = np.array([_normal_cdf(x) for x in (sharpness * seen - _THRESHOLD) / blur])
    return float((weight * p * (1.0 - p)).sum() / weight.sum())


def sharper(improvement: float) -> float:
    """Sharpness of a model whose mean loss is lower than the champion's by a given share."""
    want = (1.0 - improvement) * expected_loss(CHAMPION)
    low, high = CHAMPION, 0.999
    for _ in range(50):
        middle = 0.5 * (low + high)
        if expected_loss(middle) > want:
            low = middle
        else:
            high = middle
    return low if improvement else CHAMPION


def losses_of_one(random: np.random.Generator, count: int, sharpness: float) -> F64:
    """Losses `(count,)` of a model on events of its own."""
    out = np.empty(count)
    _brier_losses(random.standard_normal(count), random.standard_normal(count), sharpness, out)
    return out


def losses_of_both(random: np.random.Generator, count: int, challenger: float) -> tuple[F64, F64]:
    """Losses `(count,)` of champion and challenger on the same events."""
    quality, shared = random.standard_normal(count), random.standard_normal(count)
    losses = []
    for sharpness in (CHAMPION, challenger):
        own = random.standard_normal(count)
        noise = math.sqrt(_SHARED_NOISE) * shared + math.sqrt(1.0 - _SHARED_NOISE) * own
        out = np.empty(count)
        _brier_losses(quality, noise, sharpness, out)
        losses.append(out)
    return losses[0], losses[1]


def losses_of_arms(random: np.random.Generator, arm: NDArray[np.int8], challenger: float) -> F64:
    """Losses `(n,)` of the model that each event's arm names."""
    losses = losses_of_one(random, arm.size, CHAMPION)
    served = arm == 1
    losses[served] = losses_of_one(random, int(served.sum()), challenger)
    return losses
