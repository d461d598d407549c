"""Appends to Kafka topics; every delivery is checked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
from confluent_kafka import KafkaException
from numpy.typing import NDArray

from dataflows.bus.kafka_client import ClientLog, kafka_sentence
from dataflows.bus.partitioner import Placement
from state.errors import BusError

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

_RETRY_S = 0.01


class KafkaPublisher:
    """A `dataflows.bus.Publisher` on an idempotent producer that waits for all in-sync replicas.

    Once a message could not be delivered, everything after it would be behind a hole: each later
    `append` and `flush` raises the same error. Start again with a new publisher.

    Kafka has no message times before 1970-01-01 00:00:00.001; earlier ones are published as that.
    """

    def __init__(
        self,
        producer: Producer,
        partition_count: Callable[[str], int],
        log: ClientLog,
        url: str,
    ) -> None:
        self._producer: Producer | None = producer
        self._partition_count = partition_count
        self._log = log
        self._url = url
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
        """Hand ``values`` to librdkafka in order; waits while its queue is full.

        Raises:
            BusError: the topic does not exist, a message is refused, or an earlier one failed.
        """
        placement = self._placements.get(topic)
        if placement is None:
            placement = self._placements[topic] = Placement(topic, self._partition_count(topic))
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
            while True:
                try:
                    produce(topic, value, key, partition, failed, None, stamp)
                    break
                except BufferError:
                    self._open().poll(_RETRY_S)
                    self._check()
                except KafkaException as error:
                    raise BusError(f"topic {topic}: {kafka_sentence(error)}") from error
        self._open().poll(0)
        self._check()

    def flush(self, timeout_s: float = 30.0) -> None:
        """Return when Kafka has acknowledged everything appended.

        Raises:
            BusError: something failed, or is still under way after ``timeout_s``; in the second
                case it is still being tried, and another `flush` may succeed.
        """
        producer = self._open()
        left = producer.flush(timeout_s)
        self._check()
        if left:
            why = f": {self._log.last_error}" if self._log.last_error else ""
            raise BusError(
                f"{left} messages not delivered to {self._url} within {timeout_s:g} s{why}; "
                "they are still being tried"
            )
        self._log.heard_message()

    def close(self) -> None:
        """Flush and let go; idempotent.

        Raises:
            BusError: as `flush`; then what was under way is dropped.
        """
        if self._producer is None:
            return
        try:
            self.flush()
        finally:
            self._producer.purge()
            self._producer = None

    def _open(self) -> Producer:
        if self._producer is None:
            raise BusError(f"this publisher to {self._url} is closed; make a new one")
        return self._producer

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed[f"{message.topic()}: {error.str()}"] += 1

    def _check(self) -> None:
        if self._failed:
            reasons = "; ".join(f"{n} to {why}" for why, n in self._failed.most_common(3))
            raise BusError(
                f"{self._failed.total()} messages could not be delivered to {self._url}: {reasons}"
            )
