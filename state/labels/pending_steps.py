"""What has to be done for the events and labels of a batch, as the pending store lays it out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I64, U8


@dataclass(slots=True)
class Walk:
    """What has to be done, in order. Rows are those of the store, until its next `walk`.

    The kinds of steps:

    * `PREDICT`: an event, `source` is its index.
    * `LEARN`: a label for a prediction that waited, `source` is its index.
    * `ASSUMED`: the wait is over, and the label that is assumed then is to be learned.
    * `DROPPED`: the wait is over, and nothing is known about the label.
    * `CORRECTED`: a label, `source`, that says otherwise than what was learned before.
    * `EARLY`: a label that was held, number `source`, teaches right after its event's prediction.
    * `GIVEN_UP`: a label that was held, number `source`, whose event did not come in time; or, if
      `row` is 1, that made room for a newer one. `time` is when it came.

    Why a label teaches nothing: `NO_VALUE`, `UNKNOWN` (no such id, and nothing is held),
    `DUPLICATE` and `CONTRADICTS` (its id has a label already), `LATE` (the wait is over), `TOO_OLD`
    (no such id, and older than any that waits), `CONFIRMS` (what was assumed is true).

    Attributes:
        kind: `(steps,) int64`.
        row: `(steps,) int64` into the store's arrays.
        source: `(steps,) int64`; -1 at a timeout.
        time: `(steps,) int64` ms: of the event; of the label, if not before its event; of a
            timeout, the moment that it was due.
        item: `(steps,) int64`: the event, or events + label, at which it was found.
        refused_events: `(events,) bool`: predicted but not stored, its id is waiting already.
        refused_labels: `(labels,) uint8`: why, or 0.
        held: `(labels,) int64`: the number under which a label is held, or -1.
    """

    kind: I64
    row: I64
    source: I64
    time: I64
    item: I64
    refused_events: NDArray[np.bool_]
    refused_labels: U8
    held: I64
