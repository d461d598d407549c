"""Reads topics of the embedded bus, several partitions of several topics in turn."""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from anabranch.dataflows.bus.embedded.topic_file import (
    ENDS,
    OFFSET_BITS,
    STARTS,
    Identity,
    Segment,
    connect,
    decode_segment,
    refusal,
)
from anabranch.dataflows.bus.offset_errors import next_offset
from anabranch.dataflows.bus.protocol import Lost, Slice, TopicPartition
from anabranch.state.errors import BusError

_NAP_S = 0.001
_CHECK_S = 1.0
_OFFSET_MASK = (1 << OFFSET_BITS) - 1
_Row = tuple[int, int, bytes]  # id, count, messages


class EmbeddedReader:
    """A `dataflows.bus.Reader` of SQLite files. `commit` keeps nothing: no lag tool looks here."""

    def __init__(
        self,
        existing: Callable[[str], Path],
        positions: Mapping[TopicPartition, int],
        lost: Lost = "stop",
    ) -> None:
        self._files: dict[str, _TopicFile] = {}
        self._cursors: dict[TopicPartition, _Cursor] = {}
        self._turn = 0
        self._next_check = 0.0
        try:
            for at, position in positions.items():
                file = self._files.get(at.topic)
                if file is None:
                    file = self._files[at.topic] = _TopicFile(at.topic, existing(at.topic))
                self._cursors[at] = _Cursor(file, at, position, lost)
        except BaseException:
            self.close()
            raise

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        """At most ``limit`` messages that are there now, grouped by topic partition.

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
            time.sleep(min(_NAP_S, left))
            slices = self._sweep(limit)
        return slices

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Hand over nothing more from these partitions until `resume`."""
        for at in partitions:
            self._cursors[at].paused = True

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Undo `pause`."""
        for at in partitions:
            self._cursors[at].paused = False

    def positions(self) -> dict[TopicPartition, int]:
        """The offset that each partition will be read from next; behind a gap, once it is known."""
        return {at: cursor.position for at, cursor in self._cursors.items()}

    def ends(self) -> dict[TopicPartition, int]:
        """The offset behind each partition's last message: here always as of now."""
        ends = {topic: file.ends() for topic, file in self._files.items()}
        return {at: ends[at.topic][at.partition] for at in self._cursors}

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Keep nothing."""

    def trouble(self) -> str | None:
        """Never any: a file answers or fails."""
        return None

    def close(self) -> None:
        """Let go. Idempotent."""
        for file in self._files.values():
            file.connection.close()
        self._files.clear()
        self._cursors.clear()

    def _sweep(self, limit: int) -> list[Slice]:
        versions = {topic: file.version() for topic, file in self._files.items()}
        ready = [
            (at, cursor)
            for at, cursor in self._cursors.items()
            if not cursor.paused and not cursor.drained_at(versions[at.topic])
        ]
        slices: list[Slice] = []
        if not ready:
            return slices
        # Another partition goes first each time, and each leaves room for those behind it.
        self._turn = (self._turn + 1) % len(ready)
        ready = ready[self._turn :] + ready[: self._turn]
        for later, (at, cursor) in zip(range(len(ready) - 1, -1, -1), ready, strict=True):
            share = limit - limit * later // (later + 1)
            if share and (found := cursor.read(share, versions[at.topic])) is not None:
                slices.append(found)
                limit -= len(found.values)
        return slices


class _TopicFile:
    """One topic's connection, and its ends when it last changed."""

    def __init__(self, topic: str, path: Path) -> None:
        self.topic = topic
        self.path = path
        self.identity = Identity(topic, path)  # before it is opened: what replaces it is noticed
        self.connection = connect(topic, path)
        self._ends: list[int] = []
        self._ends_version = -1

    def version(self) -> int:
        """A number that changes when another connection has committed (about 2 µs)."""
        try:
            number: int = self.connection.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as error:
            raise refusal(self.topic, self.path, error) from error
        return number

    def ends(self) -> list[int]:
        """The offset behind the last message, by partition."""
        version = self.version()  # before the query: a commit in between is seen next time
        if version != self._ends_version:
            self._ends = self._numbers(ENDS)
            self._ends_version = version
        return self._ends

    def starts(self) -> list[int]:
        """The first offset still kept, by partition."""
        return self._numbers(STARTS)

    def _numbers(self, query: str) -> list[int]:
        try:
            return [row[0] for row in self.connection.execute(query)]
        except sqlite3.Error as error:
            raise refusal(self.topic, self.path, error) from error

    def segments_from(self, partition: int, offset: int, wanted: int) -> list[_Row]:
        """Segments that begin at ``offset`` or later, up to ``wanted`` messages or all."""
        query = "SELECT id, count, messages FROM segments WHERE id >= ? AND id < ? ORDER BY id"
        first = partition << OFFSET_BITS
        rows: list[_Row] = []
        try:
            cursor = self.connection.execute(query, (first | offset, first + _OFFSET_MASK + 1))
            for row in cursor:
                rows.append(row)
                wanted -= row[1]
                if wanted <= 0:
                    break
            cursor.close()  # an open read would keep the log from being folded back
        except sqlite3.Error as error:
            raise refusal(self.topic, self.path, error) from error
        return rows

    def segment_holding(self, partition: int, offset: int) -> _Row | None:
        """The segment that ``offset`` lies in; None when it is not kept."""
        query = "SELECT id, count, messages FROM segments WHERE id <= ? AND id >= ? ORDER BY id "
        first = partition << OFFSET_BITS
        try:
            found: _Row | None = self.connection.execute(
                query + "DESC LIMIT 1", (first | offset, first)
            ).fetchone()
        except sqlite3.Error as error:
            raise refusal(self.topic, self.path, error) from error
        if found is not None and offset < (found[0] & _OFFSET_MASK) + found[1]:
            return found
        return None


class _Cursor:
    """How far one partition has been read."""

    def __init__(self, file: _TopicFile, at: TopicPartition, position: int, lost: Lost) -> None:
        self.paused = False
        self._file = file
        self._at = at
        self._partition = at.partition
        self._lost = lost
        self._rows: deque[_Row] = deque()  # fetched, not decoded yet
        self._segment: Segment | None = (
            None  # decoded once, handed over in as many polls as it takes
        )
        self._drained = -1
        count = len(file.ends())
        if not 0 <= at.partition < count:
            raise BusError(f"topic {at.topic} has partitions 0 to {count - 1}, not {at.partition}")
        if not 0 <= position <= _OFFSET_MASK:
            raise BusError(
                f"topic {at.topic} partition {at.partition}: no offset can be {position}"
            )
        self.position = position
        if file.segment_holding(at.partition, position) is None:
            self._skip()

    def drained_at(self, version: int) -> bool:
        """Whether nothing was left at this version of the file."""
        return self._drained == version

    def read(self, limit: int, version: int) -> Slice | None:
        """At most ``limit`` messages from the position on, which moves behind them."""
        parts: list[Segment] = []
        while limit > 0 and (segment := self._current(limit, version)) is not None:
            start = self.position - segment.base
            stop = min(start + limit, len(segment.values))
            whole = start == 0 and stop == len(segment.values)
            parts.append(segment if whole else _cut(segment, start, stop))
            limit -= stop - start
            self.position += stop - start
        return _joined(self._file.topic, self._partition, parts) if parts else None

    def _current(self, wanted: int, version: int) -> Segment | None:
        """The segment that the position lies in; None when there is nothing more."""
        if self._segment is not None and self.position < self._segment.end:
            return self._segment
        self._segment = None
        if not self._rows:
            self._fetch(wanted, version)
        if self._rows:
            number, count, messages = self._rows.popleft()
            base = number & _OFFSET_MASK
            self._segment = decode_segment(base, count, messages, self._file.path)
        return self._segment

    def _fetch(self, wanted: int, version: int) -> None:
        rows = self._file.segments_from(self._partition, self.position, wanted)
        if rows and rows[0][0] & _OFFSET_MASK == self.position:
            self._rows.extend(rows)
        elif not rows and self.position == self._file.ends()[self._partition]:
            self._drained = version
        # Not at the start of a segment: only the first time, or when segments were deleted.
        elif (held := self._file.segment_holding(self._partition, self.position)) is not None:
            self._rows.append(held)
        else:
            self._skip()  # the next poll reads on from there

    def _skip(self) -> None:
        """Move behind a gap; nothing to do at the end.

        Raises:
            BusError: there is a gap and ``lost`` is ``stop``, or the position is behind the end.
        """
        end = self._file.ends()[self._partition]  # first: what is appended now is no gap
        kept = self._file.segments_from(self._partition, self.position, 1)
        start = kept[0][0] & _OFFSET_MASK if kept else end
        self.position = next_offset(self._at, self.position, start, end, self._lost)


def _cut(segment: Segment, start: int, stop: int) -> Segment:
    keys = None if segment.keys is None else segment.keys[start:stop]
    return Segment(
        segment.base + start, segment.values[start:stop], keys, segment.times[start:stop]
    )


def _joined(topic: str, partition: int, parts: list[Segment]) -> Slice:
    values: list[bytes] = []
    keys: list[bytes | None] = []
    for part in parts:
        values += part.values
        keys += [None] * len(part.values) if part.keys is None else part.keys
    times = np.concatenate([part.times for part in parts])
    runs = [np.arange(part.base, part.end, dtype=np.int64) for part in parts]
    return Slice(topic, partition, np.concatenate(runs), times, values, keys)
