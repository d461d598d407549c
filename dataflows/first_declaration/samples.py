"""Reads a sample of a topic or file into plain fields, and recognises the envelope around them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from anabranch.dataflows.bus import Bus, UnreachableError
from anabranch.dataflows.check.sample import sample_of_topics
from anabranch.dataflows.codec import make_codec
from anabranch.dataflows.codec.avro_codec import AvroCodec
from anabranch.dataflows.codec.foreign_formats import foreign_format
from anabranch.dataflows.codec.protocol import Codec
from anabranch.dataflows.codec.schema_registry import open_registry, split_prefix
from anabranch.dataflows.declaration.formats import Avro, Json, JsonSchema
from anabranch.dataflows.declaration.shape import Step
from anabranch.producers.files.csv_files import csv_frames
from anabranch.producers.files.encodings import check_encoding
from anabranch.producers.files.fields import FileFields
from anabranch.producers.files.formats import format_of
from anabranch.producers.files.tables import parquet_frames, prepare_frame
from anabranch.state.errors import InputError

_NO_COLUMN = "$"  # of which no column has the name: nothing is known of the columns yet
_BOM = b"\xef\xbb\xbf"


@dataclass(slots=True)
class Fields:
    """A sample of messages as fields.

    Attributes:
        source: the name of the topic or file.
        is_file: whether it is a file.
        messages: the fields of each; without the envelope, if there is one.
        format: the declaration of the format, such as ``Debezium()``; empty for plain JSON.
        imports: the names in it.
        top: of each message with an envelope, what is beside its fields.
        unreadable: how many messages could not be decoded.
        typed: whether values are converted to the declared type as they are read: a CSV's.
        skipped: how many changes of rows are left out by the format.
        nullable: the paths that may be null, by the schema that the messages were written with.
    """

    source: str
    is_file: bool
    messages: list[dict[str, Any]]
    format: str = ""
    imports: tuple[str, ...] = ()
    top: list[dict[str, Any]] = field(default_factory=list)
    unreadable: int = 0
    typed: bool = False
    skipped: int = 0
    nullable: frozenset[tuple[Step, ...]] = frozenset()


def fields_of_file(path: Path, rows: int) -> Fields:
    """The first rows of a file.

    Raises:
        InputError: it can't be read, or has no rows.
    """
    kind = format_of(path)
    if kind == "jsonl":
        messages, unreadable = _json_lines(path, rows)
        return _opened(Fields(str(path), True, messages, unreadable=unreadable))
    nothing = FileFields(time=_NO_COLUMN, id=_NO_COLUMN)
    frames = csv_frames(path, nothing) if kind == "csv" else parquet_frames(path)
    messages = []
    for frame in frames:
        frame = prepare_frame(path, frame, nothing, 0)
        head = frame.head(rows - len(messages))
        messages += [{k: _plain(v) for k, v in row.items()} for row in head.to_dicts()]
        if len(messages) >= rows:
            break
    if not messages:
        raise InputError(f"{path} has columns but no rows: there is nothing to look at")
    return Fields(str(path), True, messages, typed=kind == "csv")


def fields_of_topic(bus: Bus, topic: str, rows: int, registry: str | None) -> Fields:
    """Messages from the start and the end of a topic.

    Raises:
        InputError: none of them can be decoded.
        BusError: the topic does not exist, or the registry does not respond.
    """
    values = sample_of_topics(bus, [topic], rows).values
    codec, declared, imports = _codec(values, registry)
    decode: Callable[[bytes], Any] = codec.decoder(dict)
    messages: list[dict[str, Any]] = []
    unreadable, why = 0, ""
    for value in values:
        if not value:  # a tombstone
            continue
        try:
            message = decode(value)
        except UnreachableError:
            raise
        except codec.errors as error:
            unreadable += 1
            why = why or foreign_format(value) or str(error)
            continue
        messages.append({k: _plain(v) for k, v in message.items()})
    if not messages:
        hint = "" if registry else "; give --registry URL if there is a schema registry"
        raise InputError(f"none of the messages of topic {topic!r} can be read: {why}{hint}")
    fields = Fields(topic, False, messages, declared, imports, unreadable=unreadable)
    if isinstance(codec, AvroCodec) and registry is not None:
        fields.nullable = _nullable(registry, next(value for value in values if value))
    return _opened(fields, inner=declared)


def _nullable(registry: str, value: bytes) -> frozenset[tuple[Step, ...]]:
    """The paths that may be null by the registered schema of a message."""
    text = open_registry(registry).schema(split_prefix(value)[0]).text
    return frozenset(_nullable_in(msgspec.json.decode(text), ()))


def _nullable_in(schema: Any, above: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    for each in schema.get("fields", ()) if isinstance(schema, dict) else ():
        steps = (*above, each["name"])
        kinds = each["type"] if isinstance(each["type"], list) else [each["type"]]
        if "null" in kinds:
            yield steps
        for kind in kinds:
            yield from _nullable_in(kind, steps)


def _codec(values: Any, registry: str | None) -> tuple[Codec, str, tuple[str, ...]]:
    """The codec of messages, and the declaration of their format."""
    first = next((value for value in values if value), b"")
    if registry is None or first[:1] != b"\0":
        return make_codec(Json()), "", ()
    follows = first[5:].lstrip()[:1]
    if follows == b"{":
        return make_codec(JsonSchema(registry)), f'JsonSchema(registry="{registry}")', (
            "JsonSchema",
        )  # fmt: skip
    return make_codec(Avro(registry)), f'Avro(registry="{registry}")', ("Avro",)


def _json_lines(path: Path, rows: int) -> tuple[list[dict[str, Any]], int]:
    check_encoding(path)
    messages: list[dict[str, Any]] = []
    unreadable = 0
    with path.open("rb") as file:
        for number, line in enumerate(islice((each for each in file if each.strip()), rows)):
            line = line.removeprefix(_BOM) if number == 0 else line
            try:
                messages.append(msgspec.json.decode(line, type=dict))
            except (msgspec.DecodeError, UnicodeDecodeError):
                unreadable += 1
    if not messages:
        raise InputError(f"no line of {path} is a JSON object")
    return messages, unreadable


def _opened(fields: Fields, inner: str = "") -> Fields:
    """The fields without their envelope; the same if there is none."""
    messages = fields.messages
    wrapped = all(set(each) >= {"schema", "payload"} and len(each) == 2 for each in messages)
    tops = [each["payload"] for each in messages] if wrapped else messages
    tops = [each for each in tops if isinstance(each, dict)]
    if tops and all(_is_change(each) for each in tops):
        return _of_changes(fields, tops, inner)
    if wrapped and tops:
        fields.messages = tops
        fields.format, fields.imports = f"Connect({inner})", ("Connect", *fields.imports)
    elif not inner and all(
        "specversion" in each and isinstance(each.get("data"), dict) for each in messages
    ):
        fields.top = [{k: v for k, v in each.items() if k != "data"} for each in messages]
        fields.messages = [each["data"] for each in messages]
        fields.format, fields.imports = "CloudEvents()", ("CloudEvents",)
    return fields


def _is_change(message: Mapping[str, Any]) -> bool:
    return "op" in message and ("after" in message or "before" in message)


def _of_changes(fields: Fields, tops: list[dict[str, Any]], inner: str) -> Fields:
    """Rows of a database that were created or read by a snapshot, or all, if none was."""
    created = [top for top in tops if top["op"] in ("c", "r") and isinstance(top["after"], dict)]
    arguments = [inner] if inner else []
    if created:
        arguments.append('operations=("c", "r")')
    taken = created or [top for top in tops if isinstance(top.get("after"), dict)]
    if not taken:
        raise InputError(
            f"all changes in {fields.source} are deletes: there are no rows to look at"
        )
    fields.skipped = len(tops) - len(taken)
    fields.nullable = frozenset(each[1:] for each in fields.nullable if each[0] == "after")
    fields.messages = [top["after"] for top in taken]
    fields.top = [{k: v for k, v in top.items() if k not in ("before", "after")} for top in taken]
    fields.format = f"Debezium({', '.join(arguments)})"
    fields.imports = ("Debezium", *fields.imports)
    return fields


def _plain(value: Any) -> Any:
    """A value as it is in a JSON message: times as texts."""
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value
