"""Rows in SQL tables: upserts and positions in one transaction.

::

    fraud_predictions     one table for each output, with ``id`` as its primary key
    anabranch_tables      which tables are exports, and of which topic
    anabranch_positions   the next offset of each topic partition

A prediction whose id is there already replaces the row unless it is of an earlier time.
"""

from __future__ import annotations

import hashlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.export.output_tables import Column, Kind, OutputTable, TableRows
from anabranch.dataflows.export.target import (
    Batch,
    ExportError,
    Position,
    Positions,
    taken_over,
)

_LOG = logging.getLogger("anabranch.export")

_TABLES, _POSITIONS = "anabranch_tables", "anabranch_positions"
_OWN_TABLES = f"""CREATE TABLE IF NOT EXISTS {_TABLES} (
    table_name text PRIMARY KEY,
    pipeline text NOT NULL,
    output text NOT NULL,
    topic text NOT NULL
)"""
_OWN_POSITIONS = f"""CREATE TABLE IF NOT EXISTS {_POSITIONS} (
    topic text NOT NULL,
    partition_number integer NOT NULL,
    topic_id text NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (topic, partition_number)
)"""
_MAX_NAME_BYTES = 63  # PostgreSQL cuts longer names, and two may become one


class SqlTarget(ABC):
    """The tables of one export in a database; a subclass knows the database.

    Attributes:
        types: the type of a column in this database, by kind.
        mark: what stands for a parameter in a statement.
    """

    types: ClassVar[Mapping[Kind, str]]
    mark: ClassVar[str]
    batch_size = 5000
    interval_s = 1.0

    def __init__(self, name: str) -> None:
        self.name = name
        self._topics: list[str] = []
        self._names: dict[str, str] = {}  # output → table
        self._known: dict[str, dict[str, str]] = {}  # table → column → its type

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[None]:
        """What is executed in it is committed together.

        Errors of the database leave it as an `ExportError`.
        """

    @abstractmethod
    def _execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Execute a statement in the transaction; returns its rows."""

    @abstractmethod
    def _execute_counted(self, sql: str, parameters: Sequence[Any]) -> int:
        """Execute a statement in the transaction; returns how many rows it has changed."""

    @abstractmethod
    def _execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement in the transaction for each row of parameters."""

    @abstractmethod
    def _columns(self, table: str) -> dict[str, str]:
        """The columns of a table with the types that `types` has; empty without the table."""

    @abstractmethod
    def _values(self, column: Column) -> list[Any]:
        """The values of a column as parameters."""

    @abstractmethod
    def _same(self, column: str, other: str) -> bool:
        """Whether two column names are one in this database."""

    @abstractmethod
    def _lock(self, pipeline: str) -> None:
        """Let no other export of the pipeline write to this database from now on."""

    @abstractmethod
    def close(self) -> None:
        """Close the database. Idempotent."""

    def keep(self) -> None:  # noqa: B027  # by default
        """Do nothing: the lock is kept by the connection."""

    def prepare(self, pipeline: str, tables: Sequence[OutputTable]) -> Positions:
        """Create the tables that are missing; returns the positions that are stored.

        Raises:
            ExportError: a table of that name is not ours, or has other columns; or another export
                of the pipeline writes there.
        """
        self._lock(pipeline)
        self._topics = [table.topic for table in tables]
        with self._transaction():
            self._execute(_OWN_TABLES)
            self._execute(_OWN_POSITIONS)
            for table in tables:
                self._names[table.output] = self._prepare_table(pipeline, table)
        return self.stored()

    def stored(self) -> Positions:
        """The positions that are stored now."""
        with self._transaction():
            rows = self._execute(
                f"SELECT topic, partition_number, topic_id, next_offset FROM {_POSITIONS}"
            )
        return {
            TopicPartition(topic, partition): Position(topic_id, offset)
            for topic, partition, topic_id, offset in rows
            if topic in self._topics
        }

    def write(self, batch: Batch) -> None:
        """Store rows and positions in one transaction."""
        try:
            with self._transaction():
                for at, position in batch.after.items():
                    self._move(at, batch.before.get(at), position)
                for rows in batch.rows:
                    if rows.size:
                        self._write_rows(rows)
        except BaseException:
            self._known.clear()  # columns that were added may not be there
            raise

    def _move(self, at: TopicPartition, before: Position | None, after: Position) -> None:
        m = self.mark
        if before is None:
            changed = self._execute_counted(
                f"INSERT INTO {_POSITIONS} (topic, partition_number, topic_id, next_offset) "
                f"VALUES ({m}, {m}, {m}, {m}) ON CONFLICT DO NOTHING",
                (*at, *after),
            )
        else:
            changed = self._execute_counted(
                f"UPDATE {_POSITIONS} SET topic_id = {m}, next_offset = {m} WHERE topic = {m} "
                f"AND partition_number = {m} AND topic_id = {m} AND next_offset = {m}",
                (*after, *at, *before),
            )
        if changed != 1:
            raise taken_over(self.name)

    def _write_rows(self, rows: TableRows) -> None:
        table = self._names[rows.table.output]
        columns = self._in_table(table, rows)
        names = ", ".join(map(_quoted, columns))
        marks = ", ".join([self.mark] * len(columns))
        updates = ", ".join(f"{_quoted(n)} = excluded.{_quoted(n)}" for n in columns if n != "id")
        time = _quoted(rows.table.time)
        newer = f"excluded.{time} >= {_quoted(table)}.{time} OR {_quoted(table)}.{time} IS NULL"
        self._execute_many(
            f"INSERT INTO {_quoted(table)} ({names}) VALUES ({marks}) "
            f"ON CONFLICT (id) DO UPDATE SET {updates} WHERE {newer}",
            zip(*(self._values(column) for column in columns.values()), strict=True),
        )

    def _in_table(self, table: str, rows: TableRows) -> dict[str, Column]:
        """The columns by their names in the table; those that it lacks are added."""
        known = self._known.get(table)
        if known is None:
            known = self._known[table] = self._columns(table)
        columns = {}
        for name, column in rows.columns.items():
            own = self._column_name(name, known)
            if own not in known:
                known[own] = self._add_column(table, own, column.kind)
            columns[own] = column
        return columns

    def _add_column(self, table: str, name: str, kind: Kind) -> str:
        sql_type = self.types[kind]
        self._execute(f"ALTER TABLE {_quoted(table)} ADD COLUMN {_quoted(name)} {sql_type}")
        return sql_type

    def _column_name(self, name: str, known: Mapping[str, str]) -> str:
        """What a column is called in a table that has the columns ``known``."""
        name = short_name(name)
        if name in known or not any(self._same(name, other) for other in known):
            return name
        return _with_hash(name, name)

    def _prepare_table(self, pipeline: str, table: OutputTable) -> str:
        """Create the table of an output, or check that it is ours; returns its name."""
        name = table_name(table.topic)
        m = self.mark
        ours = self._execute(
            f"SELECT pipeline, topic FROM {_TABLES} WHERE table_name = {m}", (name,)
        )
        columns = self._columns(name)
        if columns and not ours:
            raise ExportError(
                f"table {name} of {self.name} was not made by an export, so nothing is written "
                "there: rename it, or export to another database or schema"
            )
        if ours and ours[0] != (pipeline, table.topic):
            raise ExportError(
                f"table {name} of {self.name} is the export of topic {ours[0][1]} of pipeline "
                f"{ours[0][0]!r}: export to another database or schema"
            )
        if not columns:
            if ours:
                self._forget(name, table.topic)
            self._create(name, pipeline, table)
        self._check_types(name, table, columns)
        return name

    def _forget(self, name: str, topic: str) -> None:
        """Begin anew with a table that the user has dropped."""
        _LOG.warning(
            "table %s of %s is gone: exporting topic %s from its beginning", name, self.name, topic
        )
        self._execute(f"DELETE FROM {_TABLES} WHERE table_name = {self.mark}", (name,))
        self._execute(f"DELETE FROM {_POSITIONS} WHERE topic = {self.mark}", (topic,))

    def _create(self, name: str, pipeline: str, table: OutputTable) -> None:
        columns: dict[str, str] = {}
        for column, kind in table.columns.items():
            columns[self._column_name(column, columns)] = self.types[kind]
        listed = ", ".join(
            f"{_quoted(column)} {sql_type}{' PRIMARY KEY' if column == 'id' else ''}"
            for column, sql_type in columns.items()
        )
        m = self.mark
        self._execute(f"CREATE TABLE {_quoted(name)} ({listed})")
        self._execute(
            f"INSERT INTO {_TABLES} (table_name, pipeline, output, topic) "
            f"VALUES ({m}, {m}, {m}, {m})",
            (name, pipeline, table.output, table.topic),
        )

    def _check_types(self, name: str, table: OutputTable, columns: Mapping[str, str]) -> None:
        for column, kind in table.columns.items():
            found = columns.get(self._column_name(column, columns))
            if found is not None and found.lower() != self.types[kind].lower():
                raise ExportError(
                    f"column {column} of table {name} of {self.name} has type {found}, but the "
                    f"pipeline now gives {self.types[kind]}: rename the table, or export to "
                    "another database or schema"
                )


def table_name(topic: str) -> str:
    """The table of a topic.

    >>> table_name("fraud.predictions"), table_name("ml.order-risk")
    ('fraud_predictions', 'ml_order_risk')
    """
    return short_name(re.sub(r"\W", "_", topic, flags=re.ASCII))


def short_name(name: str) -> str:
    """A name that every database takes: one that is too long is cut, and ends in a hash.

    >>> short_name("amount"), len(short_name("x" * 70))
    ('amount', 63)
    """
    name = name.replace("\0", "_")
    return name if len(name.encode()) <= _MAX_NAME_BYTES else _with_hash(name, name)


def _with_hash(name: str, hashed: str) -> str:
    digest = hashlib.sha256(hashed.encode()).hexdigest()[:8]
    cut = name.encode()[: _MAX_NAME_BYTES - 9].decode(errors="ignore")
    return f"{cut}_{digest}"


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
