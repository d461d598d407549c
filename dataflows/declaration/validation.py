"""The checks of a pipeline's declaration: each mistake is a DeclarationError of one sentence."""

from __future__ import annotations

import re

from river import base

from anabranch.dataflows.declaration.declaration import Declaration
from anabranch.dataflows.declaration.features import (
    DayOfWeek,
    EntityFeature,
    Feature,
    HourOfDay,
    KeyedFeature,
    NumberField,
)
from anabranch.dataflows.declaration.model_trial import check_by_trial
from anabranch.dataflows.declaration.schema import JOINED, Schema
from anabranch.dataflows.messages.inputs import Delayed, Inline, Label
from anabranch.dataflows.messages.time_units import TIME_UNITS_MS
from anabranch.models.drift.declarations import Distributions
from anabranch.models.drift.detectors import LOSS
from anabranch.models.learners.imbalance import check_imbalance
from anabranch.models.learners.learner import Task
from anabranch.models.learners.river import check_task
from anabranch.models.metrics.losses import check_loss
from anabranch.models.metrics.metrics import metric
from anabranch.models.metrics.slices import SliceBy
from anabranch.models.prequential.monitors import Monitors
from anabranch.models.rollout.observations import MOST_CANDIDATES
from anabranch.state.arrays import LARGEST
from anabranch.state.durations import parse_duration_ms
from anabranch.state.errors import DeclarationError

MOST_SEGMENTS = 10_000
"""The limit of ``max_segments``: each model costs memory, and time in every commit."""

_LABEL_TYPES: dict[str, type] = {"boolean": bool, "text": str}
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9._-]{0,99}")


def check_names(pipeline: Declaration) -> None:
    """Check the pipeline's name, and the fields with an event's id, time and key."""
    name, schema = pipeline.name, pipeline.schema
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DeclarationError(
            f"pipeline name {name!r} can't be used: it must be a letter, then letters, digits, "
            "dots, - and _, at most 100 in all"
        )
    where = f"pipeline {name!r}"
    schema.require_key(pipeline.id, f"{where} (id=)")
    _check_time(schema, pipeline.time, f"{where} (time=)")
    if pipeline.time_unit not in TIME_UNITS_MS:
        raise DeclarationError(
            f"time_unit {pipeline.time_unit!r} of {where} is none of {', '.join(TIME_UNITS_MS)}"
        )
    try:
        pipeline.zone  # noqa: B018 (it raises)
    except ValueError:
        raise DeclarationError(
            f"timezone {pipeline.timezone!r} of {where} is unknown here: name one of the IANA "
            'database, such as "Europe/Paris", or UTC'
        ) from None
    if pipeline.key is not None:
        schema.require_key(pipeline.key, f"{where} (key=)", nullable=True)


def check_candidates(pipeline: Declaration) -> None:
    """Check that what is ranked is a list of texts, and that a label can name one of them."""
    name, where = pipeline.candidates, f"pipeline {pipeline.name!r}"
    if name is None:
        return
    schema = pipeline.schema
    field = schema.require_present(name, ("text",), f"{where} (candidates=)")
    if not field.is_list:
        raise DeclarationError(
            f"candidates={name!r} of {where} must be a list of texts, such as list[str]: "
            f"{schema.type_name}.{name} is one text"
        )
    for parameter in ("id", "time", "key", "rollout_key"):
        given = getattr(pipeline, parameter)
        if given is not None and given in schema.fields and schema.fields[given].is_list:
            raise DeclarationError(
                f"{parameter}={given!r} of {where} must be one value, not a list"
            )
    most = pipeline.max_candidates
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= MOST_CANDIDATES - 1:
        raise DeclarationError(
            f"max_candidates={most!r} of {where} must be from 1 to {MOST_CANDIDATES - 1:,}"
        )
    if not isinstance(pipeline.label, Delayed):
        raise DeclarationError(
            f"{where} ranks candidates, so its label arrives later: give label=Choice.target(…), "
            "with the field that names the chosen candidate"
        )


def check_features(pipeline: Declaration) -> None:
    """Check that every feature has the fields that it needs, and that no column occurs twice."""
    if not pipeline.features:
        raise DeclarationError(f"pipeline {pipeline.name!r} declares no features")
    seen: set[str] = set()
    for feature in pipeline.features:
        if not hasattr(feature, "columns"):
            raise DeclarationError(
                f"{feature!r} in the features of pipeline {pipeline.name!r} is not a feature: "
                "use field, window, one_hot, …"
            )
        _check_use_of_time(pipeline, feature)
        feature.check(pipeline.schema)
        for name in feature.columns():
            if name in seen:
                raise DeclarationError(
                    f"feature {name!r} is declared twice in pipeline {pipeline.name!r}"
                )
            seen.add(name)
    _check_double_use(pipeline)


def _check_double_use(pipeline: Declaration) -> None:
    """Check that no field is used both as a number and as a key, whose values are texts."""
    texts = pipeline.text_fields
    numbers = [each.field for each in pipeline.features if isinstance(each, NumberField)]
    numbers += [
        each.value
        for each in pipeline.features
        if isinstance(each, EntityFeature) and each.value is not None and not each.text_value
    ]
    numbers += [
        each.subject
        for each in pipeline.slices
        if isinstance(each, SliceBy) and each.bins is not None
    ]
    for name in numbers:
        if name in texts:
            raise DeclarationError(
                f"field {name!r} of pipeline {pipeline.name!r} is used as a number, and as a key "
                f"or category too: declare it once more for the number, such as {name}_number: "
                f"int = path('$.{name}')"
            )


def check_label(pipeline: Declaration) -> None:
    """Check that the label can be learned, and that no feature reveals it."""
    label = pipeline.label
    if isinstance(label, Inline):
        _check_inline(pipeline, label)
    elif isinstance(label, Delayed):
        _check_delayed(pipeline, label)
    elif label is not None:
        raise DeclarationError(
            f"label of pipeline {pipeline.name!r} must be a Label type's target(…) or inline(…)"
        )
    for windows in pipeline.label_windows.values():
        _check_label_window(pipeline, windows[0][0].label)


def find_task(pipeline: Declaration) -> Task:
    """The task of the model, which follows from the kind of the label's values."""
    kind, model = pipeline.target_kind, pipeline.model
    if kind is None:
        return Task.ANOMALY
    if kind == "boolean":
        detects = isinstance(model, base.AnomalyDetector | base.AnomalyFilter)
        return Task.ANOMALY if detects else Task.BINARY
    if kind == "text" or isinstance(model, base.Classifier):
        return Task.MULTICLASS
    return Task.REGRESSION


def check_model(pipeline: Declaration) -> None:
    """Check that the model and the metrics fit the task."""
    if pipeline.label is None and not isinstance(
        pipeline.model, base.AnomalyDetector | base.AnomalyFilter
    ):
        raise DeclarationError(
            f"pipeline {pipeline.name!r} has no label, and {pipeline.model_name} is not an anomaly "
            "detector, which could learn without one: give label="
        )
    _check_truth(pipeline)
    check_task(pipeline.model, pipeline.task)
    most = pipeline.max_model_failures
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise DeclarationError(
            f"max_model_failures={most!r} of pipeline {pipeline.name!r} must be an integer from 0"
        )
    if pipeline.label is None and pipeline.metric_names:
        raise DeclarationError(
            f"pipeline {pipeline.name!r} has no label, so no metric can be computed: leave out "
            "metrics="
        )
    for name in pipeline.metric_names:
        metric(name, pipeline.task)
    if pipeline.imbalance is not None:
        label = _LABEL_TYPES.get(pipeline.target_kind or "", float)
        where = f"pipeline {pipeline.name!r}"
        check_imbalance(pipeline.imbalance, pipeline.model, pipeline.task, label, where)
    check_by_trial(pipeline, pipeline.model, f"the model of pipeline {pipeline.name!r}")


def _check_truth(pipeline: Declaration) -> None:
    """Check that a label of a binary classifier is a boolean, and not a number such as 0 or 1."""
    model, label = pipeline.model, pipeline.label
    if pipeline.target_kind != "number" or pipeline.task is not Task.MULTICLASS or label is None:
        return
    if not isinstance(model, base.Classifier) or model._multiclass:
        return
    raise DeclarationError(
        f"the label {label.field!r} of pipeline {pipeline.name!r} is a number, and "
        f"{pipeline.model_name} predicts true or false: if it is 0 or 1, declare it as "
        f"{label.field}: Cast[bool]"
    )


def check_monitors(pipeline: Declaration) -> None:
    """Check that every monitor has a subject that exists."""
    subjects = [LOSS, *pipeline.columns]
    if pipeline.distributions is not None:
        _check_distributions(pipeline)
    for monitor in pipeline.monitors:
        if monitor.subject not in subjects:
            raise DeclarationError(
                f"monitor of {monitor.subject!r} in pipeline {pipeline.name!r}: there is no such "
                f"feature; monitor one of {', '.join(subjects)}"
            )
        if monitor.subject == LOSS:
            if pipeline.label is None:
                raise DeclarationError(
                    f"pipeline {pipeline.name!r} has no label, so there is no loss to monitor"
                )
            check_loss(pipeline.task, monitor.loss)
    Monitors(pipeline.monitors, pipeline.task, tuple(pipeline.columns), pipeline.slices)


def _check_distributions(pipeline: Declaration) -> None:
    declared, where = pipeline.distributions, f"distributions= of pipeline {pipeline.name!r}"
    if not isinstance(declared, Distributions):
        raise DeclarationError(f"{where} is {declared!r}: give Distributions(…)")
    declared.check(where)
    for name in declared.ignore:
        if name not in pipeline.columns:
            raise DeclarationError(f"{where} ignores {name!r}, but there is no such feature")


def check_slices(pipeline: Declaration) -> None:
    """Check that every slice has a subject that exists, and that there are metrics to slice."""
    where, names = f"pipeline {pipeline.name!r}", set[str]()
    for each in pipeline.slices:
        if not isinstance(each, SliceBy):
            raise DeclarationError(
                f"{each!r} in the slices of {where} is not a slice: use slice_by(…)"
            )
        if not pipeline.metric_names:
            raise DeclarationError(
                f"{each} of {where} has no metrics to slice: they need a label, and metrics= "
                "that is not empty"
            )
        if each.name in names:
            raise DeclarationError(
                f"two slices of {where} have the name {each.name!r}: give one of them another name="
            )
        names.add(each.name)
        _check_subject(pipeline, each, f"{each} of {where}")


def _check_subject(pipeline: Declaration, declared: SliceBy, where: str) -> None:
    schema, subject = pipeline.schema, declared.subject
    if declared.bins is not None and subject in pipeline.columns:
        return
    if subject == pipeline.time:
        raise DeclarationError(f"{where} is by the event's time: slice by hour_of_day instead")
    if subject not in schema.fields:
        if subject in pipeline.columns:
            raise DeclarationError(f"{where} is by a feature, which is a number: give bins=")
        raise DeclarationError(
            f"{where} is by an unknown field: {schema.type_name} has {', '.join(schema.fields)}; "
            f"and with bins= there are the features {', '.join(pipeline.columns)}"
        )
    field = schema.fields[subject]
    if declared.bins is None and subject in pipeline.text_fields:
        return  # a key, whose values are read as texts
    if field.kind == "number" and declared.bins is None:
        raise DeclarationError(f"{where} is by a number: give bins=")
    schema.require(subject, ("text", "boolean") if declared.bins is None else ("number",), where)
    if field.kind == "boolean" and not {*declared.names} <= {"true", "false"}:
        raise DeclarationError(f"{where} is by a boolean: its values are True and False")


def check_segments(pipeline: Declaration) -> None:
    """Check the field of ``model_key``, and the limits that go with it."""
    key, where = pipeline.model_key, f"pipeline {pipeline.name!r}"
    if key is None:
        if (pipeline.max_segments, pipeline.min_labels_per_segment) != (1000, 1):
            raise DeclarationError(
                f"max_segments= and min_labels_per_segment= of {where} are for "
                "a model per segment: give model_key= as well"
            )
        return
    where = f"model_key={key!r} of {where}"
    pipeline.schema.require_key(key, where)
    if isinstance(pipeline.label, Inline) and pipeline.label.field == key:
        raise DeclarationError(f"{where} is the label: a model per label has nothing to predict")
    for name, most in (("max_segments", MOST_SEGMENTS), ("min_labels_per_segment", 2**31)):
        value = getattr(pipeline, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise DeclarationError(
                f"{name}={value!r} for {where} must be an integer from 1 to {most:,}"
            )


def check_times(pipeline: Declaration) -> None:
    """Check the durations, and that no single event can make all others late."""
    lateness_ms = parse_duration_ms(pipeline.allowed_lateness)
    skew_ms = parse_duration_ms(pipeline.max_clock_skew)
    parse_duration_ms(pipeline.dedup_window)
    if skew_ms > lateness_ms:
        raise DeclarationError(
            f"max_clock_skew={pipeline.max_clock_skew!r} of pipeline {pipeline.name!r} is more "
            f"than allowed_lateness={pipeline.allowed_lateness!r}: one event that far ahead would "
            "make all others late"
        )


def _check_use_of_time(pipeline: Declaration, feature: Feature) -> None:
    """Only `hour_of_day` and `day_of_week` may use the time field: it may be text on the wire."""
    value = feature.value if isinstance(feature, KeyedFeature) else feature.field
    of_time = isinstance(feature, HourOfDay | DayOfWeek)
    if of_time and value != pipeline.time and value in pipeline.schema.fields:
        raise DeclarationError(
            f"{feature.columns()[0]} of {value!r} in pipeline {pipeline.name!r}: it uses only the "
            f"event's time, which is {pipeline.time!r}"
        )
    if not of_time and value == pipeline.time:
        raise DeclarationError(
            f"field {value!r} is the time of pipeline {pipeline.name!r} and can't be a feature: "
            "use hour_of_day, day_of_week or since_last"
        )


def _check_inline(pipeline: Declaration, label: Inline) -> None:
    kinds = ("number", "boolean", "text")
    pipeline.schema.require_present(label.field, kinds, f"inline({label.field!r})")  # type: ignore[arg-type]
    for feature in pipeline.features:
        value = feature.value if isinstance(feature, KeyedFeature) else feature.field
        entity = getattr(feature, "entity", "")
        if label.field in (value, *entity.split(JOINED)):
            raise DeclarationError(
                f"field {label.field!r} is the label of pipeline {pipeline.name!r}: a feature "
                "of it would reveal the label"
            )


def _check_label_window(pipeline: Declaration, window: str) -> None:
    """Check that there is a label with a number in it."""
    kind = pipeline.target_kind
    if kind is None:
        raise DeclarationError(
            f"{window} of target() in pipeline {pipeline.name!r} has no labels to use: give label="
        )
    if kind not in ("number", "boolean"):
        raise DeclarationError(
            f"{window} of target() in pipeline {pipeline.name!r}: the label must be a number or a "
            f"boolean, and it is {kind}"
        )


def _check_delayed(pipeline: Declaration, label: Delayed) -> None:
    if not (isinstance(label.type, type) and issubclass(label.type, Label)):
        raise DeclarationError(f"{label.type!r} must be a subclass of Label")
    schema = Schema.of(label.type)
    where = f"the label of pipeline {pipeline.name!r}"
    schema.require_present(label.field, ("number", "boolean", "text"), where)
    schema.require_key(label.id, where)
    _check_time(schema, label.time, where)
    for duration in (label.timeout, label.update_within, label.early_buffer):
        parse_duration_ms(duration)
    kind = schema.fields[label.field].kind
    if pipeline.candidates is not None:
        schema.require_present(label.field, ("text",), f"{where}, which names a candidate,")
        kind = "boolean"
        if label.default not in (None, False):
            raise DeclarationError(
                f"default={label.default!r} of {where}: a candidate that was not named was not "
                "chosen; leave default= out"
            )
    _check_default(label, kind, where)


_KINDS: dict[str, tuple[type, ...]] = {"boolean": (bool,), "number": (int, float), "text": (str,)}


def _check_default(label: Delayed, kind: str, where: str) -> None:
    """Check that the default is a valid label, and that late="update" has one to update."""
    default = label.default
    if default is not None:
        fits = isinstance(default, _KINDS[kind]) and (
            kind == "boolean" or default is not bool(default)
        )
        if not fits or (kind == "number" and not abs(float(default)) <= LARGEST):
            raise DeclarationError(
                f"default={default!r} of {where} is not a label: {label.field} is a {kind}"
            )
    if label.late == "correct":
        raise DeclarationError("late='correct' is now called late='update'")
    if label.late not in ("refuse", "update"):
        raise DeclarationError(
            f"late={label.late!r} of {where} is unknown: give 'refuse' (a late label is a dead "
            "letter) or 'update' (it updates what was learned)"
        )
    if label.late == "update" and default is None:
        raise DeclarationError(
            f"late='update' of {where} has nothing to update: give default=, the label to assume "
            "after timeout=, or a longer timeout="
        )


def _check_time(schema: Schema, name: str, where: str) -> None:
    """Check that a time field exists; it may be annotated as a number, text or a datetime."""
    schema.require_present(name, ("number", "text", "other"), where)
