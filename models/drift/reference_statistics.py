"""Statistics of windows that were added up: counts by bin, and how windows scatter around them.

See `models.drift.distribution_shift` for what they are used for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Stable = NDArray[np.bool_] | None
"""`(columns,) bool`: the columns without a shift in a window; None: all."""

MIN_WINDOWS: Final = 10


@dataclass(frozen=True, slots=True)
class ReferenceStatistics:
    """The baseline that a window is compared with.

    Attributes:
        counts: `(columns, bins) float64`: rows.
        trace: `(columns,) float64`: how much the bins of a window scatter; for independent rows the
            degrees of freedom. ``directions``: `(columns,) float64`, in how many directions.
        freedom: degrees of freedom of that estimate; a number, or `(columns,) float64`.
        span_ms: the event time that the reference covers.
        min_expected: bins that expect fewer rows are pooled.
    """

    counts: F64
    trace: F64
    directions: F64
    freedom: F64
    span_ms: int
    min_expected: float = 0.0

    def freedom_by_column(self, memories_ms: F64) -> F64:
        """`freedom`, limited for values with a memory: `(columns,) float64`.

        Args:
            memories_ms: `(columns,) float64`, how far back values look; 0: at their event only.
        """
        with np.errstate(divide="ignore"):
            independent = np.maximum(self.span_ms / memories_ms - 1, 1.0)
        return np.minimum(self.freedom, np.where(memories_ms == 0, np.inf, independent))


class WindowSums:
    """Sums over windows: rows by bin, and of the stable ones also the products of each two bins."""

    def __init__(self, columns: int, bins: int) -> None:
        self.counts, self.stable_counts = np.zeros((2, columns, bins))
        self.products = np.zeros((columns, bins, bins))
        self.windows = np.zeros(columns)

    def add(self, counts: F64, rows: int, stable: Stable) -> None:
        """Add a window of so many rows, with `(columns, bins)` counts."""
        self.counts += counts
        if stable is not None:
            counts = counts * stable[:, None]
        self.stable_counts += counts
        self.products += counts[:, :, None] * counts[:, None, :] / rows
        self.windows += 1 if stable is None else stable

    def __iadd__(self, other: WindowSums) -> WindowSums:
        for own, more in zip(self._arrays(), other._arrays(), strict=True):
            own += more
        return self

    @property
    def sufficient(self) -> bool:
        """Whether there are enough windows to estimate how they scatter."""
        return bool(self.windows.min(initial=MIN_WINDOWS) >= MIN_WINDOWS)

    def statistics(self, span_ms: int) -> ReferenceStatistics:
        """What the windows were like; they cover so much event time."""
        rows = self.stable_counts.sum(axis=1)
        share = self.stable_counts / rows[:, None]
        residual = self.products - rows[:, None, None] * share[:, :, None] * share[:, None, :]
        covariance = _standardised(residual, share) / (self.windows - 1)[:, None, None]
        trace = np.trace(covariance, axis1=1, axis2=2)
        directions = trace**2 / np.maximum(np.square(covariance).sum(axis=(1, 2)), 1e-300)
        scatter = Scatter(trace, directions, self.windows - 1)
        return reference_statistics(self.counts, scatter, share, span_ms)

    def dump(self) -> bytes:
        """All sums, for `load`."""
        return b"".join(each.tobytes() for each in self._arrays())

    def load(self, blob: bytes) -> None:
        """Restore what `dump` returned."""
        fill(self._arrays(), blob)

    def _arrays(self) -> tuple[F64, ...]:
        return self.counts, self.stable_counts, self.products, self.windows


@dataclass(frozen=True, slots=True)
class Scatter:
    """An estimate of how windows scatter: see `ReferenceStatistics`."""

    trace: F64
    directions: F64
    freedom: F64


def _standardised(products: F64, share: F64) -> F64:
    root = np.sqrt(np.where(share > 0, share, np.inf))
    standardised: F64 = products / (root[:, :, None] * root[:, None, :])
    return standardised


def fill(arrays: tuple[F64, ...], blob: bytes) -> None:
    """Read arrays back from their bytes, one after the other."""
    numbers, start = np.frombuffer(blob), 0
    for array in arrays:
        array[:] = numbers[start : start + array.size].reshape(array.shape)
        start += array.size


def reference_statistics(
    counts: F64, scatter: Scatter, share: F64, span_ms: int, min_expected: float = 0.0
) -> ReferenceStatistics:
    """Statistics in which windows scatter at least as much as independent rows would.

    Args:
        counts: `(columns, bins)`.
        scatter: as estimated.
        share: `(columns, bins)`, of rows in each bin; a bin without any does not count.
        span_ms: the event time that the reference covers.
        min_expected: see `ReferenceStatistics`.
    """
    independent = np.maximum((share > 0).sum(axis=1) - 1.0, 1.0)
    less = scatter.trace < independent
    trace = np.where(less, independent, scatter.trace)
    clipped = np.clip(scatter.directions, 1.0, independent)
    directions = np.where(less, independent, clipped)
    freedom = np.maximum(scatter.freedom, 1.0)
    return ReferenceStatistics(counts.copy(), trace, directions, freedom, span_ms, min_expected)
