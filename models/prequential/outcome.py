"""What a prequential step returns for a batch: predictions, labels learned, labels rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import Alarm
from anabranch.models.learners.learner import Predictions, Targets
from anabranch.models.rollout.served import ServedPredictions

I64 = NDArray[np.int64]

UNKNOWN_ID = "no event with this id was seen"
EVENT_MISSING = "its event did not arrive while the label was buffered"
BUFFER_FULL = "the buffer of early labels was full, and this label was the oldest in it"
NO_VALUE = "the label has no usable value"
DUPLICATE = "this id has the same label already"
CONTRADICTS = "this id has another label already, and the first one counts"
LATE = "the label arrived after its timeout"
MODEL_FAILED_ON_EVENT = "the model failed on its event, so this label was not learned"
TOO_OLD = "the label is older than any prediction still pending"
"""Why a label was not learned, as the end of a sentence."""

ASSUMED_LABEL, BUFFERED_LABEL = -1, -2
"""In place of a label's index: the default label, assumed at the timeout; a label that arrived
before its event and was buffered, in an earlier call or earlier in this one."""


class LearnedLabels(msgspec.Struct):
    """The labels learned for the first time, in order, assumed ones included.

    Attributes:
        label: `(learned,) int64`, index of the label; `ASSUMED_LABEL`, `BUFFERED_LABEL`. Inline:
            index of the event.
        target: what was learned, as `Learner.run` takes it.
        predictions: per model, the predictions made for these events when they arrived.
        event_times: `(learned,) int64` ms.
        times: `(learned,) int64` ms: of the label, but never before its event; or of the timeout.
        tags: `(learned,) int32`, as given with the event.
        items: `(learned,) int64`: the event, or events + label, at which each was learned; None
            when that is `label`.
    """

    label: I64
    target: Targets
    predictions: dict[str, Predictions]
    event_times: I64
    times: I64
    tags: NDArray[np.int32]
    items: I64 | None = None

    @property
    def delays(self) -> I64:
        """`(learned,) int64` ms between each event and its label."""
        delays: I64 = self.times - self.event_times
        return delays


@dataclass(slots=True)
class CorrectedLabels:
    """Labels that replaced another value learned before, and were learned in addition; in order.

    Attributes:
        target: what was learned now, as `Learner.run` takes it.
        times: `(corrected,) int64` ms, of the label.
        tags: `(corrected,) int32`, as given with the event.
    """

    target: Targets
    times: I64
    tags: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.times)


@dataclass(slots=True)
class ExpiredLabel:
    """An early label that left the buffer without meeting its event.

    Attributes:
        context: the bytes stored with it, see `LabelBatch.context`.
        item: the event, or events + label, at which it expired.
        reason: `EVENT_MISSING` or `BUFFER_FULL`; or why the model could not learn it when its event
            came after all, with `failed` set.
    """

    context: bytes
    item: int
    reason: str
    failed: bool = False


class Outcome(msgspec.Struct):
    """The result of a batch.

    Attributes:
        predictions: per model, one prediction per event.
        learned: the labels that were used.
        alarms: in the order in which they arose.
        rejected_labels: `(index of the label, reason)`: dead letters. Inline: index of the event.
        rejected_events: indices of events that were predicted but not stored, because a prediction
            of the same id is pending.
        dropped: predictions that timed out without a label and without a default.
        versions_before: per model, the rows learned before this batch.
        learned_before: rows learned in this batch before each event was predicted,
            `(events,) int64`; a range where each event was learned before the next.
        expired_labels: early labels whose event never arrived: dead letters too.
        corrected: labels that replaced another value; None where there is none.
        confirmed: labels after the timeout that equal the assumed value.
        buffered: number of labels buffered from now on because their events have not arrived.
        served: what rollouts serve; None: the champion's predictions are served.
        ranks: for rankings, `(events,) int64`: each candidate's position in its list, from 1.
        failed_events: by index of the event, why no model could predict it: nothing is served, or
            the fallback.
        failed_labels: `(index of the label, why it was not learned)`, since the model raised.
            Inline: index of the event. The label counts for metrics, where its event was predicted.
        failed_defaults: why labels assumed at the timeout were not learned.
        failed_steps: per model, at how many steps it raised.
        learned_before_by: see `BatchPredictions`.
        quarantined: number of `learned` that were scored and not trained on, because their events
            are quarantined.
    """

    predictions: dict[str, Predictions]
    learned: LearnedLabels
    alarms: list[Alarm]
    rejected_labels: list[tuple[int, str]]
    rejected_events: list[int]
    dropped: int
    versions_before: dict[str, int]
    learned_before: I64 | range
    expired_labels: list[ExpiredLabel] = msgspec.field(default_factory=list)
    corrected: CorrectedLabels | None = None
    confirmed: int = 0
    buffered: int = 0
    served: ServedPredictions | None = None
    ranks: I64 | None = None
    quarantined: int = 0
    failed_events: dict[int, str] = msgspec.field(default_factory=dict)
    failed_labels: list[tuple[int, str]] = msgspec.field(default_factory=list)
    failed_defaults: list[str] = msgspec.field(default_factory=list)
    failed_steps: dict[str, int] = msgspec.field(default_factory=dict)
    learned_before_by: dict[str, I64] = msgspec.field(default_factory=dict)

    def versions(self, model: str) -> Sequence[int]:
        """Per event, the rows the model had learned when it predicted it."""
        before = self.versions_before[model]
        more = self.learned_before_by.get(model, self.learned_before)
        if isinstance(more, range):
            return range(before, before + len(more))
        versions: list[int] = (before + more).tolist()
        return versions

    @property
    def matched(self) -> I64:
        """`(matched,) int64`: indices of the labels of this batch that were learned."""
        return self.learned.label[self.learned.label >= 0]
