"""Publishes to Kafka topics, and checks every delivery."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from confluent_kafka import KafkaException
from numpy.typing import NDArray

from anabranch.dataflows.bus.headers import Headers
from anabranch.dataflows.bus.kafka.settings import ClientLog, error_text
from anabranch.dataflows.bus.offset_errors import topic_recreated
from anabranch.dataflows.bus.outage_log import SILENT_S, OutageLog
from anabranch.dataflows.bus.partitioner import Partitioner
from anabranch.dataflows.bus.protocol import TopicLimits, UnreachableError
from anabranch.state.errors import BusError

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

_RETRY_S = 0.01
_FLUSH_STEP_S = 0.25  # after each, progress is checked and signals are handled
_CLOSE_S = 30.0


class TopicFacts(Protocol):
    """What a publisher asks the bus of a topic."""

    def partition_count(self, topic: str) -> int: ...
    def limits(self, topic: str) -> TopicLimits: ...
    def topic_ids(self, topics: Collection[str]) -> dict[str, str]: ...


class Producers:
    """Producers by the size of their batches.

    A broker refuses a batch larger than the ``max.message.bytes`` of its topic with all that is in
    it, and librdkafka, whose size of batches is one setting of a producer, does not split it. So
    topics that take less than the ``largest`` batch get a producer of their own.
    """

    def __init__(self, new: Callable[[int], Producer], largest: int, overhead: int) -> None:
        self._new = new
        self._largest, self._overhead = largest, overhead
        self._by_size: dict[int, Producer] = {largest: new(largest)}

    def of(self, limits: TopicLimits) -> Producer:
        """The producer for a topic with these limits."""
        size = min(limits.max_message_bytes + self._overhead, self._largest)
        producer = self._by_size.get(size)
        if producer is None:
            producer = self._by_size[size] = self._new(size)
        return producer

    def in_flight(self) -> int:
        """How many messages no broker has acknowledged yet."""
        return sum(map(len, self._by_size.values()))

    def flush(self, timeout_s: float) -> int:
        """Wait for acknowledgements; returns how many are missing."""
        for producer in self._by_size.values():
            began = time.monotonic()
            producer.flush(timeout_s)
            timeout_s = max(timeout_s - (time.monotonic() - began), 0.0)
        return self.in_flight()

    def purge(self) -> None:
        """Drop what is in flight."""
        for producer in self._by_size.values():
            producer.purge()


class _Topic(NamedTuple):
    partitioner: Partitioner
    producer: Producer
    limits: TopicLimits
    id: str


class KafkaPublisher:
    """A `Publisher` on idempotent producers that wait for all in-sync replicas.

    A message is retried until Kafka stores or permanently rejects it, however long the brokers are
    unavailable (unless ``message.timeout.ms`` is set). Once one is rejected, everything after it
    would follow a gap, so each later `append` and `flush` raises the same error: start again with a
    new publisher.

    Kafka has no message times before 1970-01-01 00:00:00.001; earlier ones are published as that.
    """

    def __init__(
        self,
        producers: Producers,
        bus: TopicFacts,
        log: ClientLog,
        url: str,
        stop: threading.Event | None = None,
    ) -> None:
        self._producers: Producers | None = producers
        self._bus = bus
        self._log = log
        self._url = url
        self._stop = stop
        self._outage = OutageLog(url)
        self._topics: dict[str, _Topic] = {}
        self._ids: dict[str, str] = {}  # of topics that were appended to since the last flush
        self._failed: Counter[str] = Counter()

    def append(
        self,
        topic: str,
        values: Sequence[bytes],
        *,
        keys: Sequence[bytes | None] | None = None,
        partitions: Sequence[int] | int | None = None,
        times: Sequence[int] | NDArray[np.int64] | None = None,
        headers: Headers | None = None,
    ) -> None:
        """Hand ``values`` to librdkafka in order; waits, and logs that, while its queue is full.

        Raises:
            UnreachableError: the publisher was stopped while no broker responds.
            BusError: the topic does not exist, a message is rejected, or an earlier one failed. If
                a message is too large for the topic, none of ``values`` is published.
        """
        self._open()
        opened = self._topics.get(topic) or self._open_topic(topic)
        partitioner = opened.partitioner
        rows = len(values)
        self._check_sizes(topic, opened, values, keys)
        self._ids[topic] = opened.id
        assigned = partitioner.assign(rows, keys, partitions)
        timestamps = repeat(time.time_ns() // 1_000_000)
        if times is not None:
            partitioner.check_length("times", len(times), rows)
            # librdkafka takes 0 as "now", and brokers refuse negative times.
            timestamps = iter(np.maximum(np.asarray(times, np.int64), 1).tolist())
        numbers = repeat(assigned) if isinstance(assigned, int) else iter(assigned.tolist())
        more: Iterable[Any] = repeat(None) if headers is None else headers
        produce = opened.producer.produce
        failed = self._on_failed
        for value, key, partition, timestamp, own in zip(
            values,
            repeat(None) if keys is None else keys,
            numbers,
            timestamps,
            more,
            strict=False,
        ):
            try:
                produce(topic, value, key, partition, failed, None, timestamp, own)
            except BufferError:
                self._wait_for_room(
                    opened.producer, topic, (value, key, partition, failed, None, timestamp, own)
                )
            except KafkaException as error:
                raise BusError(f"topic {topic}: {error_text(error)}") from error
        opened.producer.poll(0)
        self._check()

    def flush(self, timeout_s: float = 30.0) -> None:
        """Return when Kafka has acknowledged everything appended.

        Raises:
            UnreachableError: some messages are still in flight after ``timeout_s``; another `flush`
                may succeed.
            BusError: messages were rejected permanently, or a topic was deleted since the publisher
                has opened it, and with it what was stored there.
        """
        producers = self._open()
        deadline = time.monotonic() + timeout_s
        before = producers.in_flight()
        while True:
            step_s = min(_FLUSH_STEP_S, max(deadline - time.monotonic(), 0.0))
            left = producers.flush(step_s)
            self._check()
            self._record(left < before or not left, quietly=True)
            if not left:
                self._check_topics()
                return
            if time.monotonic() >= deadline:
                why = f": {self._log.last_error}" if self._log.last_error else ""
                raise UnreachableError(
                    f"{left} messages not delivered to {self._url} within {timeout_s:g} s{why}; "
                    "they are still being sent"
                )
            before = left

    def close(self) -> None:
        """Flush and close, within 30 s. Idempotent.

        Raises:
            BusError: as `flush`; then messages in flight are dropped.
        """
        if self._producers is None:
            return
        try:
            self.flush(0.0 if self._stopped_in_outage() else _CLOSE_S)
        finally:
            self._producers.purge()
            self._producers = None
            self._topics.clear()

    def _check_topics(self) -> None:
        """Check that what was appended to is still there, and not created again meanwhile."""
        wanted, self._ids = {topic: id for topic, id in self._ids.items() if id}, {}
        if not wanted:
            return
        try:
            found = self._bus.topic_ids(wanted)
        except UnreachableError:
            return  # what was appended is stored, and later it is looked at again
        for topic, id in wanted.items():
            if found.get(topic, id) != id:
                raise topic_recreated(topic)

    def _open(self) -> Producers:
        if self._producers is None:
            raise BusError(f"this publisher to {self._url} is closed; make a new one")
        return self._producers

    def _open_topic(self, topic: str) -> _Topic:
        while True:
            try:
                count, limits = self._bus.partition_count(topic), self._bus.limits(topic)
                id = self._bus.topic_ids([topic]).get(topic, "")
                break
            except UnreachableError as error:
                self._outage.no_answer(str(error))
                if self._stopped_in_outage():
                    raise
        self._outage.answered()
        opened = _Topic(Partitioner(topic, count), self._open().of(limits), limits, id)
        self._topics[topic] = opened
        return opened

    def _check_sizes(
        self,
        topic: str,
        opened: _Topic,
        values: Sequence[bytes],
        keys: Sequence[bytes | None] | None,
    ) -> None:
        most = opened.limits.max_message_bytes
        largest = max(map(len, values), default=0)
        if keys is not None:
            largest += max((len(key) for key in keys if key is not None), default=0)
        if largest <= most:
            return
        for row, (value, key) in enumerate(
            zip(values, repeat(None) if keys is None else keys, strict=False)
        ):
            size = len(value) + (0 if key is None else len(key))
            if size > most:
                raise BusError(
                    f"topic {topic}: message {row + 1} of {len(values)} is too large: it has "
                    f"{size:,} bytes, and the topic takes {most:,}; raise max.message.bytes of the "
                    "topic, and message.max.bytes with --bus-set, or leave the message out"
                )

    def _wait_for_room(self, producer: Producer, topic: str, message: tuple[Any, ...]) -> None:
        """Hand over ``message`` once librdkafka's queue has room for it."""
        while True:
            before = len(producer)
            producer.poll(_RETRY_S)
            self._check()
            self._record(len(producer) < before)
            try:
                producer.produce(topic, *message)
                self._outage.answered()
                return
            except BufferError:
                pass
            if self._stopped_in_outage():
                raise UnreachableError(
                    f"topic {topic}: stopped while {before} messages wait for {self._url}, "
                    f"which has not answered for {self._outage.silent_s():.0f} s"
                )

    def _record(self, progress: bool, quietly: bool = False) -> None:
        if progress:
            self._outage.answered()
            self._log.last_error = ""
        else:
            self._outage.no_answer(self._log.last_error, quietly)

    def _stopped_in_outage(self) -> bool:
        stopping = self._stop is not None and self._stop.is_set()
        return stopping and self._outage.silent_s() >= SILENT_S

    def _on_failed(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed[f"{message.topic()}: {error.str()}"] += 1

    def _check(self) -> None:
        if self._failed:
            reasons = "; ".join(f"{n} to {why}" for why, n in self._failed.most_common(3))
            raise BusError(
                f"{self._failed.total()} messages could not be delivered to {self._url}: {reasons}"
            )
        if self._log.fatal:
            raise BusError(f"publishing to {self._url} can't continue: {self._log.fatal}")
