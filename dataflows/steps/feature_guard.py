"""The first stage: events with features that no model can use become dead letters."""

from __future__ import annotations

import numpy as np

from anabranch.dataflows.batch.batch import Batch
from anabranch.dataflows.batch.candidates import first_of_each_event, whole_events
from anabranch.dataflows.batch.dead_letters import dead_letter
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.steps.stage import BatchWork, Stage, StageContext
from anabranch.state.arrays import LARGEST, all_usable
from anabranch.state.compile import entry


class FeatureGuard(Stage):
    """Drops events with a feature that is NaN, or whose square a model could not hold."""

    def __init__(self, context: StageContext) -> None:
        self._columns = context.pipeline.columns
        self._all_usable = entry(all_usable, np.zeros((0, 0)))

    def process(self, work: BatchWork) -> None:
        batch = work.batch
        if batch.rows.values and not self._all_usable(batch.features):
            work.batch = self._drop_unusable(batch, work)

    def _drop_unusable(self, batch: Batch, work: BatchWork) -> Batch:
        unusable = ~(np.abs(batch.features) <= LARGEST)  # NaN compares as false
        rows = np.any(unusable, axis=1)
        for row in first_of_each_event(batch, np.flatnonzero(rows).tolist()):
            name = self._columns[int(np.argmax(unusable[row]))]
            detail = f"feature {name} is beyond ±{LARGEST:g}, which no model can square"
            work.dead_letters.append(
                dead_letter(batch.rows, row, DeadLetterReason.FEATURE_TOO_LARGE, detail)
            )
        return batch.keep(~whole_events(batch, rows))
