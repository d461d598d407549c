"""Reads Kafka partitions from given offsets with one consumer.

``assign``, never ``subscribe``: which worker reads what is decided elsewhere, and no rebalance may
move a partition. `pause` only sets messages aside at first, because librdkafka throws away what it
has prefetched when it pauses and fetches it again when it resumes; a partition that stays paused
until `_SET_ASIDE` messages have piled up is paused there too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPosition

from anabranch.dataflows.bus.kafka.broker_watch import BrokerWatch
from anabranch.dataflows.bus.kafka.settings import LOG, ClientLog, kafka_sentence
from anabranch.dataflows.bus.offset_errors import made_anew, next_offset
from anabranch.dataflows.bus.protocol import Lost, Slice, TopicPartition, UnreachableError
from anabranch.state.errors import BusError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

_SET_ASIDE = 10_000
_ASK_AGAIN_S = 1.0
_CLOSE_S = 3.0
_GONE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION}
_REFUSED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
}

Range = tuple[int, int]
"""The first offset that a partition keeps, and the one behind its last."""


class Bounds(Protocol):
    """Asks the bus for the first offset kept and the one behind the last, by partition."""

    def __call__(self, places: Collection[TopicPartition]) -> dict[TopicPartition, Range]: ...


class _Partition:
    """One partition: received up to ``received``; the last of that may still be set ``aside``."""

    __slots__ = ("aside", "end", "held_back", "paused", "received")

    def __init__(self, position: int, end: int) -> None:
        self.received = position
        self.end = end  # as of the opening
        self.paused = False
        self.held_back = False  # paused in librdkafka too
        self.aside: deque[Message] = deque()

    @property
    def position(self) -> int:
        """The offset that is handed over next."""
        return self.aside[0].offset() or 0 if self.aside else self.received


class KafkaReader:
    """A `dataflows.bus.Reader` of Kafka partitions, for one thread (`trouble` for any)."""

    def __init__(
        self,
        consumer: Consumer,
        positions: Mapping[TopicPartition, int],
        bounds: Bounds,
        watch: BrokerWatch,
        log: ClientLog,
        group: str | None = None,
        lost: Lost = "stop",
    ) -> None:
        self._consumer = consumer
        self._bounds = bounds
        self._watch = watch
        self._log = log
        self._group = group
        self._lost = lost
        self._partitions: dict[TopicPartition, _Partition] = {}
        for at, (start, end) in bounds(positions).items():
            position = next_offset(at, positions[at], start, end, lost)
            self._partitions[at] = _Partition(position, end)
        self._missing: dict[TopicPartition, KafkaError] = {}  # whose next offset Kafka has not
        self._ask_again_at = 0.0
        self._failure: BusError | None = None
        self._closed = False
        consumer.assign([KafkaPosition(*at, p.received) for at, p in self._partitions.items()])

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        """At most ``limit`` messages that are there now, grouped by topic partition.

        A cluster that is away is waited for; the log says so.

        Raises:
            BusError: an offset is no longer kept, or the topic is gone or forbidden; messages that
                came before it have been handed over.
        """
        found = self._set_aside_earlier(limit)
        room = limit - sum(map(len, found.values()))
        if room > 0:
            for message in self._consume(room, 0.0 if found else timeout_s):
                self._receive(message, found)
            if self._missing:
                self._find_missing()
        self._failure = self._failure or self._watch.look(self.positions)
        if not found and self._failure is not None:
            raise self._failure
        return [self._slice(at, messages) for at, messages in found.items()]

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Hand over nothing more from these partitions until `resume`."""
        for at in partitions:
            self._partitions[at].paused = True

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Undo `pause`."""
        for at in partitions:
            self._partitions[at].paused = False

    def positions(self) -> dict[TopicPartition, int]:
        """The offset that each partition will be read from next; behind a gap, once it is known."""
        return {at: partition.position for at, partition in self._partitions.items()}

    def ends(self) -> dict[TopicPartition, int]:
        """The offset behind each partition's last message, as last heard (cheap, may be old)."""
        return {at: max(self._end(at), p.position) for at, p in self._partitions.items()}

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Tell Kafka how far the group has come; a failure is logged, nothing rests on it."""
        if self._group is None or not positions:
            return
        offsets = [KafkaPosition(*at, offset) for at, offset in positions.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            LOG.warning("lag of group %s not reported: %s", self._group, kafka_sentence(error))

    def trouble(self) -> str | None:
        """What is waited for when the brokers have been silent for 5 s; else None."""
        return self._watch.trouble()

    def close(self) -> None:
        """Let go, within 3 s. Idempotent."""
        if not self._closed:
            self._closed = True
            # librdkafka waits for the answer to a commit for a minute; nothing rests on that.
            closing = threading.Thread(target=self._consumer.close, daemon=True)
            closing.start()
            closing.join(_CLOSE_S)

    def _consume(self, room: int, timeout_s: float) -> list[Message]:
        try:
            messages: list[Message] = self._consumer.consume(room, 0.0)
            if messages or timeout_s <= 0:
                return messages
            # consume would wait until it has all of them, poll returns with the first.
            first = self._consumer.poll(timeout_s)
            if first is None:
                return messages
            return [first, *self._consumer.consume(room - 1, 0.0)] if room > 1 else [first]
        except KafkaException as error:
            raise BusError(f"reading from Kafka: {kafka_sentence(error)}") from error

    def _receive(self, message: Message, found: dict[TopicPartition, list[Message]]) -> None:
        error = message.error()
        if error is not None:
            self._heard(error, message)
            return
        at = TopicPartition(message.topic() or "", message.partition() or 0)
        partition = self._partitions[at]
        offset = message.offset() or 0
        if offset < partition.received:  # after a pause it is fetched again: never twice to us
            return
        partition.received = offset + 1
        if partition.paused:
            partition.aside.append(message)
            if len(partition.aside) >= _SET_ASIDE and not partition.held_back:
                partition.held_back = True
                self._consumer.pause([KafkaPosition(*at)])
        elif (messages := found.get(at)) is not None:
            messages.append(message)
        else:
            found[at] = [message]

    def _set_aside_earlier(self, limit: int) -> dict[TopicPartition, list[Message]]:
        """What waits from a pause that is over; resumes in librdkafka what ran empty."""
        found: dict[TopicPartition, list[Message]] = {}
        for at, partition in self._partitions.items():
            if partition.paused:
                continue
            if partition.aside:
                count = min(limit, len(partition.aside))
                if count:
                    found[at] = [partition.aside.popleft() for _ in range(count)]
                    limit -= count
            if partition.held_back and not partition.aside:
                partition.held_back = False
                self._consumer.resume([KafkaPosition(*at)])
        return found

    def _slice(self, at: TopicPartition, messages: list[Message]) -> Slice:
        rows = len(messages)
        return Slice(
            at.topic,
            at.partition,
            np.fromiter((m.offset() for m in messages), np.int64, rows),
            np.fromiter((m.timestamp()[1] for m in messages), np.int64, rows),
            [m.value() or b"" for m in messages],
            [m.key() for m in messages],
        )

    def _end(self, at: TopicPartition) -> int:
        try:
            known = self._consumer.get_watermark_offsets(KafkaPosition(*at), cached=True)
            if known is not None and known[1] >= 0:
                return int(known[1])
        except KafkaException as error:
            LOG.warning("end of %s %d not known: %s", *at, kafka_sentence(error))
        return self._partitions[at].end  # nothing was fetched yet

    def _heard(self, error: KafkaError, message: Message) -> None:
        """Sort out an error that arrived in place of a message: `_failure`, or wait on."""
        topic, partition = message.topic() or "", message.partition()
        code = error.code()
        if code in _GONE and partition is not None:
            self._missing[TopicPartition(topic, partition)] = error
        elif code in _REFUSED or error.fatal():
            self._failure = BusError(f"reading {topic or 'from Kafka'}: {error.str()}")
        else:
            self._log.heard_error(error)
            self._watch.hurry()

    def _find_missing(self) -> None:
        """Ask for what is kept of partitions that can't be read on: `_failure`, or skip the gap."""
        if time.monotonic() < self._ask_again_at:
            return
        try:
            bounds = self._bounds(self._missing)
            for at, (start, end) in bounds.items():
                self._skip(at, start, end)
        except UnreachableError:
            self._ask_again_at = time.monotonic() + _ASK_AGAIN_S
        except BusError as error:
            self._failure = error

    def _skip(self, at: TopicPartition, start: int, end: int) -> None:
        error = self._missing.pop(at)
        partition = self._partitions[at]
        wanted = partition.received
        partition.received = next_offset(at, wanted, start, end, self._lost)
        # Kafka had not got it, now it has: it is not the same message.
        if partition.received == wanted or error.code() == KafkaError._LOG_TRUNCATION:
            raise made_anew(at.topic)
        self._consumer.incremental_unassign([KafkaPosition(*at)])
        self._consumer.incremental_assign([KafkaPosition(*at, partition.received)])
        if partition.held_back:
            self._consumer.pause([KafkaPosition(*at)])
