"""All that is checked when a pipeline is declared; what can't work is said in one sentence."""

from __future__ import annotations

import re

from river import base

from anabranch.dataflows.declaration.declaration import TIME_UNITS_MS, Declaration
from anabranch.dataflows.declaration.features import DayOfWeek, Feature, HourOfDay, KeyedFeature
from anabranch.dataflows.declaration.schema import Schema
from anabranch.dataflows.messages.inputs import Delayed, Inline, Label
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
"""So many can have a model, at most; each costs memory, and time in every commit."""

_LABEL_TYPES: dict[str, type] = {"boolean": bool, "text": str}
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,99}")


def check_names(pipeline: Declaration) -> None:
    """The pipeline's name, and the fields that hold an event's id, time and key."""
    name, schema = pipeline.name, pipeline.schema
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DeclarationError(
            f"pipeline name {name!r} can't be a topic's: use a lower-case letter, then "
            "lower-case letters, digits, - and _"
        )
    where = f"pipeline {name!r}"
    schema.require_present(pipeline.id, ("text",), f"{where} (id=)")
    _check_time(schema, pipeline.time, f"{where} (time=)")
    if pipeline.time_unit not in TIME_UNITS_MS:
        raise DeclarationError(
            f"time_unit {pipeline.time_unit!r} of {where} is none of {', '.join(TIME_UNITS_MS)}"
        )
    if pipeline.key is not None:
        schema.require_present(pipeline.key, ("text",), f"{where} (key=)")


def check_candidates(pipeline: Declaration) -> None:
    """What is ranked is a list of texts, and a label can name one of them."""
    name, where = pipeline.candidates, f"pipeline {pipeline.name!r}"
    if name is None:
        return
    schema = pipeline.schema
    found = schema.require_present(name, ("text",), f"{where} (candidates=)")
    if not found.is_list:
        raise DeclarationError(
            f"candidates={name!r} of {where} must be a list of texts, such as list[str]: "
            f"{schema.type_name}.{name} is one text"
        )
    for what in ("id", "time", "key", "rollout_key"):
        field = getattr(pipeline, what)
        if field is not None and field in schema.fields and schema.fields[field].is_list:
            raise DeclarationError(f"{what}={field!r} of {where} must be one value, not a list")
    most = pipeline.max_candidates
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= MOST_CANDIDATES - 1:
        raise DeclarationError(
            f"max_candidates={most!r} of {where} must be from 1 to {MOST_CANDIDATES - 1:,}"
        )
    if not isinstance(pipeline.label, Delayed):
        raise DeclarationError(
            f"{where} ranks candidates, and its label comes later: give label=Choice.target(…), "
            "with the field that names the candidate that was chosen"
        )


def check_features(pipeline: Declaration) -> None:
    """Every feature finds what it needs, and no column is there twice."""
    if not pipeline.features:
        raise DeclarationError(f"pipeline {pipeline.name!r} declares no features")
    seen: set[str] = set()
    for feature in pipeline.features:
        if not hasattr(feature, "columns"):
            raise DeclarationError(
                f"{feature!r} in the features of pipeline {pipeline.name!r} is no feature: "
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


def check_label(pipeline: Declaration) -> None:
    """The label is one that can be learned, and no feature gives it away."""
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
    """What the model is asked, by the kind of the label's values."""
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
    """The model can do the task, and the metrics can score it."""
    if pipeline.label is None and not isinstance(
        pipeline.model, base.AnomalyDetector | base.AnomalyFilter
    ):
        raise DeclarationError(
            f"pipeline {pipeline.name!r} has no label for {pipeline.model_name} to learn, and only "
            "an anomaly detector learns without: give label="
        )
    check_task(pipeline.model, pipeline.task)
    if pipeline.label is None and pipeline.metric_names:
        raise DeclarationError(
            f"pipeline {pipeline.name!r} has no label, so there is nothing to score: leave out "
            "metrics="
        )
    for name in pipeline.metric_names:
        metric(name, pipeline.task)
    if pipeline.imbalance is not None:
        label = _LABEL_TYPES.get(pipeline.target_kind or "", float)
        where = f"pipeline {pipeline.name!r}"
        check_imbalance(pipeline.imbalance, pipeline.model, pipeline.task, label, where)


def check_monitors(pipeline: Declaration) -> None:
    """Every monitor watches something that is there."""
    known = [LOSS, *pipeline.columns]
    if pipeline.distributions is not None:
        _check_distributions(pipeline)
    for monitor in pipeline.monitors:
        if monitor.subject not in known:
            raise DeclarationError(
                f"monitor of {monitor.subject!r} in pipeline {pipeline.name!r}: there is no such "
                f"feature; watch one of {', '.join(known)}"
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
            raise DeclarationError(f"{where} ignores {name!r}, and there is no such feature")


def check_slices(pipeline: Declaration) -> None:
    """Every slice is by something that is there, and there is a quality to tell apart."""
    where, names = f"pipeline {pipeline.name!r}", set[str]()
    for each in pipeline.slices:
        if not isinstance(each, SliceBy):
            raise DeclarationError(f"{each!r} in the slices of {where} is none: use slice_by(…)")
        if not pipeline.metric_names:
            raise DeclarationError(
                f"{each} of {where} has no quality to tell apart: there are no metrics, which need "
                "a label"
            )
        if each.name in names:
            raise DeclarationError(
                f"two slices of {where} are called {each.name!r}: give one of them another name="
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
            f"{where} is by something unknown: {schema.type_name} has {', '.join(schema.fields)}; "
            f"and with bins= there are the features {', '.join(pipeline.columns)}"
        )
    field = schema.fields[subject]
    if field.kind == "number" and declared.bins is None:
        raise DeclarationError(f"{where} is by a number: give bins=")
    schema.require(subject, ("text", "boolean") if declared.bins is None else ("number",), where)
    if field.kind == "boolean" and not {*declared.names} <= {"true", "false"}:
        raise DeclarationError(f"{where} is by a boolean: its values are True and False")


def check_segments(pipeline: Declaration) -> None:
    """The field of `model_key` can be one, and the numbers beside it are numbers."""
    key, where = pipeline.model_key, f"pipeline {pipeline.name!r}"
    if key is None:
        if (pipeline.max_segments, pipeline.min_labels_per_segment) != (1000, 1):
            raise DeclarationError(
                f"max_segments= and min_labels_per_segment= of {where} are for "
                "a model per segment: give model_key= as well"
            )
        return
    where = f"model_key={key!r} of {where}"
    pipeline.schema.require_present(key, ("text", "boolean"), where)
    if isinstance(pipeline.label, Inline) and pipeline.label.field == key:
        raise DeclarationError(f"{where} is the label: a model per label has nothing to predict")
    for name, most in (("max_segments", MOST_SEGMENTS), ("min_labels_per_segment", 2**31)):
        value = getattr(pipeline, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise DeclarationError(
                f"{name}={value!r} for {where} must be an integer from 1 to {most:,}"
            )


def check_times(pipeline: Declaration) -> None:
    """Durations are durations, and no event can make all others late."""
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
    """The event's time may be text on the wire: it is for `hour_of_day` and `day_of_week` alone."""
    value = feature.value if isinstance(feature, KeyedFeature) else feature.field
    of_time = isinstance(feature, HourOfDay | DayOfWeek)
    if of_time and value != pipeline.time and value in pipeline.schema.fields:
        raise DeclarationError(
            f"{feature.columns()[0]} of {value!r} in pipeline {pipeline.name!r}: it is made of the "
            f"event's time alone, which is {pipeline.time!r}"
        )
    if not of_time and value == pipeline.time:
        raise DeclarationError(
            f"field {value!r} is the time of pipeline {pipeline.name!r} and no feature by itself: "
            "use hour_of_day, day_of_week or since_last"
        )


def _check_inline(pipeline: Declaration, label: Inline) -> None:
    kinds = ("number", "boolean", "text")
    pipeline.schema.require_present(label.field, kinds, f"inline({label.field!r})")  # type: ignore[arg-type]
    for feature in pipeline.features:
        value = feature.value if isinstance(feature, KeyedFeature) else feature.field
        if label.field in (value, getattr(feature, "entity", None)):
            raise DeclarationError(
                f"field {label.field!r} is the label of pipeline {pipeline.name!r}: a feature "
                "made of it would give the answer away"
            )


def _check_label_window(pipeline: Declaration, window: str) -> None:
    """There is a label, and it can be counted."""
    kind = pipeline.target_kind
    if kind is None:
        raise DeclarationError(
            f"{window} of target() in pipeline {pipeline.name!r} has no labels to be made of: give "
            "label="
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
    schema.require_present(label.id, ("text",), where)
    _check_time(schema, label.time, where)
    for duration in (label.timeout, label.update_within, label.early_buffer):
        parse_duration_ms(duration)
    kind = schema.fields[label.field].kind
    if pipeline.candidates is not None:
        schema.require_present(label.field, ("text",), f"{where}, which names a candidate,")
        kind = "boolean"
        if label.default not in (None, False):
            raise DeclarationError(
                f"default={label.default!r} of {where}: a candidate that nobody chose was not "
                "chosen; leave it out"
            )
    _check_default(label, kind, where)


_KINDS: dict[str, tuple[type, ...]] = {"boolean": (bool,), "number": (int, float), "text": (str,)}


def _check_default(label: Delayed, kind: str, where: str) -> None:
    """What is assumed is a label like any other, and only what was assumed can be corrected."""
    default = label.default
    if default is not None:
        fits = isinstance(default, _KINDS[kind]) and (
            kind == "boolean" or default is not bool(default)
        )
        if not fits or (kind == "number" and not abs(float(default)) <= LARGEST):
            raise DeclarationError(
                f"default={default!r} of {where} is no label: {label.field} is a {kind}"
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
    """A time may be annotated as a number, text or a datetime, but it has to be there."""
    schema.require_present(name, ("number", "text", "other"), where)
