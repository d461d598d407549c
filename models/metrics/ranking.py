"""Ranked lists: the rank of each candidate, and the quality of the served rankings.

A ranking has one row per candidate. Rows of one event are adjacent.
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
"""The field of candidate rows that holds the number of their event, `(rows,) int64`."""

LIST: Final = "(list)"
"""With rollouts, the field that holds a unique number of the event, `(rows,) uint64`; it does not
change in a replay."""


def ranks_of(groups: I64, scores: F64) -> I64:
    """`(rows,) int64`: the rank of each row in its event, from 1; the highest score is first.

    Args:
        groups: `(rows,) int64`, the number of each row's event.
        scores: `(rows,) float64`; NaN ranks last. Equal scores keep the order of the rows.

    >>> ranks_of(np.array([0, 0, 0, 4, 4]), np.array([0.1, 0.9, np.nan, 0.5, 0.5]))
    array([2, 1, 3, 1, 2])
    """
    order = np.lexsort((np.arange(len(groups)), -scores, groups))  # NaN sorts last
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = _positions(groups[order])
    return ranks


def final_ranks(groups: I64, scores: F64, drafted: I64 | None) -> I64:
    """`(rows,) int64`, from 1: the drafted rank where that is above 0, else by the scores."""
    ranks = ranks_of(groups, scores)
    return ranks if drafted is None else np.where(drafted > 0, drafted, ranks)


def run_numbers(groups: I64) -> I64:
    """Number the runs of equal numbers, ascending: `(rows,) int64`."""
    starts = np.ones(len(groups), np.int64)
    starts[1:] = groups[1:] != groups[:-1]
    return np.cumsum(starts)


def _positions(sorted_groups: I64) -> I64:
    """The position in each run of equal numbers, from 1."""
    if not len(sorted_groups):
        return np.zeros(0, np.int64)
    starts = np.ones(len(sorted_groups), np.bool_)
    starts[1:] = sorted_groups[1:] != sorted_groups[:-1]
    first = np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))
    return np.arange(len(starts)) - first + 1


@dataclass(slots=True)
class RankQuality:
    """The ranks of the candidates that were chosen, over all choices so far.

    Attributes:
        chosen: number of choices.
        reciprocal: sum of their reciprocal ranks.
        hits: by k, the choices among the first k.

    >>> quality = RankQuality()
    >>> quality.update(np.array([1, 4]))
    >>> quality.values()
    {'MRR': 0.625, 'Hit@1': 0.5, 'Hit@3': 0.5, 'Hit@10': 1.0}
    """

    chosen: int = 0
    reciprocal: float = 0.0
    hits: dict[int, int] = field(default_factory=lambda: dict.fromkeys(HITS, 0))

    def update(self, ranks: NDArray[np.integer]) -> None:
        """Add the ranks, from 1, of candidates that were chosen, in order."""
        self.chosen += len(ranks)
        for rank in ranks.tolist():  # one by one: the sum must not depend on the cut into calls
            self.reciprocal += 1.0 / rank
        for k in HITS:
            self.hits[k] += int(np.count_nonzero(ranks <= k))

    def values(self) -> dict[str, float]:
        """Mean reciprocal rank, and the share of choices among the first k; NaN without choices."""
        if not self.chosen:
            return dict.fromkeys(["MRR", *(f"Hit@{k}" for k in HITS)], np.nan)
        hits = {f"Hit@{k}": self.hits[k] / self.chosen for k in HITS}
        return {"MRR": self.reciprocal / self.chosen, **hits}

    def dump(self) -> tuple[int, float, dict[int, int]]:
        """The state, for `restored`."""
        return self.chosen, self.reciprocal, self.hits

    @classmethod
    def restored(cls, state: tuple[int, float, dict[int, int]]) -> RankQuality:
        """Continue from the state that `dump` returned."""
        return cls(*state)
