"""The bus on a Kafka cluster, through librdkafka.

librdkafka runs threads of its own: open a bus after a fork, never before. What it logs goes to
`logging` under ``dataflows.bus.kafka.librdkafka``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka import TopicPartition as KafkaPosition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.admin._metadata import ClusterMetadata
from confluent_kafka.cimpl import NewTopic

from dataflows.bus import TopicPartition
from dataflows.bus.kafka_client import RDKAFKA_LOG, ClientLog, KafkaSettings, kafka_sentence
from dataflows.bus.kafka_publisher import KafkaPublisher
from dataflows.bus.kafka_reader import KafkaReader
from dataflows.bus.topic_name import check_topic, check_topics, missing_topic
from state.errors import BusError

__all__ = ["KafkaBus"]

_Client = TypeVar("_Client")
_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_NO_LEADER = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)
_HOSTS = re.compile(r"([^\s,:/]+|\[[0-9a-fA-F:.]+\]):\d+(,([^\s,:/]+|\[[0-9a-fA-F:.]+\]):\d+)*")


class KafkaBus:
    """Topics of the cluster that ``kafka://HOST:PORT[,HOST:PORT…]`` names.

    ``settings`` are librdkafka's, and those of `KafkaSettings`.

    Raises:
        BusError: the hosts or a setting can't be right, or no broker answers in time.
    """

    def __init__(self, hosts: str, settings: Mapping[str, str] | None = None) -> None:
        if _HOSTS.fullmatch(hosts) is None:
            raise BusError(f"kafka://{hosts}: write kafka://HOST:PORT[,HOST:PORT…]")
        self.url = f"kafka://{hosts}"
        self._settings = KafkaSettings(hosts, settings or {})
        self._log = ClientLog(hosts)
        conf = {**self._settings.admin(), "error_cb": self._log.heard_error}
        self._admin: AdminClient = _made(lambda: AdminClient(conf, logger=RDKAFKA_LOG))
        self._metadata()

    def create_topics(self, partitions: Mapping[str, int]) -> list[str]:
        """Create the topics that do not exist yet, wait until they can be used, return their names.

        Raises:
            BusError: one exists with another partition count, or Kafka refuses.
        """
        check_topics(dict(partitions))
        existing = self.topics()
        self._check_counts(partitions, existing)
        missing = [topic for topic in partitions if topic not in existing]
        if not missing:
            return []
        orders = [
            NewTopic(
                topic,
                num_partitions=partitions[topic],
                replication_factor=self._settings.replication,
                config=self._settings.topic,
            )
            for topic in missing
        ]
        created = []
        for topic, future in self._admin.create_topics(orders).items():
            try:
                future.result(self._settings.reach_s)
                created.append(topic)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise BusError(
                        f"can't create topic {topic}: {kafka_sentence(error)}"
                    ) from error
        self._wait_until_visible({topic: partitions[topic] for topic in missing})
        return sorted(created)

    def topics(self) -> dict[str, int]:
        """Every topic (internal ones left out) and its partition count."""
        listed = self._metadata().topics.items()
        return {
            name: len(topic.partitions)
            for name, topic in sorted(listed)
            if topic.error is None and not name.startswith("__")
        }

    def start_offsets(self, topic: str) -> list[int]:
        """The first offset still kept, by partition.

        Raises:
            BusError: the topic does not exist, or Kafka can't be reached.
        """
        return self._offsets(topic, _EARLIEST)

    def end_offsets(self, topic: str) -> list[int]:
        """The offset behind the last message, by partition, asked of Kafka now.

        Raises:
            BusError: the topic does not exist, or Kafka can't be reached.
        """
        return self._offsets(topic, _LATEST)

    def publisher(self) -> KafkaPublisher:
        """A new publisher; close it when done."""
        log = ClientLog(self._settings.hosts)
        conf = {**self._settings.producer(), "error_cb": log.heard_error}
        producer: Producer = _made(lambda: Producer(conf, logger=RDKAFKA_LOG))
        return KafkaPublisher(producer, self.partition_count, log, self.url)

    def reader(
        self, positions: Mapping[TopicPartition, int], group: str | None = None
    ) -> KafkaReader:
        """A reader of these partitions from these offsets; ``group`` is what `commit` reports to.

        Raises:
            BusError: a topic or partition does not exist.
        """
        counts = {topic: self.partition_count(topic) for topic in {at.topic for at in positions}}
        for at, position in positions.items():
            if not 0 <= at.partition < counts[at.topic]:
                raise BusError(
                    f"topic {at.topic} has partitions 0 to {counts[at.topic] - 1}, "
                    f"not {at.partition}"
                )
            if position < 0:
                raise BusError(
                    f"topic {at.topic} partition {at.partition}: no offset can be {position}"
                )
        log = ClientLog(self._settings.hosts)
        conf = {**self._settings.consumer(group or "anabranch"), "error_cb": log.heard_error}
        consumer: Consumer = _made(lambda: Consumer(conf, logger=RDKAFKA_LOG))
        return KafkaReader(consumer, positions, group, log, self)

    def close(self) -> None:
        """Nothing needs letting go; publishers and readers close themselves."""

    def partition_count(self, topic: str) -> int:
        """How many partitions a topic has.

        Raises:
            BusError: the topic does not exist, or Kafka can't be reached.
        """
        check_topic(topic)
        # All topics are listed: asking for one by name may create it.
        count = self.topics().get(topic)
        if count is None:
            raise missing_topic(topic, self.url)
        return count

    def _metadata(self) -> ClusterMetadata:
        try:
            return self._admin.list_topics(timeout=self._settings.reach_s)
        except KafkaException as error:
            self._admin.poll(0)  # lets error_cb say what was wrong
            why = self._log.last_error or kafka_sentence(error)
            raise BusError(
                f"can't reach Kafka at {self._settings.hosts} within "
                f"{self._settings.reach_s:g} s: {why}"
            ) from error

    def _offsets(self, topic: str, which: OffsetSpec) -> list[int]:
        count = self.partition_count(topic)
        asked = {KafkaPosition(topic, partition): which for partition in range(count)}
        deadline = time.monotonic() + self._settings.reach_s
        while True:
            answers = self._admin.list_offsets(asked, request_timeout=self._settings.reach_s)
            try:
                found = {at.partition: future.result().offset for at, future in answers.items()}
                return [found[partition] for partition in range(count)]
            except KafkaException as error:
                # A topic just made, or one whose broker just came back, has no leader for a moment.
                if error.args[0].code() not in _NO_LEADER or time.monotonic() > deadline:
                    raise BusError(
                        f"can't ask for offsets of {topic}: {kafka_sentence(error)}"
                    ) from error
                time.sleep(0.05)

    def _check_counts(self, wanted: Mapping[str, int], existing: Mapping[str, int]) -> None:
        for topic, count in wanted.items():
            if existing.get(topic, count) != count:
                raise BusError(
                    f"topic {topic} exists with {existing[topic]} partitions, not {count}; "
                    f"ask for {existing[topic]}, or use another name"
                )

    def _wait_until_visible(self, wanted: Mapping[str, int]) -> None:
        deadline = time.monotonic() + self._settings.reach_s
        while True:
            topics = self._metadata().topics
            self._check_counts(
                wanted, {t: len(topics[t].partitions) for t in wanted if t in topics}
            )
            if all(
                topic in topics and all(p.leader >= 0 for p in topics[topic].partitions.values())
                for topic in wanted
            ):
                return
            if time.monotonic() > deadline:
                raise BusError(f"new topics {', '.join(wanted)} did not get leaders in time")
            time.sleep(0.05)


def _made(make: Callable[[], _Client]) -> _Client:
    try:
        return make()
    except (KafkaException, ValueError, TypeError) as error:
        raise BusError(f"Kafka settings: {kafka_sentence(error)}") from error
