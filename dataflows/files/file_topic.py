"""A file in the place of a topic: partitions that are read one by one, as fast as one likes.

The file is looked through once beforehand: then its ends are known, and a file that is damaged or
out of order says so before anything was made of it. Each partition then reads the file by itself
and leaves out the rows of the others, so that one of them can rest while the others go on, whatever
the order in which the file has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from anabranch.dataflows.bus import Slice, TopicPartition
from anabranch.dataflows.files.file_rows import I64, PLACE, FileRows, FileTable
from anabranch.dataflows.files.prefetch_thread import Ahead
from anabranch.state.errors import InputError


class FileTopic:
    """The rows of ``table`` as the topic ``name`` of ``partitions`` partitions.

    Without ``partitions`` it has those that are in the file. ``check`` is asked while the file is
    looked through, and may raise to end it.

    Attributes:
        starts, ends: the first offset of each partition, and the one behind its last; 0 where it
            has no rows.
        counts: the rows of each partition.

    Raises:
        InputError: the file is damaged, its rows are not in the order of their offsets, or it has
            another partition than those.
    """

    def __init__(
        self,
        name: str,
        table: FileTable,
        partitions: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.table = table
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.counts: list[int] = []
        self._fixed = False
        self.widen(partitions or 1)
        self._fixed = partitions is not None
        self._look_through(check)

    def widen(self, partitions: int) -> None:
        """Have at least so many partitions."""
        for per_partition in (self.starts, self.ends, self.counts):
            per_partition += [0] * (partitions - len(per_partition))

    def begin_at(self, starts: Sequence[int]) -> None:
        """Let partitions without rows be at these offsets."""
        for number, start in enumerate(starts):
            if not self.counts[number]:
                self.starts[number] = self.ends[number] = start

    def reader(self, positions: Mapping[TopicPartition, int]) -> FileReader:
        """A reader of these partitions from these offsets."""
        return FileReader({at: _Stream(self, at, offset) for at, offset in positions.items()})

    def _look_through(self, check: Callable[[], None]) -> None:
        table, done = self.table, 0
        for partitions, offsets in table.places():
            check()
            self._note(partitions, offsets, done)
            done += len(offsets)

    def _note(self, partitions: I64, offsets: I64, done: int) -> None:
        for number in np.unique(partitions).tolist():
            if number < 0 or (self._fixed and number >= len(self.ends)):
                raise InputError(
                    f"{self.table.path} has rows of partition {number}, and topic {self.name} has "
                    f"{len(self.ends)} partitions: it was made of another topic"
                )
            self.widen(number + 1)
            own = offsets[partitions == number]
            if not self.counts[number]:
                self.starts[number] = int(own[0])
            first = bool(self.counts[number]) and int(own[0]) < self.ends[number]
            if first or (np.diff(own) <= 0).any():
                raise InputError(
                    f"the offsets of partition {number} in {self.table.path} do not rise behind "
                    f"row {done}: sort the file by {' and '.join(PLACE)}"
                )
            self.ends[number] = int(own[-1]) + 1
            self.counts[number] += len(own)


class FileReader:
    """The `Reader` of a file's partitions."""

    def __init__(self, streams: dict[TopicPartition, _Stream]) -> None:
        self._streams = streams
        self._paused: set[TopicPartition] = set()

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        """At most ``limit`` rows of each partition that is not paused."""
        streams = [stream for at, stream in self._streams.items() if at not in self._paused]
        return [piece for stream in streams if (piece := stream.next(limit)) is not None]

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.difference_update(partitions)

    def positions(self) -> dict[TopicPartition, int]:
        return {at: stream.position for at, stream in self._streams.items()}

    def ends(self) -> dict[TopicPartition, int]:
        return {at: stream.end for at, stream in self._streams.items()}

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Nobody asks."""

    def trouble(self) -> str | None:
        return None

    def close(self) -> None:
        """Let go of the file."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()


class _Stream:
    """One partition of a file, in order."""

    def __init__(self, topic: FileTopic, at: TopicPartition, position: int) -> None:
        self._at = at
        self._path = topic.table.path
        self._alone = topic.counts[at.partition] == sum(topic.counts)
        self._rows = Ahead(topic.table.rows())
        self._now: FileRows | None = None
        self._next = 0
        self.position = position
        self.end = topic.ends[at.partition]

    def next(self, limit: int) -> Slice | None:
        """The next rows; None at the end.

        Raises:
            InputError: the file is damaged there, or another one by now.
        """
        if self.position >= self.end:
            return None
        while self._now is None or self._next >= len(self._now):
            self._now, self._next = self._own(next(self._rows, None)), 0
        rows, cut = self._now, slice(self._next, self._next + limit)
        self._next += limit
        values = rows.values[cut]
        self.position = int(rows.offsets[cut][-1]) + 1
        at = self._at
        return Slice(
            at.topic,
            at.partition,
            rows.offsets[cut],
            rows.times[cut],
            values,
            [None] * len(values),
        )

    def close(self) -> None:
        """Read no further."""
        self._rows.close()

    def _own(self, rows: FileRows | None) -> FileRows:
        if rows is None:
            raise InputError(f"{self._path} got shorter while it was read: leave it as it is")
        if self._alone and self.position <= rows.offsets[0]:
            return rows
        return rows.take((rows.partitions == self._at.partition) & (rows.offsets >= self.position))
