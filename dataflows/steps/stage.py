"""The protocol of the model step's stages: what one batch after another passes in order.

A new stage is a file with a subclass of `Stage`, and a line in `model_step.build_stages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.prequential.external_drift import NO_EXTERNAL_DRIFT, ExternalDrift
from anabranch.models.prequential.outcome import Outcome
from anabranch.models.prequential.prequential import Prequential
from anabranch.state.store.delta import Delta

if TYPE_CHECKING:
    from anabranch.dataflows.recovery.state_directory import StateDirectory


@dataclass(frozen=True, slots=True)
class StageContext:
    """What stages are built from.

    Attributes:
        prequential: predicts and learns; the step itself stores and restores it.
        state: None in a run that keeps none.
    """

    pipeline: Pipeline
    prequential: Prequential
    metrics: WorkerMetrics
    state: StateDirectory | None


class BatchWork:
    """A batch on its way through the stages, and what they have made of it so far.

    Attributes:
        batch: whole, with all features; a stage may replace it by one with fewer events.
        dead_letters: of events and labels that can't be used.
        external: drift and quarantine found before learning.
        outcome: set by the learning stage.
        results: set by the learning stage, with `dead_letters`; later stages add to it.
        unserved: the events that are not published, `(events,) bool`; None: there are none.
    """

    __slots__ = ("batch", "dead_letters", "external", "outcome", "results", "unserved")

    outcome: Outcome
    results: Results

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.dead_letters: list[DeadLetter] = []
        self.external: ExternalDrift = NO_EXTERNAL_DRIFT
        self.unserved: NDArray[np.bool_] | None = None


class Stage:
    """One stage of the model step; a stage without state, or without metrics, leaves those out."""

    def process(self, work: BatchWork) -> None:
        """Do this stage's part of a batch. Called once for each batch, so at little cost."""
        raise NotImplementedError

    def add_changes(self, delta: Delta) -> None:
        """Add to ``delta`` what changed of its state since the last call; at first all of it."""

    def restore(self, image: Delta) -> None:
        """Load the state that `add_changes` gave, from an image of all stages."""

    def warm_start(self, state: StateDirectory) -> None:
        """Start from the initial model of a new state, and from what was kept with it."""

    def report(self) -> None:
        """Set the metrics that are not counted batch by batch; called twice a second."""
