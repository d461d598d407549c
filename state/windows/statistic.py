"""What a window statistic is, and what it may read of a window.

The windows of a key keep count, sum and sum of squares, and as far as some statistic needs them
the extremes and the first and last value (`WindowSummary`). A statistic is a function that reads
its value out of these. It is compiled into the kernels, so it must be written as one: plain
arithmetic, no allocation. One that needs other sums names the *terms* that are summed::

    def cube(value: float) -> float:
        return value * value * value if value > 0.0 else 0.0

    def read(window: WindowSummary) -> float:
        return term_sum(window, 0) / window.sums.events

    POSITIVE_CUBES = Statistic("positive_cubes", "mean of the cubes of positive values", read,
                               lambda values: float(np.mean(np.maximum(values, 0.0) ** 3)),
                               terms=(cube,))

To add a statistic: write it in a file of its own, and list it in `state.windows.statistics`. What
can't be read from such a summary, as a median, is an aggregate with a state of its own; see
`state.windows.distinct` for one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from anabranch.state.compile import F64, inlined
from anabranch.state.windows.double_double import Sums


class WindowSummary(NamedTuple):
    """What a statistic may read of a window with at least one event."""

    sums: Sums
    """With "sums" among a statistic's needs; else the count of events alone."""
    maximum: float
    """With "max" among its needs."""
    minimum: float
    """With "min" among its needs."""
    first: float
    """The earliest value; of equal times the first arrived. With "ends" among its needs."""
    last: float
    """The latest value; of equal times the last arrived. With "ends" among its needs."""
    terms: F64
    """`(2, terms) float64`: see `term_sum`."""
    first_term: int


@inlined
def term_sum(window: WindowSummary, term: int) -> float:
    """The sum over the window of one of the statistic's own terms, counted from 0."""
    return window.terms[0, window.first_term + term]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Statistic:
    """A statistic of sliding windows.

    Attributes:
        name: as in `WindowSpec.stats`; part of the feature's name.
        description: of its value, for people.
        read: its value from the summary of a window with events; compiled.
        definition: its value from `(n,) float64`, the values of such a window in order of time, n
            at least 1. Written for clarity: `anabranch skew` recomputes features with it.
        needs: what must be kept for it beside the count: some of "sums", "max", "min", "ends".
        terms: functions of a value, of which the sums over the window are kept for it; compiled.
            Their results must be finite and not negative (take the positive and the negative part
            as two terms), so that subtracting what leaves a window can't cancel unnoticed.
        empty: the value for a window without events; never NaN.
    """

    name: str
    description: str
    read: Callable[[WindowSummary], float]
    definition: Callable[[F64], float]
    needs: frozenset[str] = frozenset()
    terms: tuple[Callable[[float], float], ...] = ()
    empty: float = 0.0

    @property
    def needs_value(self) -> bool:
        """Whether it is a statistic of values, and not of events alone."""
        return bool(self.needs or self.terms)
