"""What a message type declares, as reading a file needs it: names in the rows, and kinds."""

from __future__ import annotations

from datetime import UTC, tzinfo

import msgspec

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.declaration.schema import Field, Schema
from anabranch.dataflows.declaration.shape import Path, Shape
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.producers.files.fields import ColumnKind, FileFields


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
    columns = column_names(message)
    shape, declared = Shape.of(message), Schema.of(message).fields
    kinds = {columns[name]: _kind(field) for name, field in declared.items()}
    # A field that is the message's key is the column of its name.
    in_key = next((each.name for each in shape.fields if each.origin == "key"), None)
    parts = [path for each in shape.fields if len(each.paths) > 1 for path in each.paths]
    return FileFields(
        time=columns[time],
        time_unit=time_unit,
        zone=zone,
        id=columns[id],
        key=in_key or (None if key is None else columns[key]),
        kinds=kinds | {_column((path,)): "text" for path in parts},
        paths={
            columns[each.name]: each.paths
            for each in shape.fields
            if each.paths and each.paths != (Path((columns[each.name],)),)
        },
        message=message.__name__,
    )


def column_names(message: type[msgspec.Struct]) -> dict[str, str]:
    """Field → the column that holds it: its key in messages, or the path to it."""
    fields = Shape.of(message).fields
    return {each.name: _column(each.paths) if each.paths else each.place for each in fields}


def _column(paths: tuple[Path, ...]) -> str:
    if len(paths) == 1 and len(paths[0].steps) == 1:
        return str(paths[0].steps[0])
    return " + ".join(map(str, paths))


def _kind(field: Field) -> ColumnKind:
    if field.is_list:
        return "other"
    if field.kind == "number":
        return "integer" if field.integer else "number"
    return field.kind
