"""Rows in the tables of a SQLite file: each message once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from anabranch.dataflows.export.file_lock import FileLock
from anabranch.dataflows.export.output_tables import Column, Kind
from anabranch.dataflows.export.sql_target import SqlTarget
from anabranch.dataflows.export.target import ExportError, TargetUnreachableError
from anabranch.state.store.permissions import make_ordinary

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_BUSY_TIMEOUT_S = 1.0


class SqliteTarget(SqlTarget):
    """The tables in the file at ``path``, which is created.

    Times are texts in UTC, ``2026-11-30 08:00:00.000``, which SQLite's date functions take.
    """

    types: ClassVar[dict[Kind, str]] = {
        "text": "TEXT",
        "integer": "INTEGER",
        "double": "DOUBLE",
        "boolean": "BOOLEAN",
        "time": "TIMESTAMP",
        "json": "JSON_TEXT",
    }
    mark = "?"

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:{path}")
        self._path = path
        self._file_lock: FileLock | None = None
        self._connection: sqlite3.Connection | None = None
        if path.is_dir() or not path.parent.is_dir():
            why = "it is a directory" if path.is_dir() else f"{path.parent} does not exist"
            raise ExportError(f"{path} can't be an SQLite file: {why}")
        try:
            existed = path.exists()
            connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
            self._connection = connection
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
            if not existed:
                make_ordinary(path)
        except sqlite3.Error as error:
            self.close()
            raise self._error(error) from None

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._file_lock is not None:
            self._file_lock.close()
            self._file_lock = None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        assert self._connection is not None
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OverflowError) as error:
            raise self._error(error) from None

    def _error(self, error: Exception) -> ExportError:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _BUSY:
            return TargetUnreachableError(f"{self.name} is locked by another program")
        return ExportError(f"{self.name} can't be used: {error}")

    def _execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        assert self._connection is not None
        return self._connection.execute(sql, parameters).fetchall()

    def _execute_counted(self, sql: str, parameters: Sequence[Any]) -> int:
        assert self._connection is not None
        return self._connection.execute(sql, parameters).rowcount

    def _execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        assert self._connection is not None
        self._connection.executemany(sql, rows)

    def _columns(self, table: str) -> dict[str, str]:
        rows = self._execute("SELECT name, type FROM pragma_table_info(?)", (table,))
        return dict(rows)

    def _values(self, column: Column) -> list[Any]:
        if column.kind != "time":
            return column.values
        return [None if value is None else _utc_text(value) for value in column.values]

    def _same(self, column: str, other: str) -> bool:
        return column.lower() == other.lower()

    def _lock(self, pipeline: str) -> None:
        if self._file_lock is None:
            lock = self._path.with_name(f"{self._path.name}.export-lock")
            self._file_lock = FileLock(lock, self.name)


def _utc_text(ms: int) -> str:
    moment = (_EPOCH + timedelta(milliseconds=ms)).replace(tzinfo=None)
    return moment.isoformat(" ", timespec="milliseconds")
