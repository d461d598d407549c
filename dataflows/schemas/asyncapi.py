"""An AsyncAPI 3.0 document of a pipeline: its topics, and the messages on each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from anabranch.dataflows.bus.headers import SOURCE
from anabranch.dataflows.codec.written_schemas import written_type
from anabranch.dataflows.declaration.declaration import Declaration
from anabranch.dataflows.declaration.formats import (
    Avro,
    CloudEvents,
    Connect,
    Csv,
    Debezium,
    MessagePack,
    Protobuf,
)
from anabranch.dataflows.declaration.topics import ROLES, role_named
from anabranch.dataflows.messages.control import Control
from anabranch.dataflows.messages.outputs import DeadLetter, DriftSignal, RolloutMessage
from anabranch.dataflows.schemas.json_schemas import (
    Dialect,
    Json,
    MessageSchema,
    input_schema,
    output_schema,
)
from anabranch.state.errors import InputError

_VERSION = "3.0.0"
_SUMMARIES = {
    "events": "Where events are read.",
    "labels": "Where labels are read.",
    "predictions": "A prediction for each event.",
    "drift": "What monitors have detected.",
    "dead_letters": "Messages that could not be used, with the reason.",
    "control": "Commands to rollouts.",
    "rollouts": "Decisions about rollouts.",
}
_INPUTS = ("events", "labels", "control")
_BINARY: tuple[tuple[type[Any], str], ...] = (
    (Avro, "application/vnd.apache.avro"),
    (Protobuf, "application/x-protobuf"),
    (MessagePack, "application/msgpack"),
    (Csv, "text/csv"),
)


@dataclass(frozen=True, slots=True)
class Channel:
    """A topic of a pipeline, for one purpose.

    Attributes:
        role: the purpose.
        id: its name in the document.
        address: the topic; None: all that match a pattern.
        messages: the kinds of messages on it: of events, of labels, …
    """

    role: str
    id: str
    address: str | None
    messages: tuple[str, ...]


def asyncapi(pipeline: Declaration) -> Json:
    """The document, as it is written in JSON."""
    schemas: dict[str, Json] = {}
    messages: dict[str, Json] = {}
    names: dict[str, str] = {}
    for role in _roles(pipeline):
        found = message_schema(pipeline, role, "asyncapi")
        name = found.name if found.name not in messages else f"{found.name}Message"
        names[role] = name
        schemas |= found.definitions
        schemas[name] = found.schema
        messages[name] = _message(pipeline, role, name, found)
    channels: dict[str, Json] = {}
    operations: dict[str, Json] = {}
    for channel in _channels(pipeline):
        own = {names[role]: _reference("messages", names[role]) for role in channel.messages}
        summary = _SUMMARIES[channel.role]
        channels[channel.id] = {"address": channel.address, "messages": own, "summary": summary}
        if channel.address is None:
            given = pipeline.topics.patterns[channel.role].expression
            channels[channel.id]["description"] = f"All topics whose name matches {given}"
        action = "receive" if channel.role in _INPUTS else "send"
        operations[f"{action}-{channel.id}"] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{channel.id}"},
            "messages": [{"$ref": f"#/channels/{channel.id}/messages/{name}"} for name in own],
        }
    return {
        "asyncapi": _VERSION,
        "info": {
            "title": pipeline.name,
            "version": "1.0.0",
            "description": f"The topics of pipeline {pipeline.name}, and the messages on them.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


def topic_schema(pipeline: Declaration, topic: str) -> Json:
    """The JSON Schema of the messages on a topic, which is named by itself or by its purpose.

    Raises:
        InputError: the pipeline has no such topic.
    """
    channels = list(_channels(pipeline))
    role = role_named(topic)
    for channel in channels:
        if topic == channel.address or role == channel.role:
            found = [message_schema(pipeline, each) for each in channel.messages]
            if len(found) == 1:
                return found[0].alone()
            both = found[0].alone()
            both |= {"anyOf": [each.schema for each in found], "title": channel.id}
            for name in ("type", "properties", "required", "additionalProperties", "description"):
                both.pop(name, None)
            definitions = {k: v for each in found for k, v in each.definitions.items()}
            return both | ({"$defs": definitions} if definitions else {})
    listed = ", ".join(
        f"{channel.role.replace('_', '-')} ({channel.address or 'a pattern'})"
        for channel in channels
    )
    raise InputError(f"pipeline {pipeline.name!r} has no topic {topic!r}: it has {listed}")


def message_schema(pipeline: Declaration, role: str, dialect: Dialect = "2020-12") -> MessageSchema:
    """The schema of the messages for one purpose, one of `declaration.topics.ROLES`."""
    if role in ("events", "labels"):
        return input_schema(pipeline, labels=role == "labels", dialect=dialect)
    return output_schema(_output_type(pipeline, role), dialect)


def _output_type(pipeline: Declaration, role: str) -> type[msgspec.Struct]:
    if role == "predictions":
        return written_type(pipeline.task, pipeline.candidates is not None)
    types: dict[str, type[msgspec.Struct]] = {
        "drift": DriftSignal,
        "dead_letters": DeadLetter,
        "control": Control,
        "rollouts": RolloutMessage,
    }
    return types[role]


def _roles(pipeline: Declaration) -> list[str]:
    without = set() if pipeline.has_label_topic else {"labels"}
    if not pipeline.has_rollouts:
        without |= {"control", "rollouts"}
    return [role for role in ROLES if role not in without]


def _channels(pipeline: Declaration) -> Iterator[Channel]:
    topics = pipeline.topics
    for role in _roles(pipeline):
        if role == "labels" and pipeline.shares_topics:
            continue
        kinds = ("events", "labels") if role == "events" and pipeline.shares_topics else (role,)
        if role in topics.patterns:
            yield Channel(role, role, None, kinds)
            continue
        many = {"events": topics.all_events, "labels": topics.all_labels}
        found = many.get(role) or (topics.of_role(role),)
        for number, topic in enumerate(found, 1):
            name = role.replace("_", "-")
            yield Channel(role, name if len(found) == 1 else f"{name}-{number}", topic, kinds)


def _message(pipeline: Declaration, role: str, name: str, found: MessageSchema) -> Json:
    message: Json = {
        "name": name,
        "contentType": _content_type(pipeline, role),
        "payload": _reference("schemas", name),
    }
    headers = found.headers
    if role not in _INPUTS:
        place = {"type": "string", "description": "its event: topic/partition/offset"}
        headers = {"type": "object", "properties": {SOURCE: place}}
    if headers:
        message["headers"] = headers
    if message["contentType"] != "application/json":
        message["description"] = "The schema is that of the fields, whatever their encoding."
    return message


def _content_type(pipeline: Declaration, role: str) -> str:
    topics = pipeline.topics
    if role not in ("events", "labels", "predictions"):
        return "application/json"
    topic = topics.predictions
    if role != "predictions":
        topic = (topics.all_events if role == "events" else topics.all_labels)[0]
    declared = pipeline.format_of(topic, labels=role == "labels")
    if isinstance(declared, CloudEvents) and declared.mode == "structured":
        return "application/cloudevents+json"
    while isinstance(declared, Connect | Debezium | CloudEvents):
        declared = declared.format
    for kind, content_type in _BINARY:
        if isinstance(declared, kind):
            return content_type
    name = getattr(declared, "name", "")
    return "application/json" if name == "json" else "application/octet-stream"


def _reference(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
