"""How far the distribution of each feature has moved from the training set to what was served.

Bins are quantiles of the training set; a value that is a large part of it by itself (a 0 of a
one-hot column) has a bin of its own, and so have missing values. Of the shares p in training and
q in serving::

    PSI = Σ (q - p) ln(q / p)      below 0.1 nothing to see, above 0.25 another distribution
    JS  = ½ Σ p log₂(p / m) + ½ Σ q log₂(q / m)  with m = (p + q) / 2; from 0 to 1
    KS  = the largest distance between the two distribution functions, of unbinned values

No share is 0: each bin has half a row more. Of rows of one and the same distribution PSI is about
(bins - 1) (1 / n + 1 / m), which is large when there are few; see Yurdakul, *Statistical properties
of population stability index* (2018). It is subtracted nowhere, but told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.skew.progress import Watch, unwatched
from anabranch.dataflows.skew.served_features import Served
from anabranch.models.drift.bins import jensen_shannon

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BINS = 10


@dataclass(frozen=True, slots=True)
class Shift:
    """One feature, in training and in serving.

    ``psi_by_chance`` is what PSI would be about if nothing had changed. ``mean`` and ``missing``
    (a share) are pairs: in training, in serving.
    """

    name: str
    psi: float
    psi_by_chance: float
    js: float
    ks: float
    mean: tuple[float, float]
    missing: tuple[float, float]


def shifts(
    training: Served,
    served: Served,
    names: Sequence[str],
    bins: int = BINS,
    watch: Watch = unwatched,
) -> list[Shift]:
    """The shift of each of ``names``, by falling PSI; ``bins`` is how many quantiles there are."""
    found = []
    for done, name in enumerate(names, 1):
        found.append(shift(name, training.features[name], served.features[name], bins))
        watch("comparing distributions", done, len(names))
    return sorted(found, key=lambda each: (-each.psi, -each.js))


def shift(name: str, training: F64, served: F64, bins: int = BINS) -> Shift:
    """The shift of one feature, of ``(n,)`` and ``(m,)`` values of which NaN are missing ones.

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
    """The edges of quantile bins, and the values that fill one by themselves.

    A value that is at least as frequent as a bin is wide is two quantiles or more, or next to one.
    """
    if not len(values):
        return np.zeros(0), np.zeros(0)
    different, counts = np.unique(values, return_counts=True)
    if len(different) <= bins:
        return np.zeros(0), different
    single = different[counts >= len(values) / bins]
    rest = values[~np.isin(values, single)]
    if not len(rest):
        return np.zeros(0), single
    shares = np.linspace(0, 1, bins - len(single) + 1)[1:-1]
    return np.unique(np.quantile(rest, shares, method="inverted_cdf")), single


def _counts(values: F64, edges: F64, single: F64) -> F64:
    """Rows per bin: the missing ones, then each single value, then between the edges."""
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
    """Where one of them has no values, the distance is 1; of nothing and nothing 0."""
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
