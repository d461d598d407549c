"""The SQLite file of one topic of the embedded bus.

Messages are stored in *segments*, one row per run of messages that were appended together. The row
id is ``partition << 48 | base``, so that a partition's segments are adjacent on disk, and both "the
segment that contains offset x" and "the last one" are one look-up in one B-tree:

    segments(id, count, first_time, last_time, messages)
                                   messages = msgpack [values, keys, times], or with headers too
    partitions(partition, next)                            next = the next offset
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.bus.headers import Headers, encode_headers
from anabranch.dataflows.bus.offset_errors import topic_deleted, topic_recreated
from anabranch.state.errors import BusError
from anabranch.state.store.permissions import make_private

FORMAT = 1
SUFFIX = ".topic"
OFFSET_BITS = 48

_APPLICATION = 0x416E6162  # "Anab": distinguishes a topic from other SQLite files
_BUSY_TIMEOUT_S = 10.0
_SCHEMA = """
CREATE TABLE partitions (partition INTEGER PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE segments (
    id INTEGER PRIMARY KEY,      -- partition << 48 | offset of the first message
    count INTEGER NOT NULL,
    first_time INTEGER NOT NULL, -- of the first and the last message, epoch ms
    last_time INTEGER NOT NULL,
    messages BLOB NOT NULL       -- msgpack of `_Messages`, times as little-endian int64
);
"""

ENDS = "SELECT next FROM partitions ORDER BY partition"
"""The offset after the last message, by partition."""
STARTS = f"""
SELECT coalesce((
    SELECT s.id & {(1 << OFFSET_BITS) - 1} FROM segments s
    WHERE s.id >= p.partition << {OFFSET_BITS} AND s.id < (p.partition + 1) << {OFFSET_BITS}
    ORDER BY s.id LIMIT 1
), p.next) FROM partitions p ORDER BY p.partition
"""
"""The first offset still kept, by partition."""

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


def decode_segment(base: int, count: int, messages: bytes, path: Path) -> Segment:
    """Decode what `encode_messages` made.

    Raises:
        BusError: the bytes are damaged.
    """
    try:
        stored = _decode(messages)
    except msgspec.DecodeError as error:
        raise BusError(f"{path} is damaged: the segment at offset {base}: {error}") from None
    values, keys, packed = stored.values, stored.keys, stored.times
    times = np.frombuffer(packed, "<i8") if len(packed) == 8 * count else np.empty(0, np.int64)
    if not len(values) == len(times) == (count if keys is None else len(keys)):
        raise BusError(
            f"{path} is damaged: the segment at offset {base} does not have {count} messages"
        )
    return Segment(base, values, keys, times.astype(np.int64, copy=False), stored.headers, base)


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
    """An error of SQLite as a `BusError` that says what to do."""
    return BusError(f"topic {topic}: {path}: {error}{_advice(error)}")


def _advice(error: sqlite3.Error) -> str:
    text = str(error)
    for sign, advice in (
        ("full", "; nothing of this append was stored: free some space, then continue"),
        ("readonly", "; the bus needs write access there, even to read"),
        ("locked", f" for {_BUSY_TIMEOUT_S:.0f} s by another process"),
        ("malformed", "; the file is damaged: restore it, or remove it and publish again"),
        ("not a database", "; the file is damaged or not a topic: restore or remove it"),
    ):
        if sign in text:
            return advice
    return ""


def connect(topic: str, path: Path, synchronous: str = "normal") -> sqlite3.Connection:
    """Open a topic's file, which must exist.

    Raises:
        BusError: it cannot be opened, is not a topic, or has another format.
    """
    with bus_errors(topic, path):
        connection = _open(path, "rw", synchronous)
        try:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if application != _APPLICATION:
                raise BusError(f"{path} is a SQLite database but not a topic; move it elsewhere")
            if version != FORMAT:
                raise BusError(
                    f"topic {topic}: {path} has format {version}, this version reads format "
                    f"{FORMAT}; use the version that wrote it, or publish the topic again"
                )
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


def _open(path: Path, mode: str, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=_BUSY_TIMEOUT_S,
        isolation_level=None,  # transactions are explicit
        check_same_thread=False,  # one thread at a time; not always the one that opened it
    )
    connection.execute(f"PRAGMA synchronous={synchronous}")
    # Large appends outgrow the default log of 4 MB at once; this saves fsyncs.
    connection.execute("PRAGMA wal_autocheckpoint=4000")
    connection.execute("PRAGMA journal_size_limit=67108864")
    return connection
