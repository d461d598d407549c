"""What a pipeline declares, and what follows from it: topics, columns, the fields that are read.

Nothing here knows the engine that runs the pipeline. What a user writes is a `Pipeline`, which is a
checked declaration (`dataflows.declaration.validation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from datetime import UTC, tzinfo
from typing import Any

from anabranch.dataflows.declaration.conditions import Condition
from anabranch.dataflows.declaration.features import (
    EntityFeature,
    Feature,
    Hashed,
    KeyedFeature,
    LabelWindow,
    RowFeature,
)
from anabranch.dataflows.declaration.formats import JSON, Format
from anabranch.dataflows.declaration.message_places import reads_headers
from anabranch.dataflows.declaration.schema import JOINED, Kind, Schema
from anabranch.dataflows.declaration.topics import Topics
from anabranch.dataflows.messages.inputs import Delayed, Event, Inline
from anabranch.dataflows.messages.local_time import LocalTime
from anabranch.dataflows.messages.time_units import TIME_UNITS_MS
from anabranch.models.drift.declarations import Distributions
from anabranch.models.drift.detectors import Monitor
from anabranch.models.learners.imbalance import Imbalance
from anabranch.models.learners.learner import Task
from anabranch.models.metrics.slices import SliceBy
from anabranch.models.rollout.challenger import Challenger
from anabranch.models.rollout.policies import Policy

_DEFAULT_METRICS = {
    Task.BINARY: ("Accuracy", "LogLoss", "ROCAUC"),
    Task.MULTICLASS: ("Accuracy", "MacroF1"),
    Task.REGRESSION: ("MAE", "RMSE"),
    Task.ANOMALY: (),
}


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
    timezone: str = "UTC"
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
    max_model_failures: int = 100
    candidates: str | None = None
    max_candidates: int = 100
    topics: Topics = dataclass_field(default_factory=Topics)
    format: Format = JSON
    label_format: Format | None = None
    output_format: Format = JSON
    where: Any = None
    label_where: Any = None
    schema: Schema = dataclass_field(init=False, repr=False)
    task: Task = dataclass_field(init=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The topics that are read: events first, control last."""
        topics = self.topics
        own_labels = self.has_label_topic and not self.shares_topics
        labels = topics.all_labels if own_labels else ()
        return (*topics.all_events, *labels, *((topics.control,) if self.has_rollouts else ()))

    @property
    def shares_topics(self) -> bool:
        """Whether events and labels are on the same topics, told apart by conditions."""
        topics = self.topics
        return self.has_label_topic and topics.all_events == topics.all_labels

    @property
    def needs_headers(self) -> bool:
        """Whether headers of messages have to be read."""
        label = self.label.type if isinstance(self.label, Delayed) else None
        return any(reads_headers(each) for each in (self.event, label) if each is not None)

    @property
    def has_rollouts(self) -> bool:
        """Whether there are rollouts, and with them the topics for control and rollout messages."""
        return self.rollout is not None

    @property
    def quarantines(self) -> bool:
        """Whether events may be excluded from training (`Distributions.quarantine`)."""
        return self.distributions is not None and bool(self.distributions.quarantine)

    @property
    def has_label_topic(self) -> bool:
        """Whether labels arrive on a topic of their own."""
        return isinstance(self.label, Delayed)

    @property
    def model_name(self) -> str:
        """The model's name in predictions: the class of its last step."""
        steps = getattr(self.model, "steps", None)
        return type(list(steps.values())[-1] if steps else self.model).__name__

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics that are computed: those declared, or the defaults of the task."""
        if self.metrics is not None:
            return tuple(self.metrics)
        return _DEFAULT_METRICS[self.task] if self.label is not None else ()

    @property
    def columns(self) -> list[str]:
        """The names of the feature columns, in the model's order."""
        return [name for feature in self.features for name in feature.columns()]

    @property
    def partition_field(self) -> str | None:
        """The field by which events are partitioned; None: by no field."""
        entities = [*self.entities, *self.label_windows]
        fields, joined = self.schema.fields, self.joined_entities
        single = (name for name in entities if name not in joined and not fields[name].is_list)
        return self.key or next(single, None)

    @property
    def traffic_field(self) -> str:
        """The field by whose value a rollout assigns events to models."""
        return self.rollout_key or self.partition_field or self.id

    @property
    def row_features(self) -> Iterator[tuple[RowFeature, slice]]:
        """Each row feature with its columns in the feature matrix."""
        for feature, columns in self._with_positions():
            if not isinstance(feature, KeyedFeature):
                yield feature, columns

    @property
    def entities(self) -> dict[str, list[tuple[EntityFeature, slice]]]:
        """Entity field → its window features with their columns in the feature matrix."""
        entities: dict[str, list[tuple[EntityFeature, slice]]] = {}
        for feature, columns in self._with_positions():
            if isinstance(feature, EntityFeature):
                entities.setdefault(feature.entity, []).append((feature, columns))
        return entities

    @property
    def label_windows(self) -> dict[str, list[tuple[LabelWindow, slice]]]:
        """Entity field → its windows over labels with their columns in the feature matrix."""
        entities: dict[str, list[tuple[LabelWindow, slice]]] = {}
        for feature, columns in self._with_positions():
            if isinstance(feature, LabelWindow):
                entities.setdefault(feature.entity, []).append((feature, columns))
        return entities

    @property
    def joined_entities(self) -> dict[str, list[str]]:
        """Entities that are combinations of fields: name → those fields."""
        names = [each.entity for each in self.features if isinstance(each, KeyedFeature)]
        return {name: name.split(JOINED) for name in names if JOINED in name}

    @property
    def target_kind(self) -> Kind | None:
        """The kind of the label's value; None without a label. A candidate is chosen or not."""
        if self.candidates is not None:
            return "boolean"
        if isinstance(self.label, Inline):
            return self.schema.fields[self.label.field].kind
        if isinstance(self.label, Delayed):
            return Schema.of(self.label.type).fields[self.label.field].kind
        return None

    @property
    def used_fields(self) -> list[str]:
        """The event's fields that features use, entities included, without its time."""
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
    def text_fields(self) -> frozenset[str]:
        """The event's fields whose values are read as texts, though of another type.

        They are ids, keys and entities, and what is hashed: 10 and ``"10"`` are the same key.
        """
        names = [self.id, self.traffic_field, *self.entities, *self.label_windows]
        names += [part for parts in self.joined_entities.values() for part in parts]
        names += [feature.field for feature in self.features if isinstance(feature, Hashed)]
        names += [
            feature.value
            for feature in self.features
            if isinstance(feature, EntityFeature) and feature.text_value and feature.value
        ]
        fields = self.schema.fields
        key = None if self.model_key is None else fields.get(self.model_key)
        if key is not None and key.kind != "boolean":
            names.append(key.name)
        return frozenset(
            name
            for name in names
            if name in fields and fields[name].is_key and fields[name].kind != "text"
        )

    @property
    def model_fields(self) -> list[str]:
        """The event's fields that the model step uses besides the features."""
        columns = set(self.columns)
        subjects = [
            each.subject for each in self.slices if each.bins is None or each.subject not in columns
        ]
        traffic = (
            [self.traffic_field] if self.has_rollouts and self.traffic_field != self.id else []
        )
        keys = [self.model_key] if self.model_key is not None else []
        others = [] if self.candidates is None else [self.candidates]
        if self.distributions is not None:
            fields = self.schema.fields
            others += [*self.entities, *(n for n in self.used_fields if fields[n].optional)]
        return list(dict.fromkeys([*self.label_windows, *subjects, *keys, *traffic, *others]))

    @property
    def read_fields(self) -> list[str]:
        """The event's fields that are decoded besides its id and time."""
        joined, names = self.joined_entities, [*self.used_fields, *self.model_fields]
        names = [part for name in names for part in joined.get(name, [name])]
        return list(dict.fromkeys(names))

    @property
    def number_fields(self) -> list[str]:
        """Fields whose numbers are validated when they are decoded: integers, and an inline label.

        An integer may be too large for a float, and a decimal too, or be none. Float fields are
        validated as features.
        """
        fields, texts = self.schema.fields, self.text_fields
        names = [
            name
            for name in self.read_fields
            if (fields[name].integer or fields[name].is_decimal)
            and not fields[name].is_list
            and name not in texts
        ]
        if isinstance(self.label, Inline) and fields[self.label.field].kind == "number":
            names.append(self.label.field)
        return names

    @property
    def time_scale(self) -> float:
        """Milliseconds per unit of a number in the time field."""
        return TIME_UNITS_MS[self.time_unit]

    @property
    def local_time(self) -> LocalTime | None:
        """Local times of the time zone; None if it is UTC."""
        return None if self.timezone == "UTC" else LocalTime(self.timezone)

    @property
    def zone(self) -> tzinfo:
        """The time zone of times without an offset."""
        local = self.local_time
        return UTC if local is None else local.zone

    def format_of(self, topic: str, labels: bool = False) -> Any:
        """The format of a topic's messages, or a codec for them; see `dataflows.codec`.

        ``labels``: of its labels, where it has events too.
        What a pipeline says about itself is always JSON: dead letters, drift signals, control and
        rollout messages.
        """
        topics = self.topics
        if topic in topics.all_events and not labels:
            return self.format
        if topic in topics.all_labels:
            return self.format if self.label_format is None else self.label_format
        return self.output_format if topic == topics.predictions else JSON

    def condition_of(self, topic: str, labels: bool = False) -> Condition | None:
        """What messages of a topic are taken; None: all. ``labels``: as of `format_of`."""
        topics, given = self.topics, None
        if topic in topics.all_events and not labels:
            given = self.where
        elif topic in topics.all_labels:
            given = self.label_where
        return given if isinstance(given, Condition) else None

    def _with_positions(self) -> Iterator[tuple[Feature, slice]]:
        start = 0
        for feature in self.features:
            stop = start + len(feature.columns())
            yield feature, slice(start, stop)
            start = stop
