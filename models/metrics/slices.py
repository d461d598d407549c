"""What a pipeline may declare as slices: parts of its events whose quality is told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from anabranch.models.categories import OTHER, text_of
from anabranch.state.errors import DeclarationError

MOST = 200
"""A slice has no more values than this, so that what is exported of it stays small."""


@dataclass(frozen=True, slots=True)
class SliceBy:
    """See `slice_by`. ``names`` are of what `edges` or `values` make; ``most`` without both."""

    subject: str
    name: str
    names: tuple[str, ...]
    edges: tuple[float, ...] | None
    most: int

    @property
    def open(self) -> bool:
        """Whether its values are those that come."""
        return not self.names

    def __str__(self) -> str:
        return f"slice_by({self.subject!r})"


def slice_by(
    subject: str,
    values: Sequence[str | bool] | None = None,
    *,
    edges: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    called: str | None = None,
    most: int | None = None,
) -> SliceBy:
    """Tell the quality of predictions apart by a field of the event, or by a feature.

    Of a text or boolean field each value is a slice of its own: those given as ``values``, else the
    first ``most`` that come; all others together are ``other``. A feature, or a number of the
    event, is cut at ``edges``: below the first, from the first to below the second, and so on.

    Args:
        subject: a field of the event, or with ``edges`` a feature column.
        values: of a text or boolean field.
        edges: rising numbers.
        names: what the parts between edges are called, one more than there are edges.
        called: the name of the slicing, by default ``subject``.
        most: 20 by default, 200 at most.

    Raises:
        DeclarationError: something in it can't work.

    >>> slice_by("amount", edges=(10, 100)).names
    ('<10', '10..100', '>=100')
    >>> slice_by("card_since_last_1d", edges=(86_400,), names=("known", "new"), called="card").names
    ('known', 'new')
    """
    where = f"slice_by({subject!r})"
    if not isinstance(subject, str) or not isinstance(called or "", str):
        raise DeclarationError(f"{where} needs the name of a field or of a feature as text")
    if sum(each is not None for each in (values, edges, most)) > 1:
        raise DeclarationError(
            f"{where} can take values=, edges= or most=, and not several of them at once"
        )
    if names is not None and edges is None:
        raise DeclarationError(f"{where} has names= of what edges make, and no edges: give edges=")
    parts: tuple[str, ...] = ()
    if values is not None:
        parts = _value_names(values, where)
    elif edges is not None:
        parts = _edge_names(edges, names, where)
    most = 20 if most is None else most
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= MOST:
        raise DeclarationError(f"{where} can have from 1 to {MOST} values, not most={most!r}")
    cuts = None if edges is None else tuple(map(float, edges))
    return SliceBy(subject, called or subject, parts, cuts, len(parts) or most)


def _value_names(values: Any, where: str) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise DeclarationError(f"{where} needs its values in a tuple, for example ('US', 'DE')")
    if not all(isinstance(value, str | bool) for value in values):
        raise DeclarationError(f"{where} takes texts or booleans as values, and edges= for numbers")
    names = tuple(map(text_of, values))
    if len(set(names)) < len(names) or OTHER in names or len(names) > MOST:
        raise DeclarationError(
            f"{where} needs values that differ, {MOST} at most; {OTHER!r} is what all else is "
            "called"
        )
    return names


def _edge_names(edges: Any, names: Any, where: str) -> tuple[str, ...]:
    if not isinstance(edges, Sequence) or not edges or not all(map(_is_number, edges)):
        raise DeclarationError(f"{where} needs its edges in a tuple of numbers, such as (10, 100)")
    if any(a >= b for a, b in pairwise(edges)) or len(edges) >= MOST:
        raise DeclarationError(f"{where} needs edges that rise, fewer than {MOST}: {tuple(edges)}")
    if names is None:
        between = [f"{a:.15g}..{b:.15g}" for a, b in pairwise(edges)]
        return (f"<{edges[0]:.15g}", *between, f">={edges[-1]:.15g}")
    found: tuple[str, ...] = tuple(names)
    told = all(isinstance(name, str) and name for name in found)
    if not told or len(found) != len(edges) + 1 or len({*found, "null"}) <= len(found):
        raise DeclarationError(
            f"{where} has {len(edges)} edges and so {len(edges) + 1} parts: give as many names, "
            "none of them twice and none 'null'"
        )
    return found


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
