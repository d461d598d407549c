"""Reads all of a topic's file and verifies every checksum; nothing is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from anabranch.dataflows.bus.embedded.topic_file import (
    COLUMNS,
    ENDS,
    FORMAT,
    OFFSET_BITS,
    OFFSET_MASK,
    SETTINGS,
    decode_segment,
    read_setting,
    sqlite_error,
)
from anabranch.state.errors import BusError
from anabranch.state.store.sqlite_files import (
    is_damage,
    open_read_only,
    verify_log,
    verify_pages,
)

_TIMEOUT_S = 10.0
_CUT = ", checksum"  # the column that format 1 does not have


def verify_topic(topic: str, path: Path) -> Iterator[str]:
    """What is wrong with the file of a topic, a sentence for each.

    Raises:
        BusError: it can't be read now.
    """
    try:
        with open_read_only(path, _TIMEOUT_S) as connection:
            problem = verify_pages(connection) or verify_log(path)
            if problem is not None:
                yield problem
                return
            # Appends in between must not be taken for damage.
            connection.execute("BEGIN")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == FORMAT:
                yield from _settings(connection, path)
            yield from _segments(connection, path, version)
    except sqlite3.Error as error:
        if not is_damage(error):
            raise sqlite_error(topic, path, error) from error
        yield str(error)
    except OSError as error:
        raise BusError(f"topic {topic}: {path} can't be read: {error.strerror}") from None


def _settings(connection: sqlite3.Connection, path: Path) -> Iterator[str]:
    stored = {row[0] for row in connection.execute("SELECT name FROM settings")}
    for name in stored - set(SETTINGS):
        yield f"it has a setting {name!r}"
    for name in SETTINGS:
        try:
            read_setting(connection, path, name)
        except BusError as error:
            yield str(error)


def _segments(connection: sqlite3.Connection, path: Path, version: int) -> Iterator[str]:
    """Verify that each partition's segments are whole, follow one another and reach its end."""
    ends = [row[0] for row in connection.execute(ENDS)]
    reached = [0] * len(ends)
    begun = [False] * len(ends)
    columns = COLUMNS if version == FORMAT else COLUMNS.removesuffix(_CUT) + ", NULL"
    for row in connection.execute(f"SELECT {columns} FROM segments ORDER BY id"):
        partition, base = row[0] >> OFFSET_BITS, row[0] & OFFSET_MASK
        if not 0 <= partition < len(ends):
            yield f"it has a segment of partition {partition}, and {len(ends)} partitions"
            continue
        try:
            segment = decode_segment(row, path)
        except BusError as error:
            yield str(error)
            reached[partition], begun[partition] = base + row[1], True
            continue
        if begun[partition] and base != reached[partition]:
            yield (
                f"in partition {partition}, a segment begins at offset {base} where offset "
                f"{reached[partition]} should come next"
            )
        reached[partition], begun[partition] = segment.end, True
    for partition, (end, last) in enumerate(zip(ends, reached, strict=True)):
        if end != last:  # the last segment is never removed
            yield f"partition {partition} ends at offset {last}, and should end at {end}"
