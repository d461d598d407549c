"""Counting values by bins, for many columns at once."""

from __future__ import annotations

from typing import Any

from anabranch.state.compile import F64, I64, kernel


@kernel
def count_rows(values: F64, first: int, end: int, edges: F64, cuts: I64, counts: F64) -> Any:
    """Add rows `first` to before `end` of `(rows, columns)` to `(columns, bins + 1)` counts.

    Column `j` has `cuts[j]` edges, ascending: a value is in the bin of the edges at or below it.
    NaN is in the last.
    """
    last = counts.shape[1] - 1
    for i in range(first, end):
        for j in range(values.shape[1]):
            value = values[i, j]
            place = last
            if value == value:
                place = 0
                for edge in range(cuts[j]):
                    place += value >= edges[j, edge]
            counts[j, place] += 1.0
    return 0
