"""What a batch contributes to a trial: events that all models predicted, and labels.

`BatchSteps` are the steps of a batch, `RolloutRows` what trials see of them. `LabelPairs` is how
labels compare two models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Mask = NDArray[np.bool_]


MOST_CANDIDATES: Final = 1000
"""Candidates that one event can have: their ranks are in the lower bits of a draft's code."""

RANK_BITS: Final = 10


class Arm(NamedTuple):
    """A model of a rollout, by its name and by the id that `RolloutRows.arms` holds."""

    name: str
    arm_id: int


def draft_code(trial: int, by_challenger: Mask) -> NDArray[np.int32]:
    """`(rows,) int32`: the trial in which rows were drafted, and by which model.

    Trials are numbered from 1. The lower bits are left for a rank; without a draft the others are
    0.
    """
    return ((2 * trial + by_challenger) << RANK_BITS).astype(np.int32)


@dataclass(slots=True, kw_only=True)
class BatchSteps:
    """The events and labels of a batch, each in the order of their steps.

    A *row* is where an event is kept until its label arrives; `arms[row]` is the arm id of the
    model that served it, which is written for events and read for labels.

    Attributes:
        steps: number of steps; every model predicts or learns at each.
        event_steps, event_times, event_rows: `(events,) int64`: the steps that predict, the times
            of their events (epoch ms), and the rows where these are kept.
        key_hashes: `(events,) uint64` of the keys by which traffic is divided.
        label_steps, label_times, label_rows: `(labels,) int64`, of the steps that are scored.
        arms: `(rows,) uint8`, arm ids.
        groups: of rankings, `(events,) int64`: the event that each row is a candidate of.
        drafts: of rankings, `(rows,) int32`: see `draft_code`. Written for events and read for
            labels, as `arms`.
        list_ids: of rankings, `(events,) uint64`: the list of each row, as
            `models.metrics.ranking.LIST`.
        drafted_lists: of rankings, `(rows,) uint64`: the list in which a row was drafted; as
            `drafts`.
    """

    steps: int
    event_steps: I64
    event_times: I64
    event_rows: I64
    key_hashes: U64
    label_steps: I64
    label_times: I64
    label_rows: I64
    arms: U8
    groups: I64 | None = None
    drafts: NDArray[np.int32] | None = None
    list_ids: U64 | None = None
    drafted_lists: U64 | None = None


@dataclass(slots=True, kw_only=True)
class RolloutRows(BatchSteps):
    """A batch as trials see it: what each model predicted, as numbers.

    Attributes:
        scores: per model, `(events,) float64`: its prediction as one number; NaN: none.
        abstained: per model, `(events,) bool`: it was trained, and gave no prediction.
        raised: per model, the steps at which it raised, `(failures,) int64`, ascending.
        losses: per model, `(labels,) float64`, NaN where it had not predicted.
        label_scores: per model, `(labels,) float64`: the predictions that the losses are of.
        truths: `(labels,) float64`: the true values; None with several classes.
        chosen: of rankings, `(labels,) bool`: whether a candidate was chosen.
    """

    scores: dict[str, F64] = field(default_factory=dict)
    abstained: dict[str, Mask] = field(default_factory=dict)
    raised: dict[str, I64] = field(default_factory=dict)
    losses: dict[str, F64] = field(default_factory=dict)
    label_scores: dict[str, F64] = field(default_factory=dict)
    truths: F64 | None = None
    chosen: Mask | None = None

    def end_of_event(self, step: int) -> int:
        """The last step of the event to which a step belongs; the step itself without candidates.

        Nothing is decided between the candidates of an event.
        """
        if self.groups is None or not len(self.groups):
            return step
        row = int(np.searchsorted(self.event_steps, step, side="right")) - 1
        if row < 0:
            return step
        last = int(np.searchsorted(self.groups, self.groups[row], side="right")) - 1
        return max(step, int(self.event_steps[last]))

    def part(self, first: int, end: int) -> RolloutRows:
        """Only the steps from `first` to before `end`; arrays by row are shared."""
        e = slice(*np.searchsorted(self.event_steps, (first, end)).tolist())
        n = slice(*np.searchsorted(self.label_steps, (first, end)).tolist())
        raised = {
            name: steps[slice(*np.searchsorted(steps, (first, end)).tolist())]
            for name, steps in self.raised.items()
        }
        return RolloutRows(
            steps=end - first,
            event_steps=self.event_steps[e],
            event_times=self.event_times[e],
            event_rows=self.event_rows[e],
            key_hashes=self.key_hashes[e],
            label_steps=self.label_steps[n],
            label_times=self.label_times[n],
            label_rows=self.label_rows[n],
            arms=self.arms,
            drafts=self.drafts,
            drafted_lists=self.drafted_lists,
            groups=None if self.groups is None else self.groups[e],
            list_ids=None if self.list_ids is None else self.list_ids[e],
            scores=_sliced(self.scores, e),
            abstained=_sliced(self.abstained, e),
            raised=raised,
            losses=_sliced(self.losses, n),
            label_scores=_sliced(self.label_scores, n),
            truths=None if self.truths is None else self.truths[n],
            chosen=None if self.chosen is None else self.chosen[n],
        )

    def time_at(self, step: int) -> int:
        """Event time (ms) of a step that is an event's or a label's; else of the event before."""
        for steps, times in (
            (self.event_steps, self.event_times),
            (self.label_steps, self.label_times),
        ):
            at = int(np.searchsorted(steps, step))
            if at < len(steps) and steps[at] == step:
                return int(times[at])
        before = self.event_times[self.event_steps <= step]
        return int(before[-1]) if len(before) else 0


def _sliced(arrays: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {name: array[rows] for name, array in arrays.items()}


class LabelPairs:
    """How labels compare two models: each by the models' losses, where both had predicted.

    A policy may compare otherwise by a subclass (`Policy.label_pairs`). It pickles with its trial.
    """

    def select(self, rows: RolloutRows, labels: I64) -> I64:
        """Those of the labels that compare the models; `labels` are indices, ascending."""
        return labels

    def losses(
        self, rows: RolloutRows, champion: str, challenger: str, labels: I64
    ) -> tuple[F64, F64]:
        """Losses of champion and challenger at labels that were selected, `(labels,) float64`."""
        return rows.losses[champion][labels], rows.losses[challenger][labels]

    def commit(self, rows: RolloutRows, labels: I64) -> None:
        """Keep what must be known of labels that have compared the models."""
