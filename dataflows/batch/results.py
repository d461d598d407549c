"""What the model step hands to the sink for each batch."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.messages.inputs import DeadLetter, DriftSignal, RolloutMessage
from anabranch.models.learners.learner import Predictions
from anabranch.models.prequential.outcome import Corrected, Learned


class Results(msgspec.Struct):
    """What the model step made of a batch.

    ``predictions`` and ``versions`` have one entry per event. ``learned`` and ``corrected`` are the
    labels of a topic of their own that were used; their tags say which event they are of, counted
    from the start of the process. ``models`` has who served each event, None where all were served
    by the pipeline's own model; ``instead_of`` whom it stood in for, None where nobody failed.
    ``ranks`` has where each candidate of a ranking stands, from 1.
    """

    batch: Batch
    predictions: Predictions
    versions: Sequence[int]
    dead: list[DeadLetter] = msgspec.field(default_factory=list)
    signals: list[DriftSignal] = msgspec.field(default_factory=list)
    learned: Learned | None = None
    corrected: Corrected | None = None
    decisions: list[RolloutMessage] = msgspec.field(default_factory=list)
    models: Sequence[str] | None = None
    instead_of: Sequence[str | None] | None = None
    ranks: NDArray[np.int64] | None = None
