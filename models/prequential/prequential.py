"""Prequential evaluation: each label scores the stored prediction first, and then trains."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from anabranch.models.learners.learner import Learner, Targets
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.delayed_labels import run_delayed
from anabranch.models.prequential.inline_labels import run_inline
from anabranch.models.prequential.joined_steps import FillFeatures
from anabranch.models.prequential.model_set import ModelSet, PrequentialSettings
from anabranch.models.prequential.outcome import Outcome
from anabranch.models.prequential.persistence import Persistence
from anabranch.state.store.delta import Delta

I64 = NDArray[np.int64]

_DEFAULT = PrequentialSettings()


class Prequential:
    """Models that predict every event and train on every label, and their running metrics.

    The state of models, metrics and monitors is the same, bit for bit, however the stream is cut
    into calls. It equals `river.evaluate.progressive_val_score`: see there for the delay. It has
    one owner, and is restored with all pending predictions.

    Args:
        learners: by name; the first is the champion, whose predictions are served. They have the
            same task and the same feature columns.
        settings: metrics, monitors, label rules, rollouts and so on.

    Attributes:
        models: the learners, with their metrics, monitors and pending predictions.

    Raises:
        DeclarationError: no learner, unlike learners, an unknown metric, loss or feature.

    >>> from river import linear_model
    >>> from anabranch.models.learners.learner import Task
    >>> from anabranch.models.learners.compiled import learner_for
    >>> model = learner_for(linear_model.LinearRegression(), ("a",), Task.REGRESSION)
    >>> step = Prequential({"champion": model}, PrequentialSettings(metrics=["MAE"]))
    >>> outcome = step.run(
    ...     EventBatch(features=np.array([[1.0]]), times=np.array([1000]), ids=["x"]),
    ...     LabelBatch(ids=["x"], values=np.array([2.0]), times=np.array([1500])),
    ...     order=np.array([0, 1]),
    ... )
    >>> outcome.predictions["champion"].values, outcome.learned.delays
    (array([0.]), array([500]))
    >>> step.models.metrics["champion"]["MAE"].value
    2.0
    """

    def __init__(
        self, learners: Mapping[str, Learner], settings: PrequentialSettings = _DEFAULT
    ) -> None:
        self.models = ModelSet(learners, settings)
        self._persistence = Persistence(self.models)
        # Views of these are part of every outcome; to make them costs as much as some rows.
        self._ascending = np.zeros(0, np.int64)
        self._tags = np.zeros(0, np.int32)

    def run(
        self,
        events: EventBatch,
        labels: LabelBatch,
        order: I64,
        fill: FillFeatures | None = None,
    ) -> Outcome:
        """Predict events and train on labels, in `order`.

        With inline labels this is `run_inline`: `labels.values` has one target per event, and
        `events.ids`, all else of `labels`, and `order` are not read.

        Args:
            events, labels: of the batch.
            order: `(events + labels,) int64`: event i as i, label j as `events + j`.
            fill: called with the joined steps before the first prediction, to write features into
                `models.pending.features`.

        A row on which a model raises is left out (`models.learners.fault_isolation`); the outcome
        tells which.
        """
        models = self.models
        if models.settings.inline:
            return self.run_inline(events, labels.values)
        if models.segments is not None:
            wide = models.segments.add_to(events.features, events.fields, order)
            events = structs.replace(events, features=wide)
        joined = models.label_join.join(events, labels, order)
        if fill is not None:
            fill(joined)
        return run_delayed(models, joined, events, order)

    def run_inline(self, events: EventBatch, values: Targets) -> Outcome:
        """Predict each event, and train on it before the next.

        An event without a usable target is predicted and not trained on (an anomaly detector trains
        on it all the same).

        Args:
            events: of the batch.
            values: a target per event, as `LabelBatch.values`.

        A row on which a model raises is left out (`models.learners.fault_isolation`); the outcome
        tells which.
        """
        models = self.models
        if models.segments is not None:
            wide = models.segments.add_to(events.features, events.fields)
            events = structs.replace(events, features=wide)
        size = len(events.times)
        if len(self._ascending) < size:
            self._ascending, self._tags = np.arange(2 * size), np.zeros(2 * size, np.int32)
        tags = self._tags[:size] if events.tags is None else events.tags
        return run_inline(models, events, values, self._ascending[:size], tags)

    def changes(self) -> Delta:
        """What changed since the last call of this or of `restore`; everything at the first.

        Call it between calls of `run` only, and not after one that failed.

        Raises:
            StateError: a model can't be pickled.
        """
        return self._persistence.changes()

    def restore(self, image: Delta) -> None:
        """Continue, bit for bit, where the step was that gave `image`; for a new step only.

        Metrics and monitors that the stored step did not have start now. Models come in the stored
        order, with the stored champion. With rollouts, the models are the stored ones, and
        challengers declared since.

        Args:
            image: the merge of all its changes. What it holds is unpickled, so it must come from
                the state directory that this program wrote. If empty, the step stays as it is.

        Raises:
            StateError: other models or features were declared, or a model can't be unpickled.
        """
        self._persistence.restore(image)
