"""The formats of messages, as a pipeline declares them: ``Pipeline(…, format=Avro(registry=…))``.

A format is a plain value that says how bytes become fields; `dataflows.codec` makes a codec of it
in each process. `Json` is the default. What wraps the fields in an envelope (`Debezium`, `Connect`,
`CloudEvents`) takes the format of the envelope.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from anabranch.state.errors import DeclarationError


class Format:
    """Base of all formats; `dataflows.codec` has a codec for each."""

    name: ClassVar[str]
    """What messages of errors call it."""

    @property
    def registry_url(self) -> str | None:
        """The schema registry that it needs; None if it needs none."""
        return None


@dataclass(frozen=True)
class Json(Format):
    """One JSON object per message, in UTF-8."""

    name: ClassVar[str] = "json"


JSON = Json()
"""The default."""


@dataclass(frozen=True)
class MessagePack(Format):
    """One MessagePack map per message, with texts as keys."""

    name: ClassVar[str] = "msgpack"


@dataclass(frozen=True)
class Csv(Format):
    """One CSV row per message, without a header: the columns in the order that is declared.

    Values are text, so fields that are not are declared as `Cast`, or are numbers, booleans and
    times, which are read from their text. An empty value is null; a text may be in quotes.

    Args:
        columns: the names of the columns, in order.
        delimiter: between two values.

    >>> Csv("id", "ts", "amount").columns
    ('id', 'ts', 'amount')
    """

    columns: tuple[str, ...]
    delimiter: str = ","
    name: ClassVar[str] = "csv"

    def __init__(self, *columns: str, delimiter: str = ",") -> None:
        if not columns or not all(isinstance(each, str) and each for each in columns):
            raise DeclarationError(
                "Csv() needs the names of its columns in order, such as Csv('id', 'ts', 'amount')"
            )
        if len(set(columns)) < len(columns):
            raise DeclarationError(f"Csv{columns!r} names a column twice")
        if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
            raise DeclarationError(f"delimiter={delimiter!r} of Csv() must be one character")
        object.__setattr__(self, "columns", tuple(columns))
        object.__setattr__(self, "delimiter", delimiter)


@dataclass(frozen=True)
class JsonSchema(Format):
    """JSON with the prefix of a schema registry: a zero byte, and the id of the schema.

    The id must exist in the registry; messages are checked against the declared type, not against
    the registered schema.

    Args:
        registry: the registry's URL. Its credentials are bus settings, see `Avro`.
        subject: under which predictions register their schema; by default ``TOPIC-value``.
    """

    registry: str
    subject: str | None = None
    name: ClassVar[str] = "json"

    def __post_init__(self) -> None:
        check_registry(self.registry, "JsonSchema()")

    @property
    def registry_url(self) -> str | None:
        return self.registry


@dataclass(frozen=True)
class Avro(Format):
    """Avro's binary encoding: with a schema registry, or with a schema that all messages have.

    With ``registry`` each message has a prefix: a zero byte, and the id of the schema that it was
    written with (Confluent's wire format). With ``schema`` alone no message has a schema of its
    own; ``prefix=True`` skips a prefix without looking at it. With both, ``schema`` is the
    reader's: its defaults and aliases apply to what was written with another. Without a reader's
    schema, fields are found by name, and a field that the writer's schema lacks has the default
    of the declared type.

    Credentials of the registry are bus settings (``--bus-config``): ``schema.registry.`` and the
    name that Confluent's clients use, such as ``schema.registry.ssl.ca.location`` or
    ``schema.registry.basic.auth.user.info=USER:PASSWORD``.

    Args:
        registry: the registry's URL.
        schema: a file (``orders.avsc``), a schema as JSON text, or as a dict.
        prefix: whether messages have a registry's prefix; by default, with ``registry`` alone.
        subject: under which predictions register their schema; by default ``TOPIC-value``.
    """

    registry: str | None = None
    schema: str | None = None
    prefix: bool | None = None
    subject: str | None = None
    name: ClassVar[str] = "avro"

    def __init__(
        self,
        registry: str | None = None,
        schema: str | Path | Mapping[str, Any] | Sequence[Any] | None = None,
        prefix: bool | None = None,
        subject: str | None = None,
    ) -> None:
        if registry is None and schema is None:
            raise DeclarationError(
                'Avro() needs registry="http://HOST:PORT", or schema="FILE.avsc" where messages '
                "have no schema of their own"
            )
        if registry is not None:
            check_registry(registry, "Avro()")
            if prefix is False:
                raise DeclarationError(
                    "Avro(registry=…, prefix=False): without its prefix no message names a schema; "
                    "leave out registry= and give schema="
                )
        object.__setattr__(self, "registry", registry)
        object.__setattr__(self, "schema", None if schema is None else _schema_text(schema))
        object.__setattr__(self, "prefix", registry is not None if prefix is None else prefix)
        object.__setattr__(self, "subject", subject)

    @property
    def registry_url(self) -> str | None:
        return self.registry


@dataclass(frozen=True)
class Protobuf(Format):
    """Protocol Buffers: with a schema registry, or with a descriptor that all messages have.

    Enums are the names of their values, 64-bit integers are integers, a ``Timestamp`` is a time,
    wrapper messages are their values. A field that was not written has the default of its type;
    one declared ``optional`` is null then, and so is a message.

    Args:
        registry: the registry's URL: each message has its prefix, with the indexes of the message
            type. Its credentials are bus settings, see `Avro`.
        descriptor: the file that ``protoc --include_imports --descriptor_set_out=FILE`` writes.
            With ``registry`` it is what messages are read with, instead of their own schema.
        message: the full name of the message in it, such as ``shop.Order``; or the class that
            protoc has generated, then no descriptor is needed.
        prefix: whether messages have a registry's prefix; by default, with ``registry`` alone.
    """

    registry: str | None = None
    descriptor: bytes | None = None
    message: str | None = None
    prefix: bool | None = None
    name: ClassVar[str] = "protobuf"

    def __init__(
        self,
        registry: str | None = None,
        descriptor: str | Path | bytes | None = None,
        message: str | type[Any] | None = None,
        prefix: bool | None = None,
    ) -> None:
        if isinstance(message, type):
            descriptor, message = _of_generated(message)
        if registry is None and (descriptor is None or message is None):
            raise DeclarationError(
                'Protobuf() needs registry="http://HOST:PORT", or descriptor="FILE.desc" and '
                'message="PACKAGE.NAME", or the generated class as message='
            )
        if registry is not None:
            check_registry(registry, "Protobuf()")
        if descriptor is not None and message is None:
            raise DeclarationError('Protobuf(descriptor=…) needs message="PACKAGE.NAME" as well')
        if isinstance(descriptor, str | Path):
            try:
                descriptor = Path(descriptor).read_bytes()
            except OSError as error:
                raise DeclarationError(
                    f"descriptor {str(descriptor)!r} of Protobuf() can't be read: {error.strerror}"
                    "; protoc --include_imports --descriptor_set_out=FILE writes one"
                ) from None
        object.__setattr__(self, "registry", registry)
        object.__setattr__(self, "descriptor", descriptor)
        object.__setattr__(self, "message", message)
        object.__setattr__(self, "prefix", registry is not None if prefix is None else prefix)

    @property
    def registry_url(self) -> str | None:
        return self.registry


@dataclass(frozen=True)
class Custom(Format):
    """A format of your own: a function of a message's bytes.

    Args:
        decode: makes a dict of the bytes of a message. What it raises makes the message a dead
            letter.
        encode: makes bytes of a dict; only ``output_format=`` needs it.

    >>> Custom(lambda payload: dict(zip("ab", payload))).decode(b"xy")
    {'a': 120, 'b': 121}
    """

    decode: Callable[[bytes], Any]
    encode: Callable[[dict[str, Any]], bytes] | None = None
    name: ClassVar[str] = "custom"

    def __post_init__(self) -> None:
        if not callable(self.decode):
            raise DeclarationError(f"Custom(decode={self.decode!r}) needs a function of bytes")


@dataclass(frozen=True)
class Connect(Format):
    """Kafka Connect's JSON with a schema: the fields are in ``payload`` of ``{schema, payload}``.

    A message without the two is taken as it is.
    """

    format: Format = JSON
    name: ClassVar[str] = "connect"

    def __post_init__(self) -> None:
        _check_inner(self)

    @property
    def registry_url(self) -> str | None:
        return self.format.registry_url


@dataclass(frozen=True)
class Debezium(Format):
    """Change events of a database, as Debezium writes them: the fields are those of the row.

    The row is ``after``, of a delete ``before``; a delete without it is a dead letter. What is
    beside the row is read by a path that begins at the top: ``path("$.op")``, ``path("$.ts_ms")``,
    ``path("$.source.table")``. Connect's ``{schema, payload}`` around it is recognised. Tombstones
    are counted and skipped.

    Args:
        format: of the messages: `Json`, or `Avro` with a registry, …
        operations: which changes are taken: ``c`` create, ``u`` update, ``d`` delete, ``r`` read
            by a snapshot; others are counted and skipped.
    """

    format: Format = JSON
    operations: tuple[str, ...] = ("c", "u", "d", "r")
    name: ClassVar[str] = "debezium"

    def __post_init__(self) -> None:
        _check_inner(self)
        object.__setattr__(self, "operations", tuple(self.operations))
        unknown = [each for each in self.operations if each not in ("c", "u", "d", "r")]
        if unknown or not self.operations:
            raise DeclarationError(
                f"operations={self.operations!r} of Debezium() must be some of 'c' (create), 'u' "
                "(update), 'd' (delete) and 'r' (read by a snapshot)"
            )

    @property
    def registry_url(self) -> str | None:
        return self.format.registry_url


@dataclass(frozen=True)
class CloudEvents(Format):
    """CloudEvents 1.0: the fields are in ``data`` of a JSON event, or are the whole message.

    Args:
        format: of the data.
        mode: ``structured``: a message is a JSON object whose ``data`` has the fields, and
            attributes are read by a path that begins at the top, such as ``path("$.type")``.
            ``binary``: a message is the data, and its attributes are headers, such as
            ``header("ce_type")``.
    """

    format: Format = JSON
    mode: Literal["structured", "binary"] = "structured"
    name: ClassVar[str] = "cloudevents"

    def __post_init__(self) -> None:
        _check_inner(self)
        if self.mode not in ("structured", "binary"):
            raise DeclarationError(
                f"mode={self.mode!r} of CloudEvents() must be 'structured' or 'binary'"
            )
        if self.mode == "structured" and not isinstance(self.format, Json):
            raise DeclarationError(
                "a structured CloudEvent is JSON: CloudEvents() takes another format with "
                "mode='binary' only"
            )

    @property
    def registry_url(self) -> str | None:
        return self.format.registry_url


def check_registry(url: object, where: str) -> None:
    """Check that a registry's URL is one, and has no credentials; they are not quoted.

    Raises:
        DeclarationError: it is not.
    """
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        shown = repr(url) if parts is None or "@" not in str(url) else "the URL"
        raise DeclarationError(f"registry={shown} of {where} must be http://HOST:PORT or https://…")
    if parts.username or parts.password or "@" in parts.netloc:
        raise DeclarationError(
            f"the registry's URL in {where} has a user or password: give it as "
            "schema.registry.basic.auth.user.info=USER:PASSWORD in the file of --bus-config"
        )


def check_format(given: object, parameter: str, pipeline: str, *, outputs: bool = False) -> None:
    """Check what was given as a format of a pipeline.

    Raises:
        DeclarationError: it is none, or can't be written.
    """
    where = f"{parameter}= of pipeline {pipeline!r}"
    if isinstance(given, type) and issubclass(given, Format):
        raise DeclarationError(f"{where} is a class: write {given.__name__}(…)")
    if not isinstance(given, Format) and not is_codec(given):
        raise DeclarationError(
            f"{where} is {given!r}: give a format, such as Json() or Avro(registry=…)"
        )
    if not outputs:
        return
    writes = (Json, MessagePack, JsonSchema, Custom, Avro)
    if isinstance(given, Format) and (
        not isinstance(given, writes)
        or (isinstance(given, Custom) and given.encode is None)
        or (isinstance(given, Avro) and given.registry is None)
    ):
        raise DeclarationError(
            f"{where} can't be written: use Json(), MessagePack(), JsonSchema(registry=…), "
            "Avro(registry=…), or Custom(decode, encode)"
        )


def is_codec(given: object) -> bool:
    """Whether a format is a codec already (`dataflows.codec.protocol.Codec`)."""
    return all(hasattr(given, name) for name in ("decoder", "encode", "errors"))


def _check_inner(envelope: Connect | Debezium | CloudEvents) -> None:
    inner, name = envelope.format, type(envelope).__name__
    if not isinstance(inner, Format) or isinstance(inner, Debezium | CloudEvents):
        raise DeclarationError(
            f"{name}({inner!r}) needs the format of its messages, such as {name}(Json())"
        )


def _schema_text(schema: object) -> str:
    if isinstance(schema, Mapping | list | tuple):
        return json.dumps(schema)
    text = str(schema)
    if isinstance(schema, str) and text.lstrip()[:1] in ("{", "[", '"'):
        return text
    try:
        return Path(text).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DeclarationError(f"schema {text!r} of Avro() can't be read: {why}") from None


def _of_generated(message: type[Any]) -> tuple[bytes, str]:
    """The descriptor set and the full name of a class that protoc has generated."""
    own = getattr(message, "DESCRIPTOR", None)
    if own is None or not hasattr(own, "file") or not hasattr(own, "full_name"):
        raise DeclarationError(
            f"message={message.__name__} of Protobuf() is no class that protoc has generated"
        )
    from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

    files: dict[str, Any] = {}

    def add(file: Any) -> None:
        if file.name in files:
            return
        for each in file.dependencies:
            add(each)
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        files[file.name] = proto

    add(own.file)
    return FileDescriptorSet(file=list(files.values())).SerializeToString(), own.full_name
