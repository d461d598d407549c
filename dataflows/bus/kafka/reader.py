"""Reads Kafka partitions from given offsets with one consumer.

``assign``, never ``subscribe``: which worker reads what is decided elsewhere, and no rebalance may
move a partition. `pause` at first only buffers messages, because librdkafka discards what it has
prefetched when it pauses and fetches it again when it resumes; a partition that stays paused until
`_MAX_BUFFERED` messages have accumulated is paused there too.

Some offsets hold no message: markers of transactions, aborted messages, what compaction removed. So
a position is not only the offset after the last message. librdkafka moves its own position over a
marker, and tells the end of what can be read (the last stable offset) as an event in the order of
messages. The high watermark is no end: it counts the messages of open transactions.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPosition

from anabranch.dataflows.bus.headers import Headers
from anabranch.dataflows.bus.kafka.broker_watch import BrokerWatch
from anabranch.dataflows.bus.kafka.commit_log import CommitLog
from anabranch.dataflows.bus.kafka.settings import LOG, ClientLog, error_text
from anabranch.dataflows.bus.offset_errors import next_offset, topic_recreated
from anabranch.dataflows.bus.protocol import (
    OnOutOfRange,
    Slice,
    Tombstone,
    TopicPartition,
    UnreachableError,
)
from anabranch.state.errors import BusError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

_MAX_BUFFERED = 10_000
_RETRY_S = 1.0
_OPEN_S = 60.0  # a transaction that is open for longer is warned of
_CLOSE_S = 3.0
_GONE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION}
_REFUSED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
}

Range = tuple[int, int]
"""The first offset that a partition keeps, and the end of what is committed there."""


class Bounds(Protocol):
    """Gets the first offset kept and the end from the bus, by partition."""

    def __call__(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, Range]: ...


class _Partition:
    """One partition: received up to ``received``; the last of that may still be ``buffered``."""

    __slots__ = (
        *("buffered", "first_end", "high_at_end", "paused", "paused_in_client", "received"),
        *("open_since", "told_end"),
    )

    def __init__(self, position: int, end: int) -> None:
        self.received = position
        self.first_end = end  # when it was opened
        self.told_end = -1  # by the last event of librdkafka
        self.open_since: float | None = None  # when a transaction was seen to be open there
        self.high_at_end = -1  # a high watermark up to which nothing can be read after that
        self.paused = False
        self.paused_in_client = False  # paused in librdkafka too
        self.buffered: deque[Message] = deque()

    @property
    def position(self) -> int:
        """The next offset to be returned."""
        return self.buffered[0].offset() or 0 if self.buffered else self.received


class KafkaReader:
    """A `Reader` of Kafka partitions, for one thread (`unavailable_reason` for any)."""

    def __init__(
        self,
        consumer: Consumer,
        positions: Mapping[TopicPartition, int],
        bounds: Bounds,
        watch: BrokerWatch,
        log: ClientLog,
        commits: CommitLog | None = None,
        on_out_of_range: OnOutOfRange = "stop",
        headers: bool = False,
    ) -> None:
        self._headers = headers
        self._consumer = consumer
        self._bounds = bounds
        self._watch = watch
        self._log = log
        self._commits = commits  # None: there is no group to report to
        self._on_out_of_range = on_out_of_range
        self._partitions: dict[TopicPartition, _Partition] = {}
        for at, (start, end) in bounds(positions).items():
            position = next_offset(at, positions[at], start, end, on_out_of_range)
            self._partitions[at] = _Partition(position, end)
        self._missing: dict[TopicPartition, KafkaError] = {}  # whose next offset Kafka has not
        self._drained = True  # whether the last poll left nothing in librdkafka's queue
        self._retry_at = 0.0
        self._failure: BusError | None = None
        self._closed = False
        consumer.assign([KafkaPosition(*at, p.received) for at, p in self._partitions.items()])

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        """At most ``limit`` messages that are there now, grouped by topic partition.

        Waits for a cluster that is unavailable, and logs that.

        Raises:
            BusError: an offset is no longer kept, or the topic is gone or forbidden; all messages
                before it have been returned.
        """
        messages = self._take_buffered(limit)
        room = limit - sum(map(len, messages.values()))
        if room > 0:
            self._fill(messages, room, 0.0 if messages else timeout_s)
            if self._missing:
                self._find_missing()
        self._failure = self._failure or self._watch.check(self.positions)
        if not messages and self._failure is not None:
            raise self._failure
        return [self._slice(at, own) for at, own in messages.items()]

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Return nothing more from these partitions until `resume`."""
        for at in partitions:
            self._partitions[at].paused = True

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Undo `pause`."""
        for at in partitions:
            self._partitions[at].paused = False

    def positions(self) -> dict[TopicPartition, int]:
        """The next offset of each partition; it passes a gap once that is known."""
        return {at: partition.position for at, partition in self._partitions.items()}

    def ends(self) -> dict[TopicPartition, int]:
        """The offset after each partition's last message, as last reported (cheap, may be old).

        Less than that where messages of an open transaction follow: they can't be read yet.
        """
        return {at: max(self._end(at, p), p.position) for at, p in self._partitions.items()}

    def partition_counts(self) -> dict[str, int]:
        """How many partitions each topic has, as the last health check of the brokers said."""
        return dict(self._watch.partition_counts)

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Report the group's positions to Kafka; the responses go to its `CommitLog`."""
        if self._commits is None or not positions:
            return
        offsets = [KafkaPosition(*at, offset) for at, offset in positions.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._commits.on_commit(error.args[0], [])

    def unavailable_reason(self) -> str | None:
        """Why there are no messages if the brokers have not responded for 5 s, else None."""
        return self._watch.unavailable_reason()

    def close(self) -> None:
        """Close, within 3 s. Idempotent."""
        if not self._closed:
            self._closed = True
            # librdkafka waits up to a minute for the response to a commit; nothing depends on that.
            closing = threading.Thread(target=self._consumer.close, daemon=True)
            closing.start()
            closing.join(_CLOSE_S)

    def _fill(
        self, messages: dict[TopicPartition, list[Message]], room: int, timeout_s: float
    ) -> None:
        """Receive at most ``room`` messages; without any, wait for what changes a position."""
        deadline = time.monotonic() + timeout_s
        received = False
        while not received:
            consumed = self._consume(room, max(deadline - time.monotonic(), 0.0))
            self._drained = len(consumed) < room
            for message in consumed:
                received = self._receive(message, messages) or received
            if not consumed or time.monotonic() >= deadline:
                break
        if messages and self._drained:
            self._pass_markers(messages)

    def _consume(self, room: int, timeout_s: float) -> list[Message]:
        try:
            messages: list[Message] = self._consumer.consume(room, 0.0)
            if messages or timeout_s <= 0:
                return messages
            # consume would wait for all of them, poll returns with the first.
            first = self._consumer.poll(timeout_s)
            if first is None:
                return messages
            return [first, *self._consumer.consume(room - 1, 0.0)] if room > 1 else [first]
        except KafkaException as error:
            raise BusError(f"reading from Kafka: {error_text(error)}") from error

    def _pass_markers(self, partitions: Iterable[TopicPartition]) -> None:
        """Move over the markers that follow what was received: sooner than by the event."""
        try:
            found = self._consumer.position([KafkaPosition(*at) for at in partitions])
        except KafkaException:
            return  # the event will come
        for each in found:
            partition = self._partitions[TopicPartition(each.topic, each.partition)]
            partition.received = max(partition.received, each.offset)

    def _receive(self, message: Message, messages: dict[TopicPartition, list[Message]]) -> bool:
        """Add a message to ``messages``, or buffer it; returns False if that changed nothing."""
        at = TopicPartition(message.topic() or "", message.partition() or 0)
        offset = message.offset() or 0
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                return self._on_end(self._partitions[at], offset)
            self._on_error(error, message)
            return True
        partition = self._partitions[at]
        if offset < partition.received:  # after a pause it may be fetched again: drop the repeat
            return False
        partition.received = offset + 1
        if partition.paused:
            partition.buffered.append(message)
            if len(partition.buffered) >= _MAX_BUFFERED and not partition.paused_in_client:
                partition.paused_in_client = True
                self._consumer.pause([KafkaPosition(*at)])
        elif (own := messages.get(at)) is not None:
            own.append(message)
        else:
            messages[at] = [message]
        return True

    def _on_end(self, partition: _Partition, end: int) -> bool:
        """All before ``end`` was received, and nothing after it can be read at present."""
        moved = end > partition.received
        partition.received = max(partition.received, end)
        if end != partition.told_end:
            partition.open_since = None
        partition.told_end = end
        partition.high_at_end = -1
        return moved

    def _take_buffered(self, limit: int) -> dict[TopicPartition, list[Message]]:
        """Messages buffered in a pause that is over; resumes partitions that have none left."""
        messages: dict[TopicPartition, list[Message]] = {}
        for at, partition in self._partitions.items():
            if partition.paused:
                continue
            if partition.buffered:
                count = min(limit, len(partition.buffered))
                if count:
                    messages[at] = [partition.buffered.popleft() for _ in range(count)]
                    limit -= count
            if partition.paused_in_client and not partition.buffered:
                partition.paused_in_client = False
                self._consumer.resume([KafkaPosition(*at)])
        return messages

    def _slice(self, at: TopicPartition, messages: list[Message]) -> Slice:
        rows = len(messages)
        return Slice(
            at.topic,
            at.partition,
            np.fromiter((m.offset() for m in messages), np.int64, rows),
            np.fromiter((m.timestamp()[1] for m in messages), np.int64, rows),
            [m.value() or Tombstone.of(m.key()) for m in messages],
            [m.key() for m in messages],
            _headers_of(messages) if self._headers else None,
        )

    def _end(self, at: TopicPartition, partition: _Partition) -> int:
        try:
            offsets = self._consumer.get_watermark_offsets(KafkaPosition(*at), cached=True)
            high = -1 if offsets is None else int(offsets[1])
        except KafkaException as error:
            LOG.warning("end of topic %s partition %d is not known: %s", *at, error_text(error))
            return partition.first_end
        if high < 0:  # nothing was fetched yet
            return partition.first_end
        if partition.received == partition.told_end:
            # What was written since is on its way, unless librdkafka's queue was found empty: then
            # it is of an open transaction.
            if self._drained:
                partition.high_at_end = high
                if high > partition.told_end:
                    self._on_open_transaction(at, partition)
            if high <= partition.high_at_end:
                return partition.told_end
        return high

    def _on_open_transaction(self, at: TopicPartition, partition: _Partition) -> None:
        """Warn once of a transaction that has been open for long: all that follows it waits."""
        now = time.monotonic()
        if partition.open_since is None:
            partition.open_since = now
        elif now - partition.open_since >= _OPEN_S:
            partition.open_since = math.inf  # it was reported
            LOG.warning(
                "topic %s partition %d: an open transaction begins at offset %d, and nothing after "
                "it can be read until it is committed or aborted: still waiting",
                *(*at, partition.told_end),
            )

    def _on_error(self, error: KafkaError, message: Message) -> None:
        """Handle an error that arrived in place of a message: set `_failure`, or keep waiting."""
        topic, partition = message.topic() or "", message.partition()
        code = error.code()
        if code in _GONE and partition is not None:
            self._missing[TopicPartition(topic, partition)] = error
        elif code in _REFUSED or error.fatal():
            self._failure = BusError(f"reading {topic or 'from Kafka'}: {error.str()}")
        else:
            self._log.on_error(error)
            self._watch.check_soon()

    def _find_missing(self) -> None:
        """Find what is kept of partitions that can't be read further: skip the gap or fail."""
        if time.monotonic() < self._retry_at:
            return
        try:
            bounds = self._bounds(self._missing)
            for at, (start, end) in bounds.items():
                self._skip(at, start, end)
        except UnreachableError:
            self._retry_at = time.monotonic() + _RETRY_S
        except BusError as error:
            self._failure = error

    def _skip(self, at: TopicPartition, start: int, end: int) -> None:
        error = self._missing.pop(at)
        partition = self._partitions[at]
        wanted = partition.received
        partition.received = next_offset(at, wanted, start, end, self._on_out_of_range)
        # Kafka did not have this offset and now has it: it is not the same message.
        if partition.received == wanted or error.code() == KafkaError._LOG_TRUNCATION:
            raise topic_recreated(at.topic)
        self._consumer.incremental_unassign([KafkaPosition(*at)])
        self._consumer.incremental_assign([KafkaPosition(*at, partition.received)])
        if partition.paused_in_client:
            self._consumer.pause([KafkaPosition(*at)])


def _headers_of(messages: list[Message]) -> Headers | None:
    """The headers of the messages; None if none has any."""
    headers: list[Any] = [message.headers() for message in messages]
    return headers if any(headers) else None
