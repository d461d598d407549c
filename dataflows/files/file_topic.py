"""A file as a topic, whose partitions are read independently.

The file is scanned once beforehand, so that its ends are known, and a file that is damaged or out
of order is an error before anything is processed. Each partition then reads the file by itself and
skips the rows of the others, so that one can be paused while the others continue, whatever the
order of their rows in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from anabranch.dataflows.bus import Slice, TopicPartition
from anabranch.dataflows.files.file_rows import I64, POSITION_COLUMNS, FileRows, FileTable
from anabranch.dataflows.files.prefetch_thread import PrefetchThread
from anabranch.state.errors import InputError


class FileTopic:
    """The rows of ``table`` as the topic ``name`` with ``partitions`` partitions.

    Without ``partitions`` it has those in the file. ``check`` is called during the scan, and may
    raise to end it.

    Attributes:
        starts, ends: the first offset of each partition, and the one after its last; 0 for a
            partition without rows.
        counts: the number of rows of each partition.

    Raises:
        InputError: the file is damaged, its rows are not ordered by offset, or it has other
            partitions.
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
        self._scan(check)

    def widen(self, partitions: int) -> None:
        """Have at least this many partitions."""
        for per_partition in (self.starts, self.ends, self.counts):
            per_partition += [0] * (partitions - len(per_partition))

    def start_at(self, starts: Sequence[int]) -> None:
        """Place partitions without rows at these offsets."""
        for number, start in enumerate(starts):
            if not self.counts[number]:
                self.starts[number] = self.ends[number] = start

    def reader(self, positions: Mapping[TopicPartition, int]) -> FileReader:
        """A reader of these partitions from these offsets."""
        return FileReader({at: _Stream(self, at, offset) for at, offset in positions.items()})

    def _scan(self, check: Callable[[], None]) -> None:
        table, done = self.table, 0
        for partitions, offsets in table.positions():
            check()
            self._add(partitions, offsets, done)
            done += len(offsets)

    def _add(self, partitions: I64, offsets: I64, done: int) -> None:
        for number in np.unique(partitions).tolist():
            if number < 0 or (self._fixed and number >= len(self.ends)):
                raise InputError(
                    f"{self.table.path} has rows of partition {number}, and topic {self.name} has "
                    f"{len(self.ends)} partitions: it is from another topic"
                )
            self.widen(number + 1)
            own = offsets[partitions == number]
            if not self.counts[number]:
                self.starts[number] = int(own[0])
            first = bool(self.counts[number]) and int(own[0]) < self.ends[number]
            if first or (np.diff(own) <= 0).any():
                raise InputError(
                    f"the offsets of partition {number} in {self.table.path} do not rise after row "
                    f"{done}: sort the file by {' and '.join(POSITION_COLUMNS)}"
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

    def partition_counts(self) -> dict[str, int]:
        """None: a file does not change."""
        return {}

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Nothing reads it."""

    def unavailable_reason(self) -> str | None:
        return None

    def close(self) -> None:
        """Close the file."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()


class _Stream:
    """One partition of a file, in order."""

    def __init__(self, topic: FileTopic, at: TopicPartition, position: int) -> None:
        self._at = at
        self._path = topic.table.path
        self._is_only = topic.counts[at.partition] == sum(topic.counts)
        self._rows = PrefetchThread(topic.table.rows())
        self._piece: FileRows | None = None
        self._next = 0
        self.position = position
        self.end = topic.ends[at.partition]

    def next(self, limit: int) -> Slice | None:
        """The next rows; None at the end.

        Raises:
            InputError: the file is damaged, or was changed.
        """
        if self.position >= self.end:
            return None
        while self._piece is None or self._next >= len(self._piece):
            self._piece, self._next = self._own(next(self._rows, None)), 0
        rows, cut = self._piece, slice(self._next, self._next + limit)
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
        """Stop reading."""
        self._rows.close()

    def _own(self, rows: FileRows | None) -> FileRows:
        if rows is None:
            raise InputError(f"{self._path} became shorter while it was read: do not change it")
        if self._is_only and self.position <= rows.offsets[0]:
            return rows
        return rows.take((rows.partitions == self._at.partition) & (rows.offsets >= self.position))
