"""What a message type declares, as reading a file needs it: names in the rows, and kinds."""

from __future__ import annotations

from datetime import UTC, tzinfo

import msgspec

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.declaration.schema import Field, Schema
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.producers.files.fields import ColumnKind, FileFields

_KEY = "$key"


def event_fields(pipeline: Pipeline) -> FileFields:
    """The fields of files of a pipeline's events, as they are published."""
    return file_fields(
        pipeline.event,
        id=pipeline.id,
        time=pipeline.time,
        key=pipeline.partition_field,
        time_unit=pipeline.time_unit,
        zone=pipeline.zone,
    )


def label_fields(pipeline: Pipeline) -> FileFields:
    """The fields of files of a pipeline's delayed labels, as they are published."""
    label = pipeline.label
    assert isinstance(label, Delayed)
    return file_fields(
        label.type,
        id=label.id,
        time=label.time,
        key=label.id,
        time_unit=pipeline.time_unit,
        zone=pipeline.zone,
    )


def file_fields(
    message: type[msgspec.Struct],
    *,
    id: str,
    time: str,
    key: str | None = None,
    time_unit: str = "ms",
    zone: tzinfo = UTC,
) -> FileFields:
    """The fields of files whose rows are messages of a type.

    Args:
        message: the type.
        id, time, key: the names that it has for them; in the rows they are as it encodes them.
        time_unit, zone: see `FileFields`.
    """
    places = encoded_names(message)
    # A field that is the message's key is the column of its name.
    in_key = next((name for name, place in places.items() if place == _KEY), None)
    declared = Schema.of(message).fields
    return FileFields(
        time=places[time],
        time_unit=time_unit,
        zone=zone,
        id=places[id],
        key=in_key or (None if key is None else places[key]),
        kinds={places[name]: _kind(field) for name, field in declared.items()},
        message=message.__name__,
    )


def encoded_names(message: type[msgspec.Struct]) -> dict[str, str]:
    """Field → its name in messages."""
    return {field.name: field.encode_name for field in msgspec.structs.fields(message)}


def _kind(field: Field) -> ColumnKind:
    if field.is_list:
        return "other"
    if field.kind == "number":
        return "integer" if field.integer else "number"
    return field.kind
