"""What is declared about labels: how long they are waited for, and what becomes of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from anabranch.state.compile import I64

MOST_SETTLED: Final = 1 << 18
"""How many ids are remembered after their label, where rows need not be kept for correction."""

MOST_HELD: Final = 100_000
"""How many labels are held for events that are still to come."""

_DAY_MS: Final = 86_400_000
_UNBOUNDED: Final = (1 << 31) - 1
_NO_LIMIT: Final = (1 << 62) - 1


@dataclass(frozen=True, slots=True)
class LabelRules:
    """The rules by which events and labels meet; all times are event time, in ms.

    Attributes:
        wait_ms: how long a prediction waits for its label; None for ever.
        assumes: whether a label is assumed when the wait is over; else the prediction is dropped.
        assumed_code: the code of that label, see `PendingStore.walk`.
        correct_ms: how long after its label, or the end of its wait, a prediction is kept, so that
            another label corrects it; None: it is not kept, and the first label counts.
        hold_ms: how long a label is held whose event has not come; 0 not to hold any.
        most_held: labels held at a time.
        most_settled: ids remembered after their label, for as long as `wait_ms` (a day without),
            to tell repeated and late labels from unknown ones. Without effect where predictions
            are kept.
    """

    wait_ms: int | None = None
    assumes: bool = False
    assumed_code: int = 0
    correct_ms: int | None = None
    hold_ms: int = 0
    most_held: int = MOST_HELD
    most_settled: int = MOST_SETTLED

    @property
    def numbers(self) -> I64:
        """`(9,) int64`, as `pending_walk` takes them."""
        corrects = self.correct_ms is not None
        keep = self.correct_ms
        if keep is None:
            keep = _DAY_MS if self.wait_ms is None else self.wait_ms
        most = _UNBOUNDED if corrects else self.most_settled
        return np.array(
            [
                -1 if self.wait_ms is None else self.wait_ms,
                self.assumes,
                self.assumed_code,
                corrects,
                keep if most else -1,
                self.hold_ms,
                self.most_held,
                most,
                _NO_LIMIT,
            ],
            np.int64,
        )
