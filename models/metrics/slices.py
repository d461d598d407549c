"""Declarations of slices: parts of the events for which metrics are computed separately."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from anabranch.models.categories import OTHER, text_of
from anabranch.state.errors import DeclarationError
from anabranch.state.renamed import renamed

MOST = 200
"""A slice has no more values than this, so that what is exported of it stays small."""


@dataclass(frozen=True, slots=True)
class SliceBy:
    """See `slice_by`. ``names``: of the bins or values; empty where values are discovered."""

    subject: str
    name: str
    names: tuple[str, ...]
    bins: tuple[float, ...] | None
    max_values: int

    @property
    def open(self) -> bool:
        """Whether its values are those that come."""
        return not self.names

    def __str__(self) -> str:
        return f"slice_by({self.subject!r})"


@renamed(most="max_values", called="name", edges="bins", names="bin_names")
def slice_by(
    subject: str,
    values: Sequence[str | bool] | None = None,
    *,
    bins: Sequence[float] | None = None,
    bin_names: Sequence[str] | None = None,
    name: str | None = None,
    max_values: int | None = None,
) -> SliceBy:
    """Compute the metrics separately for parts of the events, by a field or by a feature.

    Of a text or boolean field each value is a slice: those given as ``values``, else the first
    ``max_values`` that occur; all others together are ``other``. A feature, or a number of the
    event, is cut at the edges ``bins``: below the first, from the first to below the second, …

    Args:
        subject: a field of the event, or with ``bins`` a feature column.
        values: the values of a text or boolean field that are slices of their own.
        bins: the edges of the bins, rising numbers.
        bin_names: the names of the bins, one more than there are edges.
        name: the name of the slicing in metrics and reports, by default ``subject``.
        max_values: 20 by default, 200 at most.

    Raises:
        DeclarationError: arguments contradict each other, or a value is not of the right type.

    >>> slice_by("amount", bins=(10, 100)).names
    ('<10', '10..100', '>=100')
    >>> slice_by("amount", bins=(50,), bin_names=("small", "large"), name="size").names
    ('small', 'large')
    """
    where = f"slice_by({subject!r})"
    if not isinstance(subject, str) or not isinstance(name or "", str):
        raise DeclarationError(f"{where} needs the name of a field or of a feature as text")
    if sum(given is not None for given in (values, bins, max_values)) > 1:
        raise DeclarationError(
            f"{where} can take values=, bins= or max_values=, and not several of them at once"
        )
    if bin_names is not None and bins is None:
        raise DeclarationError(f"{where} has bin_names=, so it needs bins= too")
    names: tuple[str, ...] = ()
    if values is not None:
        names = _value_names(values, where)
    elif bins is not None:
        names = _bin_names(bins, bin_names, where)
    most = 20 if max_values is None else max_values
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= MOST:
        raise DeclarationError(f"{where} can have from 1 to {MOST} values, not max_values={most!r}")
    edges = None if bins is None else tuple(map(float, bins))
    return SliceBy(subject, name or subject, names, edges, len(names) or most)


def _value_names(values: Any, where: str) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise DeclarationError(f"{where} needs its values in a tuple, for example ('US', 'DE')")
    if not all(isinstance(value, str | bool) for value in values):
        raise DeclarationError(f"{where} takes texts or booleans as values, and bins= for numbers")
    names = tuple(map(text_of, values))
    if len(set(names)) < len(names) or OTHER in names or len(names) > MOST:
        raise DeclarationError(
            f"{where} needs values that differ, {MOST} at most; {OTHER!r} is the name of all others"
        )
    return names


def _bin_names(bins: Any, bin_names: Any, where: str) -> tuple[str, ...]:
    if not isinstance(bins, Sequence) or not bins or not all(map(_is_number, bins)):
        raise DeclarationError(f"{where} needs its bins in a tuple of numbers, such as (10, 100)")
    if any(a >= b for a, b in pairwise(bins)) or len(bins) >= MOST:
        raise DeclarationError(f"{where} needs bins that rise, fewer than {MOST}: {tuple(bins)}")
    if bin_names is None:
        between = [f"{a:.15g}..{b:.15g}" for a, b in pairwise(bins)]
        return (f"<{bins[0]:.15g}", *between, f">={bins[-1]:.15g}")
    names: tuple[str, ...] = tuple(bin_names)
    valid = all(isinstance(name, str) and name for name in names)
    if not valid or len(names) != len(bins) + 1 or len({*names, "null"}) <= len(names):
        raise DeclarationError(
            f"{where} has {len(bins)} bin edges and so {len(bins) + 1} bins: give as many "
            "bin_names=, all different and none of them 'null'"
        )
    return names


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
