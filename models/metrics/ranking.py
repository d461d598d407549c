"""Ranked lists: who stands where, and how good the served ones were.

A ranking has one row per candidate. Rows of one event are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

HITS: Final = (1, 3, 10)

EVENT: Final = "(event)"
"""Among the fields of rows that are candidates: `(rows,) int64`, the number of each one's event."""

LIST: Final = "(list)"
"""With rollouts: `(rows,) uint64`, a number that no other event has, and the same in any replay."""


def ranks_of(groups: I64, scores: F64) -> I64:
    """`(rows,) int64`: the rank of each row in its event, from 1; the best score is first.

    Args:
        groups: `(rows,) int64`, the number of each row's event.
        scores: `(rows,) float64`; NaN stands last. Equal ones keep the order in which they came.

    >>> ranks_of(np.array([0, 0, 0, 4, 4]), np.array([0.1, 0.9, np.nan, 0.5, 0.5]))
    array([2, 1, 3, 1, 2])
    """
    order = np.lexsort((np.arange(len(groups)), -scores, groups))  # NaN is behind all
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = _places(groups[order])
    return ranks


def final_ranks(groups: I64, scores: F64, drafted: I64 | None) -> I64:
    """`(rows,) int64`, from 1: as drafted, where that is above 0, else by the scores."""
    ranks = ranks_of(groups, scores)
    return ranks if drafted is None else np.where(drafted > 0, drafted, ranks)


def numbered(groups: I64) -> I64:
    """Another number for each run of equal numbers, ascending."""
    fresh = np.ones(len(groups), np.int64)
    fresh[1:] = groups[1:] != groups[:-1]
    return np.cumsum(fresh)


def _places(sorted_groups: I64) -> I64:
    """From 1 in each run of equal numbers."""
    if not len(sorted_groups):
        return np.zeros(0, np.int64)
    fresh = np.ones(len(sorted_groups), np.bool_)
    fresh[1:] = sorted_groups[1:] != sorted_groups[:-1]
    first = np.maximum.accumulate(np.where(fresh, np.arange(len(fresh)), 0))
    return np.arange(len(fresh)) - first + 1


@dataclass(slots=True)
class RankQuality:
    """Where what was chosen had stood, over all choices so far.

    >>> quality = RankQuality()
    >>> quality.update(np.array([1, 4]))
    >>> quality.values()
    {'MRR': 0.625, 'Hit@1': 0.5, 'Hit@3': 0.5, 'Hit@10': 1.0}
    """

    chosen: int = 0
    reciprocal: float = 0.0
    hits: dict[int, int] = field(default_factory=lambda: dict.fromkeys(HITS, 0))

    def update(self, ranks: NDArray[np.integer]) -> None:
        """Ranks, from 1, of candidates that were chosen, in order."""
        self.chosen += len(ranks)
        for rank in ranks.tolist():  # one by one, so that no cut into calls shows in the sum
            self.reciprocal += 1.0 / rank
        for most in HITS:
            self.hits[most] += int(np.count_nonzero(ranks <= most))

    def values(self) -> dict[str, float]:
        """Mean reciprocal rank, and the share of choices among the first so many; NaN at first."""
        if not self.chosen:
            return dict.fromkeys(["MRR", *(f"Hit@{most}" for most in HITS)], np.nan)
        hits = {f"Hit@{most}": self.hits[most] / self.chosen for most in HITS}
        return {"MRR": self.reciprocal / self.chosen, **hits}
