"""What the model step hands to the sink for each batch."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.messages.outputs import DeadLetter, DriftSignal, RolloutMessage
from anabranch.models.learners.learner import Predictions
from anabranch.models.prequential.outcome import CorrectedLabels, LearnedLabels

_NONE = np.zeros(0, np.int64)


class Results(msgspec.Struct):
    """Predictions for a batch, and everything else that the models made of it.

    Attributes:
        batch: the batch.
        predictions, versions: one per event: what is served, and how many labels the model had
            learned by then.
        dead_letters: rows that the model step rejected; further ones are the batch's.
        signals: drift signals.
        learned, corrected: labels of a topic of their own that were used; their tags say which
            event each belongs to, counted from the start of the process.
        decisions: rollout messages.
        models: per event, the model that served it; None if all were served by the pipeline's own.
        instead_of: per event, the model that should have served it but failed; None if none did.
        unserved: the events that were taken out of ``batch`` since no model could predict them, as
            indices among all, ``(n,) int64``; tags count them.
        ranks: rank of each candidate in its ranking, from 1, ``(rows,) int64``; None otherwise.
    """

    batch: Batch
    predictions: Predictions
    versions: Sequence[int]
    dead_letters: list[DeadLetter] = msgspec.field(default_factory=list)
    signals: list[DriftSignal] = msgspec.field(default_factory=list)
    learned: LearnedLabels | None = None
    corrected: CorrectedLabels | None = None
    decisions: list[RolloutMessage] = msgspec.field(default_factory=list)
    models: Sequence[str] | None = None
    instead_of: Sequence[str | None] | None = None
    ranks: NDArray[np.int64] | None = None
    unserved: NDArray[np.int64] = msgspec.field(default_factory=lambda: _NONE)
