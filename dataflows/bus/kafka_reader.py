"""Reads Kafka partitions from given offsets with one consumer.

``assign``, never ``subscribe``: which worker reads what is decided elsewhere, and no rebalance may
move a partition. `pause` only sets messages aside at first, because librdkafka throws away what it
has prefetched when it pauses and fetches it again when it resumes; a partition that stays paused
until `_SET_ASIDE` messages have piled up is paused there too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPosition

from dataflows.bus import Slice, TopicPartition
from dataflows.bus.embedded_reader import offset_gone
from dataflows.bus.kafka_client import LOG, ClientLog, kafka_sentence
from state.errors import BusError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

_SET_ASIDE = 10_000
_WATERMARK_S = 5.0
_CHECK_S = 1.0
_CHECKS = 10
_GONE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
_REFUSED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
}


class Offsets(Protocol):
    """What the reader asks of its bus to explain an error."""

    def start_offsets(self, topic: str) -> list[int]: ...
    def end_offsets(self, topic: str) -> list[int]: ...
    def topics(self) -> dict[str, int]: ...


class _Partition:
    """Where one partition is: handed over up to ``position``, received up to ``received``."""

    __slots__ = ("aside", "held_back", "paused", "position", "received")

    def __init__(self, position: int) -> None:
        self.position = position
        self.received = position
        self.paused = False
        self.held_back = False  # paused in librdkafka too
        self.aside: deque[Message] = deque()


class KafkaReader:
    """A `dataflows.bus.Reader` of Kafka partitions, for one thread."""

    def __init__(
        self,
        consumer: Consumer,
        positions: Mapping[TopicPartition, int],
        group: str | None,
        log: ClientLog,
        bus: Offsets,
    ) -> None:
        self._consumer = consumer
        self._partitions = {at: _Partition(offset) for at, offset in positions.items()}
        self._group = group
        self._log = log
        self._bus = bus
        self._asked_ends: dict[TopicPartition, int] = {}
        self._failure: BusError | None = None
        self._next_check = 0.0
        self._checks = _CHECKS
        self._closed = False
        consumer.assign([KafkaPosition(*at, offset) for at, offset in positions.items()])

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        """At most ``limit`` messages that are there now, grouped by topic partition.

        A cluster that is away is waited for, with one line in the log.

        Raises:
            BusError: an offset is no longer kept, or the topic is gone or forbidden; messages that
                came before it have been handed over.
        """
        found = self._set_aside_earlier(limit)
        room = limit - sum(map(len, found.values()))
        if room > 0:
            for message in self._consume(room, 0.0 if found else timeout_s):
                self._receive(message, found)
            if self._log.unknown_topic:
                self._check_topics()
        if found:
            self._log.heard_message()
        elif self._failure is not None:
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
        """The offset that each partition will be read from next."""
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

    def close(self) -> None:
        """Let go. Idempotent."""
        if not self._closed:
            self._closed = True
            self._consumer.close()

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
        offsets = np.fromiter((m.offset() for m in messages), np.int64, rows)
        self._partitions[at].position = int(offsets[-1]) + 1
        return Slice(
            at.topic,
            at.partition,
            offsets,
            np.fromiter((m.timestamp()[1] for m in messages), np.int64, rows),
            [m.value() or b"" for m in messages],
            [m.key() for m in messages],
        )

    def _end(self, at: TopicPartition) -> int:
        position = KafkaPosition(*at)
        try:
            known = self._consumer.get_watermark_offsets(position, cached=True)
            if known is not None and known[1] >= 0:
                return int(known[1])
            if at not in self._asked_ends:  # nothing was fetched yet
                answer = self._consumer.get_watermark_offsets(position, timeout=_WATERMARK_S)
                self._asked_ends[at] = int(answer[1]) if answer is not None else 0
        except KafkaException as error:
            LOG.warning("end of %s %d not known: %s", *at, kafka_sentence(error))
        return self._asked_ends.get(at, 0)

    def _heard(self, error: KafkaError, message: Message) -> None:
        """Sort out an error that arrived in place of a message: `_failure`, or wait on."""
        topic, partition = message.topic() or "", message.partition()
        code = error.code()
        if code in _GONE and partition is not None:
            self._failure = self._gone(TopicPartition(topic, partition), error)
        elif code in _REFUSED or error.fatal():
            self._failure = BusError(f"reading {topic or 'from Kafka'}: {error.str()}")
        else:
            self._log.heard_error(error)

    def _gone(self, at: TopicPartition, error: KafkaError) -> BusError:
        wanted = self._partitions[at].received
        try:
            start = self._bus.start_offsets(at.topic)[at.partition]
            end = self._bus.end_offsets(at.topic)[at.partition]
        except BusError:
            return BusError(f"topic {at.topic} partition {at.partition}: {error.str()}")
        return offset_gone(*at, wanted, start if wanted < start else end)

    def _check_topics(self) -> None:
        """Ask on after a broker did not know a topic: one that is starting may know it later."""
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + _CHECK_S
        try:
            counts = self._bus.topics()
        except BusError:
            return  # away: ask again
        for topic, partition in self._partitions:
            if partition >= counts.get(topic, 0):
                self._failure = BusError(
                    f"topic {topic} no longer exists; create it, then start again"
                )
        self._checks -= 1
        if self._checks == 0:  # a false alarm
            self._checks, self._log.unknown_topic = _CHECKS, False
