"""What all Kafka clients of this program share: settings, logging, texts of errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from anabranch.state.errors import BusError

__all__ = ["LOG", "NO_LEADER", "RDKAFKA_LOG", "ClientLog", "KafkaSettings", "error_text"]

LOG = logging.getLogger("anabranch.bus.kafka")

# Exactly-once depends on these. An attempt to set one is refused with the reason.
_RESERVED = {
    "bootstrap.servers": "the URL names the brokers",
    "metadata.broker.list": "the URL names the brokers",
    "group.id": "a reader is given its group",
    "enable.auto.commit": "positions are kept with the state, not by Kafka",
    "enable.auto.offset.store": "positions are kept with the state, not by Kafka",
    "auto.offset.reset": "an offset that is gone must be an error, never a silent skip",
    "enable.partition.eof": "a reader must be told where a partition ends",
    "isolation.level": "only committed messages are read: an aborted one must not count",
    "enable.idempotence": "a retry must not duplicate a message",
    "acks": "a message counts as stored when every in-sync replica has it",
    "request.required.acks": "a message counts as stored when every in-sync replica has it",
    "transactional.id": "the sink suppresses duplicates by itself",
    "delivery.report.only.error": "every delivery is checked",
}
_CONSUMER = {
    # The broker answers as soon as it has a message; this only bounds how long a changed
    # assignment waits for the answer in flight.
    "fetch.wait.max.ms": "50",
    "fetch.queue.backoff.ms": "5",  # default 1 s: a stall each time the local queue was full
    "fetch.error.backoff.ms": "100",
    "queued.min.messages": "20000",
    "topic.metadata.propagation.max.ms": "5000",  # how long a deleted topic is assumed to be new
}
_PRODUCER = {
    "linger.ms": "0",  # batches form while a request is in flight
    "queue.buffering.max.messages": "200000",
    "message.max.bytes": "1048588",  # a broker's default limit; librdkafka's is below 1 MB
    "message.timeout.ms": "0",  # never give up while brokers are unavailable
}
_COMMON = {
    "reconnect.backoff.ms": "50",
    "reconnect.backoff.max.ms": "1000",
    "socket.keepalive.enable": "true",
    "topic.metadata.refresh.fast.interval.ms": "50",
}


class KafkaSettings:
    """A user's librdkafka settings on top of our defaults.

    Three kinds are not librdkafka's: ``reach.timeout.ms`` (how long the brokers may take to answer,
    default 10 000), ``replication.factor`` of new topics (default the brokers' own), and
    ``topic.NAME`` for the configuration of new topics, as in ``topic.retention.ms``.

    Raises:
        BusError: a setting is reserved for correctness, or not a number where it must be.
    """

    def __init__(self, hosts: str, settings: Mapping[str, str]) -> None:
        self.hosts = hosts
        self._given = dict(settings)
        for name in self._given.keys() & _RESERVED.keys():
            raise BusError(
                f"Kafka setting {name} can't be changed: {_RESERVED[name]}; leave it out"
            )
        self.reach_s = self._number("reach.timeout.ms", 10_000) / 1000
        self.replication = self._number("replication.factor", -1)
        topic = [name for name in self._given if name.startswith("topic.") and name not in _COMMON]
        self.topic = {
            name.removeprefix("topic."): self._given.pop(name)
            for name in topic
            if not name.startswith(("topic.metadata.", "topic.blacklist"))
        }

    def admin(self) -> dict[str, Any]:
        """Settings of an admin client."""
        return {**_COMMON, **self._given, "bootstrap.servers": self.hosts}

    def consumer(self, group: str) -> dict[str, Any]:
        """Settings of a consumer that reports to ``group``."""
        return {
            **_COMMON,
            **_CONSUMER,
            **self._given,
            "bootstrap.servers": self.hosts,
            "group.id": group,
            "enable.auto.commit": "false",
            "enable.auto.offset.store": "false",
            "auto.offset.reset": "error",
            "enable.partition.eof": "true",
            "isolation.level": "read_committed",
        }

    def producer(self) -> dict[str, Any]:
        """Settings of a producer."""
        defaults = dict(_PRODUCER)
        if "delivery.timeout.ms" in self._given:  # another name for it
            del defaults["message.timeout.ms"]
        return {
            **_COMMON,
            **defaults,
            **self._given,
            "bootstrap.servers": self.hosts,
            "enable.idempotence": "true",
            "acks": "all",
            # Only failures call back into Python; flush sees that nothing is in flight any more.
            "delivery.report.only.error": True,
        }

    def _number(self, name: str, default: int) -> int:
        value = self._given.pop(name, str(default))
        try:
            return int(value)
        except ValueError:
            raise BusError(f"Kafka setting {name} is a whole number, not {value!r}") from None


class _RepeatFilter(logging.Filter):
    """Drops what librdkafka repeats during an outage, and its warnings about shared settings.

    The settings of a URL go to consumers and producers alike, so a setting that one of them does
    not use deserves no warning.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "CONFWARN" in text and "ignored by this" in text:
            return False
        if text.startswith("GETPID") and text.endswith("retrying"):  # a broker is starting
            return False
        kind = text.split(" ", 1)[0]
        now = time.monotonic()
        if now - self._last.get(kind, -1e9) < 30:
            return False
        self._last[kind] = now
        return True


RDKAFKA_LOG = LOG.getChild("librdkafka")
RDKAFKA_LOG.addFilter(_RepeatFilter())


NO_LEADER = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._NOENT,  # "no leaders found"
)
"""Errors that pass soon: of a new topic, or of one whose broker just came back."""


class ClientLog:
    """The last errors that a librdkafka client reported; its owner decides if they matter."""

    def __init__(self) -> None:
        self.last_error = ""
        self.fatal = ""

    def on_error(self, error: KafkaError) -> None:
        """librdkafka's ``error_cb``; unless the error is fatal, librdkafka keeps retrying."""
        self.last_error = error.str()
        if error.fatal():
            self.fatal = error.str()


def error_text(error: BaseException) -> str:
    """The text of an error of Kafka or librdkafka, without the wrapping."""
    inner = error.args[0] if isinstance(error, KafkaException) and error.args else error
    return inner.str() if isinstance(inner, KafkaError) else str(inner)
