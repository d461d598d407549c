"""Reads a sample of a file or a topic, as the messages that a pipeline would read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.bus.headers import Headers, MessageHeaders
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
        keys, headers: those of the messages of a topic; headers only where they were asked for.
        topics, topic_numbers: the topics that were read, and which of them each message is of.
    """

    source: str
    is_file: bool
    values: Sequence[bytes]
    times: I64
    partitions: I64
    offsets: I64
    total: int | None
    keys: Sequence[bytes | None] | None = None
    headers: Headers | None = None
    topics: tuple[str, ...] = ()
    topic_numbers: I64 | None = None

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
        if self.is_file:
            return f"row {self.offsets[row] + 1:,}"
        place = f"partition {self.partitions[row]}, offset {self.offsets[row]}"
        return f"{self.topic_of(row)}, {place}" if len(self.topics) > 1 else place

    def topic_of(self, row: int) -> str:
        """The topic of a message; of a row of a file, the file."""
        if self.topic_numbers is None:
            return self.source
        return self.topics[int(self.topic_numbers[row])]


def sample_of_file(path: Path, fields: FileFields, kind: Kind, rows: int) -> Sample:
    """The first rows of a file.

    Raises:
        InputError: the file can't be read, or lacks the time or the id.
    """
    counted = count_rows(path)
    whole = counted is not None and counted <= rows
    values: list[bytes] = []
    keys: list[bytes | None] = []
    times: list[I64] = []
    for batch in file_messages(path, fields, topic_kind=kind):
        part = batch.part(0, rows - len(values))
        values += part.values
        keys += part.keys
        times.append(part.times)
        if len(values) >= rows:
            break
    else:
        counted = len(values)  # all of them: line breaks inside quotes were counted as well
        whole = True
    total = len(values) if whole and format_of(path) != "parquet" else counted
    return sample_of_rows(str(path), values, np.concatenate(times), total, keys)


def sample_of_rows(
    source: str,
    values: Sequence[bytes],
    times: I64,
    total: int | None,
    keys: Sequence[bytes | None] | None = None,
) -> Sample:
    """Rows of a file that were read already; ``times`` as `producers.batch.Batch` has them."""
    published = np.minimum(times, time.time_ns() // 1_000_000)
    zeros, offsets = np.zeros(len(values), np.int64), np.arange(len(values))
    return Sample(source, True, values, published, zeros, offsets, total, keys)


def rows_of(batches: Iterable[Batch], source: str) -> Sample:
    """The rows of batches that were read from a file, of which others may follow."""
    batches = list(batches)
    values = [value for batch in batches for value in batch.values]
    times = np.concatenate([batch.times for batch in batches]) if batches else np.zeros(0, np.int64)
    keys = [key for batch in batches for key in batch.keys]
    return sample_of_rows(source, values, times, None, keys)


def sample_of_topics(bus: Bus, topics: Sequence[str], rows: int, headers: bool = False) -> Sample:
    """Messages from the start and the end of each partition, half of ``rows`` each in all.

    They are in the order in which a backlog is read: by publishing time, made non-decreasing within
    each partition. ``headers``: with the headers of messages.

    Raises:
        BusError: a topic does not exist, or can't be read.
        InputError: there are no messages.
    """
    existing = bus.topics()
    for topic in topics:
        if topic not in existing:
            listed = ", ".join(sorted(existing)) or "none yet"
            raise BusError(f"topic {topic!r} does not exist on {bus.url}; topics there: {listed}")
    starts = {topic: bus.start_offsets(topic) for topic in topics}
    places = [TopicPartition(topic, n) for topic in topics for n in range(len(starts[topic]))]
    ends = ends_now(bus, places)
    each = max(rows // (2 * len(places)), 1)
    heads: dict[TopicPartition, tuple[int, int]] = {}
    tails: dict[TopicPartition, tuple[int, int]] = {}
    for at in places:
        start, end = starts[at.topic][at.partition], ends[at]
        heads[at] = start, min(end, start + each)
        if end - start > each:
            tails[at] = max(start + each, end - each), end
    messages: list[_Message] = []
    columns: list[tuple[int, int, int, int]] = []
    newest: dict[TopicPartition, int] = {}
    for spans in (heads, tails):
        for at, message in _read(bus, spans, headers):
            published = newest[at] = max(newest.get(at, message[1]), message[1])
            messages.append(message)
            columns.append((published, topics.index(at.topic), at.partition, message[0]))
    if not messages:
        listed = ", ".join(topics)
        raise InputError(
            f"topic {listed!r} on {bus.url} has no messages: there is nothing to check"
        )
    times, numbers, partitions, offsets = np.array(columns, np.int64).T
    order = np.lexsort((offsets, partitions, numbers, times))
    sorted_messages = [messages[row] for row in order.tolist()]
    first_offsets = {at: starts[at.topic][at.partition] for at in places}
    total = sum(ends.values()) - sum(first_offsets.values())
    if all(ends[at] - first_offsets[at] <= 2 * each for at in places):
        total = len(messages)  # some offsets hold no message
    return Sample(
        source=", ".join(topics),
        is_file=False,
        values=[message[2] for message in sorted_messages],
        times=times[order],
        partitions=partitions[order],
        offsets=offsets[order],
        total=total,
        keys=[message[3] for message in sorted_messages],
        headers=[message[4] for message in sorted_messages] if headers else None,
        topics=tuple(topics),
        topic_numbers=numbers[order],
    )


_Message = tuple[int, int, bytes, bytes | None, MessageHeaders]
"""Offset, publishing time, payload, key and headers."""


def _read(
    bus: Bus, spans: Mapping[TopicPartition, tuple[int, int]], headers: bool
) -> Iterator[tuple[TopicPartition, _Message]]:
    """The messages between two offsets of each partition, in the order of each."""
    spans = {at: span for at, span in spans.items() if span[0] < span[1]}
    if not spans:
        return
    positions = {at: start for at, (start, _) in spans.items()}
    reader = bus.reader(positions, headers=True) if headers else bus.reader(positions)
    try:
        for piece in read_to_end(reader, {at: end for at, (_, end) in spans.items()}):
            at = TopicPartition(piece.topic, piece.partition)
            found = [None] * len(piece.values) if piece.headers is None else piece.headers
            offsets, times = piece.offsets.tolist(), piece.times.tolist()
            for message in zip(offsets, times, piece.values, piece.keys, found, strict=True):
                yield at, message
    finally:
        reader.close()
