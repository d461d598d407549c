"""Canary: a challenger serves a growing share of the keys, and is promoted by evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anabranch.models.rollout.policy import (
    BETTER,
    Policy,
    PolicyContext,
    RunningTrial,
    Step,
    TrialProgress,
    is_count,
    is_number,
    one_at_a_time,
)
from anabranch.state.durations import parse_duration_ms
from anabranch.state.errors import DeclarationError
from anabranch.state.renamed import renamed


@renamed(hold="min_duration", hold_labels="min_labels")
@dataclass(frozen=True, slots=True, kw_only=True)
class Canary(Policy):
    """A challenger serves a growing share of the keys, and is promoted once it is shown better.

    One challenger at a time, in the order of their declaration; the others wait in shadow.

    Attributes:
        steps: shares of the keys that it serves, one after the other, growing. A last step of 1.0
            is the promotion itself.
        min_duration: event time that each step lasts at least.
        min_labels: labels that each step lasts at least, of events that the challenger served.
    """

    steps: Sequence[float] = (0.01, 0.05, 0.25, 0.5, 1.0)
    min_duration: str = "0s"
    min_labels: int = 100

    def check(self, context: PolicyContext) -> None:
        """See `Policy.check`."""
        steps = list(self.steps)
        growing = all(a < b for a, b in zip([0.0, *steps], steps, strict=False))
        if not steps or not all(map(is_number, steps)) or not growing or steps[-1] > 1:
            raise DeclarationError(
                f"steps={self.steps!r} of {self.where(context)} must be growing shares, above 0 "
                "and up to 1"
            )
        parse_duration_ms(self.min_duration)
        if not is_count(self.min_labels):
            raise DeclarationError(
                f"min_labels={self.min_labels!r} of {self.where(context)} must be an integer"
            )

    def initial_share(self) -> float:
        """The first step; none if that is the promotion."""
        return self._share_above(0.0) or 0.0

    def may_start(self, trials: Sequence[RunningTrial]) -> str | None:
        """One challenger at a time climbs."""
        return one_at_a_time(trials, "a canary")

    def next_step(self, progress: TrialProgress) -> Step | None:
        """The next share once the step has lasted long enough; at the last one the promotion."""
        due = progress.share_since + parse_duration_ms(self.min_duration)
        needed = self.min_labels if progress.share else 0
        over = np.flatnonzero((progress.served >= needed) & (progress.label_times >= due))
        if not over.size:
            return None
        label, share = int(over[0]), self._share_above(progress.share)
        if share is not None:
            reason = f"its share grows from {progress.share:.1%} to {share:.1%}"
            return Step(label, share, reason)
        if progress.better_at is None:
            return None
        return Step(max(label, progress.better_at), None, BETTER)

    def _share_above(self, share: float) -> float | None:
        """The next larger step short of the promotion; None at the last."""
        return min((step for step in self.steps if share < step < 1), default=None)
