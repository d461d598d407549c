"""A/B test: fixed shares of the keys until evidence decides, or the horizon ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anabranch.models.rollout.policy import (
    Policy,
    PolicyContext,
    RunningTrial,
    horizon_end,
    is_number,
)
from anabranch.state.durations import parse_duration_ms
from anabranch.state.errors import DeclarationError
from anabranch.state.renamed import renamed


@renamed()
@dataclass(frozen=True, slots=True, kw_only=True)
class ABTest(Policy):
    """Fixed shares until one is shown better, or the horizon ends.

    Attributes:
        split: share of the keys that each challenger serves; the champion has the rest.
        horizon: event time after which the champion stays, if no challenger was shown better.
    """

    split: float = 0.5
    horizon: str = "14d"

    def check(self, context: PolicyContext) -> None:
        """See `Policy.check`."""
        largest = 1 / max(context.challengers, 1)
        if not (is_number(self.split) and 0 < self.split <= largest) or self.split == 1:
            raise DeclarationError(
                f"split={self.split!r} of {self.where(context)}: each challenger takes that share "
                f"of the keys, so with {context.challengers} of them it must be above 0 and at "
                f"most {largest:.3g}, and below 1"
            )
        parse_duration_ms(self.horizon)

    def initial_share(self) -> float:
        """The split."""
        return self.split

    def may_start(self, trials: Sequence[RunningTrial]) -> str | None:
        """As many as there are keys for."""
        assigned = sum(trial.share for trial in trials)
        if assigned + self.split <= 1:
            return None
        return f"{assigned:.0%} of the keys are in tests already: too many to add another"

    def ends_at(self, start_ms: int) -> int:
        """At the horizon."""
        return horizon_end(self.horizon, start_ms)

    def end_reason(self) -> str:
        """Names the horizon."""
        return f"the horizon of {self.horizon} is over"
