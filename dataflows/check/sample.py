"""Reads a sample of a file or a topic, as the messages that a pipeline would read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.bus.read_to_end import ends_now, read_to_end
from anabranch.producers.batch import Batch, Kind
from anabranch.producers.files.fields import FileFields
from anabranch.producers.files.formats import count_rows, file_messages, format_of
from anabranch.state.errors import BusError, InputError

I64 = NDArray[np.int64]


@dataclass(slots=True)
class Sample:
    """Messages in the order in which a pipeline would read them; arrays are ``(n,) int64``.

    Attributes:
        source: name of the file or topic.
        is_file: whether it is a file, whose rows are counted from 1.
        values: the payloads.
        times: when each was published, epoch ms; of a file, when it would be.
        partitions, offsets: where each is; of a file, partition 0 and the row counted from 0.
        total: how many messages there are; None if not known.
        keys: the keys of messages of a topic.
    """

    source: str
    is_file: bool
    values: Sequence[bytes]
    times: I64
    partitions: I64
    offsets: I64
    total: int | None
    keys: Sequence[bytes | None] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_whole(self) -> bool:
        """Whether nothing was left out."""
        return self.total is not None and len(self) >= self.total

    def place(self, row: int) -> str:
        """Where a message is, for people.

        >>> one = np.array([0]); Sample("a.csv", True, [b""], one, one, one, 1).place(0)
        'row 1'
        """
        return place_text(self.is_file, int(self.partitions[row]), int(self.offsets[row]))


def place_text(is_file: bool, partition: int, offset: int) -> str:
    """The place of a message: the row of a file, else partition and offset."""
    return f"row {offset + 1:,}" if is_file else f"partition {partition}, offset {offset}"


def sample_of_file(path: Path, fields: FileFields, kind: Kind, rows: int) -> Sample:
    """The first rows of a file.

    Raises:
        InputError: the file can't be read, or lacks the time or the id.
    """
    counted = count_rows(path)
    whole = counted is not None and counted <= rows
    values: list[bytes] = []
    times: list[I64] = []
    for batch in file_messages(path, fields, topic_kind=kind):
        part = batch.part(0, rows - len(values))
        values += part.values
        times.append(part.times)
        if len(values) >= rows:
            break
    else:
        counted = len(values)  # all of them: line breaks inside quotes were counted as well
        whole = True
    total = len(values) if whole and format_of(path) != "parquet" else counted
    return sample_of_rows(str(path), values, np.concatenate(times), total)


def sample_of_rows(source: str, values: Sequence[bytes], times: I64, total: int | None) -> Sample:
    """Rows of a file that were read already; ``times`` as `producers.batch.Batch` has them."""
    published = np.minimum(times, time.time_ns() // 1_000_000)
    zeros, offsets = np.zeros(len(values), np.int64), np.arange(len(values))
    return Sample(source, True, values, published, zeros, offsets, total)


def rows_of(batches: Iterable[Batch], source: str) -> Sample:
    """The rows of batches that were read from a file, of which others may follow."""
    batches = list(batches)
    values = [value for batch in batches for value in batch.values]
    times = np.concatenate([batch.times for batch in batches]) if batches else np.zeros(0, np.int64)
    return sample_of_rows(source, values, times, None)


def sample_of_topic(bus: Bus, topic: str, rows: int) -> Sample:
    """Messages from the start and the end of each partition, half of ``rows`` each.

    They are in the order in which a backlog is read: by publishing time, made non-decreasing within
    each partition.

    Raises:
        BusError: the topic does not exist, or can't be read.
        InputError: it has no messages.
    """
    existing = bus.topics()
    if topic not in existing:
        listed = ", ".join(sorted(existing)) or "none yet"
        raise BusError(f"topic {topic!r} does not exist on {bus.url}; topics there: {listed}")
    starts = bus.start_offsets(topic)
    places = [TopicPartition(topic, number) for number in range(len(starts))]
    ends = ends_now(bus, places)
    each = max(rows // (2 * len(places)), 1)
    values: list[bytes] = []
    keys: list[bytes | None] = []
    columns: list[I64] = []
    for at in places:
        start, end = starts[at.partition], ends[at]
        spans = [(start, end)]
        if end - start > 2 * each:
            spans = [(start, start + each), (end - each, end)]
        published = int(np.iinfo(np.int64).min)
        for first, last in spans:
            for offset, time_ms, value, key in _read(bus, at, first, last):
                published = max(published, time_ms)
                values.append(value)
                keys.append(key)
                columns.append(np.array([published, at.partition, offset]))
    if not values:
        raise InputError(f"topic {topic!r} on {bus.url} has no messages: there is nothing to check")
    times, partitions, offsets = np.array(columns, np.int64).T
    order = np.lexsort((offsets, partitions, times))
    total = sum(ends.values()) - sum(starts)
    if all(ends[at] - starts[at.partition] <= 2 * each for at in places):
        total = len(values)  # some offsets hold no message
    return Sample(
        topic,
        False,
        [values[row] for row in order.tolist()],
        times[order],
        partitions[order],
        offsets[order],
        total,
        [keys[row] for row in order.tolist()],
    )


def _read(
    bus: Bus, at: TopicPartition, start: int, end: int
) -> Iterable[tuple[int, int, bytes, bytes | None]]:
    """Offset, time, payload and key of the messages between two offsets of a partition."""
    if start >= end:
        return
    reader = bus.reader({at: start})
    try:
        for piece in read_to_end(reader, {at: end}):
            offsets, times = piece.offsets.tolist(), piece.times.tolist()
            yield from zip(offsets, times, piece.values, piece.keys, strict=True)
    finally:
        reader.close()
