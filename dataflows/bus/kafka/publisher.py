"""Appends to Kafka topics; every delivery is checked."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from confluent_kafka import KafkaException
from numpy.typing import NDArray

from anabranch.dataflows.bus.kafka.settings import ClientLog, kafka_sentence
from anabranch.dataflows.bus.outage_log import SILENT_S, Waiting
from anabranch.dataflows.bus.partitioner import Placement
from anabranch.dataflows.bus.protocol import UnreachableError
from anabranch.state.errors import BusError

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

_RETRY_S = 0.01
_SLICE_S = 0.25  # of a flush: after each, progress is looked at and signals are heard
_CLOSE_S = 30.0


class KafkaPublisher:
    """A `dataflows.bus.Publisher` on an idempotent producer that waits for all in-sync replicas.

    A message is tried until Kafka has it or refuses it for good, however long the brokers are away
    (unless ``message.timeout.ms`` is set). Once one was refused, everything after it would be
    behind a hole: each later `append` and `flush` raises the same error. Start again with a new
    publisher.

    Kafka has no message times before 1970-01-01 00:00:00.001; earlier ones are published as that.
    """

    def __init__(
        self,
        producer: Producer,
        partition_count: Callable[[str], int],
        log: ClientLog,
        url: str,
        stop: threading.Event | None = None,
    ) -> None:
        self._producer: Producer | None = producer
        self._partition_count = partition_count
        self._log = log
        self._url = url
        self._stop = stop
        self._waiting = Waiting(url)
        self._placements: dict[str, Placement] = {}
        self._failed: Counter[str] = Counter()

    def append(
        self,
        topic: str,
        values: Sequence[bytes],
        *,
        keys: Sequence[bytes | None] | None = None,
        partitions: Sequence[int] | int | None = None,
        times: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> None:
        """Hand ``values`` to librdkafka in order; waits while its queue is full, and says so.

        Raises:
            UnreachableError: told to stop while no broker answers.
            BusError: the topic does not exist, a message is refused, or an earlier one failed.
        """
        placement = self._placements.get(topic) or self._placement(topic)
        rows = len(values)
        placed = placement.place(rows, keys, partitions)
        stamps = repeat(time.time_ns() // 1_000_000)
        if times is not None:
            placement.check_length("times", len(times), rows)
            # librdkafka takes 0 for "now", and brokers refuse what is below.
            stamps = iter(np.maximum(np.asarray(times, np.int64), 1).tolist())
        where = repeat(placed) if isinstance(placed, int) else iter(placed.tolist())
        produce = self._open().produce
        failed = self._delivered
        for value, key, partition, stamp in zip(
            values, repeat(None) if keys is None else keys, where, stamps, strict=False
        ):
            try:
                produce(topic, value, key, partition, failed, None, stamp)
            except BufferError:
                self._wait_for_room(topic, (value, key, partition, failed, None, stamp))
            except KafkaException as error:
                raise BusError(f"topic {topic}: {kafka_sentence(error)}") from error
        self._open().poll(0)
        self._check()

    def flush(self, timeout_s: float = 30.0) -> None:
        """Return when Kafka has acknowledged everything appended.

        Raises:
            UnreachableError: something is still under way after ``timeout_s``; it is still being
                tried, and another `flush` may succeed.
            BusError: something was refused for good.
        """
        producer = self._open()
        deadline = time.monotonic() + timeout_s
        before = len(producer)
        while True:
            slice_s = min(_SLICE_S, max(deadline - time.monotonic(), 0.0))
            left = producer.flush(slice_s)
            self._check()
            self._note(left < before or not left, quietly=True)
            if not left:
                return
            if time.monotonic() >= deadline:
                why = f": {self._log.last_error}" if self._log.last_error else ""
                raise UnreachableError(
                    f"{left} messages not delivered to {self._url} within {timeout_s:g} s{why}; "
                    "they are still being tried"
                )
            before = left

    def close(self) -> None:
        """Flush and let go; idempotent, and over after 30 s.

        Raises:
            BusError: as `flush`; then what was under way is dropped.
        """
        if self._producer is None:
            return
        try:
            self.flush(0.0 if self._given_up() else _CLOSE_S)
        finally:
            self._producer.purge()
            self._producer = None

    def _open(self) -> Producer:
        if self._producer is None:
            raise BusError(f"this publisher to {self._url} is closed; make a new one")
        return self._producer

    def _placement(self, topic: str) -> Placement:
        while True:
            try:
                count = self._partition_count(topic)
                break
            except UnreachableError as error:
                self._waiting.still(str(error))
                if self._given_up():
                    raise
        self._waiting.over()
        placement = self._placements[topic] = Placement(topic, count)
        return placement

    def _wait_for_room(self, topic: str, message: tuple[Any, ...]) -> None:
        """Produce ``message`` once librdkafka's queue has room for it."""
        producer = self._open()
        while True:
            before = len(producer)
            producer.poll(_RETRY_S)
            self._check()
            self._note(len(producer) < before)
            try:
                producer.produce(topic, *message)
                self._waiting.over()
                return
            except BufferError:
                pass
            if self._given_up():
                raise UnreachableError(
                    f"topic {topic}: told to stop while {before} messages wait for {self._url}, "
                    f"which has not answered for {self._waiting.silent_s():.0f} s"
                )

    def _note(self, progress: bool, quietly: bool = False) -> None:
        if progress:
            self._waiting.over()
            self._log.last_error = ""
        else:
            self._waiting.still(self._log.last_error, quietly)

    def _given_up(self) -> bool:
        stopping = self._stop is not None and self._stop.is_set()
        return stopping and self._waiting.silent_s() >= SILENT_S

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed[f"{message.topic()}: {error.str()}"] += 1

    def _check(self) -> None:
        if self._failed:
            reasons = "; ".join(f"{n} to {why}" for why, n in self._failed.most_common(3))
            raise BusError(
                f"{self._failed.total()} messages could not be delivered to {self._url}: {reasons}"
            )
        if self._log.fatal:
            raise BusError(f"publishing to {self._url} can't go on: {self._log.fatal}")
