"""What a prequential step hands back about a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.drift import Alarm
from models.learner import Predictions, Targets

I64 = NDArray[np.int64]

UNKNOWN_ID = "no prediction waits for this id: unknown, already labelled, or past its wait"
NO_VALUE = "the label has no usable value"


@dataclass(slots=True)
class Learned:
    """The labels that were learned, in order; timeouts with an assumed label among them.

    Attributes:
        label: `(learned,) int64`, index of the label; -1 where the time ran out. Inline: of the
            event.
        target: what was learned, as `Learner.run` takes it.
        predictions: per model, the predictions made for these events when they came.
        event_times: `(learned,) int64` ms.
        times: `(learned,) int64` ms: of the label, or when the wait was over.
        tags: `(learned,) int32`, given with the event.
    """

    label: I64
    target: Targets
    predictions: dict[str, Predictions]
    event_times: I64
    times: I64
    tags: NDArray[np.int32]

    @property
    def delays(self) -> I64:
        """`(learned,) int64` ms between an event and its label."""
        delays: I64 = self.times - self.event_times
        return delays


@dataclass(slots=True)
class Outcome:
    """What became of a batch.

    Attributes:
        predictions: per model, one prediction per event; the champion's are those served.
        learned: the labels that were used.
        alarms: in the order in which they arose.
        refused_labels: `(index of the label, reason)`: dead letters. Inline: of the event.
        refused_events: indices of events that were predicted but not stored, because a prediction
            of the same id is waiting.
        dropped: predictions whose time ran out without a label and without an assumed one.
        versions_before: per model, the rows that it had learned before this batch.
        learned_before: rows learned in this batch before each event's turn, `(events,) int64`; a
            range where each event was learned before the next.
    """

    predictions: dict[str, Predictions]
    learned: Learned
    alarms: list[Alarm]
    refused_labels: list[tuple[int, str]]
    refused_events: list[int]
    dropped: int
    versions_before: dict[str, int]
    learned_before: I64 | range

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
