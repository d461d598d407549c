"""Avro: fastavro, with a compiled fast path for whole batches."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from typing import Any, ClassVar

import msgspec

from anabranch.dataflows.bus import UnreachableError
from anabranch.dataflows.codec.avro_decoder import AvroColumnDecoder, avro_column_decoder
from anabranch.dataflows.codec.avro_program import Program, compile_program
from anabranch.dataflows.codec.column_fields import ColumnField
from anabranch.dataflows.codec.mapping import struct_maker
from anabranch.dataflows.codec.protocol import Codec, Filtered, Message, Undecodable
from anabranch.dataflows.codec.schema_registry import (
    PREFIX_BYTES,
    RegisteredSchema,
    SchemaRegistry,
    open_registry,
    prefix,
    split_prefix,
)
from anabranch.dataflows.codec.written_schemas import avro_schema, plain
from anabranch.dataflows.declaration.formats import Avro
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.state.errors import BusError, DeclarationError

Decode = Callable[[bytes], dict[str, Any]]


class AvroCodec(Codec):
    """Messages in Avro's binary encoding.

    Args:
        format: as it is declared.
        unit_ms: the pipeline's time unit, in milliseconds.
        subject: under which the schema of what is written is registered.
        written: the struct type that is written, if any.
    """

    name: ClassVar[str] = "avro"
    errors: ClassVar[tuple[type[Exception], ...]] = (
        Undecodable,
        msgspec.ValidationError,
        Filtered,
    )

    def __init__(
        self,
        format: Avro,
        unit_ms: float = 1.0,
        subject: str = "",
        written: type[msgspec.Struct] | None = None,
    ) -> None:
        self._unit_ms, self._subject, self._written = unit_ms, subject, written
        self._registry = open_registry(format.registry) if format.registry else None
        self._reader = parse_avro(format.schema) if format.schema else None
        self._skip = PREFIX_BYTES if format.prefix else 0
        self._decoders: dict[int, Decode] = {}
        self._writer: tuple[bytes, Any] | None = None

    def decoder(self, message: type[Message]) -> Callable[[bytes], Message]:
        make, decode = struct_maker(message, self._unit_ms), self.decode_dict
        return lambda payload: make(decode(payload))

    def decode_dict(self, payload: bytes) -> dict[str, Any]:
        """The fields of a message, whatever they are."""
        if self._registry is None:
            if len(payload) < self._skip:
                raise Undecodable(DeadLetterReason.MALFORMED, "it ends within the prefix")
            return self._decode_with(0)(payload[self._skip :])
        schema_id, data = split_prefix(payload)
        return self._decode_with(schema_id)(data)

    def _decode_with(self, schema_id: int) -> Decode:
        found = self._decoders.get(schema_id)
        if found is None:
            writer = self._writer_schema(schema_id)
            reader = self._reader if self._registry is not None else None
            found = partial(_decode, writer, reader, schema_id)
            self._decoders[schema_id] = found
        return found

    def _writer_schema(self, schema_id: int) -> Parsed:
        if self._registry is None:
            assert self._reader is not None
            return self._reader
        return registered_avro(self._registry, schema_id)

    def column_decoder(
        self,
        message: type[msgspec.Struct],
        time: str,
        wanted: Sequence[str],
        texts: Collection[str] = (),
    ) -> AvroColumnDecoder | None:
        has_ids = self._registry is not None
        return avro_column_decoder(message, time, wanted, self._program, self._skip, has_ids)

    def _program(self, schema_id: int, fields: Sequence[ColumnField]) -> Program | None:
        writer = self._writer_schema(schema_id)
        if self._registry is None or self._reader is None:
            return compile_program(writer.schema, writer.names, fields)
        reader = self._reader
        return compile_program(writer.schema, writer.names, fields, reader.schema, reader.names)

    def prepare_writing(self) -> None:
        """Register the schema of what is written.

        Raises:
            UnreachableError: the registry does not respond at present.
            BusError: it refuses the schema.
        """
        if self._writer is None:
            if self._written is None or self._registry is None:
                raise BusError("this Avro format is for reading only")
            schema = avro_schema(self._written)
            schema_id = self._registry.register(self._subject, "AVRO", json.dumps(schema))
            self._writer = prefix(schema_id), parse_avro(json.dumps(schema)).schema

    def encode(self, message: msgspec.Struct) -> bytes:
        from fastavro import schemaless_writer

        self.prepare_writing()
        assert self._writer is not None
        head, schema = self._writer
        out = io.BytesIO(head)
        out.seek(len(head))
        schemaless_writer(out, schema, plain(message))
        return out.getvalue()


class Parsed(msgspec.Struct):
    """A schema as fastavro takes it, and the named types in it by full name."""

    schema: Any
    names: dict[str, Any]


@cache
def parse_avro(text: str, others: tuple[str, ...] = ()) -> Parsed:
    """Parse a schema; ``others`` are the texts of those that it refers to.

    Raises:
        DeclarationError: it is not a schema.
    """
    from fastavro.schema import SchemaParseException, UnknownType, parse_schema

    names: dict[str, Any] = {}
    try:
        for each in others:
            parse_schema(json.loads(each), names)
        schema = parse_schema(json.loads(text), names)
    except (SchemaParseException, UnknownType, ValueError, KeyError, TypeError) as error:
        detail = str(error) or type(error).__name__
        raise DeclarationError(f"this is not an Avro schema: {detail}") from None
    return Parsed(schema, names)


def registered_avro(registry: SchemaRegistry, schema_id: int) -> Parsed:
    """A registered schema, with all that it refers to.

    Raises:
        Undecodable: there is none with this id, or it is not one of Avro.
        UnreachableError: the registry does not respond.
    """
    found = registry.schema(schema_id)
    if found.type != "AVRO":
        raise Undecodable(
            DeadLetterReason.MALFORMED,
            f"its schema {schema_id} is of type {found.type}, and the topic is declared as Avro",
        )
    try:
        return parse_avro(found.text, tuple(_referred(registry, found)))
    except DeclarationError as error:
        why = f"the registry's schema {schema_id}: {error}"
        raise Undecodable(DeadLetterReason.UNKNOWN_SCHEMA, why) from None


def _referred(registry: SchemaRegistry, schema: RegisteredSchema) -> list[str]:
    """The texts of the schemas that one refers to, each after those that itself refers to."""
    texts: dict[str, None] = {}
    for _, subject, version in schema.references:
        other = registry.version(subject, version)
        for text in _referred(registry, other):
            texts.setdefault(text)
        texts.setdefault(other.text)
    return list(texts)


def _decode(writer: Parsed, reader: Parsed | None, schema_id: int, data: bytes) -> dict[str, Any]:
    from fastavro import schemaless_reader
    from fastavro._read_common import SchemaResolutionError

    stream = io.BytesIO(data)
    try:
        decoded = schemaless_reader(
            stream, writer.schema, None if reader is None else reader.schema
        )
    except SchemaResolutionError as error:
        raise Undecodable(
            DeadLetterReason.TYPE_MISMATCH,
            f"its schema {schema_id} is not compatible with the reader's: {_one_line(error)}",
        ) from None
    except (UnreachableError, MemoryError):
        raise
    except Exception as error:  # whatever fastavro stumbles over
        raise Undecodable(
            DeadLetterReason.MALFORMED, f"it is not Avro of its schema: {_one_line(error)}"
        ) from None
    if stream.tell() != len(data):
        raise Undecodable(
            DeadLetterReason.MALFORMED,
            f"it is not Avro of its schema: {len(data) - stream.tell()} bytes are left over",
        )
    if not isinstance(decoded, dict):
        raise Undecodable(DeadLetterReason.TYPE_MISMATCH, "its schema is no record")
    return decoded


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, EOFError | IndexError):
        return "it ends early"
    return text or type(error).__name__
