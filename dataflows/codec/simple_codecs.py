"""Codecs of a few lines each: MessagePack, CSV, JSON with a registry's prefix, and a user's own."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from anabranch.dataflows.codec.json_codec import JsonCodec
from anabranch.dataflows.codec.json_decoder import JsonColumnDecoder
from anabranch.dataflows.codec.mapping import struct_maker
from anabranch.dataflows.codec.protocol import (
    Codec,
    ColumnDecoder,
    DecodedColumns,
    Filtered,
    Message,
    Undecodable,
)
from anabranch.dataflows.codec.schema_registry import (
    PREFIX_BYTES,
    open_registry,
    prefix,
    split_prefix,
)
from anabranch.dataflows.codec.written_schemas import json_schema
from anabranch.dataflows.declaration.casts import cast_to
from anabranch.dataflows.declaration.formats import Csv, Custom, JsonSchema
from anabranch.dataflows.declaration.shape import Shape, members_of
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.models.learners.error_place import describe_error
from anabranch.state.compile import I64
from anabranch.state.errors import AnabranchError, BusError

_ERRORS: tuple[type[Exception], ...] = (
    Undecodable,
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
    Filtered,
)


class MessagePackCodec(Codec):
    """One MessagePack map per message; msgspec decodes it."""

    name: ClassVar[str] = "msgpack"
    errors: ClassVar[tuple[type[Exception], ...]] = _ERRORS

    def __init__(self, unit_ms: float = 1.0) -> None:
        self._unit_ms = unit_ms

    def decoder(self, message: type[Message]) -> Callable[[bytes], Message]:
        if not issubclass(message, msgspec.Struct):
            return msgspec.msgpack.Decoder(message).decode
        shape = _shape_of(message)
        if shape is None or shape.is_plain:
            return msgspec.msgpack.Decoder(message).decode
        decode = msgspec.msgpack.Decoder(dict).decode
        make = struct_maker(message, self._unit_ms)
        return lambda payload: make(decode(payload))

    def encode(self, message: msgspec.Struct) -> bytes:
        return msgspec.msgpack.encode(message)


class CsvCodec(Codec):
    """One CSV row per message, with declared columns."""

    name: ClassVar[str] = "csv"
    errors: ClassVar[tuple[type[Exception], ...]] = _ERRORS

    def __init__(self, format: Csv) -> None:
        self._columns, self._delimiter = format.columns, format.delimiter

    def decoder(self, message: type[Message]) -> Callable[[bytes], Message]:
        decode, make = self.decode_dict, struct_maker(message)
        shape = _shape_of(message)
        if shape is None:
            return lambda payload: make(decode(payload))
        casts = {
            str(field.path.steps[0]): (
                cast_to(field.annotation),
                str in members_of(field.annotation)[0],
            )
            for field in shape.fields
            if field.path is not None and len(field.path.steps) == 1
        }

        def decode_row(payload: bytes) -> Message:
            row = decode(payload)
            for name, (cast, is_text) in casts.items():
                value = row.get(name)
                if isinstance(value, str) and not is_text:
                    try:
                        row[name] = cast(value)
                    except (ValueError, ArithmeticError) as error:
                        raise msgspec.ValidationError(f"{error} - at `$.{name}`") from None
            return make(row)

        return decode_row

    def decode_dict(self, payload: bytes) -> dict[str, Any]:
        """The values by column, texts; an empty one is null."""
        text = payload.decode("utf-8-sig")
        try:
            rows = list(csv.reader([text.rstrip("\r\n")], delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            why = f"it is not one row of CSV: {error}"
            raise Undecodable(DeadLetterReason.MALFORMED, why) from None
        values = rows[0] if len(rows) == 1 else []
        if len(values) != len(self._columns):
            raise Undecodable(
                DeadLetterReason.MALFORMED,
                f"it has {len(values)} values, and {len(self._columns)} columns are declared",
            )
        return {name: value or None for name, value in zip(self._columns, values, strict=True)}

    def encode(self, message: msgspec.Struct) -> bytes:
        raise BusError("CSV is for reading only")


class CustomCodec(Codec):
    """A user's own functions."""

    name: ClassVar[str] = "custom"
    errors: ClassVar[tuple[type[Exception], ...]] = _ERRORS

    def __init__(self, format: Custom, unit_ms: float = 1.0) -> None:
        self._format, self._unit_ms = format, unit_ms

    def decoder(self, message: type[Message]) -> Callable[[bytes], Message]:
        decode, make = self.decode_dict, struct_maker(message, self._unit_ms)
        return lambda payload: make(decode(payload))

    def decode_dict(self, payload: bytes) -> dict[str, Any]:
        """What the user's function makes of a message."""
        try:
            decoded = self._format.decode(payload)
        except Exception as error:
            if isinstance(error, (AnabranchError, *_ERRORS)):
                raise
            raise Undecodable(DeadLetterReason.MALFORMED, describe_error(error)) from None
        if not isinstance(decoded, dict):
            raise Undecodable(
                DeadLetterReason.MALFORMED,
                f"the decode function gave {type(decoded).__name__}, not a dict",
            )
        return decoded

    def encode(self, message: msgspec.Struct) -> bytes:
        if self._format.encode is None:
            raise BusError("Custom(decode) without encode= is for reading only")
        encoded = self._format.encode(msgspec.to_builtins(message))
        if not isinstance(encoded, bytes):
            raise BusError(f"encode of Custom() gave {type(encoded).__name__}, not bytes")
        return encoded


class JsonSchemaCodec(Codec):
    """JSON with the prefix of a schema registry; after it JSON's own fast path."""

    name: ClassVar[str] = "json-schema"
    makes_texts: ClassVar[bool] = JsonCodec.makes_texts
    errors: ClassVar[tuple[type[Exception], ...]] = _ERRORS
    malformed: ClassVar[DeadLetterReason] = DeadLetterReason.NOT_JSON
    tells_unknown: ClassVar[bool] = True

    def __init__(
        self, format: JsonSchema, subject: str = "", written: type[msgspec.Struct] | None = None
    ) -> None:
        self._json = JsonCodec()
        self._registry = open_registry(format.registry)
        self._subject, self._written = subject, written
        self._known: set[bytes] = set()
        self._head = b""

    def cut(self, payload: bytes) -> bytes:
        """What follows the prefix, whose schema must exist."""
        schema_id, data = split_prefix(payload)
        head = payload[:PREFIX_BYTES]
        if head not in self._known:
            found = self._registry.schema(schema_id)
            if found.type != "JSON":
                raise Undecodable(
                    DeadLetterReason.MALFORMED,
                    f"its schema {schema_id} is of type {found.type}, and the topic is declared "
                    "as JSON",
                )
            self._known.add(head)
        return data

    def decoder(self, message: type[Message]) -> Callable[[bytes], Message]:
        decode, cut = self._json.decoder(message), self.cut
        return lambda payload: decode(cut(payload))

    def unknown_fields(self, shape: Shape, value: bytes) -> Mapping[str, Any]:
        return self._json.unknown_fields(shape, self.cut(value))

    def column_decoder(
        self,
        message: type[msgspec.Struct],
        time: str,
        wanted: Sequence[str],
        texts: Collection[str] = (),
    ) -> ColumnDecoder | None:
        inner = self._json.column_decoder(message, time, wanted, texts)
        return None if inner is None else _PrefixedColumns(self, inner)

    def prepare_writing(self) -> None:
        """Register the schema of what is written.

        Raises:
            UnreachableError: the registry does not respond at present.
            BusError: it refuses the schema.
        """
        if not self._head:
            if self._written is None:
                raise BusError("this JSON format is for reading only")
            schema = json.dumps(json_schema(self._written))
            self._head = prefix(self._registry.register(self._subject, "JSON", schema))

    def encode(self, message: msgspec.Struct) -> bytes:
        self.prepare_writing()
        return self._head + self._json.encode(message)

    def encode_all(self, messages: list[Any]) -> list[bytes]:
        self.prepare_writing()
        head = self._head
        return [head + line for line in self._json.encode_all(messages)]


class _PrefixedColumns:
    """Cuts the prefixes of a batch, whose schemas must exist, before JSON's column decoder."""

    def __init__(self, codec: JsonSchemaCodec, inner: JsonColumnDecoder) -> None:
        self._codec, self._inner = codec, inner

    def read(self, values: list[bytes], published: I64) -> DecodedColumns | None:
        cut = self._codec.cut
        try:
            return self._inner.read([cut(value) for value in values], published)
        except Undecodable:
            return None

    @property
    def has_new_fields(self) -> bool:
        """As of JSON's column decoder."""
        return self._inner.has_new_fields

    def take_unknown(self) -> tuple[Counter[str], dict[str, Any]]:
        """As of JSON's column decoder."""
        return self._inner.take_unknown()


def _shape_of(message: type[Any]) -> Shape | None:
    """The shape of a struct type; None of any other."""
    return Shape.of(message) if issubclass(message, msgspec.Struct) else None
