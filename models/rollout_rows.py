"""What a batch brings to a rollout: events that all models answered, labels that judge answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Mask = NDArray[np.bool_]


@dataclass(slots=True)
class RolloutRows:
    """Events and labels, each in the order of their steps.

    A *row* is where an event is kept until its label comes; `arms[row]` is the number of the model
    that served it, which is written for events and read for labels.

    Attributes:
        steps: how many there are in all; every model predicts or learns at each.
        event_steps, event_times, event_rows: `(events,) int64`.
        hashes: `(events,) uint64` of the keys by which traffic is assigned.
        label_steps, label_times, label_rows: `(labels,) int64`.
        arms: `(rows,) uint8`.
        scores: per model, `(events,) float64`: what it answered, as one number; NaN: nothing.
        silent: per model, `(events,) bool`: it had learned, and gave no answer all the same.
        raised: per model, the steps at which it raised, `(failures,) int64`, ascending.
        losses: per model, `(labels,) float64`, NaN where it had not answered.
    """

    steps: int
    event_steps: I64
    event_times: I64
    event_rows: I64
    hashes: U64
    label_steps: I64
    label_times: I64
    label_rows: I64
    arms: U8
    scores: dict[str, F64]
    silent: dict[str, Mask]
    raised: dict[str, I64]
    losses: dict[str, F64]

    def part(self, first: int, end: int) -> RolloutRows:
        """Only what is of the steps from `first` to before `end`; `arms` is shared."""
        e = slice(*np.searchsorted(self.event_steps, (first, end)).tolist())
        n = slice(*np.searchsorted(self.label_steps, (first, end)).tolist())

        def of(arrays: dict[str, Any], rows: slice) -> dict[str, Any]:
            return {name: array[rows] for name, array in arrays.items()}

        raised = {
            name: steps[slice(*np.searchsorted(steps, (first, end)).tolist())]
            for name, steps in self.raised.items()
        }
        return RolloutRows(
            end - first,
            self.event_steps[e], self.event_times[e], self.event_rows[e], self.hashes[e],
            self.label_steps[n], self.label_times[n], self.label_rows[n], self.arms,
            of(self.scores, e), of(self.silent, e), raised, of(self.losses, n),
        )  # fmt: skip
