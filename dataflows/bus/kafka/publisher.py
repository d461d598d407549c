"""Publishes to Kafka topics, and checks every delivery."""

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

from anabranch.dataflows.bus.kafka.settings import ClientLog, error_text
from anabranch.dataflows.bus.outage_log import SILENT_S, OutageLog
from anabranch.dataflows.bus.partitioner import Partitioner
from anabranch.dataflows.bus.protocol import UnreachableError
from anabranch.state.errors import BusError

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

_RETRY_S = 0.01
_FLUSH_STEP_S = 0.25  # after each, progress is checked and signals are handled
_CLOSE_S = 30.0


class KafkaPublisher:
    """A `Publisher` on an idempotent producer that waits for all in-sync replicas.

    A message is retried until Kafka stores or permanently rejects it, however long the brokers are
    unavailable (unless ``message.timeout.ms`` is set). Once one is rejected, everything after it
    would follow a gap, so each later `append` and `flush` raises the same error: start again with a
    new publisher.

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
        self._outage = OutageLog(url)
        self._partitioners: dict[str, Partitioner] = {}
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
        """Hand ``values`` to librdkafka in order; waits, and logs that, while its queue is full.

        Raises:
            UnreachableError: the publisher was stopped while no broker responds.
            BusError: the topic does not exist, a message is rejected, or an earlier one failed.
        """
        partitioner = self._partitioners.get(topic) or self._new_partitioner(topic)
        rows = len(values)
        assigned = partitioner.assign(rows, keys, partitions)
        timestamps = repeat(time.time_ns() // 1_000_000)
        if times is not None:
            partitioner.check_length("times", len(times), rows)
            # librdkafka takes 0 as "now", and brokers refuse negative times.
            timestamps = iter(np.maximum(np.asarray(times, np.int64), 1).tolist())
        numbers = repeat(assigned) if isinstance(assigned, int) else iter(assigned.tolist())
        produce = self._open().produce
        failed = self._on_failed
        for value, key, partition, timestamp in zip(
            values, repeat(None) if keys is None else keys, numbers, timestamps, strict=False
        ):
            try:
                produce(topic, value, key, partition, failed, None, timestamp)
            except BufferError:
                self._wait_for_room(topic, (value, key, partition, failed, None, timestamp))
            except KafkaException as error:
                raise BusError(f"topic {topic}: {error_text(error)}") from error
        self._open().poll(0)
        self._check()

    def flush(self, timeout_s: float = 30.0) -> None:
        """Return when Kafka has acknowledged everything appended.

        Raises:
            UnreachableError: some messages are still in flight after ``timeout_s``; another `flush`
                may succeed.
            BusError: messages were rejected permanently.
        """
        producer = self._open()
        deadline = time.monotonic() + timeout_s
        before = len(producer)
        while True:
            step_s = min(_FLUSH_STEP_S, max(deadline - time.monotonic(), 0.0))
            left = producer.flush(step_s)
            self._check()
            self._record(left < before or not left, quietly=True)
            if not left:
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
        if self._producer is None:
            return
        try:
            self.flush(0.0 if self._stopped_in_outage() else _CLOSE_S)
        finally:
            self._producer.purge()
            self._producer = None

    def _open(self) -> Producer:
        if self._producer is None:
            raise BusError(f"this publisher to {self._url} is closed; make a new one")
        return self._producer

    def _new_partitioner(self, topic: str) -> Partitioner:
        while True:
            try:
                count = self._partition_count(topic)
                break
            except UnreachableError as error:
                self._outage.no_answer(str(error))
                if self._stopped_in_outage():
                    raise
        self._outage.answered()
        partitioner = self._partitioners[topic] = Partitioner(topic, count)
        return partitioner

    def _wait_for_room(self, topic: str, message: tuple[Any, ...]) -> None:
        """Hand over ``message`` once librdkafka's queue has room for it."""
        producer = self._open()
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
