"""Reads topics of the embedded bus: several partitions of several topics in turn."""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from anabranch.dataflows.bus.embedded.topic_file import (
    COLUMNS,
    ENDS,
    OFFSET_BITS,
    OFFSET_MASK,
    STARTS,
    FileIdentity,
    Row,
    Segment,
    connect,
    damaged_segment,
    decode_segment,
    sqlite_error,
)
from anabranch.dataflows.bus.headers import Headers, MessageHeaders, decode_headers
from anabranch.dataflows.bus.offset_errors import next_offset
from anabranch.dataflows.bus.outage_log import OutageLog
from anabranch.dataflows.bus.protocol import (
    OnOutOfRange,
    Slice,
    TopicPartition,
    UnreachableError,
    with_tombstones,
)
from anabranch.state.errors import BusError

_POLL_S = 0.001
_CHECK_S = 1.0
_BUSY_TIMEOUT_MS = 100  # for a lock: `poll` tries again


class EmbeddedReader:
    """A `Reader` of SQLite files. `commit` does nothing: there are no lag tools for them."""

    def __init__(
        self,
        existing: Callable[[str], Path],
        positions: Mapping[TopicPartition, int],
        on_out_of_range: OnOutOfRange = "stop",
        url: str = "",
        headers: bool = False,
    ) -> None:
        self._headers = headers
        self._outage = OutageLog(url)
        self._files: dict[str, _TopicFile] = {}
        self._cursors: dict[TopicPartition, _Cursor] = {}
        self._first = 0
        self._next_check = 0.0
        try:
            for at, position in positions.items():
                file = self._files.get(at.topic)
                if file is None:
                    file = self._files[at.topic] = _TopicFile(at.topic, existing(at.topic))
                self._cursors[at] = _Cursor(file, at, position, on_out_of_range)
        except BaseException:
            self.close()
            raise

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        """At most ``limit`` messages that are there now, grouped by topic partition.

        While another process has locked a file there are none; the log says so.

        Raises:
            BusError: a partition no longer keeps, or does not have, the offset to be read, or a
                topic's file was deleted or replaced.
        """
        slices = self._sweep(limit)
        if slices:
            return slices
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + _CHECK_S
            for file in self._files.values():
                file.identity.check()
        deadline = now + timeout_s
        while not slices and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(_POLL_S, left))
            slices = self._sweep(limit)
        return slices

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Return nothing more from these partitions until `resume`."""
        for at in partitions:
            self._cursors[at].paused = True

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Undo `pause`."""
        for at in partitions:
            self._cursors[at].paused = False

    def positions(self) -> dict[TopicPartition, int]:
        """The next offset of each partition; after a gap, once that is known."""
        return {at: cursor.position for at, cursor in self._cursors.items()}

    def ends(self) -> dict[TopicPartition, int]:
        """The offset after each partition's last message, as of now unless a file is locked."""
        ends = {topic: file.last_ends() for topic, file in self._files.items()}
        return {at: ends[at.topic][at.partition] for at in self._cursors}

    def partition_counts(self) -> dict[str, int]:
        """How many partitions each topic has, as of now unless a file is locked."""
        return {topic: len(file.last_ends()) for topic, file in self._files.items()}

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Do nothing."""

    def unavailable_reason(self) -> str | None:
        """Which file another process has locked, if for 5 s."""
        return self._outage.unavailable_reason()

    def close(self) -> None:
        """Close the files. Idempotent."""
        for file in self._files.values():
            file.connection.close()
        self._files.clear()
        self._cursors.clear()

    def _sweep(self, limit: int) -> list[Slice]:
        try:
            slices = self._read(limit)
        except UnreachableError as error:
            self._outage.no_answer(str(error))
            return []
        self._outage.answered()
        return slices

    def _read(self, limit: int) -> list[Slice]:
        versions = {topic: file.version() for topic, file in self._files.items()}
        ready = [
            (at, cursor)
            for at, cursor in self._cursors.items()
            if not cursor.paused and not cursor.drained_at(versions[at.topic])
        ]
        slices: list[Slice] = []
        if not ready:
            return slices
        # Another partition goes first each time, and each leaves room for those after it.
        self._first = (self._first + 1) % len(ready)
        ready = ready[self._first :] + ready[: self._first]
        for later, (at, cursor) in zip(range(len(ready) - 1, -1, -1), ready, strict=True):
            share = limit - limit * later // (later + 1)
            version = versions[at.topic]
            if share and (piece := cursor.read(share, version, self._headers)) is not None:
                slices.append(piece)
                limit -= len(piece.values)
        return slices


class _TopicFile:
    """The connection to one topic's file, and its ends when it last changed."""

    def __init__(self, topic: str, path: Path) -> None:
        self.topic = topic
        self.path = path
        self.identity = FileIdentity(
            topic, path
        )  # before it is opened, so that a replacement is noticed
        self.connection = connect(topic, path)
        self.connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        self._ends: list[int] = []
        self._ends_version = -1

    def version(self) -> int:
        """A number that changes when another connection has committed (about 2 µs)."""
        try:
            number: int = self.connection.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as error:
            raise sqlite_error(self.topic, self.path, error) from error
        return number

    def ends(self) -> list[int]:
        """The offset after the last message, by partition."""
        version = self.version()  # before the query, so that a commit in between is seen next time
        if version != self._ends_version:
            self._ends = self._numbers(ENDS)
            self._ends_version = version
        return self._ends

    def last_ends(self) -> list[int]:
        """`ends`, or what they were before another process has locked the file."""
        try:
            return self.ends()
        except UnreachableError:
            return self._ends

    def starts(self) -> list[int]:
        """The first offset still kept, by partition."""
        return self._numbers(STARTS)

    def _numbers(self, query: str) -> list[int]:
        try:
            return [row[0] for row in self.connection.execute(query)]
        except sqlite3.Error as error:
            raise sqlite_error(self.topic, self.path, error) from error

    def segments_from(self, partition: int, offset: int, wanted: int) -> list[Row]:
        """Segments that start at ``offset`` or later, up to ``wanted`` messages."""
        query = f"SELECT {COLUMNS} FROM segments WHERE id >= ? AND id < ? ORDER BY id"
        first = partition << OFFSET_BITS
        rows: list[Row] = []
        try:
            cursor = self.connection.execute(query, (first | offset, first + OFFSET_MASK + 1))
            for row in cursor:
                rows.append(row)
                wanted -= row[1]
                if wanted <= 0:
                    break
            cursor.close()  # an open read would prevent a checkpoint of the write-ahead log
        except sqlite3.Error as error:
            raise sqlite_error(self.topic, self.path, error) from error
        return rows

    def segment_at(self, partition: int, offset: int) -> Row | None:
        """The segment that contains ``offset``; None if it is not kept."""
        query = f"SELECT {COLUMNS} FROM segments WHERE id <= ? AND id >= ? ORDER BY id "
        first = partition << OFFSET_BITS
        try:
            row: Row | None = self.connection.execute(
                query + "DESC LIMIT 1", (first | offset, first)
            ).fetchone()
        except sqlite3.Error as error:
            raise sqlite_error(self.topic, self.path, error) from error
        if row is not None and offset < (row[0] & OFFSET_MASK) + row[1]:
            return row
        return None


class _Cursor:
    """How far one partition has been read."""

    def __init__(
        self, file: _TopicFile, at: TopicPartition, position: int, on_out_of_range: OnOutOfRange
    ) -> None:
        self.paused = False
        self._file = file
        self._at = at
        self._partition = at.partition
        self._on_out_of_range = on_out_of_range
        self._rows: deque[Row] = deque()  # fetched, not decoded yet
        self._segment: Segment | None = (
            None  # decoded once, handed over in as many polls as it takes
        )
        self._drained = -1
        count = len(file.ends())
        if not 0 <= at.partition < count:
            raise BusError(f"topic {at.topic} has partitions 0 to {count - 1}, not {at.partition}")
        if not 0 <= position <= OFFSET_MASK:
            raise BusError(
                f"topic {at.topic} partition {at.partition}: {position} is not an offset"
            )
        self.position = position
        if file.segment_at(at.partition, position) is None:
            self._skip()

    def drained_at(self, version: int) -> bool:
        """Whether nothing was left to read at this version of the file."""
        return self._drained == version

    def read(self, limit: int, version: int, headers: bool = False) -> Slice | None:
        """At most ``limit`` messages from the position on, which moves past them."""
        parts: list[Segment] = []
        while limit > 0 and (segment := self._current(limit, version)) is not None:
            start = self.position - segment.base
            stop = min(start + limit, len(segment.values))
            whole = start == 0 and stop == len(segment.values)
            parts.append(segment if whole else _cut(segment, start, stop))
            limit -= stop - start
            self.position += stop - start
        if not parts:
            return None
        piece = _joined(self._file.topic, self._partition, parts)
        if headers:
            piece.headers = _headers_of(parts, self._file.path)
        return piece

    def _current(self, wanted: int, version: int) -> Segment | None:
        """The segment that contains the position; None if there is nothing more."""
        if self._segment is not None and self.position < self._segment.end:
            return self._segment
        self._segment = None
        if not self._rows:
            self._fetch(wanted, version)
        if self._rows:
            row = self._rows.popleft()
            segment = decode_segment(row, self._file.path)
            if not segment.base <= self.position < segment.end:  # they follow without a gap
                why = f"offset {self.position} should come next"
                raise damaged_segment(self._file.path, row[0], why)
            self._segment = segment
        return self._segment

    def _fetch(self, wanted: int, version: int) -> None:
        rows = self._file.segments_from(self._partition, self.position, wanted)
        if rows and rows[0][0] & OFFSET_MASK == self.position:
            self._rows.extend(rows)
        elif not rows and self.position == self._file.ends()[self._partition]:
            self._drained = version
        # Not at the start of a segment: only the first time, or when segments were deleted.
        elif (current := self._file.segment_at(self._partition, self.position)) is not None:
            self._rows.append(current)
        else:
            self._skip()  # the next poll continues there

    def _skip(self) -> None:
        """Move past a gap; at the end there is none.

        Raises:
            BusError: there is a gap and ``on_out_of_range`` is ``stop``, or the position is past
                the end.
        """
        end = self._file.ends()[self._partition]  # before the query: what is appended now is no gap
        kept = self._file.segments_from(self._partition, self.position, 1)
        start = kept[0][0] & OFFSET_MASK if kept else end
        self.position = next_offset(self._at, self.position, start, end, self._on_out_of_range)


def _cut(segment: Segment, start: int, stop: int) -> Segment:
    keys = None if segment.keys is None else segment.keys[start:stop]
    return Segment(
        segment.base + start,
        segment.values[start:stop],
        keys,
        segment.times[start:stop],
        segment.headers,
        segment.headers_from,
    )


def _headers_of(parts: list[Segment], path: Path) -> Headers | None:
    """The headers of the messages; None if none has any."""
    if not any(part.headers for part in parts):
        return None
    headers: list[MessageHeaders] = []
    for part in parts:
        if not part.headers:
            headers += [None] * len(part.values)
            continue
        try:
            stored = decode_headers(part.headers)
        except msgspec.DecodeError as error:
            raise BusError(
                f"{path} is damaged: the headers of the segment at offset {part.headers_from}: "
                f"{error}"
            ) from None
        headers += stored[part.base - part.headers_from : part.end - part.headers_from]
    return headers


def _joined(topic: str, partition: int, parts: list[Segment]) -> Slice:
    values: list[bytes] = []
    keys: list[bytes | None] = []
    for part in parts:
        values += part.values
        keys += [None] * len(part.values) if part.keys is None else part.keys
    times = np.concatenate([part.times for part in parts])
    runs = [np.arange(part.base, part.end, dtype=np.int64) for part in parts]
    return Slice(topic, partition, np.concatenate(runs), times, with_tombstones(values, keys), keys)
