"""What is usual, worked out of windows that were added up: see `models.drift.references`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Calm = NDArray[np.bool_] | None

LEAST_WINDOWS: Final = 10


@dataclass(frozen=True, slots=True)
class Known:
    """What is usual.

    Attributes:
        counts: `(columns, bins) float64`: rows.
        trace: `(columns,) float64`: by how much a window's bins scatter, of independent rows the
            degrees of freedom; ``directions`` in how many directions.
        freedom: of that estimate; a number, or one for each column.
        span_ms: the time that the reference takes in.
        fewest: bins of which fewer rows are expected are looked at together.
    """

    counts: F64
    trace: F64
    directions: F64
    freedom: F64
    span_ms: int
    fewest: float = 0.0

    def freedom_of(self, memories_ms: F64) -> F64:
        """`freedom` by column, of values that look so far back, 0: no further than their event."""
        with np.errstate(divide="ignore"):
            forgets = np.maximum(self.span_ms / memories_ms - 1, 1.0)
        return np.minimum(self.freedom, np.where(memories_ms == 0, np.inf, forgets))


class Sums:
    """Windows, added up: their rows by bin, and of the calm ones ``products`` of each two bins."""

    def __init__(self, columns: int, bins: int) -> None:
        self.counts, self.calm = np.zeros((2, columns, bins))
        self.products = np.zeros((columns, bins, bins))
        self.windows = np.zeros(columns)

    def add(self, counts: F64, rows: int, calm: Calm) -> None:
        """One more; None: all columns are calm."""
        self.counts += counts
        if calm is not None:
            counts = counts * calm[:, None]
        self.calm += counts
        self.products += counts[:, :, None] * counts[:, None, :] / rows
        self.windows += 1 if calm is None else calm

    def __iadd__(self, other: Sums) -> Sums:
        for own, more in zip(self._arrays(), other._arrays(), strict=True):
            own += more
        return self

    @property
    def enough(self) -> bool:
        """Whether scatter can be told."""
        return bool(self.windows.min(initial=LEAST_WINDOWS) >= LEAST_WINDOWS)

    def known(self, span_ms: int) -> Known:
        """Of independent rows the trace and the directions are the degrees of freedom."""
        rows = self.calm.sum(axis=1)
        share = self.calm / rows[:, None]
        left = self.products - rows[:, None, None] * share[:, :, None] * share[:, None, :]
        covariance = _standardised(left, share) / (self.windows - 1)[:, None, None]
        trace = np.trace(covariance, axis1=1, axis2=2)
        directions = trace**2 / np.maximum(np.square(covariance).sum(axis=(1, 2)), 1e-300)
        return known_of(self.counts, trace, directions, self.windows - 1, share, span_ms)

    def dump(self) -> bytes:
        """All of it."""
        return b"".join(each.tobytes() for each in self._arrays())

    def load(self, blob: bytes) -> None:
        """Read back what `dump` gave."""
        fill(self._arrays(), blob)

    def _arrays(self) -> tuple[F64, ...]:
        return self.counts, self.calm, self.products, self.windows


def _standardised(products: F64, share: F64) -> F64:
    root = np.sqrt(np.where(share > 0, share, np.inf))
    found: F64 = products / (root[:, :, None] * root[:, None, :])
    return found


def fill(arrays: tuple[F64, ...], blob: bytes) -> None:
    """Read arrays back from their bytes, one after the other."""
    numbers, start = np.frombuffer(blob), 0
    for array in arrays:
        array[:] = numbers[start : start + array.size].reshape(array.shape)
        start += array.size


def known_of(
    counts: F64,
    trace: F64,
    directions: F64,
    freedom: F64,
    share: F64,
    span_ms: int,
    fewest: float = 0.0,
) -> Known:
    """Never less than chance alone would scatter."""
    least = np.maximum((share > 0).sum(axis=1) - 1.0, 1.0)
    calm = trace < least
    trace = np.where(calm, least, trace)
    directions = np.where(calm, least, np.clip(directions, 1.0, least))
    return Known(counts.copy(), trace, directions, np.maximum(freedom, 1.0), span_ms, fewest)
