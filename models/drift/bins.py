"""Bins of the values of columns: their edges and names, counting, and distances between counts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from anabranch.state.compile import F64, I64, kernel

BINS: Final = 10
"""Bins per column at most, without the one of missing values."""


class Bins(NamedTuple):
    """The bins of a number of columns, and how many values are in each.

    Attributes:
        edges: `(columns, BINS - 1) float64`, ascending in each row.
        used: `(columns,) int64`: how many of a column's edges are used.
        counts: `(columns, BINS + 1) float64`; the last bin is that of missing values.
    """

    edges: F64
    used: I64
    counts: F64


def edges_of(values: F64) -> F64:
    """The edges between the bins of a column, ascending; the first bin is below all of them.

    Where there are few distinct values, each has a bin, and so have values below or above all.

    >>> edges_of(np.array([0.0, 1.0, 1.0, 0.0]))
    array([0. , 0.5, 1. ])
    >>> edges_of(np.arange(101.0))
    array([10., 20., 30., 40., 50., 60., 70., 80., 90.])
    """
    distinct = np.unique(values[~np.isnan(values)])
    if 0 < len(distinct) <= BINS - 2:
        between = (distinct[1:] + distinct[:-1]) / 2
        return np.array([distinct[0], *between, np.nextafter(distinct[-1], np.inf)])
    if not len(distinct):
        return distinct
    deciles = np.quantile(values[~np.isnan(values)], np.arange(1, BINS) / BINS)
    edges: F64 = np.unique(deciles)
    # A value that fills whole deciles has a bin of its own: the next one starts after it.
    above: F64 = edges[edges > distinct[0]]
    return above


def bin_names(edges: list[float]) -> list[str]:
    """The name of each bin between these edges."""
    if not edges:
        return ["any"]
    middle = [f"{a:.4g} to {b:.4g}" for a, b in pairwise(edges)]
    last, before = f"{edges[-1]:.4g} or more", float(np.nextafter(edges[-1], -np.inf))
    if len(repr(before)) < len(repr(edges[-1])):  # the next number after a value
        last = f"above {before:.4g}"
    return [f"below {edges[0]:.4g}", *middle, last]


def jensen_shannon(first: F64, second: F64) -> float:
    """The divergence of two distributions over the same bins, between 0 and 1.

    >>> jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    1.0
    """
    middle, total = (first + second) / 2, 0.0
    for each in (first, second):
        seen = each > 0
        total += float((each[seen] * np.log2(each[seen] / middle[seen])).sum()) / 2
    return max(total, 0.0)


def chi_square(observed: F64, expected: F64, min_expected: float) -> F64:
    """Pearson's chi-square of `(columns, bins) float64` counts; `(columns,) float64`.

    Bins with fewer than ``min_expected`` expected rows are pooled into one that expects one row at
    least: a single row that falls there by chance would weigh as much as many.

    >>> observed, expected = np.array([[8.0, 1.0, 1.0]]), np.array([[9.8, 0.1, 0.1]])
    >>> chi_square(observed, expected, 0.0).round(2), chi_square(observed, expected, 1.0).round(2)
    (array([16.53]), array([3.57]))
    """
    rare = expected < min_expected
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.square(observed - expected) / expected
    frequent = np.where(rare | (expected == 0.0), 0.0, terms)
    pooled = np.where(rare, observed - expected, 0.0).sum(axis=1)
    pooled_expected = np.maximum(np.where(rare, expected, 0.0).sum(axis=1), 1.0)
    total: F64 = frequent.sum(axis=1) + np.square(pooled) / pooled_expected
    return total


@kernel
def count_rows(values: F64, first: int, end: int, bins: Bins) -> Any:
    """Count rows `first` to before `end` of `(rows, columns) float64` into the bins.

    A value is in the bin of the last edge at or below it, NaN in the last bin.
    """
    edges, used, counts = bins.edges, bins.used, bins.counts
    missing = counts.shape[1] - 1
    for i in range(first, end):
        for j in range(values.shape[1]):
            value = values[i, j]
            place = missing
            if value == value:
                place = 0
                for edge in range(used[j]):
                    place += value >= edges[j, edge]
            counts[j, place] += 1.0
    return 0
