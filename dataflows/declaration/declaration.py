"""What a pipeline declares, and what follows from it: topics, columns, the fields that are read.

Nothing here knows the engine that runs the pipeline. What a user writes is a `Pipeline`, which is a
checked declaration (`dataflows.declaration.validation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from anabranch.dataflows.declaration.features import (
    EntityFeature,
    Feature,
    KeyedFeature,
    LabelWindow,
    RowFeature,
)
from anabranch.dataflows.declaration.schema import Kind, Schema
from anabranch.dataflows.messages.inputs import Delayed, Event, Inline
from anabranch.models.drift.declarations import Distributions
from anabranch.models.drift.detectors import Monitor
from anabranch.models.learners.imbalance import Imbalance
from anabranch.models.learners.learner import Task
from anabranch.models.metrics.slices import SliceBy
from anabranch.models.rollout.challenger import Challenger
from anabranch.models.rollout.policies import Policy

TIME_UNITS_MS = {"ms": 1.0, "s": 1000.0, "us": 1e-3, "ns": 1e-6}
"""Milliseconds per unit of a number in a time field."""

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
class Declaration:
    """The fields of a pipeline, which `Pipeline` documents, and what is derived from them.

    ``schema`` and ``task`` are derived too; `Pipeline` sets them while it checks the declaration.
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
    min_labels_per_segment: int = 1
    id: str = "id"
    time: str = "ts"
    time_unit: str = "ms"
    allowed_lateness: str = "10m"
    max_clock_skew: str = "5m"
    dedup_window: str = "1h"
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
            each.subject for each in self.slices if each.bins is None or each.subject not in columns
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
