"""The rules by which labels are joined: timeouts, defaults, updates, and buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from anabranch.state.compile import I64

MAX_RESOLVED: Final = 1 << 18
"""How many ids are remembered after their label, where rows need not be kept for updates."""

MAX_EARLY: Final = 100_000
"""How many labels are buffered for events that have not arrived."""

MAX_EARLY_OF_SEVERAL_WORKERS: Final = 1_000_000
"""The same, where labels are read by several workers; one takes some 400 bytes."""

_DAY_MS: Final = 86_400_000
_UNBOUNDED: Final = (1 << 31) - 1
_NO_LIMIT: Final = (1 << 62) - 1


@dataclass(frozen=True, slots=True)
class LabelLimits:
    """The rules by which events and labels are joined; all times are event time, in ms.

    Attributes:
        timeout_ms: how long a prediction waits for its label; None for ever.
        has_default: whether there is a default label after the timeout; else the prediction is
            dropped then.
        default_code: the code of that label, see `PendingStore.join`.
        update_ms: how long after its label, or its timeout, a prediction is kept, so that another
            label can update it; None: it is not kept, and the first label counts.
        early_ms: how long a label is buffered whose event has not arrived; 0: not at all.
        max_early: labels buffered at a time.
        max_resolved: ids remembered after their label, for as long as `timeout_ms` (a day without),
            to distinguish repeated and late labels from unknown ones. Without effect where
            predictions are kept for updates.
    """

    timeout_ms: int | None = None
    has_default: bool = False
    default_code: int = 0
    update_ms: int | None = None
    early_ms: int = 0
    max_early: int = MAX_EARLY
    max_resolved: int = MAX_RESOLVED

    @property
    def numbers(self) -> I64:
        """`(9,) int64`, as `label_join` takes them."""
        updates = self.update_ms is not None
        keep = self.update_ms
        if keep is None:
            keep = _DAY_MS if self.timeout_ms is None else self.timeout_ms
        max_resolved = _UNBOUNDED if updates else self.max_resolved
        return np.array(
            [
                -1 if self.timeout_ms is None else self.timeout_ms,
                self.has_default,
                self.default_code,
                updates,
                keep if max_resolved else -1,
                self.early_ms,
                self.max_early,
                max_resolved,
                _NO_LIMIT,
            ],
            np.int64,
        )
