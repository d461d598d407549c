"""What flows between the steps: rows that arrived together, column by column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.columns import take_rows
from anabranch.dataflows.bus.headers import Headers, take_headers
from anabranch.dataflows.messages.control import Control
from anabranch.dataflows.messages.outputs import Cause, DeadLetter
from anabranch.state.arrays import extent


class RawRows(msgspec.Struct):
    """Messages of one input as they were read, oldest first.

    Attributes:
        topic: the topic; the first of several.
        values: the ``n`` payloads.
        partitions, offsets: where each was read, ``(n,) int64``.
        times: when each was published, ``(n,) int64`` epoch ms.
        partition: the partition that all are from; None if not known.
        keys: the ``n`` keys, None for none; None if no message has one, or they are not known.
        headers: the headers of each, where they are read; None if no message has any.
        topics: the topics, if the messages are of several.
        topic_numbers: the index in ``topics`` of each message, ``(n,) int64``; None: all are of
            ``topic``.
    """

    topic: str
    values: Sequence[bytes]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    partition: int | None = None
    keys: Sequence[bytes | None] | None = None
    headers: Headers | None = None
    topics: tuple[str, ...] = ()
    topic_numbers: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def topic_of(self, row: int) -> str:
        """The topic of a message."""
        if self.topic_numbers is None:
            return self.topic
        return self.topics[int(self.topic_numbers[row])]

    def topics_of_rows(self) -> Iterable[str]:
        """The topic of each message."""
        if self.topic_numbers is None:
            return repeat(self.topic, len(self))
        return map(self.topics.__getitem__, self.topic_numbers.tolist())

    def take(self, rows: NDArray[np.int64]) -> RawRows:
        """Only these rows, in this order."""
        return RawRows(
            self.topic,
            take_rows(self.values, rows),
            self.partitions[rows],
            self.offsets[rows],
            self.times[rows],
            self.partition,
            None if self.keys is None else take_rows(self.keys, rows),
            take_headers(self.headers, rows),
            self.topics,
            None if self.topic_numbers is None else self.topic_numbers[rows],
        )


NO_SPAN = (0, -1)
_NOTHING = np.zeros(0, np.int64)
NO_ROWS = RawRows("", [], _NOTHING, _NOTHING, _NOTHING)
"""No messages."""


class RawBatch(msgspec.Struct):
    """The messages that a worker's source read at once.

    Attributes:
        worker_id: the worker that read them.
        sequence: the number of the batch among those of its worker.
        events, labels: the messages.
        order: ``(events + labels,) int64``, the sequence in which they are processed: event ``i``
            is ``i``, label ``j`` is ``len(events) + j``.
        read_at: the wall clock, in seconds since 1970.
        controls: at most one control message; it comes after all rows.
    """

    worker_id: str
    sequence: int
    events: RawRows
    labels: RawRows
    order: NDArray[np.int64]
    read_at: float
    controls: RawRows = msgspec.field(default_factory=lambda: NO_ROWS)

    def sorted(self, dead_letters: list[DeadLetter]) -> list[DeadLetter]:
        """Dead letters in the order of their causes, whichever step made them."""
        sources = [
            at
            for rows in (self.events, self.labels)
            for at in zip(
                rows.topics_of_rows(), rows.partitions.tolist(), rows.offsets.tolist(), strict=True
            )
        ]
        rank = {sources[row]: index for index, row in enumerate(self.order.tolist())}
        controls = self.controls
        for at in zip(controls.partitions.tolist(), controls.offsets.tolist(), strict=True):
            rank[controls.topic, *at] = len(rank)

        def rank_of(letter: DeadLetter) -> int:
            cause = letter.cause
            return rank[cause.topic, cause.partition, cause.offset]

        return sorted(dead_letters, key=rank_of)

    def reached(self, partition: int) -> dict[str, int]:
        """Topic → the greatest offset read of a partition, of topics where one was."""
        reached = {}
        for rows in (self.events, self.labels, self.controls):
            own = rows.partitions == partition
            for number, topic in enumerate(rows.topics or (rows.topic,)):
                of_topic = (
                    own if rows.topic_numbers is None else own & (rows.topic_numbers == number)
                )
                offsets = rows.offsets[of_topic]
                if len(offsets):
                    reached[topic] = int(offsets.max())
        return reached


@dataclass(slots=True)
class LabelRows:
    """Decoded labels: the id of the event each is for, its value, time (epoch ms) and source.

    ``read`` are the messages that they were decoded from.
    """

    ids: list[str]
    values: list[Any]
    times: NDArray[np.int64]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    payloads: Sequence[bytes]
    read: RawRows = field(default_factory=lambda: NO_ROWS)

    def __len__(self) -> int:
        return len(self.ids)

    def topic_of(self, row: int) -> str:
        """The topic of a label."""
        return self.read.topic_of(row)


NO_LABELS = LabelRows([], [], _NOTHING, _NOTHING, _NOTHING, [])
"""No labels."""


class Batch(msgspec.Struct):
    """Decoded rows: what flows from the source through the windows to the models.

    Attributes:
        raw: all messages that were read.
        rows: those that are the ``n`` events of this batch.
        ids: their ids.
        times: their event times, ``(n,) int64`` epoch ms.
        span: the least and the greatest event time; ``(0, -1)`` without events.
        features: ``(n, columns) float64``; row features are filled in from the start, window
            features by the window step.
        columns: the event fields that are used: lists, arrays or columns of `TypedRows`.
        targets: the inline labels, likewise; None without.
        labels: the labels that came on a topic of their own.
        order: as in `RawBatch`, of the rows that are left.
        dead_letters: rows that were rejected so far.
        expected: how many parts went to shards and must come back before the batch is complete.
        control: a control message, to be executed after all rows at event time ``control_time``
            (epoch ms); `RawBatch.controls` says where it was read.
        lets_time_pass: whether it only advances event time: see `time_batch`.
    """

    raw: RawBatch
    rows: RawRows
    ids: Sequence[str]
    times: NDArray[np.int64]
    span: tuple[int, int]
    features: NDArray[np.float64]
    columns: dict[str, Any]
    targets: Any
    labels: LabelRows
    order: NDArray[np.int64]
    dead_letters: list[DeadLetter]
    expected: int = 0
    control: Control | None = None
    control_time: int = 0
    lets_time_pass: bool = False

    @property
    def worker_id(self) -> str:
        """The worker that read it."""
        return self.raw.worker_id

    @property
    def sequence(self) -> int:
        """Its number among the batches of its worker."""
        return self.raw.sequence

    @property
    def partition(self) -> int | None:
        """The partition that all events are from; None if not known."""
        return self.rows.partition

    @property
    def partitions(self) -> NDArray[np.int64]:
        """The partition of each event, ``(n,) int64``."""
        return self.rows.partitions

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The offset of each event, ``(n,) int64``."""
        return self.rows.offsets

    @property
    def payloads(self) -> Sequence[bytes]:
        """The events as they were read."""
        return self.rows.values

    def __len__(self) -> int:
        return len(self.rows.values)

    def keep(self, keep: NDArray[np.bool_]) -> Batch:
        """This batch with only the events where ``keep`` is true, and all of its labels."""
        rows = np.flatnonzero(keep)
        self.order = keep_rows(self.order, keep, np.ones(len(self.labels), np.bool_))
        self.rows = self.rows.take(rows)
        self.ids = take_rows(self.ids, rows)
        self.times, self.features = self.times[rows], self.features[rows]
        self.span = extent(self.times) if len(rows) else NO_SPAN
        self.columns = {name: take_rows(values, rows) for name, values in self.columns.items()}
        if self.targets is not None:
            self.targets = take_rows(self.targets, rows)
        return self


@dataclass(slots=True)
class EntityRows:
    """The rows of a batch for one entity and one shard of its keys: a request, or its response.

    Attributes:
        worker_id, sequence: the batch.
        entity: the entity whose features are wanted.
        rows: indices of the rows in the batch.
        keys, times, columns: filled in a request.
        features: filled in a response, ``(rows, columns of the entity) float64``.
        shard: the shard that holds the keys.
    """

    worker_id: str
    sequence: int
    entity: str
    rows: NDArray[np.int64]
    keys: Sequence[str]
    times: NDArray[np.int64]
    columns: dict[str, Any]
    features: NDArray[np.float64] | None = None
    shard: int = 0


@dataclass(slots=True)
class WorkerWatermark:
    """The watermark of a worker, for a shard that may have no rows of it.

    Attributes:
        watermark: epoch ms; `IDLE` if the worker has nothing to read.
        time_batch: from an idle worker that has read something, for the models: see `time_batch`.
    """

    worker_id: str
    watermark: int
    shard: int = 0
    time_batch: Batch | None = None


@dataclass(slots=True)
class Bootstrap:
    """An item without rows that passes all steps, so that each writes its state in this epoch.

    The engine may still hold what a killed run left of the epoch with which the next run starts.
    What every step writes in that epoch replaces it.
    """

    shard: int = 0


def time_batch(empty: Batch, cause: Cause, time_ms: int) -> Batch:
    """Makes a batch that does nothing but advance event time, of one without rows.

    It has one label, without a value and for no event. What follows from it, as a timeout does, is
    caused by the message at ``cause``: that label is given its place.
    """
    partitions, offsets = np.array([cause.partition]), np.array([cause.offset])
    times, order = np.array([time_ms]), np.zeros(1, np.int64)
    raw, rows = empty.raw, RawRows(cause.topic, [b""], partitions, offsets, times)
    empty.raw = RawBatch(raw.worker_id, raw.sequence, NO_ROWS, rows, order, raw.read_at)
    empty.labels = LabelRows([""], [None], times, partitions, offsets, [b""], rows)
    empty.order, empty.lets_time_pass = order, True
    return empty


MODELS = "0"
"""The key of the items for the models; with one worker, of all items."""

IDLE = 2**61
"""The watermark of a worker that delays no other."""


def keep_rows(
    order: NDArray[np.int64], events: NDArray[np.bool_], labels: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """``order`` without the rows that are not kept, renumbered.

    >>> keep_rows(np.array([0, 3, 1, 2]), np.array([True, False, True]), np.array([True]))
    array([0, 2, 1])
    """
    keep = np.concatenate([events, labels])
    renumbered = np.cumsum(keep) - 1
    left: NDArray[np.int64] = renumbered[order[keep[order]]]
    return left
