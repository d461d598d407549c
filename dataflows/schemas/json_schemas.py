"""JSON Schemas of what a pipeline reads and publishes, as its messages are written.

An input's schema has what its type declares: a field by a path is where the path leads, and what a
`Cast` takes is allowed. Fields that the type does not have are allowed unless it forbids them.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from anabranch.dataflows.codec.envelope_codec import derived
from anabranch.dataflows.declaration.declaration import Declaration
from anabranch.dataflows.declaration.formats import CloudEvents, Connect, Debezium
from anabranch.dataflows.declaration.shape import Path, Shape, ShapeField, Step, members_of
from anabranch.dataflows.messages.inputs import Delayed

Json = dict[str, Any]
Dialect = Literal["2020-12", "asyncapi"]
"""Of JSON Schema: the current one, or that of AsyncAPI 3.0, which is a superset of draft 07."""

_REFERENCES = {"2020-12": "#/$defs/{name}", "asyncapi": "#/components/schemas/{name}"}
_UNITS = {"ms": "milliseconds", "s": "seconds", "us": "microseconds", "ns": "nanoseconds"}


@dataclass(slots=True)
class MessageSchema:
    """The schema of one type of message.

    Attributes:
        name: of the type.
        schema: of its payload.
        definitions: what the schema refers to, by name.
        headers: of its headers; empty if none are read or written.
    """

    name: str
    schema: Json
    definitions: dict[str, Json]
    headers: Json = field(default_factory=dict)

    def alone(self) -> Json:
        """One JSON Schema with all that it refers to."""
        whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **self.schema}
        if self.definitions:
            whole["$defs"] = self.definitions
        return whole


def input_schema(
    pipeline: Declaration, *, labels: bool, dialect: Dialect = "2020-12"
) -> MessageSchema:
    """The schema of a pipeline's events, or of its labels."""
    message: type[msgspec.Struct] = pipeline.event
    time, topic = pipeline.time, pipeline.topics.events
    if labels:
        assert isinstance(pipeline.label, Delayed)
        message, time, topic = pipeline.label.type, pipeline.label.time, pipeline.topics.labels
    envelope = pipeline.format_of(topic, labels=labels)
    prefix = _prefix(envelope)
    in_envelope: type[msgspec.Struct] = derived(message, prefix) if prefix else message
    shape = Shape.of(in_envelope)
    schemas, definitions = msgspec.json.schema_components(
        [each.annotation for each in shape.fields], ref_template=_REFERENCES[dialect]
    )
    top: Json = {"title": message.__name__, **_object()}
    if message.__doc__ and message.__doc__.strip():
        top["description"] = message.__doc__.strip().split("\n")[0]
    headers = _object()
    for each, schema in zip(shape.fields, schemas, strict=True):
        own = _time_schema(pipeline) if each.name == time else _allowed(each, schema)
        if not each.required and _is_plain(each.default):
            own = {**own, "default": each.default}
        if each.origin == "header":
            headers["properties"][each.header] = own
            if each.required and not each.nullable:
                headers.setdefault("required", []).append(each.header)
        for one in each.paths:
            _plant(top, one, own, _is_required(each), dialect)
    if message.__struct_config__.forbid_unknown_fields and not prefix:
        top["additionalProperties"] = False
    if isinstance(envelope, Debezium):
        _complete_change(top, envelope)
    return MessageSchema(
        message.__name__, top, definitions, headers if headers["properties"] else {}
    )


def output_schema(message: type[msgspec.Struct], dialect: Dialect = "2020-12") -> MessageSchema:
    """The schema of a type of message that a pipeline publishes, or takes as a command."""
    template = _REFERENCES[dialect]
    _, definitions = msgspec.json.schema_components([message], ref_template=template)
    own = definitions.pop(message.__name__)
    return MessageSchema(message.__name__, own, definitions)


def _complete_change(top: Json, envelope: Debezium) -> None:
    """Add the operation to the schema of a change event; the row of a delete is in ``before``."""
    top["properties"]["op"] = {"enum": list(envelope.operations)}
    top.setdefault("required", []).append("op")
    top["description"] = (
        "A change event of Debezium, or the same in `payload` beside its `schema`. Changes with "
        "other operations are skipped."
    )
    if "d" not in envelope.operations:
        return
    row = top["properties"].pop("after")
    top["required"] = [name for name in top["required"] if name != "after"]
    deleted = {"properties": {"op": {"const": "d"}, "before": row}, "required": ["before"]}
    others = [each for each in envelope.operations if each != "d"]
    changed = {"properties": {"op": {"enum": others}, "after": row}, "required": ["after"]}
    top["anyOf"] = [deleted, changed] if others else [deleted]


def _prefix(envelope: object) -> tuple[str, ...]:
    """The keys that lead to the fields in an envelope."""
    if isinstance(envelope, Debezium):
        return ("after",)
    if isinstance(envelope, Connect):
        return ("payload",)
    if isinstance(envelope, CloudEvents) and envelope.mode == "structured":
        return ("data",)
    return ()


def _object() -> Json:
    return {"type": "object", "properties": {}}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _is_required(each: ShapeField) -> bool:
    """Whether a message without it is refused: by a path, a field that may be null is then null."""
    return each.required and (each.is_plain or not each.nullable)


def _time_schema(pipeline: Declaration) -> Json:
    unit = _UNITS[pipeline.time_unit]
    return {
        "type": ["number", "string"],
        "description": f"the event time: {unit} since 1970, as a number or its text, or ISO-8601",
    }


def _allowed(each: ShapeField, schema: Json) -> Json:
    """What a field takes: of one that is cast, the other types as well."""
    if not each.cast:
        return schema
    members, _ = members_of(each.annotation)
    others: list[Json] = []
    if set(members) & {int, float, decimal.Decimal}:
        others = [{"type": ["number", "string"], "description": "a number, or the text of one"}]
    elif bool in members:
        others = [{"enum": [0, 1]}, {"type": "string", "description": "true, false, yes, no, …"}]
    elif str in members:
        others = [{"type": ["number", "boolean"]}]
    elif set(members) & {datetime.datetime, datetime.date}:
        others = [{"type": ["number", "string"], "description": "ISO-8601, or epoch milliseconds"}]
    else:
        others = [{"type": ["number", "string"]}]
    if set(members) & {int, float, decimal.Decimal}:
        inner = [*others, *([{"type": "null"}] if each.nullable else [])]
        return inner[0] if len(inner) == 1 else {"anyOf": inner}
    return {"anyOf": [schema, *others]}


def _plant(top: Json, one: Path, leaf: Json, required: bool, dialect: Dialect) -> None:
    """Put the schema of a field where its path leads; what is on the way may be absent or null.

    That is, unless the field is required.
    """
    at = top
    for depth, step in enumerate(one.steps, 1):
        is_last = depth == len(one.steps)
        below = leaf if is_last else _container(one.steps[depth])
        at = _child(at, step, below, dialect, is_last=is_last)
        if required:
            _require(top, one.steps[:depth], dialect)
    if not required and len(one.steps) > 1:
        _loosen(top, one.steps[:-1], dialect)


def _container(step: Step) -> Json:
    return {"type": "array"} if isinstance(step, int) else _object()


def _child(at: Json, step: Step, below: Json, dialect: Dialect, *, is_last: bool) -> Json:
    """The schema at a key or index of ``at``, which becomes ``below`` where there is none."""
    if isinstance(step, str):
        properties = at.setdefault("properties", {})
        if is_last or step not in properties:
            properties[step] = below
        found: Json = properties[step]
        return found
    if step < 0:  # counted from the end, which no schema can say
        return below
    entries = at.setdefault("prefixItems" if dialect == "2020-12" else "items", [])
    while len(entries) <= step:
        entries.append({})
    if is_last or not entries[step]:
        entries[step] = below
    entry: Json = entries[step]
    return entry


def _require(top: Json, steps: Sequence[Step], dialect: Dialect) -> None:
    parent = _find(top, steps[:-1], dialect)
    if parent is None:
        return
    parent.pop("x-nullable", None)
    if isinstance(parent.get("type"), list):
        parent["type"] = parent["type"][0]
    last = steps[-1]
    if isinstance(last, str):
        names = parent.setdefault("required", [])
        if last not in names:
            names.append(last)
    else:
        least = last + 1 if last >= 0 else -last
        parent["minItems"] = max(parent.get("minItems", 0), least)


def _loosen(top: Json, steps: Sequence[Step], dialect: Dialect) -> None:
    """Let the objects and arrays on the way be null, as far as nothing below is required."""
    for depth in range(1, len(steps) + 1):
        found = _find(top, steps[:depth], dialect)
        if found is None or "required" in found or "minItems" in found:
            continue
        if isinstance(found.get("type"), str):
            found["type"] = [found["type"], "null"]


def _find(top: Json, steps: Sequence[Step], dialect: Dialect) -> Json | None:
    at: Any = top
    for step in steps:
        if isinstance(step, str):
            at = at.get("properties", {}).get(step)
        else:
            entries = at.get("prefixItems" if dialect == "2020-12" else "items", [])
            at = entries[step] if 0 <= step < len(entries) else None
        if at is None:
            return None
    return at if isinstance(at, dict) else None
