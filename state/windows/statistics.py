"""The statistics of sliding windows, by name; see `state.windows.statistic` for adding one."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from anabranch.state.compile import F64, inlined
from anabranch.state.windows.double_double import UNRESOLVED, UNSCALE, Sums, variance
from anabranch.state.windows.statistic import Statistic, WindowSummary

SUMS: Final = frozenset({"sums"})
ENDS: Final = frozenset({"ends"})


@inlined
def _variance(sums: Sums) -> float:
    if sums.huge > 0:
        return math.inf if sums.events > 1 else 0.0
    return variance(sums)


def _read_count(window: WindowSummary) -> float:
    return float(window.sums.events)


def _read_sum(window: WindowSummary) -> float:
    return window.sums.total * UNSCALE


def _read_mean(window: WindowSummary) -> float:
    return window.sums.total / window.sums.events * UNSCALE


def _read_std(window: WindowSummary) -> float:
    return math.sqrt(_variance(window.sums))


def _read_var(window: WindowSummary) -> float:
    return _variance(window.sums)


def _read_min(window: WindowSummary) -> float:
    return window.minimum


def _read_max(window: WindowSummary) -> float:
    return window.maximum


def _read_first(window: WindowSummary) -> float:
    return window.first


def _read_last(window: WindowSummary) -> float:
    return window.last


def _define_var(values: F64) -> float:
    if len(values) < 2:
        return 0.0
    var = float(np.var(values, ddof=1))
    return var if var > UNRESOLVED * float(np.mean(np.square(values))) else 0.0


STATISTICS: Final[dict[str, Statistic]] = {
    statistic.name: statistic
    for statistic in (
        Statistic("count", "number of events", _read_count, lambda v: float(len(v))),
        Statistic("sum", "sum", _read_sum, lambda v: math.fsum(v), SUMS),
        Statistic("mean", "mean", _read_mean, lambda v: math.fsum(v) / len(v), SUMS),
        Statistic(
            "std",
            "sample standard deviation (ddof=1); 0 for fewer than two events",
            _read_std,
            lambda v: math.sqrt(_define_var(v)),
            SUMS,
        ),
        Statistic(
            "var",
            "sample variance (ddof=1); 0 for fewer than two events",
            _read_var,
            _define_var,
            SUMS,
        ),
        Statistic("min", "minimum", _read_min, lambda v: float(v.min()), frozenset({"min"})),
        Statistic("max", "maximum", _read_max, lambda v: float(v.max()), frozenset({"max"})),
        Statistic(
            "first",
            "value of the earliest event; of equal times, of the first arrived",
            _read_first,
            lambda v: float(v[0]),
            ENDS,
        ),
        Statistic(
            "last",
            "value of the latest event; of equal times, of the last arrived",
            _read_last,
            lambda v: float(v[-1]),
            ENDS,
        ),
    )
}
"""All statistics. Compiled code knows them by their place in this dictionary."""
