"""Protocol Buffers: the runtime, with a compiled fast path for whole batches."""

from __future__ import annotations

import base64
import binascii
import datetime
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from typing import Any, ClassVar

import msgspec
import numpy as np
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import Default, DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from anabranch.dataflows.codec.mapping import struct_maker
from anabranch.dataflows.codec.protobuf_decoder import (
    ProtobufColumnDecoder,
    protobuf_column_decoder,
)
from anabranch.dataflows.codec.protocol import Codec, Filtered, Message, Undecodable
from anabranch.dataflows.codec.schema_registry import (
    PREFIX_BYTES,
    RegisteredSchema,
    SchemaRegistry,
    open_registry,
    split_prefix,
)
from anabranch.dataflows.declaration.formats import Protobuf
from anabranch.dataflows.declaration.shape import Shape
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.state.compile import I64
from anabranch.state.errors import BusError, DeclarationError

_WRAPPED = frozenset(
    f"google.protobuf.{name}Value"
    for name in (
        "Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes",
    )
)  # fmt: skip
_AS_JSON = frozenset(
    f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue", "FieldMask", "Any")
)
_MESSAGE, _ENUM, _GROUP = 11, 14, 10
_SCHEMA_FILE = "registered-schema-{}.proto"


class ProtobufCodec(Codec):
    """Messages in Protobuf's binary encoding.

    Args:
        format: as it is declared.
        unit_ms: the pipeline's time unit, in milliseconds.
    """

    name: ClassVar[str] = "protobuf"
    errors: ClassVar[tuple[type[Exception], ...]] = (
        Undecodable,
        msgspec.ValidationError,
        Filtered,
    )

    def __init__(self, format: Protobuf, unit_ms: float = 1.0) -> None:
        self._unit_ms = unit_ms
        self._registry = open_registry(format.registry) if format.registry else None
        self._skip = PREFIX_BYTES if format.prefix else 0
        self._name = format.message
        self._declared = None
        if format.descriptor is not None:
            assert format.message is not None
            self._declared = declared_type(format.descriptor, format.message)
        self._of_prefix: dict[bytes, Any] = {}

    def decoder(self, message: type[Message]) -> Callable[[bytes], Message]:
        make, decode = struct_maker(message, self._unit_ms), self.decode_dict
        if not issubclass(message, msgspec.Struct):
            return lambda payload: make(decode(payload))
        # A field that was not written has its default, where it is declared with one.
        defaulted = [
            each.path.steps
            for each in Shape.of(message).fields
            if each.path is not None and not each.required
        ]

        def decode_message(payload: bytes) -> Message:
            decoded = decode(payload)
            for steps in defaulted:
                _remove_null(decoded, steps)
            return make(decoded)

        return decode_message

    def decode_dict(self, payload: bytes) -> dict[str, Any]:
        """The fields of a message, whatever they are."""
        descriptor, start = self._type_of(payload)
        message = GetMessageClass(descriptor)()
        try:
            message.ParseFromString(payload[start:])
        except DecodeError as error:
            why = " ".join(str(error).split()) or "it ends early"
            raise Undecodable(
                DeadLetterReason.MALFORMED, f"it is not a {descriptor.full_name}: {why}"
            ) from None
        try:
            return to_dict(message)
        except (ValueError, OverflowError) as error:  # a time that is none
            raise Undecodable(DeadLetterReason.MALFORMED, str(error)) from None

    def _type_of(self, payload: bytes) -> tuple[Any, int]:
        """The type of a message, and where its data begins."""
        if self._skip == 0:
            return self._declared, 0
        if self._registry is None:
            if len(payload) < PREFIX_BYTES:
                raise Undecodable(DeadLetterReason.MALFORMED, "it ends within the prefix")
        else:
            split_prefix(payload)
        start = _end_of_indexes(payload)
        if self._declared is not None:
            return self._declared, start
        head = payload[:start]
        found = self._of_prefix.get(head)
        if found is None:
            assert self._registry is not None
            found = _type_at(self._registry, *_indexes(payload))
            self._of_prefix[head] = found
        if self._name is not None and found.full_name != self._name:
            raise Filtered(found.full_name)
        return found, start

    def column_decoder(
        self,
        message: type[msgspec.Struct],
        time: str,
        wanted: Sequence[str],
        texts: Collection[str] = (),
    ) -> ProtobufColumnDecoder | None:
        return protobuf_column_decoder(message, time, wanted, self._split)

    def _split(self, values: list[bytes]) -> list[tuple[Any, I64, I64]] | None:
        everything = np.arange(len(values))
        if self._skip == 0:
            return [(self._declared, everything, np.zeros(len(values), np.int64))]
        head = values[0][: _end_of_indexes(values[0])]
        if all(value.startswith(head) for value in values):
            descriptor, start = self._type_of(values[0])
            return [(descriptor, everything, np.full(len(values), start))]
        groups: dict[str, tuple[Any, list[int], list[int]]] = {}
        for row, value in enumerate(values):
            descriptor, start = self._type_of(value)
            key = f"{id(descriptor)}"
            _, rows, starts = groups.setdefault(key, (descriptor, [], []))
            rows.append(row)
            starts.append(start)
        return [
            (descriptor, np.array(rows, np.int64), np.array(starts, np.int64))
            for descriptor, rows, starts in groups.values()
        ]

    def encode(self, message: msgspec.Struct) -> bytes:
        raise BusError("Protobuf is for reading only")


def to_dict(message: Any) -> dict[str, Any]:
    """The fields of a message by their names in the schema; see `Protobuf` for their values."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            if field.type == _MESSAGE and field.message_type.GetOptions().map_entry:
                inner = field.message_type.fields_by_name["value"]
                found[field.name] = {str(key): _value(inner, value[key]) for key in value}
            else:
                found[field.name] = [_value(field, each) for each in value]
        elif field.has_presence and not message.HasField(field.name):
            found[field.name] = None
        else:
            found[field.name] = _value(field, value)
    return found


def _value(field: Any, value: Any) -> Any:
    if field.type == _ENUM:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    if field.type not in (_MESSAGE, _GROUP):
        return value
    name = field.message_type.full_name
    if name == "google.protobuf.Timestamp":
        return value.ToDatetime(datetime.UTC)
    if name == "google.protobuf.Duration":
        return value.ToTimedelta().total_seconds()
    if name in _WRAPPED:
        return value.value
    if name in _AS_JSON:
        return json_format.MessageToDict(value)
    return to_dict(value)


def _remove_null(decoded: dict[str, Any], steps: Sequence[Any]) -> None:
    holder: Any = decoded
    for step in steps[:-1]:
        holder = holder.get(step) if isinstance(holder, dict) else None
    if isinstance(holder, dict) and steps[-1] in holder and holder[steps[-1]] is None:
        del holder[steps[-1]]


@cache
def declared_type(descriptors: bytes, name: str) -> Any:
    """The descriptor of a message in a `FileDescriptorSet`.

    Raises:
        DeclarationError: it is not there, or the bytes are no such set.
    """
    try:
        files = FileDescriptorSet.FromString(descriptors).file
        pool = _pool(files)
    except (DecodeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise DeclarationError(
            f"descriptor= of Protobuf() is not what protoc --include_imports "
            f"--descriptor_set_out=FILE writes: {why}"
        ) from None
    try:
        return pool.FindMessageTypeByName(name)
    except KeyError:
        names = sorted(
            f"{file.package}.{each.name}".lstrip(".")
            for file in files
            for each in file.message_type
        )
        raise DeclarationError(
            f"message={name!r} of Protobuf() is not in its descriptor, which has "
            f"{', '.join(names) or 'none'}"
        ) from None


def _pool(files: Iterable[FileDescriptorProto]) -> DescriptorPool:
    """A pool with these files and the well-known ones that they import."""
    pool, left, known = DescriptorPool(), {file.name: file for file in files}, set()

    def add(name: str) -> None:
        if name in known:
            return
        known.add(name)
        file = left.get(name)
        if file is None:
            file = FileDescriptorProto()
            try:
                Default().FindFileByName(name).CopyToProto(file)
            except KeyError:
                if not _import_well_known(name):
                    raise TypeError(f"it lacks the imported file {name}") from None
                Default().FindFileByName(name).CopyToProto(file)
        for each in file.dependency:
            add(each)
        pool.Add(file)

    for name in list(left):
        add(name)
    return pool


def _import_well_known(name: str) -> bool:
    from importlib import import_module

    if not name.startswith("google/protobuf/"):
        return False
    try:
        import_module(f"{name.removesuffix('.proto').replace('/', '.')}_pb2")
    except ImportError:
        return False
    return True


def _type_at(registry: SchemaRegistry, schema_id: int, indexes: Sequence[int]) -> Any:
    """The message type at these indexes of a registered schema."""
    file = _registered_file(registry, schema_id)
    try:
        names = list(file.message_types_by_name)
        found = file.message_types_by_name[names[indexes[0]]]
        for index in indexes[1:]:
            found = found.nested_types[index]
    except IndexError:
        raise Undecodable(
            DeadLetterReason.MALFORMED,
            f"its schema {schema_id} has no message type at the indexes {list(indexes)}",
        ) from None
    return found


@cache
def _registered_file(registry: SchemaRegistry, schema_id: int) -> Any:
    schema = registry.schema(schema_id, "serialized")
    if schema.type != "PROTOBUF":
        raise Undecodable(
            DeadLetterReason.MALFORMED,
            f"its schema {schema_id} is of type {schema.type}, and the topic is declared as "
            "Protobuf",
        )
    files: dict[str, FileDescriptorProto] = {}
    _add_references(registry, schema, files)
    name = _SCHEMA_FILE.format(schema_id)
    files[name] = _parsed_file(schema, name)
    try:
        return _pool(files.values()).FindFileByName(name)
    except (TypeError, ValueError, KeyError) as error:
        why = f"the registry's schema {schema_id} can't be used: {' '.join(str(error).split())}"
        raise Undecodable(DeadLetterReason.UNKNOWN_SCHEMA, why) from None


def _add_references(
    registry: SchemaRegistry, schema: RegisteredSchema, files: dict[str, FileDescriptorProto]
) -> None:
    for name, subject, version in schema.references:
        if name not in files:
            other = registry.version(subject, version, "serialized")
            _add_references(registry, other, files)
            files[name] = _parsed_file(other, name)


def _parsed_file(schema: RegisteredSchema, name: str) -> FileDescriptorProto:
    try:
        file = FileDescriptorProto.FromString(base64.b64decode(schema.text, validate=True))
    except (DecodeError, binascii.Error, ValueError):
        raise BusError(
            f"the schema registry gives schema {schema.id} as text only, without its descriptor: "
            'declare the format as Protobuf(registry=…, descriptor="FILE.desc", message="NAME")'
        ) from None
    file.name = name
    return file


def _indexes(payload: bytes) -> tuple[int, list[int]]:
    """The schema id and the message indexes at the beginning of a message."""
    schema_id, _ = split_prefix(payload)
    count, at = _zigzag(payload, PREFIX_BYTES)
    indexes = []
    for _ in range(count):
        index, at = _zigzag(payload, at)
        indexes.append(index)
    return schema_id, indexes or [0]


def _end_of_indexes(payload: bytes) -> int:
    """Where the data begins after a registry's prefix and the message indexes."""
    count, at = _zigzag(payload, PREFIX_BYTES)
    for _ in range(count):
        _, at = _zigzag(payload, at)
    return at


def _zigzag(payload: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(payload) and shift < 35:
        byte = payload[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            number = (value >> 1) ^ -(value & 1)
            if number < 0 or number > 10_000:
                break
            return number, at
    raise Undecodable(DeadLetterReason.MALFORMED, "it has no indexes of a message type")
