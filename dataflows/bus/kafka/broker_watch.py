"""Asks every 2 s, without waiting, whether the brokers that a reader reads from still answer.

A consumer that gets nothing can't tell a quiet topic from a broker that is away: a connection to a
stopped process, or into a network that drops packets, stays up for minutes. So the leaders of the
partitions are asked for their ends, which only a working one can tell, and any broker for the
topics, whose ids tell a topic that was made anew from the one that is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException

from anabranch.dataflows.bus.kafka.settings import NO_LEADER, ClientLog
from anabranch.dataflows.bus.offset_errors import behind_end, made_anew, topic_deleted
from anabranch.dataflows.bus.outage_log import Waiting
from anabranch.dataflows.bus.protocol import TopicPartition
from anabranch.state.errors import BusError

_EVERY_S = 2.0
_LOOK_S = 0.05  # between looks at answers that are not there yet
_SOON_S = 0.2
_DELETED_S = 3.0  # a broker that is starting may not know its topics yet


class Probe(NamedTuple):
    """What was asked: futures of topic descriptions and of the ends of partitions."""

    topics: Mapping[str, Future[Any]]
    ends: Mapping[TopicPartition, Future[Any]]

    def done(self) -> bool:
        """Whether all answers, or their errors, are there."""
        return all(f.done() for f in self.topics.values()) and all(
            f.done() for f in self.ends.values()
        )


class BrokerWatch:
    """Watches over the brokers of one reader, whenever that reader is polled."""

    def __init__(
        self,
        probe: Callable[[Collection[TopicPartition]], Probe],
        places: Collection[TopicPartition],
        log: ClientLog,
        url: str,
    ) -> None:
        self._probe = probe
        self._places = places
        self._log = log
        self._waiting = Waiting(url)
        self._asked: Probe | None = None
        self._asked_at_positions: Mapping[TopicPartition, int] = {}
        self._next_look = 0.0
        self._ids: dict[str, str] = {}
        self._unknown_since: dict[str, float] = {}

    def look(self, positions: Callable[[], Mapping[TopicPartition, int]]) -> BusError | None:
        """Ask, or see what was answered; the error when a topic is not the one it was."""
        now = time.monotonic()
        if now < self._next_look:
            return None
        if self._asked is None:
            self._asked_at_positions = positions()  # an end told later can't be before these
            self._asked = self._probe(self._places)
            self._waiting.still(self._log.last_error)
            self._next_look = now + _LOOK_S
            return None
        if not self._asked.done():
            self._waiting.still(self._log.last_error)
            self._next_look = now + _LOOK_S
            return None
        answered, self._asked = self._asked, None
        why = self._silence(answered)
        if why is None:
            self._waiting.over()
            self._log.last_error = ""
        else:
            self._waiting.still(self._log.last_error or why)
        self._next_look = now + (_EVERY_S if why is None else _SOON_S)
        return self._topics_failure(answered, now) or self._ends_failure(answered)

    def hurry(self) -> None:
        """Something is wrong: ask soon."""
        if self._asked is None:
            self._next_look = min(self._next_look, time.monotonic() + _SOON_S)

    def trouble(self) -> str | None:
        """What is waited for when an answer is more than 5 s late; else None."""
        return self._waiting.trouble()

    def _silence(self, answered: Probe) -> str | None:
        """Why some partition's leader can't be spoken to; None when all answered."""
        for end in answered.ends.values():
            if _error_of(end) is None and end.result().offset < 0:
                return "an end is not known"  # librdkafka's way to say that the request failed
        for future in (*answered.ends.values(), *answered.topics.values()):
            error = _error_of(future)
            # Below 0 are librdkafka's own. Any other answer, even a refusal, is one.
            if error is not None and (error.code() < 0 or error.code() in NO_LEADER):
                return str(error.str())
        return None

    def _topics_failure(self, answered: Probe, now: float) -> BusError | None:
        for topic, future in answered.topics.items():
            error = _error_of(future)
            if error is None:
                self._unknown_since.pop(topic, None)
                found = str(future.result().topic_id)
                if self._ids.setdefault(topic, found) != found:
                    return made_anew(topic)
            elif error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                since = self._unknown_since.setdefault(topic, now)
                if now - since >= _DELETED_S:
                    return topic_deleted(topic)
        return None

    def _ends_failure(self, answered: Probe) -> BusError | None:
        for at, future in answered.ends.items():
            if _error_of(future) is None:
                end, position = future.result().offset, self._asked_at_positions[at]
                if 0 <= end < position:
                    return behind_end(at, position, end)
        return None


def _error_of(future: Future[Any]) -> KafkaError | None:
    raised = future.exception()
    if raised is None:
        return None
    if isinstance(raised, KafkaException):
        said: KafkaError = raised.args[0]
        return said
    raise raised
