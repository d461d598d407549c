"""What a prequential step hands back about a batch."""

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
NEVER_CAME = "its event did not come within the time that a label is held for"
TOO_MANY = "more labels came before their events than are held: this one was the oldest"
NO_VALUE = "the label has no usable value"
DUPLICATE = "this id has the same label already"
CONTRADICTS = "this id has another label already, and the first one counts"
LATE = "the wait for this label was over when it came"
TOO_OLD = "the label is older than anything that still waits for one"
"""Why a label was not learned, as the end of a sentence."""

ASSUMED_LABEL, HELD_LABEL = -1, -2
"""In place of a label's index: assumed at the end of a wait; held since an earlier call, or since
earlier in this one."""


class Learned(msgspec.Struct):
    """The labels that were learned for the first time, in order; assumed ones among them.

    Attributes:
        label: `(learned,) int64`, index of the label; `ASSUMED_LABEL`, `HELD_LABEL`. Inline: of the
            event.
        target: what was learned, as `Learner.run` takes it.
        predictions: per model, the predictions made for these events when they came.
        event_times: `(learned,) int64` ms.
        times: `(learned,) int64` ms: of the label, but never before its event; or when the wait was
            over.
        tags: `(learned,) int32`, given with the event.
        items: `(learned,) int64`: at which event, or events + label, it was learned; None when
            that is `label`.
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
        """`(learned,) int64` ms between an event and its label."""
        delays: I64 = self.times - self.event_times
        return delays


@dataclass(slots=True)
class Corrected:
    """Labels that said otherwise than what was learned before, and taught again; in order.

    Attributes:
        target: what was learned now, as `Learner.run` takes it.
        times: `(corrected,) int64` ms, of the label.
        tags: `(corrected,) int32`, given with the event.
    """

    target: Targets
    times: I64
    tags: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.times)


@dataclass(slots=True)
class GivenUp:
    """A label that was held in vain: the note that was given with it, and why.

    `item` is the event, or events + label, at which it was given up.
    """

    note: bytes
    item: int
    reason: str


class Outcome(msgspec.Struct):
    """What became of a batch.

    Attributes:
        predictions: per model, one prediction per event; the champion's are those served.
        learned: the labels that were used.
        alarms: in the order in which they arose.
        refused_labels: `(index of the label, reason)`: dead letters. Inline: of the event.
        given_up: labels that were held in vain: dead letters too.
        refused_events: indices of events that were predicted but not stored, because a prediction
            of the same id is waiting.
        dropped: predictions whose time ran out without a label and without an assumed one.
        versions_before: per model, the rows that it had learned before this batch.
        learned_before: rows learned in this batch before each event's turn, `(events,) int64`; a
            range where each event was learned before the next.
        corrected: labels that taught again; None where there is none.
        confirmed: labels that came after their wait and say what was assumed.
        held: labels that are kept from now on because their events have not come.
        answered: what is served; None: what the champion predicted.
        ranks: of rankings, `(events,) int64`: where each candidate stands in its list, from 1.
        suspect: so many of `learned` were scored only, their events being in quarantine.
    """

    predictions: dict[str, Predictions]
    learned: Learned
    alarms: list[Alarm]
    refused_labels: list[tuple[int, str]]
    refused_events: list[int]
    dropped: int
    versions_before: dict[str, int]
    learned_before: I64 | range
    given_up: list[GivenUp] = msgspec.field(default_factory=list)
    corrected: Corrected | None = None
    confirmed: int = 0
    held: int = 0
    answered: ServedPredictions | None = None
    ranks: I64 | None = None
    suspect: int = 0

    def versions(self, model: str) -> Sequence[int]:
        """How many rows the model had learned when it predicted each event."""
        before, more = self.versions_before[model], self.learned_before
        if isinstance(more, range):
            return range(before, before + len(more))
        versions: list[int] = (before + more).tolist()
        return versions

    @property
    def matched(self) -> I64:
        """Indices of the labels that were learned, int64."""
        return self.learned.label[self.learned.label >= 0]
