"""Compares the distribution of each feature between a training set and the served rows.

Bins are quantiles of the training set. A value that makes up a large part of it (such as the 0 of a
one-hot column) has a bin of its own, and so have missing values. For the shares p in training and q
in serving::

    PSI = Σ (q - p) ln(q / p)      below 0.1 no shift, above 0.25 a different distribution
    JS  = ½ Σ p log₂(p / m) + ½ Σ q log₂(q / m)  with m = (p + q) / 2; from 0 to 1
    KS  = the largest distance between the two distribution functions, of unbinned values

Half a row is added to each bin, so that no share is 0. For two samples of the same distribution PSI
is about (bins - 1) (1 / n + 1 / m), which is large for small samples; see Yurdakul, *Statistical
properties of population stability index* (2018). That expectation is reported, not subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.skew.progress import OnProgress, ignore_progress
from anabranch.dataflows.skew.served_features import ServedFeatures
from anabranch.models.drift.bins import jensen_shannon

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BINS = 10


@dataclass(frozen=True, slots=True)
class Shift:
    """How far one feature has shifted between training and serving.

    ``psi_by_chance`` is the PSI to be expected without any shift. ``mean`` and ``missing`` (a
    share) are pairs: in training, in serving.
    """

    name: str
    psi: float
    psi_by_chance: float
    js: float
    ks: float
    mean: tuple[float, float]
    missing: tuple[float, float]


def shifts(
    training: ServedFeatures,
    served: ServedFeatures,
    names: Sequence[str],
    bins: int = BINS,
    on_progress: OnProgress = ignore_progress,
) -> list[Shift]:
    """The shift of each of the features ``names``, sorted by descending PSI."""
    result = []
    for done, name in enumerate(names, 1):
        result.append(shift(name, training.features[name], served.features[name], bins))
        on_progress("comparing distributions", done, len(names))
    return sorted(result, key=lambda each: (-each.psi, -each.js))


def shift(name: str, training: F64, served: F64, bins: int = BINS) -> Shift:
    """The shift of one feature; values are ``(n,)`` and ``(m,) float64``, NaN if missing.

    >>> same = shift("x", np.arange(1000.0), np.arange(1000.0))
    >>> same.psi, same.js, same.ks
    (0.0, 0.0, 0.0)
    >>> round(shift("x", np.arange(1000.0), np.arange(500.0)).ks, 3)
    0.5
    """
    edges, single = _bins(training[~np.isnan(training)], bins)
    p, q = _counts(training, edges, single), _counts(served, edges, single)
    used = (p > 0) | (q > 0)
    p, q = p[used] + 0.5, q[used] + 0.5
    by_chance = (len(p) - 1) * (1 / len(training) + 1 / len(served))
    p, q = p / p.sum(), q / q.sum()
    return Shift(
        name,
        psi=float(np.sum((q - p) * np.log(q / p))),
        psi_by_chance=by_chance,
        js=jensen_shannon(p, q),
        ks=_ks(training[~np.isnan(training)], served[~np.isnan(served)]),
        mean=(_mean(training), _mean(served)),
        missing=(float(np.isnan(training).mean()), float(np.isnan(served).mean())),
    )


def _bins(values: F64, bins: int) -> tuple[F64, F64]:
    """The edges of quantile bins, and the values with a bin of their own.

    The latter are values with at least the share of a bin: they would fill one or more quantiles.
    """
    if not len(values):
        return np.zeros(0), np.zeros(0)
    unique, counts = np.unique(values, return_counts=True)
    if len(unique) <= bins:
        return np.zeros(0), unique
    single = unique[counts >= len(values) / bins]
    rest = values[~np.isin(values, single)]
    if not len(rest):
        return np.zeros(0), single
    shares = np.linspace(0, 1, bins - len(single) + 1)[1:-1]
    return np.unique(np.quantile(rest, shares, method="inverted_cdf")), single


def _counts(values: F64, edges: F64, single: F64) -> F64:
    """Rows per bin: missing values, values with a bin of their own, then quantile bins."""
    missing = np.isnan(values)
    values = values[~missing]
    alone = np.isin(values, single)
    between = np.searchsorted(edges, values[~alone], side="left")
    by_value = np.searchsorted(single, values[alone])
    return np.concatenate(
        [
            [np.count_nonzero(missing)],
            np.bincount(by_value, minlength=len(single)),
            np.bincount(between, minlength=len(edges) + 1),
        ]
    ).astype(np.float64)


def _ks(left: F64, right: F64) -> float:
    """The Kolmogorov-Smirnov distance; 1 if only one of the samples is empty, 0 if both are."""
    if not len(left) or not len(right):
        return float(bool(len(left)) != bool(len(right)))
    left, right = np.sort(left), np.sort(right)
    at = np.concatenate([left, right])
    below_left = np.searchsorted(left, at, side="right") / len(left)
    below_right = np.searchsorted(right, at, side="right") / len(right)
    return float(np.abs(below_left - below_right).max())


def _mean(values: F64) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
