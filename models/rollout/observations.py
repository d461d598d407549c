"""What a batch brings to a rollout: events that all models answered, labels that judge answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Mask = NDArray[np.bool_]


MOST_CANDIDATES: Final = 1000
"""Rows that one event can have: their ranks stand in the lower bits of a draft's code."""

RANK_BITS: Final = 10


def draft_code(rollout: int, challenger: Mask) -> NDArray[np.int32]:
    """`(rows,) int32`: that rows were drafted in this rollout, and by whom.

    Rollouts are numbered from 1. There is room for a rank in the lower bits; without a draft the
    others are 0.
    """
    return ((2 * rollout + challenger) << RANK_BITS).astype(np.int32)


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
        scored: per model, `(labels,) float64`: the answers that the losses are of.
        truths: `(labels,) float64`: what was true; None of several classes.
        groups: of rankings, `(events,) int64`: the event that each row is a candidate of.
        chosen: of rankings, `(labels,) bool`: that a candidate was chosen.
        drafts: of rankings, `(rows,) int32`: in which rollout a row was drafted, and by whom; see
            `draft_code`. Written for events and read for labels, as `arms`.
        lists: of rankings, `(events,) uint64`: the list of each row, as
        `models.metrics.ranking.LIST`.
        listed: of rankings, `(rows,) uint64`: the list in which a row was drafted; as `drafts`.
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
    scored: dict[str, F64]
    truths: F64 | None = None
    groups: I64 | None = None
    chosen: Mask | None = None
    drafts: NDArray[np.int32] | None = None
    lists: U64 | None = None
    listed: U64 | None = None

    def whole(self, step: int) -> int:
        """The step at which the event is done that this one is in the middle of; else itself."""
        if self.groups is None or not len(self.groups):
            return step
        at = int(np.searchsorted(self.event_steps, step, side="right")) - 1
        if at < 0:
            return step
        last = int(np.searchsorted(self.groups, self.groups[at], side="right")) - 1
        return max(step, int(self.event_steps[last]))

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
            of(self.scored, n), None if self.truths is None else self.truths[n],
            None if self.groups is None else self.groups[e],
            None if self.chosen is None else self.chosen[n],
            self.drafts,
            None if self.lists is None else self.lists[e],
            self.listed,
        )  # fmt: skip
