"""Rows in the tables of a PostgreSQL database: each message once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import msgspec

from anabranch.dataflows.export.output_tables import Column, Kind
from anabranch.dataflows.export.sql_target import SqlTarget
from anabranch.dataflows.export.target import (
    ExportError,
    InUseError,
    TargetUnreachableError,
    in_use,
)
from anabranch.dataflows.export.target_urls import Secrets, malformed, missing_library

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUL, _SYMBOL = "\0", "\u2400"  # no text of PostgreSQL can contain the former
_LOCK_TIMEOUT_S = 15.0
# So that neither side waits for ever for the other: a lock ends with the connection.
_CONNECTION = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
_SESSION = (
    "SET TIME ZONE 'UTC'",
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
    "SET client_min_messages = warning",
)


class PostgresqlTarget(SqlTarget):
    """The tables in the first schema of the connection's search path.

    Args:
        url: as libpq takes it, with or without a password.
        settings: parameters of libpq that the URL does not have, such as ``password``.
    """

    types: ClassVar[dict[Kind, str]] = {
        "text": "text",
        "integer": "bigint",
        "double": "double precision",
        "boolean": "boolean",
        "time": "timestamp with time zone",
        "json": "jsonb",
    }
    mark = "%s"

    def __init__(self, name: str, url: str, settings: Mapping[str, str], secrets: Secrets) -> None:
        super().__init__(name)
        try:
            import psycopg
        except ImportError:
            raise missing_library("PostgreSQL", "psycopg", "postgresql") from None
        self._psycopg = psycopg
        self._url, self._settings, self._secrets = url, settings, secrets
        self._connection: Any = None
        self._pipeline = ""
        self._connect()

    def _connect(self) -> None:
        errors = self._psycopg
        try:
            in_url = errors.conninfo.conninfo_to_dict(self._url)
        except errors.Error:
            raise malformed(self.name) from None
        try:
            given: dict[str, Any] = {**_CONNECTION, **self._settings, **in_url}
            self._connection = errors.connect(**given, autocommit=True)
            for statement in _SESSION:
                self._connection.execute(statement)
        except errors.Error as error:
            self._disconnect()
            raise self._error(error) from None

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def close(self) -> None:
        """Close the connection, which ends the lock. Idempotent."""
        self._disconnect()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        errors = self._psycopg
        if self._connection is None:
            self._connect()
            try:
                self._acquire()
            except InUseError as error:  # perhaps the session that was lost
                raise TargetUnreachableError(str(error)) from None
        try:
            with self._connection.transaction():
                yield
        except errors.Error as error:
            if self._connection.broken or self._connection.closed:
                self._disconnect()
            raise self._error(error) from None

    def _error(self, error: Exception) -> ExportError:
        """Of an `OperationalError` or what ends a session: it may succeed later."""
        errors = self._psycopg
        text = self._secrets.removed_from(" ".join(str(error).split()))
        passing = (
            errors.OperationalError,
            errors.errors.SerializationFailure,
            errors.errors.ReadOnlySqlTransaction,  # while another server takes over
        )
        if isinstance(error, passing):
            return TargetUnreachableError(f"{self.name} does not respond: {text}")
        return ExportError(f"{self.name} can't be used: {text}")

    def _execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(sql, parameters or None)
        return cursor.fetchall() if cursor.description else []

    def _execute_counted(self, sql: str, parameters: Sequence[Any]) -> int:
        return int(self._connection.execute(sql, parameters).rowcount)

    def _execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(sql, rows)

    def _columns(self, table: str) -> dict[str, str]:
        rows = self._execute(
            "SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a "
            "JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relname = %s AND n.nspname = current_schema() "
            "AND a.attnum > 0 AND NOT a.attisdropped",
            (table,),
        )
        return dict(rows)

    def _values(self, column: Column) -> list[Any]:
        values = column.values
        if column.kind == "time":
            return [None if v is None else _EPOCH + timedelta(milliseconds=v) for v in values]
        if column.kind == "text":
            return [v if v is None or _NUL not in v else v.replace(_NUL, _SYMBOL) for v in values]
        if column.kind == "json":
            return [v if v is None or "\\u0000" not in v else _without_nul(v) for v in values]
        return values

    def _same(self, column: str, other: str) -> bool:
        return column == other

    def _lock(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._acquire()

    def _acquire(self) -> None:
        """Lock the pipeline's export; the session of a killed one may take a moment to end."""
        digest = hashlib.sha256(f"anabranch export {self._pipeline}".encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        try:
            while not self._connection.execute(
                "SELECT pg_try_advisory_lock(%s)", (number,)
            ).fetchone()[0]:
                if time.monotonic() > deadline:
                    self._disconnect()
                    raise in_use(self.name)
                time.sleep(0.1)
        except self._psycopg.Error as error:
            self._disconnect()
            raise self._error(error) from None


def _without_nul(json: str) -> str:
    return msgspec.json.encode(_replaced(msgspec.json.decode(json))).decode()


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(_NUL, _SYMBOL)
    if isinstance(value, list):
        return [_replaced(each) for each in value]
    if isinstance(value, dict):
        return {_replaced(key): _replaced(each) for key, each in value.items()}
    return value
