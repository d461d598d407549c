"""The SQLite file of one topic of the embedded bus.

Messages are stored in *segments*, one row per run of messages that were appended together. The row
id is ``partition << 48 | base``, so that a partition's segments are adjacent on disk, and both "the
segment that contains offset x" and "the last one" are one look-up in one B-tree:

    segments(id, count, first_time, last_time, messages, checksum)
                                   messages = msgpack [values, keys, times], or with headers
    partitions(partition, next)    next = the next offset
    settings(name, value, checksum)

Checksums are of everything else in the row. SQLite has none of its own: a flipped bit would be read
as another message. Segments from before format 2 have none.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from anabranch.dataflows.bus.headers import Headers, encode_headers
from anabranch.dataflows.bus.offset_errors import topic_deleted, topic_recreated
from anabranch.dataflows.bus.protocol import UnreachableError
from anabranch.state.errors import BusError
from anabranch.state.store.permissions import make_private

FORMAT = 2
SUFFIX = ".topic"
OFFSET_BITS = 48
OFFSET_MASK = (1 << OFFSET_BITS) - 1
ID, RETENTION = "id", "retention_ms"
"""Settings: what tells a topic from a later one of its name; how long it keeps messages."""
SETTINGS = (ID, RETENTION)

_APPLICATION = 0x416E6162  # "Anab": distinguishes a topic from other SQLite files
_BUSY_TIMEOUT_S = 10.0
WAIT_S = 1.0
"""How long one attempt waits for a lock, where there is another attempt after it."""
_SCHEMA = """
CREATE TABLE partitions (partition INTEGER PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE segments (
    id INTEGER PRIMARY KEY,      -- partition << 48 | offset of the first message
    count INTEGER NOT NULL,
    first_time INTEGER NOT NULL, -- of the first and the last message, epoch ms
    last_time INTEGER NOT NULL,
    messages BLOB NOT NULL,      -- msgpack of `_Messages`, times as little-endian int64
    checksum INTEGER
);
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL);
"""
_UPGRADE = (
    "ALTER TABLE segments ADD COLUMN checksum INTEGER",
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL)",
)

ENDS = "SELECT next FROM partitions ORDER BY partition"
"""The offset after the last message, by partition."""
STARTS = f"""
SELECT coalesce((
    SELECT s.id & {OFFSET_MASK} FROM segments s
    WHERE s.id >= p.partition << {OFFSET_BITS} AND s.id < (p.partition + 1) << {OFFSET_BITS}
    ORDER BY s.id LIMIT 1
), p.next) FROM partitions p ORDER BY p.partition
"""
"""The first offset still kept, by partition."""

COLUMNS = "id, count, messages, first_time, last_time, checksum"
"""Of a segment, in the order of `Row`."""
Row = tuple[int, int, bytes, int, int, int | None]

_HEADER = struct.Struct("<4qQ")
_encode = msgspec.msgpack.Encoder().encode


class _Messages(msgspec.Struct, array_like=True, gc=False):
    """The ``messages`` of a segment; those without headers have no fourth element."""

    values: list[bytes]
    keys: list[bytes | None] | None
    times: bytes
    headers: bytes = b""


_decode = msgspec.msgpack.Decoder(_Messages).decode


ADD_PARTITIONS = """
WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?)
INSERT OR IGNORE INTO partitions SELECT n, 0 FROM numbers
"""
"""Raises the number of partitions; no other process adds or removes one in between."""


class Segment(NamedTuple):
    """A decoded segment: ``values`` from offset ``base`` on, ``times`` ``(n,) int64``.

    ``headers`` are those of the messages from offset ``headers_from`` on, still encoded.
    """

    base: int
    values: list[bytes]
    keys: list[bytes | None] | None
    times: NDArray[np.int64]
    headers: bytes = b""
    headers_from: int = 0

    @property
    def end(self) -> int:
        """The offset after the last message."""
        return self.base + len(self.values)


def encode_messages(
    values: Sequence[bytes],
    keys: Sequence[bytes | None] | None,
    times: NDArray[np.int64],
    headers: Headers | None = None,
) -> bytes:
    """The ``messages`` of a segment."""
    packed = times.astype("<i8", copy=False).tobytes()
    if headers is None:
        return _encode((values, keys, packed))
    return _encode((values, keys, packed, encode_headers(headers)))


def digest(messages: bytes) -> int:
    """The part of a segment's checksum that is of its messages: XXH3 costs 0.005 µs per message."""
    return int(xxhash.xxh3_64_intdigest(messages))


def checksum_of(number: int, count: int, digested: int, first_time: int, last_time: int) -> int:
    """The checksum of a segment, given the `digest` of its messages."""
    header = _HEADER.pack(number, count, first_time, last_time, digested)
    return int(xxhash.xxh3_64_intdigest(header)) >> 1  # SQLite has signed integers


def decode_segment(row: Row, path: Path) -> Segment:
    """Verify and decode a segment.

    Raises:
        BusError: it is damaged.
    """
    number, count, messages, first_time, last_time, checksum = row
    try:
        if checksum is not None and checksum != checksum_of(
            number, count, digest(messages), first_time, last_time
        ):
            raise damaged_segment(path, number, "its checksum does not match")
        stored = _decode(messages)
    except (msgspec.MsgspecError, TypeError, struct.error) as error:
        raise damaged_segment(path, number, str(error)) from None
    values, keys, packed = stored.values, stored.keys, stored.times
    times = np.frombuffer(packed, "<i8") if len(packed) == 8 * count else np.empty(0, np.int64)
    if not len(values) == len(times) == (count if keys is None else len(keys)):
        raise damaged_segment(path, number, f"it does not have {count} messages")
    base, times = number & OFFSET_MASK, times.astype(np.int64, copy=False)
    return Segment(base, values, keys, times, stored.headers, base)


def damaged_segment(path: Path, number: int, why: str) -> BusError:
    """The error for a segment that can't be read."""
    return BusError(
        f"{path} is damaged: the segment at offset {number & OFFSET_MASK} of partition "
        f"{number >> OFFSET_BITS}: {why}; restore it from a backup, or remove it and publish again"
    )


class FileIdentity:
    """Which file a path named, to notice if it is deleted or replaced."""

    def __init__(self, topic: str, path: Path) -> None:
        self._topic = topic
        self._path = path
        self._file = self._stat()

    def check(self) -> None:
        """Raise `BusError` if the path no longer names that file."""
        file = self._stat()
        if file is None:
            raise topic_deleted(self._topic)
        if file != self._file:
            raise topic_recreated(self._topic)

    def _stat(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BusError(
                f"topic {self._topic}: cannot stat {self._path}: {error.strerror}"
            ) from error
        return status.st_dev, status.st_ino


@contextmanager
def bus_errors(topic: str, path: Path) -> Iterator[None]:
    """Turn what SQLite raises into a `BusError` that names the topic and its file."""
    try:
        yield
    except sqlite3.Error as error:
        raise sqlite_error(topic, path, error) from error


def sqlite_error(topic: str, path: Path, error: sqlite3.Error) -> BusError:
    """An error of SQLite as a `BusError` that says what to do.

    A lock that another process holds is an `UnreachableError`: it may be released.
    """
    kind = UnreachableError if "locked" in str(error) else BusError
    return kind(f"topic {topic}: {path}: {error}{_advice(error)}")


def _advice(error: sqlite3.Error) -> str:
    text = str(error)
    for sign, advice in (
        ("full", "; nothing of this append was stored: free some space, then continue"),
        ("readonly", "; the bus needs write access there, even to read"),
        ("locked", " by another process; end that one, if it does not release it"),
        ("malformed", "; the file is damaged: restore it, or remove it and publish again"),
        ("not a database", "; the file is damaged or not a topic: restore or remove it"),
    ):
        if sign in text:
            return advice
    return ""


def connect(
    topic: str, path: Path, synchronous: str = "normal", busy_timeout_s: float = _BUSY_TIMEOUT_S
) -> sqlite3.Connection:
    """Open a topic's file, which must exist. Waits ``busy_timeout_s`` for locks.

    Raises:
        UnreachableError: another process has locked it for longer.
        BusError: it cannot be opened, is not a topic, or has another format.
    """
    with bus_errors(topic, path):
        connection = _open(path, "rw", synchronous, busy_timeout_s)
        try:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if application != _APPLICATION:
                raise BusError(f"{path} is a SQLite database but not a topic; move it elsewhere")
            if version not in (1, FORMAT):
                raise BusError(
                    f"topic {topic}: {path} has format {version}, this version reads format "
                    f"{FORMAT}; use the version that wrote it, or publish the topic again"
                )
            if version != FORMAT:
                _upgrade(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def create(topic: str, path: Path, partitions: int) -> bool:
    """Create a topic's file; False if it exists.

    The file is written under another name and linked to its own when complete, so that no process
    ever sees an incomplete topic.

    Raises:
        BusError: it cannot be written.
    """
    temporary = path.parent / f".{uuid.uuid4().hex}"
    try:
        with bus_errors(topic, path):
            connection = _open(temporary, "rwc", "full")
            try:
                make_private(temporary)  # SQLite gives its other files the same mode
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(f"PRAGMA application_id={_APPLICATION}")
                connection.execute(f"PRAGMA user_version={FORMAT}")
                connection.executescript(_SCHEMA)
                rows = [(partition, 0) for partition in range(partitions)]
                connection.execute("BEGIN")
                connection.executemany("INSERT INTO partitions VALUES (?, ?)", rows)
                write_setting(connection, ID, uuid.uuid4().hex)
                connection.execute("COMMIT")
            finally:
                connection.close()
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise BusError(f"topic {topic}: can't create {path}: {error.strerror}") from error
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
    return True


def _upgrade(connection: sqlite3.Connection) -> None:
    """Bring a file of format 1 to the present one; its segments stay without checksums."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
            for statement in _UPGRADE:
                connection.execute(statement)
            write_setting(connection, ID, uuid.uuid4().hex)
            connection.execute(f"PRAGMA user_version={FORMAT}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def read_setting(connection: sqlite3.Connection, path: Path, name: str) -> str | None:
    """A setting of a topic; None if it was not made.

    Raises:
        BusError: it is damaged.
    """
    query = "SELECT value, checksum FROM settings WHERE name = ?"
    row = connection.execute(query, (name,)).fetchone()
    if row is None:
        return None
    value, checksum = row
    if not isinstance(value, str) or zlib.crc32(f"{name}={value}".encode()) != checksum:
        raise BusError(
            f"{path} is damaged: the checksum of its setting {name} does not match; restore it "
            "from a backup, or remove it and publish again"
        )
    return value


def write_setting(connection: sqlite3.Connection, name: str, value: str) -> None:
    """Make a setting of a topic, or replace it."""
    row = (name, value, zlib.crc32(f"{name}={value}".encode()))
    connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?, ?)", row)


def remove_setting(connection: sqlite3.Connection, name: str) -> None:
    """Undo `write_setting`."""
    connection.execute("DELETE FROM settings WHERE name = ?", (name,))


def _open(
    path: Path, mode: str, synchronous: str, busy_timeout_s: float = _BUSY_TIMEOUT_S
) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=busy_timeout_s,
        isolation_level=None,  # transactions are explicit
        check_same_thread=False,  # one thread at a time; not always the one that opened it
    )
    connection.execute(f"PRAGMA synchronous={synchronous}")
    # Large appends outgrow the default log of 4 MB at once; this saves fsyncs.
    connection.execute("PRAGMA wal_autocheckpoint=4000")
    connection.execute("PRAGMA journal_size_limit=67108864")
    return connection
