"""The one declaration a user writes: what arrives, what is made of it, what predicts and learns.

Everything is checked when the declaration is built; what can't work is said in one sentence.
Nothing here knows the engine that runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any

from anabranch.dataflows.declaration.features import (
    EntityFeature,
    Feature,
    KeyedFeature,
    LabelWindow,
    RowFeature,
)
from anabranch.dataflows.declaration.rollout_validation import check_rollout
from anabranch.dataflows.declaration.schema import Kind, Schema
from anabranch.dataflows.declaration.validation import (
    TIME_UNITS_MS,
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
from anabranch.dataflows.messages.inputs import Delayed, Event, Inline
from anabranch.models.drift.declarations import Distributions
from anabranch.models.drift.detectors import Monitor
from anabranch.models.learners.imbalance import Imbalance, with_imbalance
from anabranch.models.learners.learner import Learner, Task
from anabranch.models.learners.linear import learner_for
from anabranch.models.learners.segmented import SegmentedLearner
from anabranch.models.learners.subsampling import SubsampledLearner
from anabranch.models.metrics.slices import SliceBy
from anabranch.models.rollout.challenger import Challenger, OnDrift
from anabranch.models.rollout.policies import Canary, Policy, Shadow
from anabranch.state.errors import DeclarationError

_DEFAULT_METRICS = {
    Task.BINARY: ("Accuracy", "LogLoss", "ROCAUC"),
    Task.MULTICLASS: ("Accuracy", "MacroF1"),
    Task.REGRESSION: ("MAE", "RMSE"),
    Task.ANOMALY: (),
}


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of a pipeline, named after it."""

    pipeline: str
    controlled: bool = False

    @property
    def events(self) -> str:
        return f"{self.pipeline}.events"

    @property
    def labels(self) -> str:
        return f"{self.pipeline}.labels"

    @property
    def predictions(self) -> str:
        return f"{self.pipeline}.predictions"

    @property
    def drift(self) -> str:
        return f"{self.pipeline}.drift"

    @property
    def dead_letters(self) -> str:
        return f"{self.pipeline}.dead-letters"

    @property
    def control(self) -> str:
        return f"{self.pipeline}.control"

    @property
    def rollouts(self) -> str:
        return f"{self.pipeline}.rollouts"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The topics that a pipeline writes."""
        always = (self.predictions, self.drift, self.dead_letters)
        return (*always, self.rollouts) if self.controlled else always


@dataclass(kw_only=True)
class Pipeline:
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
        segment_after: the label of a segment at which its model is made, counted from 1.
        id, time: the event's fields that hold its id and its time.
        time_unit: what a number in the time field counts: ms, s, us or ns since 1970. ISO-8601
            text is accepted as well (without an offset it is UTC).
        lateness: how far an event may be behind the newest of its worker and still be exact; one
            that is later is a dead letter.
        ahead: how far an event's time may be ahead of the time at which it was published.
        duplicates: for how long (event time) an id is remembered; a second event with it is a
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
        DeclarationError: when something in it cannot work.
    """

    name: str
    event: type[Event]
    features: Sequence[Feature]
    model: Any
    label: Delayed | Inline | None = None
    metrics: Sequence[str] | None = None
    monitors: Sequence[Monitor] = ()
    distributions: Distributions | None = None
    slices: Sequence[SliceBy] = ()
    imbalance: Imbalance | None = None
    model_key: str | None = None
    max_segments: int = 1000
    segment_after: int = 1
    id: str = "id"
    time: str = "ts"
    time_unit: str = "ms"
    lateness: str = "10m"
    ahead: str = "5m"
    duplicates: str = "1h"
    key: str | None = None
    with_features: bool = False
    challengers: Mapping[str, Any] = dataclass_field(default_factory=dict)
    on_drift: Challenger | None = None
    rollout: Policy | None = None
    rollout_key: str | None = None
    fallback: bool | int | float | str | None = None
    candidates: str | None = None
    max_candidates: int = 100
    schema: Schema = dataclass_field(init=False, repr=False)
    task: Task = dataclass_field(init=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.event, type) and issubclass(self.event, Event)):
            raise DeclarationError(f"event of pipeline {self.name!r} must be a subclass of Event")
        self.schema = Schema.of(self.event, lists=self.candidates is not None)
        check_names(self)
        check_candidates(self)
        check_features(self)
        check_label(self)
        if self.candidates is not None and isinstance(self.label, Delayed):
            self.label = replace(self.label, otherwise=False)
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

    @property
    def topics(self) -> Topics:
        """The names of its topics."""
        return Topics(self.name, self.controlled)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The topics that it reads: events first, control last."""
        topics = self.topics
        labels = (topics.labels,) if self.labels_apart else ()
        return (topics.events, *labels, *((topics.control,) if self.controlled else ()))

    @property
    def controlled(self) -> bool:
        """Whether it has rollouts, and listens to control messages."""
        return self.rollout is not None

    @property
    def quarantines(self) -> bool:
        """Whether it may learn nothing of some events (`Distributions.quarantine`)."""
        return self.distributions is not None and bool(self.distributions.quarantine)

    @property
    def labels_apart(self) -> bool:
        """Whether labels come on a topic of their own."""
        return isinstance(self.label, Delayed)

    @property
    def model_name(self) -> str:
        """What predictions call the model: the class of its last step."""
        steps = getattr(self.model, "steps", None)
        return type(list(steps.values())[-1] if steps else self.model).__name__

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics that are scored: those declared, or the usual ones of its task."""
        if self.metrics is not None:
            return tuple(self.metrics)
        return _DEFAULT_METRICS[self.task] if self.label is not None else ()

    @property
    def columns(self) -> list[str]:
        """The names of the feature columns, in the model's order."""
        return [name for feature in self.features for name in feature.columns()]

    @property
    def partition_field(self) -> str | None:
        """The field whose value decides an event's partition."""
        entities = [*self.entities, *self.label_windows]
        alone = (name for name in entities if not self.schema.fields[name].several)
        return self.key or next(alone, None)

    @property
    def traffic_field(self) -> str:
        """The field whose value decides which model serves an event, where there are rollouts."""
        return self.rollout_key or self.partition_field or self.id

    @property
    def row_features(self) -> Iterator[tuple[RowFeature, slice]]:
        """Each row feature with the columns it fills."""
        for feature, place in self._places():
            if not isinstance(feature, KeyedFeature):
                yield feature, place

    @property
    def entities(self) -> dict[str, list[tuple[EntityFeature, slice]]]:
        """Entity field → its window features with the columns they fill."""
        entities: dict[str, list[tuple[EntityFeature, slice]]] = {}
        for feature, place in self._places():
            if isinstance(feature, EntityFeature):
                entities.setdefault(feature.entity, []).append((feature, place))
        return entities

    @property
    def label_windows(self) -> dict[str, list[tuple[LabelWindow, slice]]]:
        """Entity field → its windows over labels with the columns they fill."""
        entities: dict[str, list[tuple[LabelWindow, slice]]] = {}
        for feature, place in self._places():
            if isinstance(feature, LabelWindow):
                entities.setdefault(feature.entity, []).append((feature, place))
        return entities

    @property
    def target_kind(self) -> Kind | None:
        """Of what kind the label's value is; None without a label. A candidate is chosen or not."""
        if self.candidates is not None:
            return "boolean"
        if isinstance(self.label, Inline):
            return self.schema.fields[self.label.field].kind
        if isinstance(self.label, Delayed):
            return Schema.of(self.label.type).fields[self.label.field].kind
        return None

    @property
    def used_fields(self) -> list[str]:
        """The event's fields that features are made of, entities included; not its time."""
        names: dict[str, None] = {}
        for feature in self.features:
            if isinstance(feature, KeyedFeature):
                names[feature.entity] = None
                if feature.value is not None:
                    names[feature.value] = None
            elif feature.field != self.time:
                names[feature.field] = None
        if self.candidates is not None:
            names[self.candidates] = None
        return list(names)

    @property
    def model_fields(self) -> list[str]:
        """The event's fields that the models' step looks at itself."""
        columns = set(self.columns)
        subjects = [
            each.subject
            for each in self.slices
            if each.edges is None or each.subject not in columns
        ]
        traffic = [self.traffic_field] if self.controlled and self.traffic_field != self.id else []
        keys = [self.model_key] if self.model_key is not None else []
        watched = [] if self.candidates is None else [self.candidates]
        if self.distributions is not None:
            fields = self.schema.fields
            watched += [*self.entities, *(n for n in self.used_fields if fields[n].optional)]
        return list(dict.fromkeys([*self.label_windows, *subjects, *keys, *traffic, *watched]))

    @property
    def read_fields(self) -> list[str]:
        """The event's fields that are read beside its id and time: of features and of models."""
        return list(dict.fromkeys([*self.used_fields, *self.model_fields]))

    @property
    def number_fields(self) -> list[str]:
        """Fields whose numbers are looked at as they are read: integers, and an inline label.

        An integer may be too large for a float. Floats are made into features first.
        """
        fields = self.schema.fields
        names = [n for n in self.read_fields if fields[n].integer and not fields[n].several]
        if isinstance(self.label, Inline) and fields[self.label.field].kind == "number":
            names.append(self.label.field)
        return names

    def learner(self) -> Learner:
        """A fresh learner of its model: compiled where that is possible, else River itself."""
        return self.wrap(self.base_learner())

    def base_learner(self) -> Learner:
        """`learner` without what is declared around it."""
        return learner_for(self.model.clone(), self.columns, self.task)

    def wrap(self, learner: Learner, share: float = 1.0) -> Learner:
        """A plain learner with what is declared around it: for rare classes, and for segments.

        ``share`` is that of the labels which it learns.
        """
        learner = with_imbalance(learner, self.imbalance)
        if share < 1:
            learner = SubsampledLearner(learner, share)
        if self.model_key is None:
            return learner
        return SegmentedLearner(learner, self.max_segments, self.segment_after)

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
        return self.wrap(learner_for(model.clone(), self.columns, self.task), share)

    @property
    def time_scale(self) -> float:
        """Milliseconds per unit of a number in the time field."""
        return TIME_UNITS_MS[self.time_unit]

    def _places(self) -> Iterator[tuple[Feature, slice]]:
        start = 0
        for feature in self.features:
            stop = start + len(feature.columns())
            yield feature, slice(start, stop)
            start = stop
