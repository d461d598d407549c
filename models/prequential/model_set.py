"""The models of a prequential step: learners with their metrics, checkpoints and predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import Monitor
from anabranch.models.learners.checkpoint import PARTS, Bounds, Checkpoint
from anabranch.models.learners.learner import Label, Learner, Task
from anabranch.models.learners.segments import Segments
from anabranch.models.learners.targets import select
from anabranch.models.metrics.metrics import Metric, metric
from anabranch.models.metrics.ranking import RankQuality
from anabranch.models.metrics.sliced_metrics import SlicedMetrics
from anabranch.models.metrics.slices import SliceBy
from anabranch.models.prequential.joined_steps import LabelJoin
from anabranch.models.prequential.monitors import Monitors
from anabranch.models.prequential.outcome import LearnedLabels
from anabranch.models.prequential.replay_buffer import ReplayBuffer
from anabranch.models.prequential.step_record import part_of
from anabranch.models.prequential.stored_predictions import STORED_PREDICTIONS, StoredPredictions
from anabranch.models.rollout.challenger import OnDrift
from anabranch.models.rollout.serving import Serving
from anabranch.state.errors import DeclarationError
from anabranch.state.labels.label_limits import LabelLimits

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrequentialSettings:
    """How a prequential step measures, joins labels, and serves.

    Attributes:
        metrics: names for `metrics.metric`, computed for every model.
        monitors: on the champion's loss, or on a feature of the events.
        rules: how long predictions wait for labels, and what happens to late and early labels.
        default: the target to assume at the timeout; None to drop the prediction.
        inline: whether targets come with the events, so that nothing is pending.
        bounds: when a model is too large to be written whole in `changes`.
        rollouts: which of the learners serve; None: the champion.
        slices: parts of the events with metrics of their own.
        segments: of the events, for learners that are `SegmentedLearner`.
        on_drift: what to start when a monitor raises an alarm; needs `rollouts`.
        ranking: whether events are lists of candidates, a row each (`models.metrics.ranking`).
        quarantine: whether events may be quarantined (`ExternalDrift`), and then not trained on.
        fallback: the score of candidates that the model could not predict; None: they have no rank.
    """

    metrics: Sequence[str] = ()
    monitors: Sequence[Monitor] = ()
    rules: LabelLimits = field(default_factory=LabelLimits)
    default: Label = None
    inline: bool = False
    bounds: Bounds | None = None
    rollouts: Serving | None = None
    slices: Sequence[SliceBy] = ()
    segments: Segments | None = None
    on_drift: OnDrift | None = None
    ranking: bool = False
    quarantine: bool = False
    fallback: Label = None


class ModelSet:
    """Learners of one task by name, and all that a prequential step stores about them.

    Args:
        learners: by name; the first is the champion. They have the same task and feature columns.
        settings: see there.

    Attributes:
        settings: as given.
        task, names: of the learners: their task and feature columns.
        champion: the name of the model that serves, and whose loss is monitored.
        learners: `{model: Learner}`, in order.
        metrics: `{model: {name: Metric}}`.
        checkpoints: `{model: Checkpoint}`; they run the learners, so that rows can be logged.
        stored_predictions: `{model: StoredPredictions}`.
        declarations: `{model: description}`, to compare with those of stored state.
        label_join: pending predictions and early labels.
        pending: the pending store of `label_join`; empty when labels are inline.
        slices, segments, monitors, rollouts: as in `PrequentialSettings`, with their state.
        on_drift: see `PrequentialSettings`.
        replay_buffer: the labeled rows that warm up models started on drift; None without them.
        rank_quality: of rankings; None otherwise.
        removed_parts: names of state parts to clear at the next `changes`.

    Raises:
        DeclarationError: no learner, unlike learners, an unknown metric, loss or feature.
    """

    def __init__(self, learners: Mapping[str, Learner], settings: PrequentialSettings) -> None:
        if not learners:
            raise DeclarationError("no model is given: a prequential step needs at least one")
        first = next(iter(learners.values()))
        self.settings = settings
        self.task, self.names = first.task, first.names
        self.rollouts, self.segments = settings.rollouts, settings.segments
        self.slices = SlicedMetrics(settings.slices, self.names, settings.metrics, self.task)
        has_rollouts = settings.rollouts is not None
        self.label_join = LabelJoin(
            len(self.names), self.task, settings.rules, settings.default,
            len(self.slices) + settings.quarantine + has_rollouts,
            settings.ranking and has_rollouts,
        )  # fmt: skip
        self.pending = self.label_join.pending
        self.learners: dict[str, Learner] = {}
        self.metrics: dict[str, dict[str, Metric]] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        self.stored_predictions: dict[str, StoredPredictions] = {}
        self.declarations: dict[str, str] = {}
        self.removed_parts: set[str] = set()
        self.rank_quality = RankQuality() if settings.ranking else None
        for name, learner in learners.items():
            self.add(name, learner)
        self.champion = next(iter(learners))
        self.monitors = Monitors(settings.monitors, self.task, self.names, settings.slices)
        self.on_drift = settings.on_drift
        self.replay_buffer: ReplayBuffer | None = None
        if settings.on_drift is not None:
            rows, numeric = settings.on_drift.declared.warmup_rows, self.task is not Task.MULTICLASS
            self.replay_buffer = ReplayBuffer(rows, len(self.names), numeric)

    def add(self, name: str, learner: Learner) -> None:
        """Add a challenger. It has no prediction for pending events, but trains on their labels.

        Raises:
            DeclarationError: the name is taken, or the learner is unlike the others.
        """
        if name in self.learners:
            raise DeclarationError(f"there is already a model {name!r}: choose another name")
        if learner.task is not self.task or learner.names != self.names:
            raise DeclarationError(
                f"model {name!r} has another task or other features than the champion"
            )
        self.metrics[name] = {m: metric(m, self.task) for m in self.settings.metrics}
        self.slices.add(name)
        self.learners[name] = learner
        self.pending.add_model()
        self.stored_predictions[name] = StoredPredictions(self.pending)
        self.checkpoints[name] = Checkpoint(name, learner, self.settings.bounds)
        self.declarations[name] = learner.describe()

    def replace(self, name: str, learner: Learner) -> None:
        """Put a trained learner in place of the untrained one that was declared.

        Raises:
            DeclarationError: it is of another type, or has other features.
        """
        if type(learner) is not type(self.learners[name]) or learner.names != self.names:
            raise DeclarationError(
                f"model {name!r} can't be replaced by one of another type or with other features"
            )
        self.learners[name] = learner
        self.checkpoints[name] = Checkpoint(name, learner, self.settings.bounds)

    def remove(self, name: str) -> None:
        """Remove a challenger, its metrics and its stored predictions.

        Raises:
            DeclarationError: it is the champion, or unknown.
        """
        if name == self.champion or name not in self.learners:
            why = "it is the champion" if name == self.champion else "there is none of that name"
            raise DeclarationError(f"model {name!r} can't be removed: {why}")
        self._remove(name)

    def clear(self) -> None:
        """Remove all models, so that others can be added before the first row."""
        for name in list(self.learners):
            self._remove(name)
        self.removed_parts.clear()

    def _remove(self, name: str) -> None:
        column = list(self.learners).index(name)
        for by_name in (
            self.learners, self.metrics, self.stored_predictions, self.checkpoints,
            self.declarations,
        ):  # fmt: skip
            by_name.pop(name)
        self.pending.drop_model(column)
        self.slices.remove(name)
        self.removed_parts |= {f"{part_of(name)}/{part}" for part in (*PARTS, STORED_PREDICTIONS)}

    @property
    def versions(self) -> dict[str, int]:
        """By model, the number of rows it has learned."""
        return {name: learner.version for name, learner in self.learners.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """By model, its size in bytes when it was last written whole; 0: never."""
        return {name: each.full_bytes for name, each in self.checkpoints.items()}

    @cached_property
    def scores_only(self) -> bool:
        """Whether labels only train and score: no rollouts, slices, monitors or replay buffer."""
        return not (
            self.rollouts is not None
            or self.slices
            or self.monitors
            or self.replay_buffer is not None
        )

    @property
    def pending_predictions(self) -> int:
        """Number of predictions that wait for their label."""
        return len(self.pending)

    @property
    def buffered_early_labels(self) -> int:
        """Number of labels that wait for their event."""
        return len(self.pending.early)

    def set_siblings(self, siblings: Callable[[int], list[int]] | None) -> None:
        """Tell all models which rows are of one event; see `FaultIsolation.siblings`."""
        for checkpoint in self.checkpoints.values():
            checkpoint.isolation.siblings = siblings

    @property
    def quarantine_marks(self) -> U8:
        """`(rows,) uint8`, by row of the pending store: 1 where the event is quarantined."""
        marks: U8 = self.pending.groups[:, len(self.slices)]
        return marks

    def apply_decisions(self) -> None:
        """Follow the deployment: its champion, and the models that it no longer needs."""
        if self.rollouts is None:
            return
        deployment = self.rollouts.deployment
        self.champion = deployment.champion
        for name in deployment.pending_removal:
            self.remove(name)
        deployment.pending_removal.clear()

    def score(
        self,
        learned: LearnedLabels,
        groups: U8 | None,
        features: F64 | None,
        trainable: Mask | None = None,
    ) -> None:
        """Update the metrics of all models with labels.

        Args:
            learned: the labels, and each model's predictions for their events.
            groups: `(labels, slices) uint8`; None without slices.
            features: `(labels, features) float64` of their events, for the replay buffer; None
                without one.
            trainable: `(labels,) bool`: those that enter the replay buffer; None: all.
        """
        if self.replay_buffer is not None and features is not None:
            target = learned.target
            if trainable is not None:
                features, target = features[trainable], select(target, np.flatnonzero(trainable))
            self.replay_buffer.add(features, target)
        for name, predictions in learned.predictions.items():
            for running in self.metrics[name].values():
                running.update_many(learned.target, predictions)
        if groups is not None:
            self.slices.score(groups, learned.target, learned.predictions)
