"""Removes what a topic of the embedded bus no longer keeps: whole segments, the oldest first.

As on Kafka a segment goes once its newest message is older than the topic's retention, by the times
that publishers gave them. Without one, the default, nothing is removed. The last segment of a
partition always stays, so that where the partition ends can be verified.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from anabranch.dataflows.bus.embedded.topic_file import (
    COLUMNS,
    OFFSET_BITS,
    RETENTION,
    Row,
    decode_segment,
    read_setting,
)

EVERY_S = 30.0
"""How often a publisher removes what is too old."""


def retention_ms(connection: sqlite3.Connection, path: Path) -> int | None:
    """For how long after its time a topic keeps a message; None: forever.

    Raises:
        BusError: the setting is damaged.
    """
    stored = read_setting(connection, path, RETENTION)
    return None if stored is None else int(stored)


def remove_old(connection: sqlite3.Connection, path: Path, now_ms: int) -> int:
    """Remove all segments that are too old; returns how many messages they had.

    Raises:
        BusError: a segment is damaged.
    """
    kept_ms = retention_ms(connection, path)
    if kept_ms is None:
        return 0
    removed = 0
    for (partition,) in connection.execute("SELECT partition FROM partitions").fetchall():
        first, stop = partition << OFFSET_BITS, (partition + 1) << OFFSET_BITS
        keep_from, count = _first_kept(connection, path, first, stop, now_ms - kept_ms)
        if count:
            connection.execute("DELETE FROM segments WHERE id >= ? AND id < ?", (first, keep_from))
            removed += count
    return removed


def _first_kept(
    connection: sqlite3.Connection, path: Path, first: int, stop: int, oldest_ms: int
) -> tuple[int, int]:
    """The id of the first segment that stays, and how many messages lie before it."""
    query = f"SELECT {COLUMNS} FROM segments WHERE id >= ? AND id < ? ORDER BY id LIMIT 2"
    count = 0
    while True:
        rows: list[Row] = connection.execute(query, (first, stop)).fetchall()
        if len(rows) < 2 or not _is_older(rows[0], path, oldest_ms):
            return (rows[0][0] if rows else first), count
        count += rows[0][1]
        first = rows[1][0]


def _is_older(row: Row, path: Path, oldest_ms: int) -> bool:
    """Whether all messages of a segment are older; those in between may be its newest."""
    if max(row[3], row[4]) >= oldest_ms:
        return False
    return int(decode_segment(row, path).times.max(initial=0)) < oldest_ms
