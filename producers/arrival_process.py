"""Arrival times of simulated events: a Poisson process whose rate varies over the day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DAY_MS = 86_400_000
MONDAY_MS = 1_736_121_600_000
"""2025-01-06T00:00:00Z, a Monday: when simulated time starts by default."""

_GRID_MS = 60_000


@dataclass(frozen=True, slots=True)
class DailyArrivals:
    """A Poisson process with a daily cycle.

    Attributes:
        rate: arrivals per second, on average.
        swing: the relative amplitude of the cycle, 0 to 1.
        peak_hour: the hour of the day with the highest rate, UTC.
    """

    rate: float
    swing: float = 0.5
    peak_hour: float = 15.0

    def factor(self, times: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
        """The rate at each time (epoch ms) relative to the mean rate, ``(n,) float64``."""
        hours = np.asarray(times % DAY_MS, np.float64) / 3_600_000
        wave = np.cos((hours - self.peak_hour) * (2 * np.pi / 24))
        return np.asarray(1 + self.swing * wave, np.float64)

    def arrivals(
        self, random: np.random.Generator, start_ms: int, until_ms: int
    ) -> NDArray[np.int64]:
        """Sorted times of one realisation in ``[start_ms, until_ms)``, ``(n,) int64`` epoch ms."""
        points = max(2, (until_ms - start_ms) // _GRID_MS + 1)
        grid = np.linspace(start_ms, until_ms, int(points))
        middle = self.factor((grid[1:] + grid[:-1]) / 2)
        mass = np.concatenate([[0.0], np.cumsum(middle * np.diff(grid))]) * self.rate / 1000
        count = random.poisson(mass[-1])
        times = np.interp(np.sort(random.random(count)) * mass[-1], mass, grid).astype(np.int64)
        return np.asarray(np.minimum(times, until_ms - 1))


def zipf_weights(count: int, exponent: float) -> NDArray[np.float64]:
    """Shares by Zipf's law, ``(count,)``: the k-th is proportional to k to the power -exponent."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.asarray(weights / weights.sum())


def draw(random: np.random.Generator, shares: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """``count`` indices drawn with probabilities ``shares``; faster than `Generator.choice`."""
    bounds = np.cumsum(shares)
    indices = np.searchsorted(bounds, random.random(count) * bounds[-1], side="right")
    return np.asarray(np.minimum(indices, len(shares) - 1), np.int64)
