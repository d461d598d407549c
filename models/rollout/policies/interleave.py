"""Interleave: lists are drafted from both rankings, and what is chosen on them is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from anabranch.models.rollout.interleaving import ListPairs, draft_lists
from anabranch.models.rollout.observations import Arm, RolloutRows
from anabranch.models.rollout.policies.policy import (
    I64,
    U8,
    Policy,
    PolicyContext,
    RunningTrial,
    horizon_end,
    is_number,
    one_at_a_time,
)
from anabranch.state.durations import parse_duration_ms
from anabranch.state.errors import DeclarationError
from anabranch.state.renamed import renamed


@renamed()
@dataclass(frozen=True, slots=True, kw_only=True)
class Interleave(Policy):
    """For rankings: lists are drafted from those of both models, and choices are counted.

    Every choice on an interleaved list compares both models, and neither has the better positions
    (`models.rollout.interleaving`): it takes far fewer choices than to compare lists of different
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
