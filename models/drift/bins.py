"""Bins for the values of a column: where they begin, what they are called, how far two differ."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
BINS: Final = 10


def edges_of(values: F64) -> F64:
    """Where the bins of a column begin, ascending; the first bin is below all.

    Of few values each has a bin, and what is below or above all of them too.

    >>> edges_of(np.array([0.0, 1.0, 1.0, 0.0]))
    array([0. , 0.5, 1. ])
    >>> edges_of(np.arange(101.0))
    array([10., 20., 30., 40., 50., 60., 70., 80., 90.])
    """
    known = np.unique(values[~np.isnan(values)])
    if 0 < len(known) <= BINS - 2:
        between = (known[1:] + known[:-1]) / 2
        return np.array([known[0], *between, np.nextafter(known[-1], np.inf)])
    if not len(known):
        return known
    deciles = np.quantile(values[~np.isnan(values)], np.arange(1, BINS) / BINS)
    edges: F64 = np.unique(deciles)
    # A value that fills whole deciles has a bin of its own: the next begins behind it.
    above: F64 = edges[edges > known[0]]
    return above


def bin_names(edges: list[float]) -> list[str]:
    """One for each bin of those edges."""
    if not edges:
        return ["any"]
    middle = [f"{a:.4g} to {b:.4g}" for a, b in pairwise(edges)]
    last, before = f"{edges[-1]:.4g} or more", float(np.nextafter(edges[-1], -np.inf))
    if len(repr(before)) < len(repr(edges[-1])):  # the next number behind a value
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


def chi_square(found: F64, expected: F64, least: float) -> F64:
    """Pearson's, of `(columns, bins)` rows; `(columns,)`.

    Bins of which less than ``least`` rows are expected count as one bin, of one row or more: a
    single row that comes there by chance would weigh as many.

    >>> found, expected = np.array([[8.0, 1.0, 1.0]]), np.array([[9.8, 0.1, 0.1]])
    >>> chi_square(found, expected, 0.0).round(2), chi_square(found, expected, 1.0).round(2)
    (array([16.53]), array([3.57]))
    """
    rare = expected < least
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.square(found - expected) / expected
    usual = np.where(rare | (expected == 0.0), 0.0, parts)
    beyond = np.where(rare, found - expected, 0.0).sum(axis=1)
    wanted = np.maximum(np.where(rare, expected, 0.0).sum(axis=1), 1.0)
    total: F64 = usual.sum(axis=1) + np.square(beyond) / wanted
    return total
