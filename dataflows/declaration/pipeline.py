"""The pipeline that a user declares: what arrives, its features, and what predicts and learns.

Everything is checked when the pipeline is built, and an error names the mistake in one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from anabranch.dataflows.declaration.declaration import Declaration
from anabranch.dataflows.declaration.rollout_validation import check_rollout
from anabranch.dataflows.declaration.schema import Schema
from anabranch.dataflows.declaration.validation import (
    check_candidates,
    check_features,
    check_label,
    check_model,
    check_monitors,
    check_names,
    check_segments,
    check_slices,
    check_times,
    find_task,
)
from anabranch.dataflows.messages.inputs import Delayed, Event
from anabranch.models.learners.imbalance import with_imbalance
from anabranch.models.learners.learner import Learner
from anabranch.models.learners.linear import learner_for
from anabranch.models.learners.segmented import Segmented
from anabranch.models.learners.subsampling import Thinned
from anabranch.models.rollout.challenger import Challenger, OnDrift
from anabranch.models.rollout.policies import Canary, Shadow
from anabranch.state.errors import DeclarationError
from anabranch.state.renamed import renamed


@renamed(
    lateness="allowed_lateness",
    ahead="max_clock_skew",
    duplicates="dedup_window",
    segment_after="min_labels_per_segment",
)
@dataclass(kw_only=True)
class Pipeline(Declaration):
    """A stream of events, its features, and the model that predicts and learns on each.

    Attributes:
        name: prefix of the topics; lower-case letters, digits, ``-`` and ``_``.
        event: the event type.
        features: what `dataflows.declaration.features` offers, in the order of the model's columns.
        model: a River classifier, regressor or anomaly detector, or a River pipeline.
        label: `Label.target` for labels on a topic of their own, `inline` for a field of the
            event, None for anomaly detectors that learn without.
        metrics: names of River metrics, scored on every label before it teaches.
        monitors: where to look for drift (`models.drift.detectors.monitor`).
        distributions: watch those of features, predictions, labels, nulls and dead letters
            (`models.drift.declarations`); None: not watched.
        slices: parts of the events for which the metrics are kept apart
            (`models.metrics.slices.slice_by`).
        imbalance: what is done about a rare class: `undersample`, `oversample` or `class_weights`
            (`models.learners.imbalance`).
        model_key: a field of the event; each of its values, a segment, has a model of its own,
            which begins as a copy of the one that learns everything (`models.learners.segmented`).
        max_segments: so many segments have a model of their own, the first that come.
        min_labels_per_segment: the label of a segment at which its model is made, counted from 1.
        id, time: the event's fields that hold its id and its time.
        time_unit: what a number in the time field counts: ms, s, us or ns since 1970. ISO-8601
            text is accepted as well (without an offset it is UTC).
        allowed_lateness: how far an event may be behind the newest of its worker and still be
            exact; one that is later is a dead letter.
        max_clock_skew: how far an event's time may be ahead of the time at which it was published.
        dedup_window: for how long (event time) an id is remembered; a second event with it is a
            dead letter.
        key: the field that publishers partition by; by default the first window's entity.
        challengers: models that want to serve instead, by name, or a `Challenger` each; they
            predict every event as well, and learn every label, or a share.
        on_drift: the fresh model that is tried when a monitor signals drift, by default when one on
            the loss says that the champion has become worse (`models.rollout.challenger`).
        rollout: how one of them gets to serve (`models.rollout.policies`); with challengers alone
            it is `Shadow()`, with `on_drift` it is `Canary()`. With a policy the pipeline has the
            topics ``control`` and ``rollouts``.
        rollout_key: the text field by whose value an event is assigned to a model; by default the
            one that publishers partition by, or the id.
        fallback: what is served when the champion fails and no model can stand in: binary, the
            probability of true; multi-class, a class; else a number. None: no answer.
        with_features: put the features into every prediction.
        candidates: a list of texts of the event: the pipeline ranks them. Each is a row of its own
            (`dataflows.batch.candidates`): the field stands for the candidate in features, another
            list of the event for what it has of it. The label names the one that was chosen; the
            others were not when its wait is over.
        max_candidates: of an event; one with more is a dead letter.

    Raises:
        DeclarationError: something in it can't work; the message names it.
    """

    def __post_init__(self) -> None:
        if not (isinstance(self.event, type) and issubclass(self.event, Event)):
            raise DeclarationError(f"event of pipeline {self.name!r} must be a subclass of Event")
        self.schema = Schema.of(self.event, lists=self.candidates is not None)
        check_names(self)
        check_candidates(self)
        check_features(self)
        check_label(self)
        if self.candidates is not None and isinstance(self.label, Delayed):
            self.label = replace(self.label, default=False)
        self.task = find_task(self)
        check_model(self)
        check_monitors(self)
        check_slices(self)
        check_segments(self)
        check_times(self)
        if self.rollout is None and self.on_drift is not None:
            self.rollout = Canary()
        elif self.rollout is None and self.challengers:
            self.rollout = Shadow()
        check_rollout(self)

    def learner(self) -> Learner:
        """A fresh learner of its model: compiled where that is possible, else River itself."""
        return self.equipped(self.plain_learner())

    def plain_learner(self) -> Learner:
        """`learner` without what is declared around it."""
        return learner_for(self.model.clone(), self.columns, self.task)

    def equipped(self, learner: Learner, share: float = 1.0) -> Learner:
        """A plain learner with what is declared around it: for rare classes, and for segments.

        ``share`` is that of the labels which it learns.
        """
        learner = with_imbalance(learner, self.imbalance)
        if share < 1:
            learner = Thinned(learner, share)
        if self.model_key is None:
            return learner
        return Segmented(learner, self.max_segments, self.min_labels_per_segment)

    def challenging(self) -> dict[str, Learner]:
        """A fresh learner of each challenger, by name, in the order of their declaration."""
        return {name: self._challenging(each) for name, each in self.challengers.items()}

    @property
    def starts_on_drift(self) -> OnDrift | None:
        """What drift starts."""
        declared = self.on_drift
        if declared is None:
            return None
        return OnDrift(declared, lambda: self._challenging(declared))

    def _challenging(self, declared: Any) -> Learner:
        """A fresh learner of a challenger, a River model or one with what is declared around it."""
        model, share = declared, 1.0
        if isinstance(declared, Challenger):
            model, share = declared.fresh, declared.learn
        return self.equipped(learner_for(model.clone(), self.columns, self.task), share)
