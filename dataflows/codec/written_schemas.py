"""The schemas of what a pipeline writes, as they are registered: Avro and JSON Schema."""

from __future__ import annotations

import types
from functools import cache
from typing import Any, Union, get_args, get_origin

import msgspec

from anabranch.dataflows.messages.outputs import Prediction, Ranking
from anabranch.models.learners.learner import Task

_NAMESPACE = "anabranch"
_AVRO: dict[Any, str] = {
    bool: "boolean",
    int: "long",
    float: "double",
    str: "string",
    type(None): "null",
}
_PREDICTIONS: dict[Task, Any] = {
    Task.BINARY: bool | None,
    Task.REGRESSION: float | None,
    Task.ANOMALY: float | None,
}


@cache
def written_type(task: Task, ranks: bool) -> type[msgspec.Struct]:
    """The type of a pipeline's predictions, as narrow as its task allows."""
    if ranks:
        return Ranking
    prediction = _PREDICTIONS.get(task, bool | int | float | str | None)
    features = dict[str, float | None] | None
    return msgspec.defstruct(
        "Prediction",
        [("prediction", prediction), ("features", features, None)],
        bases=(Prediction,),
        kw_only=True,
        omit_defaults=True,
    )


def avro_schema(message: type[msgspec.Struct]) -> dict[str, Any]:
    """The Avro schema of a struct type.

    >>> class Point(msgspec.Struct):
    ...     x: float
    ...     name: str | None = None
    >>> avro_schema(Point)["fields"][1]
    {'name': 'name', 'type': ['null', 'string'], 'default': None}
    """
    return _record(message, set())


def _record(message: type[msgspec.Struct], seen: set[str]) -> dict[str, Any]:
    seen.add(message.__name__)
    fields = []
    for field in msgspec.structs.fields(message):
        entry: dict[str, Any] = {"name": field.encode_name, "type": _type(field.type, seen)}
        if field.encode_name == "ts":
            entry["type"] = {"type": "long", "logicalType": "timestamp-millis"}
        if not field.required and field.default is None:
            entry["default"] = None
        fields.append(entry)
    return {
        "type": "record",
        "name": message.__name__,
        "namespace": _NAMESPACE,
        "fields": fields,
    }


def _type(annotation: Any, seen: set[str]) -> Any:
    if annotation in _AVRO:
        return _AVRO[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        order = (type(None), bool, int, float, str)
        members = sorted(args, key=lambda each: order.index(each) if each in order else len(order))
        return [_type(each, seen) for each in members]
    if origin is dict:
        return {"type": "map", "values": _type(args[1], seen)}
    if origin is list:
        return {"type": "array", "items": _type(args[0], seen)}
    if annotation.__name__ in seen:
        return f"{_NAMESPACE}.{annotation.__name__}"
    return _record(annotation, seen)


def json_schema(message: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema of a struct type."""
    schema = msgspec.json.schema(message)
    reference = schema.pop("$ref", None)
    if reference is not None:
        name = reference.rpartition("/")[2]
        definitions = schema.pop("$defs")
        schema = {**definitions.pop(name), **schema}
        if definitions:
            schema["$defs"] = definitions
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def plain(message: msgspec.Struct) -> dict[str, Any]:
    """A struct as a dict of plain values, as writers take it; what is not a number is null."""
    built: dict[str, Any] = msgspec.to_builtins(message)
    features = built.get("features")
    if features:
        built["features"] = {k: (v if v == v else None) for k, v in features.items()}
    return built
