"""The policy for rankings: two rankings become one list by team draft, and choices are counted.

Like captains who choose their teams, the two rankers take turns, each with the best candidate that
is left on its list; who goes first in a turn is drawn (Radlinski, Kurup, Joachims, *How does
clickthrough data reflect retrieval quality?*, CIKM 2008). A click is a point for the team of what
was clicked: since both have the same chances of every position, equal rankers win equally often,
however much people prefer what stands first.

A list gives one point, by the first choice on it. Further choices reflect the same taste: were each
a point, a few visitors who click a lot would look like evidence, and equal rankers would be
promoted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from anabranch.models.metrics.ranking import ranks_of
from anabranch.models.rollout.observations import (
    RANK_BITS,
    Arm,
    LabelPairs,
    RolloutRows,
    draft_code,
)
from anabranch.models.rollout.policy import (
    Policy,
    PolicyContext,
    RunningTrial,
    horizon_end,
    is_number,
    one_at_a_time,
)
from anabranch.models.rollout.traffic import buckets
from anabranch.state.durations import parse_duration_ms
from anabranch.state.errors import DeclarationError
from anabranch.state.renamed import renamed

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]

_LISTS: Final = 1024
"""Lists that have given their point, before those that can be forgotten are removed."""


class ListPairs(LabelPairs):
    """The first choice on each interleaved list is a point: loss 1 for the model that lost it.

    Args:
        trial: index of the trial whose lists count.
    """

    def __init__(self, trial: int) -> None:
        self._trial = trial
        self._counted: dict[int, None] = {}  # lists that have given their point
        self._limit = _LISTS

    def select(self, rows: RolloutRows, labels: I64) -> I64:
        """See `LabelPairs.select`: the first choice on each list of this trial."""
        assert rows.chosen is not None
        of_trial = _drafts(rows, labels) >> 1 == self._trial
        choices = labels[np.flatnonzero(rows.chosen[labels] & of_trial)]
        seen: set[int] = set()
        first = []
        for at, list_id in enumerate(_lists(rows, choices)):
            if list_id not in self._counted and list_id not in seen:
                seen.add(list_id)
                first.append(at)
        return choices[first]

    def losses(
        self, rows: RolloutRows, champion: str, challenger: str, labels: I64
    ) -> tuple[F64, F64]:
        """See `LabelPairs.losses`: 1 for the model whose entry was not chosen."""
        by_challenger = (_drafts(rows, labels) & 1).astype(np.float64)
        return by_challenger, 1.0 - by_challenger

    def commit(self, rows: RolloutRows, labels: I64) -> None:
        """See `LabelPairs.commit`: these lists have given their point, and give no other."""
        assert rows.drafted_lists is not None
        self._counted.update(dict.fromkeys(_lists(rows, labels)))
        if len(self._counted) > max(self._limit, len(rows.drafted_lists) // 8):
            # A list with no row left in the pending store can't be chosen from any more.
            counted = np.array(list(self._counted), np.uint64)
            pending = np.isin(counted, rows.drafted_lists).tolist()
            pairs = zip(self._counted, pending, strict=True)
            self._counted = {list_id: None for list_id, is_pending in pairs if is_pending}
            self._limit = max(_LISTS, 2 * len(self._counted))


@renamed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Interleave(Policy):
    """For rankings: lists are drafted from those of both models, and choices are counted.

    Every choice on an interleaved list compares both models, and neither has the better positions
    (team draft): it takes far fewer choices than to compare lists of different
    visitors. The loss of a list is 1 for the model whose entry was not chosen first, so that there
    is no ``loss``, ``comparison`` or ``clip`` to declare. One challenger at a time, in the order
    of their declaration.

    Attributes:
        split: share of the keys whose lists are interleaved; the others have the champion's.
        horizon: event time after which the champion stays, if the challenger was not shown better.
    """

    supports_auc: ClassVar[bool] = False

    split: float = 1.0
    horizon: str = "14d"

    def check(self, context: PolicyContext) -> None:
        """See `Policy.check`."""
        where = self.where(context)
        for name, default in (("loss", None), ("comparison", "paired"), ("clip", None)):
            if (given := getattr(self, name)) != default:
                raise DeclarationError(
                    f"{name}={given!r} of {where}: interleaved lists are compared by what was "
                    "chosen; leave it out"
                )
        if not (is_number(self.split) and 0 < self.split <= 1):
            raise DeclarationError(
                f"split={self.split!r} of {where} must be a share of the keys, above 0 and up to 1"
            )
        parse_duration_ms(self.horizon)
        if not context.ranking:
            raise DeclarationError(
                f"{where} is for rankings: name the event's list of candidates= as well"
            )

    def initial_share(self) -> float:
        """The split."""
        return self.split

    def may_start(self, trials: Sequence[RunningTrial]) -> str | None:
        """A list is drafted from two rankings."""
        return one_at_a_time(trials, "interleaving")

    def ends_at(self, start_ms: int) -> int:
        """At the horizon."""
        return horizon_end(self.horizon, start_ms)

    def end_reason(self) -> str:
        """Names the horizon."""
        return f"the horizon of {self.horizon} is over"

    def starts_in_shadow(self) -> bool:
        """A ranking is compared on the lists that it is drafted into."""
        return False

    def label_pairs(self, trial: int) -> ListPairs:
        """The first choice on each list."""
        return ListPairs(trial)

    def arrange_candidates(
        self, rows: RolloutRows, trials: Sequence[RunningTrial], champion: Arm, assigned: U8
    ) -> I64:
        """Draft the lists of both models into one."""
        return draft_lists(rows, trials, champion, assigned)


def _drafts(rows: RolloutRows, labels: I64) -> I64:
    """Trial and ranker by which each was drafted: an odd number if by the challenger."""
    assert rows.drafts is not None
    drafts: I64 = rows.drafts[rows.label_rows[labels]].astype(np.int64) >> RANK_BITS
    return drafts


def _lists(rows: RolloutRows, labels: I64) -> list[int]:
    """The id of the list on which each was chosen."""
    assert rows.drafted_lists is not None
    list_ids: list[int] = rows.drafted_lists[rows.label_rows[labels]].tolist()
    return list_ids


def draft_lists(
    part: RolloutRows, trials: Sequence[RunningTrial], champion: Arm, assigned: U8
) -> I64:
    """Interleave the lists of the events that a challenger is to serve.

    Args:
        part: of rankings; its `drafts` and `drafted_lists` are written.
        trials: those at work, against the champion.
        assigned: `(events,) uint8`: arm id of the model that is to serve; it becomes the one that
            placed each row.

    Returns:
        `(events,) int64`, see `Assignments.ranks`.
    """
    ranks = np.zeros(assigned.size, np.int64)
    if part.groups is None or part.drafts is None:
        return ranks
    assert part.list_ids is not None
    assert part.drafted_lists is not None
    for trial in trials:
        rows = np.flatnonzero(assigned == trial.arm_id)
        scores = part.scores[champion.name][rows], part.scores[trial.challenger][rows]
        ranks[rows], by_challenger = interleave(
            part.groups[rows], scores, part.list_ids[rows], trial.rollout
        )
        assigned[rows[~by_challenger]] = champion.arm_id
        part.drafts[part.event_rows[rows]] = draft_code(trial.index, by_challenger)
        part.drafted_lists[part.event_rows[rows]] = part.list_ids[rows]
    return ranks


def team_draft(ours: I64, theirs: I64, coins: int) -> tuple[list[int], list[bool]]:
    """One list of two.

    Args:
        ours, theirs: `(candidates,) int64`: the candidates by rank, the best first.
        coins: its bits decide who goes first in each turn; those that are used up are used again.

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
    groups: I64, scores: tuple[F64, F64], list_ids: U64, salt: str
) -> tuple[I64, NDArray[np.bool_]]:
    """Interleave the two rankings of every event.

    Args:
        groups: `(rows,) int64`, the event of each row; the rows of an event are neighbours.
        scores: of both rankers, `(rows,) float64`.
        list_ids: `(rows,) uint64`, another for each event. With the salt it draws who goes first.
        salt: different for every rollout.

    Returns:
        The rank of each row, from 1, and whether the second ranker placed it.
    """
    ranks = np.zeros(len(groups), np.int64)
    placed_by = np.zeros(len(groups), np.bool_)
    if not len(groups):
        return ranks, placed_by
    both = [ranks_of(groups, each) for each in scores]
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    draws = (buckets(list_ids[starts], salt) * 2.0**53).astype(np.int64).tolist()
    for start, end, coins in zip(
        starts.tolist(), [*starts[1:].tolist(), len(groups)], draws, strict=True
    ):
        ours, theirs = (np.argsort(each[start:end], kind="stable") for each in both)
        order, teams = team_draft(ours, theirs, coins)
        rows = start + np.array(order)
        ranks[rows] = np.arange(1, end - start + 1)
        placed_by[rows] = teams
    return ranks, placed_by
