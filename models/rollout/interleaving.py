"""Team draft: two rankings become one list, and each entry remembers who placed it.

Like captains who choose their teams, the two rankers take turns, each with the best candidate that
is left on its list; who goes first in a turn is drawn (Radlinski, Kurup, Joachims, *How does
clickthrough data reflect retrieval quality?*, CIKM 2008). A click is a point for the team of what
was clicked: since both have the same chances of every place, equal rankers win equally often,
however much people prefer what stands first.

A list gives one point, by the first choice on it. Further ones are of the same taste: were each a
point, a few visitors who click a lot would look like evidence, and equals would be promoted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anabranch.models.metrics.ranking import ranks_of
from anabranch.models.rollout.assignment import places
from anabranch.models.rollout.observations import RolloutRows, draft_code
from anabranch.models.rollout.trial import Contest

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]


def draft(
    part: RolloutRows, contests: Sequence[Contest], champion: tuple[str, int], meant: U8
) -> I64:
    """Interleave the lists of the events that a challenger is to serve.

    Args:
        part: of rankings; its `drafts` and `listed` are written.
        contests: those at work.
        champion: its name and number.
        meant: `(events,) uint8`: who is to serve; it becomes who places each row.

    Returns:
        See `Served.ranks`.
    """
    ranks = np.zeros(meant.size, np.int64)
    if part.groups is None or part.drafts is None or part.lists is None or part.listed is None:
        return ranks
    for contest in contests:
        rows = np.flatnonzero(meant == contest.number)
        both = part.scores[champion[0]][rows], part.scores[contest.challenger][rows]
        ranks[rows], by_it = interleave(part.groups[rows], both, part.lists[rows], contest.rollout)
        meant[rows[~by_it]] = champion[1]
        part.drafts[part.event_rows[rows]] = draft_code(contest.draft, by_it)
        part.listed[part.event_rows[rows]] = part.lists[rows]
    return ranks


def team_draft(ours: I64, theirs: I64, coins: int) -> tuple[list[int], list[bool]]:
    """One list of two.

    Args:
        ours, theirs: `(candidates,) int64`: the candidates by rank, the best first.
        coins: its bits say who goes first in each turn; those that are used up are used again.

    Returns:
        The candidates in the order of the list, and for each whether it is from `theirs`.

    >>> team_draft(np.array([0, 1, 2]), np.array([2, 1, 0]), coins=0b10)
    ([0, 2, 1], [False, True, True])
    """
    lists = (ours.tolist(), theirs.tolist())
    at, placed = [0, 0], [False] * len(lists[0])
    order: list[int] = []
    teams: list[bool] = []
    turn = 0
    while len(order) < len(placed):
        first = coins >> turn % 53 & 1
        for side in (first, 1 - first):
            ranked = lists[side]
            while at[side] < len(ranked) and placed[ranked[at[side]]]:
                at[side] += 1
            if at[side] == len(ranked):
                break
            chosen = ranked[at[side]]
            placed[chosen] = True
            order.append(chosen)
            teams.append(bool(side))
        turn += 1
    return order, teams


def interleave(
    groups: I64, scores: tuple[F64, F64], lists: U64, salt: str
) -> tuple[I64, NDArray[np.bool_]]:
    """Interleaves every event.

    Args:
        groups: `(rows,) int64`, the number of each row's event; its rows are neighbours.
        scores: of both rankers, `(rows,) float64`.
        lists: `(rows,) uint64`, another for each event. With the salt it draws who goes first.
        salt: other for every rollout.

    Returns:
        The rank of each row, from 1, and whether the second ranker placed it.
    """
    ranks = np.zeros(len(groups), np.int64)
    placed_by = np.zeros(len(groups), np.bool_)
    if not len(groups):
        return ranks, placed_by
    both = [ranks_of(groups, each) for each in scores]
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    draws = (places(lists[starts], salt) * 2.0**53).astype(np.int64).tolist()
    for start, end, coins in zip(
        starts.tolist(), [*starts[1:].tolist(), len(groups)], draws, strict=True
    ):
        ours, theirs = (np.argsort(each[start:end], kind="stable") for each in both)
        order, teams = team_draft(ours, theirs, coins)
        rows = start + np.array(order)
        ranks[rows] = np.arange(1, end - start + 1)
        placed_by[rows] = teams
    return ranks, placed_by
