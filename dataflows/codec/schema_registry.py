"""Schema registries that speak Confluent's API: what schema a message was written with, by its id.

A schema never changes under its id, so each is asked for once in a process. A registry that does
not respond is an `UnreachableError`: whoever reads then tries the same messages again, and nothing
is lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

from anabranch.dataflows.bus import UnreachableError
from anabranch.dataflows.bus.registry_settings import registry_settings
from anabranch.dataflows.codec.protocol import Undecodable
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.state.errors import BusError

Result = TypeVar("Result")

PREFIX_BYTES = 5
"""A zero byte and the schema's id, big-endian."""

_MISSING_FOR_S = 10.0  # how long an id that did not exist is not asked for again
_NUMBERS = ("timeout", "cache.capacity", "cache.latest.ttl.sec", "max.retries")
_AWAY = (408, 425, 429, 500, 502, 503, 504)


class RegisteredSchema(NamedTuple):
    """A schema of a registry: its id, its type (AVRO, JSON, PROTOBUF), its text, what it refers to.

    ``references`` are names under which the text refers to others, with subject and version.
    """

    id: int
    type: str
    text: str
    references: tuple[tuple[str, str, int], ...]


class SchemaRegistry:
    """The registry at ``url``; made by `open_registry`."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = url
        self._clock = clock
        self._client: Any = None
        self._known: dict[tuple[int, str | None], RegisteredSchema] = {}
        self._missing: dict[tuple[int, str | None], tuple[float, str]] = {}

    def schema(self, schema_id: int, form: str | None = None) -> RegisteredSchema:
        """The schema with this id; ``form`` asks for another form of its text.

        Raises:
            Undecodable: the registry has no such schema.
            UnreachableError: it does not respond at present.
            BusError: it refuses to respond.
        """
        key = schema_id, form
        if key in self._known:
            return self._known[key]
        until, why = self._missing.get(key, (0.0, ""))
        if until > self._clock():
            raise Undecodable(DeadLetterReason.UNKNOWN_SCHEMA, why)
        try:
            found = self._call(lambda client: client.get_schema(schema_id, fmt=form))
        except _RefusedError as error:
            why = f"the registry has no schema with id {schema_id}: {error}"
            self._missing[key] = self._clock() + _MISSING_FOR_S, why
            raise Undecodable(DeadLetterReason.UNKNOWN_SCHEMA, why) from None
        references = tuple((r.name, r.subject, r.version) for r in found.references or ())
        schema = RegisteredSchema(
            schema_id, found.schema_type or "AVRO", found.schema_str or "", references
        )
        self._known[key] = schema
        return schema

    def version(self, subject: str, version: int, form: str | None = None) -> RegisteredSchema:
        """The schema of one version of a subject, as a reference names it.

        Raises:
            Undecodable, UnreachableError, BusError: as `schema`.
        """
        try:
            found = self._call(lambda client: client.get_version(subject, version, fmt=form))
        except _RefusedError as error:
            why = f"the registry has no version {version} of {subject!r}: {error}"
            raise Undecodable(DeadLetterReason.UNKNOWN_SCHEMA, why) from None
        schema = found.schema
        references = tuple((r.name, r.subject, r.version) for r in schema.references or ())
        return RegisteredSchema(
            found.schema_id, schema.schema_type or "AVRO", schema.schema_str or "", references
        )

    def register(self, subject: str, kind: str, text: str) -> int:
        """Register a schema under a subject, unless it is there already; its id.

        Raises:
            UnreachableError: the registry does not respond at present.
            BusError: it refuses the schema, such as one that is not compatible with the last.
        """
        from confluent_kafka.schema_registry import Schema

        try:
            registered: int = self._call(
                lambda client: client.register_schema(subject, Schema(text, kind))
            )
        except _RefusedError as error:
            raise BusError(
                f"schema registry {self.url} refuses the schema of {subject!r}: {error}; give "
                "another subject= or change the compatibility of this one"
            ) from None
        return registered

    def _call(self, call: Callable[[Any], Result]) -> Result:
        try:
            return call(self._open())
        except (_RefusedError, BusError):
            raise
        except Exception as error:
            raise _translated(self.url, error) from None

    def _open(self) -> Any:
        if self._client is None:
            self._client = _client(self.url)
        return self._client


class _RefusedError(Exception):
    """The registry responded, and what was asked for is not there or not accepted."""


def _client(url: str) -> Any:
    from confluent_kafka.schema_registry import SchemaRegistryClient

    for name in ("httpx", "httpx2"):  # a line for each request
        logging.getLogger(name).setLevel(logging.WARNING)
    # Attempts are short and single: whoever calls repeats them, and can be stopped in between.
    settings: dict[str, Any] = {"timeout": 5.0, "max.retries": 0}
    for name, value in registry_settings().items():
        settings[name] = _number(name, value) if name in _NUMBERS else value
    settings["url"] = url
    try:
        return SchemaRegistryClient(settings)
    except (ValueError, TypeError, OSError) as error:
        raise BusError(f"the schema.registry. settings can't be used: {error}") from None


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise BusError(f"schema.registry.{name} is a number, not {value!r}") from None
    return int(number) if number.is_integer() else number


def _translated(url: str, error: Exception) -> Exception:
    from confluent_kafka.schema_registry.error import OAuthTokenError, SchemaRegistryError

    if isinstance(error, OAuthTokenError):
        return UnreachableError(f"schema registry {url}: no access token could be had")
    if not isinstance(error, SchemaRegistryError):
        kind = type(error).__name__
        return UnreachableError(f"schema registry {url} does not respond: {error or kind}")
    status = error.http_status_code
    if status in (401, 403):
        return BusError(
            f"schema registry {url} refuses access (HTTP {status}): give "
            "schema.registry.basic.auth.user.info=USER:PASSWORD, or what it asks for, in the file "
            "of --bus-config"
        )
    if status in _AWAY:
        return UnreachableError(f"schema registry {url} does not respond: HTTP {status}")
    return _RefusedError(f"{error.error_message or f'HTTP {status}'}")


@cache
def open_registry(url: str) -> SchemaRegistry:
    """The registry at this URL, one for the whole process."""
    return SchemaRegistry(url)


def split_prefix(payload: bytes) -> tuple[int, bytes]:
    """The schema id in a registry's prefix, and what follows it.

    >>> split_prefix(bytes([0, 0, 0, 0, 7]) + b"data")
    (7, b'data')

    Raises:
        Undecodable: there is no such prefix.
    """
    if len(payload) < PREFIX_BYTES or payload[0] != 0:
        start = payload[:PREFIX_BYTES].hex(" ") or "nothing"
        raise Undecodable(
            DeadLetterReason.MALFORMED,
            "it does not begin with the prefix of a schema registry, a zero byte and the four "
            f"bytes of a schema's id, but with {start}",
        )
    return int.from_bytes(payload[1:PREFIX_BYTES]), payload[PREFIX_BYTES:]


def prefix(schema_id: int) -> bytes:
    """The prefix of a message that was written with this schema."""
    return b"\0" + schema_id.to_bytes(4)
