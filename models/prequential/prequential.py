"""Test, then train: every label first scores the prediction that was served, then teaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import Monitor
from anabranch.models.learners.checkpoint import PARTS, Bounds, Checkpoint
from anabranch.models.learners.description import described
from anabranch.models.learners.fault_isolation import forgive
from anabranch.models.learners.learner import Label, Learner, Targets
from anabranch.models.learners.segments import Segments
from anabranch.models.learners.targets import select
from anabranch.models.metrics.metrics import Metric, metric
from anabranch.models.metrics.ranking import RankQuality
from anabranch.models.metrics.sliced_metrics import NO_FIELDS, Fields, Slices
from anabranch.models.metrics.slices import SliceBy
from anabranch.models.prequential.delayed_labels import run_delayed
from anabranch.models.prequential.drift_retraining import Births
from anabranch.models.prequential.external_drift import NOTHING, Outside
from anabranch.models.prequential.inline_labels import run_inline
from anabranch.models.prequential.label_join import Fill, LabelJoin, Note
from anabranch.models.prequential.monitors import Monitors
from anabranch.models.prequential.outcome import Learned, Outcome
from anabranch.models.prequential.persistence import ANSWERS, restore_step, step_changes
from anabranch.models.prequential.step_record import part_of as _part
from anabranch.models.prequential.stored_predictions import Answers
from anabranch.models.rollout.challenger import OnDrift
from anabranch.models.rollout.serving import Rollouts
from anabranch.state.errors import DeclarationError
from anabranch.state.labels.label_rules import LabelRules
from anabranch.state.store.delta import Delta

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


class Prequential:
    """Models that predict every event and learn every label, and what is measured on the way.

    Everything that the models, the metrics and the monitors come to know is the same, bit for bit,
    however the stream is cut into calls. It equals `river.evaluate.progressive_val_score`: see
    there for the delay. It has one owner, and pickles with all that is pending.

    Args:
        learners: by name; the first is the champion, whose predictions are served. They have the
            same task and the same columns.
        metrics: names for `metrics.metric`, kept for every model.
        monitors: on the champion's loss, or on a feature of the events.
        rules: how long labels are waited for, and what becomes of late and early ones.
        otherwise: the target to assume when the wait is over; None to drop the prediction.
        inline: targets come with the events, nothing waits.
        bounds: when a model is too large to be written whole in `changes`.
        rollouts: who of the learners serves; None: the champion.
        slices: parts of the events for which the metrics are kept apart, too.
        segments: of the events, for learners that are `Segmented`.
        on_drift: what a rise of the champion's loss starts; needs `rollouts`.
        ranking: whether events come as candidates, a row each (`models.metrics.ranking`).
        quarantine: whether some events may be suspect (`Outside`): nothing is learned of those.

    Attributes:
        champion: who leads; monitors on the loss go by its loss.
        metrics: `{model: {name: Metric}}`, running.
        monitors: at work.
        slices, segments: those at work.
        pending: the predictions that wait; empty when `inline`.

    Raises:
        DeclarationError: no learner, unlike learners, an unknown metric, loss or feature.

    >>> from river import linear_model
    >>> from anabranch.models.learners.linear import learner_for
    >>> from anabranch.models.learners.learner import Task
    >>> model = learner_for(linear_model.LinearRegression(), ("a",), Task.REGRESSION)
    >>> step = Prequential({"champion": model}, metrics=["MAE"])
    >>> outcome = step.run(
    ...     ids=["x"], features=np.array([[1.0]]), times=np.array([1000]),
    ...     label_ids=["x"], label_values=np.array([2.0]), label_times=np.array([1500]),
    ...     order=np.array([0, 1]),
    ... )
    >>> outcome.predictions["champion"].values, outcome.learned.delays
    (array([0.]), array([500]))
    >>> step.metrics["champion"]["MAE"].value
    2.0
    """

    def __init__(
        self,
        learners: Mapping[str, Learner],
        metrics: Sequence[str] = (),
        monitors: Sequence[Monitor] = (),
        rules: LabelRules | None = None,
        inline: bool = False,
        otherwise: Label = None,
        bounds: Bounds | None = None,
        rollouts: Rollouts | None = None,
        slices: Sequence[SliceBy] = (),
        segments: Segments | None = None,
        on_drift: OnDrift | None = None,
        ranking: bool = False,
        quarantine: bool = False,
    ) -> None:
        if not learners:
            raise DeclarationError("no model is given: a prequential step needs one at least")
        first = next(iter(learners.values()))
        self.task, self.names = first.task, first.names
        self.inline = inline
        self._metric_names = tuple(metrics)
        self.learners: dict[str, Learner] = {}
        self.metrics: dict[str, dict[str, Metric]] = {}
        self.segments = segments
        self.slices = Slices(slices, self.names, self._metric_names, self.task)
        self._join = LabelJoin(
            len(self.names), self.task, rules or LabelRules(), otherwise,
            len(self.slices) + quarantine + (rollouts is not None),
            ranking and rollouts is not None,
        )  # fmt: skip
        self.pending = self._join.pending
        self._answers: dict[str, Answers] = {}
        self._kept: dict[str, Checkpoint] = {}
        self._declared: dict[str, str] = {}
        self._bounds = bounds
        self._cleared: set[str] = set()
        self._told = b""
        self.rollouts, self.quarantine = rollouts, quarantine
        self.ranking = RankQuality() if ranking else None
        for name, learner in learners.items():
            self.add(name, learner)
        self.champion = next(iter(learners))
        self.monitors = Monitors(monitors, self.task, self.names, slices)
        self.births = Births.of(on_drift, len(self.names), self.task)
        # Views of these stand in every outcome; making them costs as much as some rows.
        self._ascending = np.zeros(0, np.int64)
        self._tags = np.zeros(0, np.int32)

    def add(self, name: str, learner: Learner) -> None:
        """A challenger from now on; what waits already, it has not predicted but will learn.

        Raises:
            DeclarationError: the name is taken, or the learner is unlike the others.
        """
        if name in self.learners:
            raise DeclarationError(f"there is a model {name!r} already: choose another name")
        if learner.task is not self.task or learner.names != self.names:
            raise DeclarationError(
                f"model {name!r} has another task or other features than the champion"
            )
        if self.rollouts is not None:
            forgive(learner)
        self.metrics[name] = {m: metric(m, self.task) for m in self._metric_names}
        self.slices.add(name)
        self.learners[name] = learner
        self.pending.add_model()
        self._answers[name] = Answers(self.pending)
        self._kept[name] = Checkpoint(name, learner, self._bounds)
        self._declared[name] = described(learner)

    def take_up(self, name: str, learner: Learner) -> None:
        """Let one that has learned stand in for a fresh one, as which it was declared.

        Raises:
            DeclarationError: it is of another kind, or has other features.
        """
        if type(learner) is not type(self.learners[name]) or learner.names != self.names:
            raise DeclarationError(f"model {name!r} can't begin as one of another kind")
        self.learners[name] = learner
        self._kept[name] = Checkpoint(name, learner, self._bounds)

    def remove(self, name: str) -> None:
        """Forget a challenger, its metrics and its pending predictions.

        Raises:
            DeclarationError: it is the champion, or unknown.
        """
        if name == self.champion or name not in self.learners:
            what = "it is the champion" if name == self.champion else "there is none of that name"
            raise DeclarationError(f"model {name!r} can't be removed: {what}")
        self._forget(name)

    def _forget(self, name: str) -> None:
        at = list(self.learners).index(name)
        for by_name in (self.learners, self.metrics, self._answers, self._kept, self._declared):
            by_name.pop(name)
        self.pending.drop_model(at)
        self.slices.remove(name)
        self._cleared |= {f"{_part(name)}/{part}" for part in (*PARTS, ANSWERS)}

    def run(
        self,
        *,
        ids: Sequence[str],
        features: F64,
        times: I64,
        label_ids: list[str],
        label_values: Targets,
        label_times: I64,
        order: I64,
        tags: NDArray[np.int32] | None = None,
        note: Note | None = None,
        fill: Fill | None = None,
        fields: Fields = NO_FIELDS,
        keys: Sequence[str] = (),
        outside: Outside = NOTHING,
    ) -> Outcome:
        """Predict events and learn labels, in `order`.

        Args:
            ids: of the events; without those that were seen before.
            features: `(events, features) float64`, finite, C-contiguous.
            times: `(events,) int64`, event time in ms.
            label_ids: the event that each label judges.
            label_values: `(labels,) float64` (binary: 0.0 or 1.0), NaN where unusable; multi-class:
                a list, None where unusable.
            label_times: `(labels,) int64` ms.
            order: `(events + labels,) int64`: event i as i, label j as `events + j`.
            tags: `(events,) int32`, handed back with the label.
            note: of a label that must be held, by its index; handed back should it be given up.
            fill: is shown the steps before the first prediction, to add to `pending.features`.
            fields: of the events, those that `slices` and `segments` are by.
            keys: of the events, by which `rollouts` divides them.
            outside: what is known of the batch already.

        When `inline`, it is `run_inline`: `label_values` belongs to the events, one each, and
        `ids`, `label_ids`, `label_times` and `order` are not looked at.

        Raises:
            ModelError: a model failed; go on from a checkpoint.
        """
        if self.inline:
            return self.run_inline(features, times, label_values, tags, fields, keys, outside)
        if self.segments is not None:
            features = self.segments.add_to(features, fields, order)
        joined = self._join.join(
            ids, times, features, label_ids, label_values, label_times, order, tags, note
        )
        if fill is not None:
            fill(joined)
        return run_delayed(self, joined, len(times), order, fields, keys, outside)

    @property
    def versions(self) -> dict[str, int]:
        """By model, rows that it has learned."""
        return {name: learner.version for name, learner in self.learners.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """By model, bytes as it was last written whole; 0: never."""
        return {name: kept.full_bytes for name, kept in self._kept.items()}

    def changes(self) -> Delta:
        """What changed since the last call of this or of `restore`; at first, everything.

        Between calls of `run` only, and not after one that failed.

        Raises:
            StateError: a model can't be pickled.
        """
        return step_changes(self)

    def restore(self, image: Delta) -> None:
        """Go on, bit for bit, where the step was that gave `image`; for a fresh step only.

        Args:
            image: the merge of all its changes. What it holds is unpickled, so it must come from
                the state directory that this program wrote. If empty, the step stays fresh.

        Metrics and monitors that the stored step did not have begin now. Models come in the stored
        order, with the stored champion. With rollouts, the models are those that were there, and
        challengers that were declared since.

        Raises:
            StateError: other models or features were declared, or a model can't be unpickled.
        """
        restore_step(self, image)

    def settle(self) -> None:
        """Follow what was decided: who leads, and who is not needed any more."""
        if self.rollouts is None:
            return
        deployment = self.rollouts.deployment
        self.champion = deployment.champion
        for name in deployment.leaving:
            self.remove(name)
        deployment.leaving.clear()

    def run_inline(
        self,
        features: F64,
        times: I64,
        values: Targets,
        tags: NDArray[np.int32] | None = None,
        fields: Fields = NO_FIELDS,
        keys: Sequence[str] = (),
        outside: Outside = NOTHING,
    ) -> Outcome:
        """Each event is predicted, then learned at once.

        One without a usable target is predicted and not learned (an anomaly detector learns it all
        the same). Arguments and errors are those of `run`.
        """
        if self.segments is not None:
            features = self.segments.add_to(features, fields)
        events = len(times)
        if len(self._ascending) < events:
            self._ascending, self._tags = np.arange(2 * events), np.zeros(2 * events, np.int32)
        tags = self._tags[:events] if tags is None else tags
        rows = self._ascending[:events]
        return run_inline(self, features, times, values, tags, fields, keys, rows, outside)

    def score(
        self,
        learned: Learned,
        groups: U8 | None,
        features: F64 | None,
        calm: NDArray[np.bool_] | None = None,
    ) -> None:
        """Bring labels into the metrics; ``groups`` are those of the events, where there are.

        ``features`` are kept with the labels for models that drift starts, if they are ``calm``.
        """
        if self.births is not None and features is not None:
            target = learned.target
            if calm is not None:
                features, target = features[calm], select(target, np.flatnonzero(calm))
            self.births.rows.add(features, target)
        for name, answers in learned.predictions.items():
            for running in self.metrics[name].values():
                running.update_many(learned.target, answers)
        if groups is not None:
            self.slices.score(groups, learned.target, learned.predictions)
