"""Health checks of the brokers that a reader reads from: every 2 s, without waiting for responses.

A consumer that gets nothing cannot distinguish a quiet topic from an unavailable broker: a
connection to a stopped process, or into a network that drops packets, stays up for minutes. So the
leaders of the partitions are queried for their end offsets, which only a working one returns, and
any broker for the topics, whose ids reveal a topic that was recreated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException

from anabranch.dataflows.bus.kafka.settings import NO_LEADER, ClientLog
from anabranch.dataflows.bus.offset_errors import offset_past_end, topic_deleted, topic_recreated
from anabranch.dataflows.bus.outage_log import OutageLog
from anabranch.dataflows.bus.protocol import TopicPartition
from anabranch.state.errors import BusError

_EVERY_S = 2.0
_POLL_S = 0.05  # between polls for outstanding responses
_RETRY_S = 0.2
_DELETED_AFTER_S = 3.0  # a broker that is starting may not know its topics yet


class Probe(NamedTuple):
    """An outstanding health check: futures of topic descriptions and of end offsets."""

    topics: Mapping[str, Future[Any]]
    ends: Mapping[TopicPartition, Future[Any]]

    def done(self) -> bool:
        """Whether all responses, or their errors, have arrived."""
        return all(f.done() for f in self.topics.values()) and all(
            f.done() for f in self.ends.values()
        )


class BrokerWatch:
    """Checks the brokers of one reader whenever that reader is polled."""

    def __init__(
        self,
        probe: Callable[[Collection[TopicPartition]], Probe],
        partitions: Collection[TopicPartition],
        log: ClientLog,
        url: str,
    ) -> None:
        self._probe = probe
        self._partitions = partitions
        self._log = log
        self._outage = OutageLog(url)
        self._pending: Probe | None = None
        self._positions_then: Mapping[TopicPartition, int] = {}
        self._next_check = 0.0
        self._ids: dict[str, str] = {}
        self.partition_counts: dict[str, int] = {}  # by topic, as last reported
        self._unknown_since: dict[str, float] = {}

    def check(self, positions: Callable[[], Mapping[TopicPartition, int]]) -> BusError | None:
        """Start a check or poll for responses; returns an error if a topic is gone or recreated."""
        now = time.monotonic()
        if now < self._next_check:
            return None
        if self._pending is None:
            self._positions_then = positions()  # an end reported later can't be before these
            self._pending = self._probe(self._partitions)
            self._outage.no_answer(self._log.last_error)
            self._next_check = now + _POLL_S
            return None
        if not self._pending.done():
            self._outage.no_answer(self._log.last_error)
            self._next_check = now + _POLL_S
            return None
        probe, self._pending = self._pending, None
        why = self._why_unavailable(probe)
        if why is None:
            self._outage.answered()
            self._log.last_error = ""
        else:
            self._outage.no_answer(self._log.last_error or why)
        self._next_check = now + (_EVERY_S if why is None else _RETRY_S)
        return self._topics_failure(probe, now) or self._ends_failure(probe)

    def check_soon(self) -> None:
        """Start the next check soon, as there was an error."""
        if self._pending is None:
            self._next_check = min(self._next_check, time.monotonic() + _RETRY_S)

    def unavailable_reason(self) -> str | None:
        """Why there are no messages, if a response is more than 5 s late; else None."""
        return self._outage.unavailable_reason()

    def _why_unavailable(self, probe: Probe) -> str | None:
        """Why the leader of some partition is unavailable; None if all responded."""
        for end in probe.ends.values():
            if _error_of(end) is None and end.result().offset < 0:
                return "an end offset is not known"  # how librdkafka reports a failed request
        for future in (*probe.ends.values(), *probe.topics.values()):
            error = _error_of(future)
            # Codes below 0 are librdkafka's own. Any other code is a broker's response.
            if error is not None and (error.code() < 0 or error.code() in NO_LEADER):
                return str(error.str())
        return None

    def _topics_failure(self, probe: Probe, now: float) -> BusError | None:
        for topic, future in probe.topics.items():
            error = _error_of(future)
            if error is None:
                self._unknown_since.pop(topic, None)
                self.partition_counts[topic] = len(future.result().partitions)
                topic_id = str(future.result().topic_id)
                if self._ids.setdefault(topic, topic_id) != topic_id:
                    return topic_recreated(topic)
            elif error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                since = self._unknown_since.setdefault(topic, now)
                if now - since >= _DELETED_AFTER_S:
                    return topic_deleted(topic)
        return None

    def _ends_failure(self, probe: Probe) -> BusError | None:
        for at, future in probe.ends.items():
            if _error_of(future) is None:
                end, position = future.result().offset, self._positions_then[at]
                if 0 <= end < position:
                    return offset_past_end(at, position, end)
        return None


def _error_of(future: Future[Any]) -> KafkaError | None:
    raised = future.exception()
    if raised is None:
        return None
    if isinstance(raised, KafkaException):
        error: KafkaError = raised.args[0]
        return error
    raise raised
