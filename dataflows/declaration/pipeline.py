"""The pipeline that a user declares: what arrives, its features, and what predicts and learns.

Everything is checked when the pipeline is built, and an error names the mistake in one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from anabranch.dataflows.declaration.conditions import condition_of
from anabranch.dataflows.declaration.declaration import Declaration
from anabranch.dataflows.declaration.formats import check_format
from anabranch.dataflows.declaration.rollout_validation import check_rollout
from anabranch.dataflows.declaration.schema import Schema
from anabranch.dataflows.declaration.topics import check_topics, named_topics
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
from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.imbalance import with_imbalance
from anabranch.models.learners.learner import Learner
from anabranch.models.learners.segmented import SegmentedLearner
from anabranch.models.learners.subsampling import SubsampledLearner
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
        name: what the pipeline is called, in metrics, logs and its consumer group: a letter, then
            letters, digits, ``.``, ``-`` and ``_``. Topics without a name of their own begin with
            it.
        event: the event type.
        features: as in `dataflows.declaration.features`, in the order of the model's columns.
        model: a River classifier, regressor or anomaly detector, or a River pipeline.
        label: `Label.target` for labels on a topic of their own, `inline` for a field of the
            event, None for an anomaly detector that learns without labels.
        metrics: names of River metrics, updated with every label before the model learns it.
        monitors: what to monitor for drift (`models.drift.detectors.monitor`).
        distributions: monitor the distributions of features, predictions, labels, nulls and dead
            letters (`models.drift.declarations`); None: not monitored.
        slices: parts of the events for which the metrics are computed separately
            (`models.metrics.slices.slice_by`).
        imbalance: how rare classes are treated: `undersample`, `oversample` or `class_weights`
            (`models.learners.imbalance`).
        model_key: a field of the event; each of its values, a segment, gets a model of its own,
            which starts as a copy of the model that learns everything
            (`models.learners.segmented`).
        max_segments: how many segments get a model of their own: the first that occur.
        min_labels_per_segment: the label of a segment at which its model is made, counted from 1.
        id, time: the event's fields with its id and its time.
        time_unit: the unit of a number in the time field, or of one that is written as text: ms, s,
            us or ns since 1970. ISO-8601 and RFC 3339 text is accepted as well.
        timezone: of times without an offset, and of `hour_of_day` and `day_of_week`: a name of the
            IANA database, such as ``"Europe/Paris"``. In the hour that comes twice, as clocks are
            set back, a time without an offset is the first; in the hour that is left out it is
            counted on from the hour before (02:30 is 03:30 summer time).
        allowed_lateness: how far an event may be behind the newest event of its worker; its
            features are exact up to here, and a later event is a dead letter.
        max_clock_skew: how far an event's time may be ahead of the time at which it was published.
        dedup_window: for how long (event time) an id is remembered; a second event with it is a
            dead letter.
        key: the field that publishers partition by; by default the first window's entity.
        with_features: put the features into every prediction.
        challengers: models that compete with ``model``, by name: River models, or a `Challenger`
            each. They predict every event as well, and learn every label, or a share of them.
        on_drift: the model that is started as a challenger when a monitor signals drift, by default
            when one on the loss says that the champion has become worse
            (`models.rollout.challenger`).
        rollout: the policy by which a challenger becomes champion (`models.rollout.policies`); with
            challengers alone it is `Shadow()`, with ``on_drift`` it is `Canary()`. With a policy
            the pipeline has the topics ``control`` and ``rollouts``.
        rollout_key: the text field by whose value an event is assigned to a model; by default the
            one that publishers partition by, or the id.
        fallback: what is served for an event on which the model raises, or, with rollouts, on which
            the champion fails and no other model can replace it: binary, the probability of true;
            multi-class, a class; else a number. None: such an event is a dead letter.
        max_model_failures: how many events, or labels, in a row the model may raise on; one more
            ends the run.
        candidates: a list of texts of the event, which the pipeline ranks. Each candidate is a row
            of its own (`dataflows.batch.candidates`): in features, the field is the candidate, and
            any other list of the event is the candidate's entry in it. The label names the
            candidate that was chosen; the others were not chosen, which is learned at the timeout.
        max_candidates: of one event; an event with more is a dead letter.
        topics: the names of the topics that are read and written
            (`dataflows.declaration.topics.Topics`); by default ``NAME.events`` and so on.
        format: of the events' messages (`dataflows.declaration.formats`).
        label_format: of the labels' messages; None: as the events'.
        output_format: of predictions; all else that is published is JSON.
        where: which messages of the events' topic are events, as fields and their values, or as a
            function (`dataflows.declaration.conditions`); the others are counted and skipped.
        label_where: likewise of the labels' topic.

    Raises:
        DeclarationError: something in it can't work; the message names it.
    """

    def __post_init__(self) -> None:
        if not (isinstance(self.event, type) and issubclass(self.event, Event)):
            raise DeclarationError(f"event of pipeline {self.name!r} must be a subclass of Event")
        self.schema = Schema.of(self.event, lists=self.candidates is not None)
        check_names(self)
        self.topics = named_topics(self.topics, self.name)
        check_format(self.format, "format", self.name)
        if self.label_format is not None:
            check_format(self.label_format, "label_format", self.name)
        for parameter in ("label_format", "label_where"):
            if getattr(self, parameter) is not None and not self.has_label_topic:
                raise DeclarationError(
                    f"{parameter}= of pipeline {self.name!r} is of labels on a topic of their own, "
                    "and it has none: leave it out, or declare label=….target(…)"
                )
        check_format(self.output_format, "output_format", self.name, outputs=True)
        label_format = self.label_format or self.format
        self.where = condition_of(self.where, "where", self.name, self.format)
        self.label_where = condition_of(self.label_where, "label_where", self.name, label_format)
        check_candidates(self)
        check_features(self)
        self.schema = self.schema.with_joined(self.joined_entities)
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
        check_topics(
            self.topics,
            self.name,
            has_labels=self.has_label_topic,
            has_rollouts=self.has_rollouts,
            told_apart=self.where is not None and self.label_where is not None,
        )
        self.topics = self.topics.named(self.name, self.has_rollouts)

    def learner(self) -> Learner:
        """A new learner of ``model``, with what is declared around it."""
        return self.wrap(self.base_learner())

    def base_learner(self) -> Learner:
        """A new learner of ``model`` alone: compiled where that is possible, else River's own."""
        return learner_for(self.model.clone(), self.columns, self.task)

    def wrap(self, learner: Learner, share: float = 1.0) -> Learner:
        """``learner`` with what is declared around it: for rare classes, sampling and segments.

        ``share`` is the share of labels that it learns, in (0, 1].
        """
        learner = with_imbalance(learner, self.imbalance)
        if share < 1:
            learner = SubsampledLearner(learner, share)
        if self.model_key is None:
            return learner
        return SegmentedLearner(learner, self.max_segments, self.min_labels_per_segment)

    def challenger_learners(self) -> dict[str, Learner]:
        """A new learner of each challenger, by name, in the order of their declaration."""
        return {name: self._challenger_learner(each) for name, each in self.challengers.items()}

    @property
    def starts_on_drift(self) -> OnDrift | None:
        """The challenger that drift starts; None: drift starts none."""
        declared = self.on_drift
        if declared is None:
            return None
        return OnDrift(declared, lambda: self._challenger_learner(declared))

    def _challenger_learner(self, declared: Any) -> Learner:
        model, share = declared, 1.0
        if isinstance(declared, Challenger):
            model, share = declared.model, declared.sample_rate
        return self.wrap(learner_for(model.clone(), self.columns, self.task), share)
