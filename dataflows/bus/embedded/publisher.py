"""Appends to the topics of the embedded bus: one transaction per append."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.bus.embedded.retention import EVERY_S, remove_old, retention_ms
from anabranch.dataflows.bus.embedded.topic_file import (
    OFFSET_BITS,
    WAIT_S,
    FileIdentity,
    bus_errors,
    checksum_of,
    connect,
    digest,
    encode_messages,
)
from anabranch.dataflows.bus.headers import Headers, take_headers
from anabranch.dataflows.bus.outage_log import SILENT_S, OutageLog
from anabranch.dataflows.bus.partitioner import Partitioner
from anabranch.dataflows.bus.protocol import UnreachableError

Result = TypeVar("Result")

MAX_MESSAGES = 4096  # of a segment, all of which a reader decodes to read one
MAX_BYTES = 8 << 20
_RETRY_S = 0.01
_INSERT = """
INSERT INTO segments (id, count, first_time, last_time, messages, checksum)
VALUES (?, ?, ?, ?, ?, ?)
"""


class _Run(NamedTuple):
    """Messages for one partition, or for one segment of it."""

    partition: int
    values: Sequence[bytes]
    keys: Sequence[bytes | None] | None
    times: NDArray[np.int64]
    headers: Headers | None = None


class _Topic(NamedTuple):
    path: Path
    connection: sqlite3.Connection
    partitioner: Partitioner
    identity: FileIdentity


class EmbeddedPublisher:
    """A `Publisher` whose `append` is a transaction: all of it is stored, or nothing."""

    def __init__(
        self,
        existing: Callable[[str], Path],
        synchronous: str,
        url: str,
        stop: threading.Event | None = None,
    ) -> None:
        self._existing = existing
        self._synchronous = synchronous
        self._stop = stop
        self._outage = OutageLog(url)
        self._topics: dict[str, _Topic] = {}
        self._remove_at = 0.0

    def append(
        self,
        topic: str,
        values: Sequence[bytes],
        *,
        keys: Sequence[bytes | None] | None = None,
        partitions: Sequence[int] | int | None = None,
        times: Sequence[int] | NDArray[np.int64] | None = None,
        headers: Headers | None = None,
    ) -> None:
        """Store ``values``; when it returns, they survive the death of this process.

        Waits, and logs that, while another process has locked the topic's file.

        Raises:
            UnreachableError: the publisher was stopped meanwhile; nothing is stored.
            BusError: the topic does not exist, or SQLite failed; then nothing is stored.
        """
        opened = self._topics.get(topic) or self._when_unlocked(lambda: self._open(topic))
        rows = len(values)
        assigned = opened.partitioner.assign(rows, keys, partitions)
        if times is None:
            message_times = np.full(rows, time.time_ns() // 1_000_000, np.int64)
        else:
            opened.partitioner.check_length("times", len(times), rows)
            message_times = np.asarray(times, np.int64)
        if rows == 0:
            return
        runs = [
            part
            for run in _by_partition(assigned, values, keys, message_times, headers)
            for part in _segments_of(run)
        ]
        self._when_unlocked(lambda: _append(opened, topic, runs))
        if time.monotonic() >= self._remove_at:
            self._remove_at = time.monotonic() + EVERY_S
            for name, each in self._topics.items():
                self._when_unlocked(partial(_remove_old, name, each))

    def _when_unlocked(self, attempt: Callable[[], Result]) -> Result:
        """What ``attempt`` returns once no other process has locked the file."""
        while True:
            try:
                result = attempt()
            except UnreachableError as error:
                self._outage.no_answer(str(error))
                stopping = self._stop is not None and self._stop.is_set()
                if stopping and self._outage.silent_s() >= SILENT_S:
                    raise
                time.sleep(_RETRY_S)
            else:
                self._outage.answered()
                return result

    def flush(self, timeout_s: float = 30.0) -> None:
        """Check that the files are still there; `append` has stored everything already.

        Raises:
            BusError: a topic's file was deleted or replaced, and with it what was stored there.
        """
        for topic in self._topics.values():
            topic.identity.check()

    def close(self) -> None:
        """Close the files."""
        for topic in self._topics.values():
            topic.connection.close()
        self._topics.clear()

    def _open(self, topic: str) -> _Topic:
        path = self._existing(topic)
        connection = connect(topic, path, self._synchronous, WAIT_S)
        with bus_errors(topic, path):
            count = connection.execute("SELECT count(*) FROM partitions").fetchone()[0]
        opened = self._topics[topic] = _Topic(
            path, connection, Partitioner(topic, count), FileIdentity(topic, path)
        )
        return opened


def _append(opened: _Topic, topic: str, runs: list[_Run]) -> None:
    with bus_errors(topic, opened.path):
        _store(opened.connection, runs)


def _remove_old(topic: str, opened: _Topic) -> None:
    """Remove what the topic no longer keeps."""
    connection, path = opened.connection, opened.path
    with bus_errors(topic, path):
        if retention_ms(connection, path) is None:
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            remove_old(connection, path, time.time_ns() // 1_000_000)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _by_partition(
    assigned: NDArray[np.int64] | int,
    values: Sequence[bytes],
    keys: Sequence[bytes | None] | None,
    times: NDArray[np.int64],
    headers: Headers | None,
) -> list[_Run]:
    if isinstance(assigned, int):
        return [_Run(assigned, values, keys, times, headers)]
    runs = []
    order = np.argsort(assigned, kind="stable")
    bounds = np.flatnonzero(np.diff(assigned[order])) + 1
    for rows in np.split(order, bounds):
        indices = rows.tolist()
        own_keys = None if keys is None else [keys[i] for i in indices]
        own_values = [values[i] for i in indices]
        number, own_headers = int(assigned[indices[0]]), take_headers(headers, rows)
        runs.append(_Run(number, own_values, own_keys, times[rows], own_headers))
    return runs


def _segments_of(run: _Run) -> list[_Run]:
    """Split a run so that no segment has too many messages, or several with too many bytes."""
    count = len(run.values)
    if count <= MAX_MESSAGES and sum(map(len, run.values)) <= MAX_BYTES:
        return [run]
    cuts, size = [0], 0
    for at, value in enumerate(run.values):
        if at > cuts[-1] and (at - cuts[-1] == MAX_MESSAGES or size + len(value) > MAX_BYTES):
            cuts.append(at)
            size = 0
        size += len(value)
    cuts.append(count)
    return [
        _Run(
            run.partition,
            run.values[start:stop],
            None if run.keys is None else run.keys[start:stop],
            run.times[start:stop],
            None if run.headers is None else run.headers[start:stop],
        )
        for start, stop in pairwise(cuts)
    ]


def _store(connection: sqlite3.Connection, runs: list[_Run]) -> None:
    # Encoded before the lock is taken, so that other processes wait only for the disk.
    blobs = [encode_messages(run.values, run.keys, run.times, run.headers) for run in runs]
    digests = [digest(blob) for blob in blobs]
    execute = connection.execute
    execute("BEGIN IMMEDIATE")
    try:
        for run, blob, digested in zip(runs, blobs, digests, strict=True):
            at = (run.partition,)
            base: int = execute("SELECT next FROM partitions WHERE partition=?", at).fetchone()[0]
            count, number = len(run.values), run.partition << OFFSET_BITS | base
            times = int(run.times[0]), int(run.times[-1])
            checksum = checksum_of(number, count, digested, *times)
            execute(_INSERT, (number, count, *times, blob, checksum))
            execute("UPDATE partitions SET next=? WHERE partition=?", (base + count, *at))
        execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself rolls back after some errors
            execute("ROLLBACK")
        raise
