"""The bus on a Kafka cluster, through librdkafka.

librdkafka runs threads of its own: open a bus after a fork, never before. It logs to
`logging` under ``dataflows.bus.kafka.bus.librdkafka``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
)
from confluent_kafka import TopicPartition as KafkaPosition
from confluent_kafka._model import ConsumerGroupTopicPartitions
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.admin._metadata import ClusterMetadata
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewPartitions, NewTopic

from anabranch.dataflows.bus.claims import Claim, decode_claim, encode_claim
from anabranch.dataflows.bus.kafka.broker_watch import BrokerWatch, Probe
from anabranch.dataflows.bus.kafka.claims import (
    GROUP,
    ClaimsRefusedError,
    KafkaClaims,
    release,
)
from anabranch.dataflows.bus.kafka.commit_log import PASSING, CommitLog
from anabranch.dataflows.bus.kafka.publisher import KafkaPublisher, Producers
from anabranch.dataflows.bus.kafka.reader import KafkaReader, Range
from anabranch.dataflows.bus.kafka.settings import (
    LOG,
    NO_LEADER,
    RDKAFKA_LOG,
    ClientLog,
    KafkaSettings,
    error_text,
)
from anabranch.dataflows.bus.kafka_urls import check_hosts, without_secrets
from anabranch.dataflows.bus.protocol import (
    OnOutOfRange,
    TopicLimits,
    TopicPartition,
    UnreachableError,
)
from anabranch.dataflows.bus.topic_names import check_topic, check_topics, missing_topic
from anabranch.state.errors import BusError

__all__ = ["KafkaBus"]

_Client = TypeVar("_Client")
_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_COMMITTED, _ALL = IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED
NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"  # what librdkafka has of topics of brokers before Kafka 2.8
_CLAIMS_REFUSED = {
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError._UNSUPPORTED_FEATURE,
}
_NO_RESPONSE = {
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._TRANSPORT,
    KafkaError._WAIT_COORD,
}
_COORDINATOR_S = 60.0  # a cluster makes its topic of offsets when the first group asks for it
RECORD_OVERHEAD = 100  # bytes of a batch of one message beside its key and payload, at most 97


class KafkaBus:
    """Topics of the cluster that ``kafka://HOST:PORT[,HOST:PORT…]`` names.

    ``settings`` are librdkafka's, and those of `KafkaSettings`.

    Raises:
        BusError: the hosts or a setting are invalid, or no broker responds in time.
    """

    def __init__(self, hosts: str, settings: Mapping[str, str] | None = None) -> None:
        check_hosts(hosts)
        self.url = f"kafka://{hosts}"
        self._settings = KafkaSettings(hosts, settings or {})
        self._secrets = dict(settings or {})
        self._log = ClientLog()
        conf = {**self._settings.admin(), "error_cb": self._log.on_error}
        self._admin: AdminClient = self._client(lambda: AdminClient(conf, logger=RDKAFKA_LOG))
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
        new_topics = [
            NewTopic(
                topic,
                num_partitions=partitions[topic],
                replication_factor=self._settings.replication,
                config=self._settings.topic,
            )
            for topic in missing
        ]
        created = []
        timeout_s = self._settings.reach_s
        futures = self._admin.create_topics(new_topics, request_timeout=timeout_s)
        for topic, future in futures.items():
            try:
                future.result()
                created.append(topic)
            except KafkaException as error:
                code = error.args[0].code()
                if code < 0:  # librdkafka's own: no broker responded
                    raise self._unreachable(error) from error
                if code != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise BusError(f"can't create topic {topic}: {error_text(error)}") from error
        self._wait_until_visible({topic: partitions[topic] for topic in missing})
        return sorted(created)

    def add_partitions(self, topic: str, count: int) -> None:
        """Raise the partition count of a topic to ``count``, and wait until it can be used.

        Does nothing if the topic has that many.

        Raises:
            BusError: the topic does not exist, has more, or Kafka refuses.
        """
        present = self.partition_count(topic)
        if present == count:
            return
        if present > count:
            raise BusError(f"topic {topic} has {present} partitions, more than {count}")
        timeout_s = self._settings.reach_s
        wanted = [NewPartitions(topic, count)]
        answers = self._admin.create_partitions(wanted, request_timeout=timeout_s)
        try:
            answers[topic].result()
        except KafkaException as error:
            if error.args[0].code() < 0:  # librdkafka's own: no broker answered
                raise self._unreachable(error) from error
            if self.partition_count(topic) != count:  # another process was not faster
                raise BusError(
                    f"can't raise the partitions of topic {topic} from {present} to {count}: "
                    f"{error_text(error)}"
                ) from error
        self._wait_until_visible({topic: count}, growing=True)

    def delete_topics(self, names: Sequence[str]) -> None:
        """Delete topics with all their messages, and wait until they are gone.

        Raises:
            BusError: one does not exist, in which case none is deleted, or Kafka refuses.
        """
        for name in names:
            self.partition_count(name)
        answers = self._admin.delete_topics(list(names), request_timeout=self._settings.reach_s)
        for topic, future in answers.items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() < 0:  # librdkafka's own: no broker answered
                    raise self._unreachable(error) from error
                raise BusError(f"can't delete topic {topic}: {error_text(error)}") from error
        deadline = time.monotonic() + self._settings.reach_s
        while left := self.topics().keys() & set(names):
            if time.monotonic() > deadline:
                raise BusError(f"Kafka is still deleting {', '.join(sorted(left))}")
            time.sleep(0.05)

    def set_retention(self, topic: str, kept_ms: int | None) -> None:
        """Set ``retention.ms`` of a topic; None: keep messages forever.

        Raises:
            BusError: the topic does not exist, or Kafka refuses.
        """
        self.partition_count(topic)
        entry = ConfigEntry(
            "retention.ms",
            "-1" if kept_ms is None else str(kept_ms),
            incremental_operation=AlterConfigOpType.SET,
        )
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        timeout_s = self._settings.reach_s
        answers = self._admin.incremental_alter_configs([resource], request_timeout=timeout_s)
        try:
            answers[resource].result()
        except KafkaException as error:
            if error.args[0].code() < 0:  # librdkafka's own: no broker answered
                raise self._unreachable(error) from error
            raise BusError(
                f"can't set the retention of topic {topic}: {error_text(error)}"
            ) from error

    def topics(self) -> dict[str, int]:
        """Every topic (internal ones left out) and its partition count."""
        listed = self._metadata().topics.items()
        return {
            name: len(topic.partitions)
            for name, topic in sorted(listed)
            if topic.error is None and not name.startswith("__")
        }

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        """The id of each of these topics that exists; none from brokers that are too old.

        Raises:
            BusError: Kafka is unavailable.
        """
        if not topics:
            return {}
        wanted = TopicCollection(sorted(set(topics)))
        answers = self._admin.describe_topics(wanted, request_timeout=self._settings.reach_s)
        ids = {}
        for topic, future in answers.items():
            try:
                ids[topic] = str(future.result().topic_id)
            except KafkaException as error:
                code = error.args[0].code()
                if code < 0 and code != KafkaError._UNSUPPORTED_FEATURE:
                    raise self._unreachable(error) from error
                LOG.debug("id of topic %s not known: %s", topic, error_text(error))
        return {topic: id for topic, id in ids.items() if id != NO_ID}

    def start_offsets(self, topic: str) -> list[int]:
        """The first offset still kept, by partition.

        Raises:
            BusError: the topic does not exist, or Kafka is unavailable.
        """
        return self._offsets(topic, _EARLIEST)

    def end_offsets(self, topic: str) -> list[int]:
        """The end of what is committed (the last stable offset), by partition, as of now.

        Raises:
            BusError: the topic does not exist, or Kafka is unavailable.
        """
        return self._offsets(topic, _LATEST)

    def offsets_at(self, topic: str, time_ms: int) -> list[int]:
        """The first offset whose message was published at ``time_ms`` or later, by partition.

        The end of what is committed, of a partition that has none before it.

        Raises:
            BusError: the topic does not exist, or Kafka is unavailable.
        """
        ends = self.end_offsets(topic)
        at_time: OffsetSpec = OffsetSpec.for_timestamp(time_ms)
        places = [TopicPartition(topic, number) for number in range(len(ends))]
        found = self._ask(places, at_time, none_found=True)
        return [
            end if found[at] < 0 else min(found[at], end)
            for at, end in zip(places, ends, strict=True)
        ]

    def open_transactions(self, topic: str) -> dict[int, int]:
        """Where the first transaction that is still open begins, by partition that has one.

        Raises:
            BusError: the topic does not exist, or Kafka is unavailable.
        """
        written = self._offsets(
            topic, _LATEST, _ALL
        )  # first: it would only grow until the next query
        committed = self._offsets(topic, _LATEST)
        pairs = enumerate(zip(committed, written, strict=True))
        return {number: stable for number, (stable, high) in pairs if stable < high}

    def limits(self, topic: str) -> TopicLimits:
        """What the topic takes and keeps, as of now.

        A message may have the less of the topic's ``max.message.bytes`` and our
        ``message.max.bytes``. Of a topic that stamps messages itself (LogAppendTime), or deletes
        none by age, the retention is None: it deletes nothing for being of the past.

        Raises:
            BusError: the topic does not exist, or Kafka is unavailable.
        """
        self.partition_count(topic)
        most = self._settings.max_message_bytes
        config = self._topic_config(topic)
        if "max.message.bytes" in config:
            most = min(most, int(config["max.message.bytes"]) - RECORD_OVERHEAD)
        return TopicLimits(max(most, 1), _retention_ms(config))

    def publisher(self, stop: threading.Event | None = None) -> KafkaPublisher:
        """A new publisher; close it when done. ``stop`` ends waits for brokers."""
        log = ClientLog()

        def new_producer(batch_bytes: int) -> Producer:
            conf = {**self._settings.producer(batch_bytes), "error_cb": log.on_error}
            return self._client(lambda: Producer(conf, logger=RDKAFKA_LOG))

        largest = self._settings.batch_bytes
        producers = Producers(new_producer, largest, RECORD_OVERHEAD)
        return KafkaPublisher(producers, self, log, self.url, stop)

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        group: str | None = None,
        on_out_of_range: OnOutOfRange = "stop",
        headers: bool = False,
    ) -> KafkaReader:
        """A reader of these partitions from these offsets; ``group`` is what `commit` reports to.

        Raises:
            BusError: a topic or partition does not exist, an offset is past the end, or it is
                no longer kept and ``on_out_of_range`` is ``stop``.
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
                    f"topic {at.topic} partition {at.partition}: {position} is not an offset"
                )
        log = ClientLog()
        commits = None if group is None else CommitLog(group)
        conf = {**self._settings.consumer(group or "anabranch"), "error_cb": log.on_error}
        if commits is not None:
            conf["on_commit"] = commits.on_commit
        consumer: Consumer = self._client(lambda: Consumer(conf, logger=RDKAFKA_LOG))
        watch = BrokerWatch(self.probe, list(positions), log, self.url)
        return KafkaReader(
            consumer, positions, self.bounds, watch, log, commits, on_out_of_range, headers
        )

    def claim_outputs(
        self, topics: Sequence[str], pipeline: str, run: str, say: Callable[[str], None]
    ) -> KafkaClaims:
        """Claim topics, which exist, for a run of a pipeline, until the block ends.

        Raises:
            BusError: another pipeline, or another run, writes one of them.
        """
        return KafkaClaims(
            _ClaimStore(self._admin, self._settings.reach_s), topics, pipeline, run, say
        )

    def release_outputs(self, topics: Sequence[str]) -> None:
        """Let other pipelines claim these topics.

        Raises:
            BusError: a run is writing one of them; then none is released.
        """
        for topic in topics:
            self.partition_count(topic)
        release(_ClaimStore(self._admin, self._settings.reach_s), topics)

    def close(self) -> None:
        """Nothing to close: publishers and readers have their own clients."""

    def partition_count(self, topic: str) -> int:
        """How many partitions a topic has.

        Raises:
            BusError: the topic does not exist, or Kafka is unavailable.
        """
        check_topic(topic)
        # Lists all topics: asking for one by name may create it.
        count = self.topics().get(topic)
        if count is None:
            raise missing_topic(topic, self.url)
        return count

    def bounds(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, Range]:
        """The first offset kept and the end of what is committed, of each partition, as of now.

        Raises:
            UnreachableError: Kafka does not respond.
            BusError: it refuses to.
        """
        first, last = self._ask(partitions, _EARLIEST), self._ask(partitions, _LATEST)
        return {at: (first[at], last[at]) for at in partitions}

    def probe(self, partitions: Collection[TopicPartition]) -> Probe:
        """Ask for topics and for the ends of partitions, without waiting for the responses."""
        topics = TopicCollection(sorted({at.topic for at in partitions}))
        # Well above 5 s, after which an outage is logged; a late response still counts.
        timeout_s = max(self._settings.reach_s, 10.0)
        described = self._admin.describe_topics(topics, request_timeout=timeout_s)
        return Probe(described, self._list(partitions, _LATEST, timeout_s))

    def _list(
        self,
        partitions: Collection[TopicPartition],
        which: OffsetSpec,
        timeout_s: float,
        isolation: IsolationLevel = _COMMITTED,
    ) -> dict[TopicPartition, Future[Any]]:
        wanted = {KafkaPosition(*at): which for at in partitions}
        futures = self._admin.list_offsets(
            wanted, isolation_level=isolation, request_timeout=timeout_s
        )
        return {TopicPartition(at.topic, at.partition): future for at, future in futures.items()}

    def _metadata(self) -> ClusterMetadata:
        try:
            return self._admin.list_topics(timeout=self._settings.reach_s)
        except KafkaException as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: BaseException) -> UnreachableError:
        self._admin.poll(0)  # lets error_cb report what was wrong
        why = self._log.last_error or error_text(error)
        return UnreachableError(
            f"can't reach Kafka at {self._settings.hosts} within {self._settings.reach_s:g} s: "
            f"{why}"
        )

    def _topic_config(self, topic: str) -> dict[str, str]:
        """The settings of a topic, defaults included; none if this user may not see them."""
        asked = ConfigResource(ResourceType.TOPIC, topic)
        answers = self._admin.describe_configs([asked], request_timeout=self._settings.reach_s)
        try:
            found = answers[asked].result()
        except KafkaException as error:
            if error.args[0].code() < 0:  # librdkafka's own: no broker answered
                raise self._unreachable(error) from error
            LOG.debug("settings of topic %s not known: %s", topic, error_text(error))
            return {}
        return {name: entry.value for name, entry in found.items() if entry.value is not None}

    def _offsets(
        self, topic: str, which: OffsetSpec, isolation: IsolationLevel = _COMMITTED
    ) -> list[int]:
        partitions = [
            TopicPartition(topic, number) for number in range(self.partition_count(topic))
        ]
        offsets = self._ask(partitions, which, isolation)
        return [offsets[at] for at in partitions]

    def _ask(
        self,
        partitions: Collection[TopicPartition],
        which: OffsetSpec,
        isolation: IsolationLevel = _COMMITTED,
        none_found: bool = False,
    ) -> dict[TopicPartition, int]:
        """Offsets of partitions; with ``none_found`` -1 stands for a time after all messages."""
        deadline = time.monotonic() + self._settings.reach_s
        while True:
            left_s = max(deadline - time.monotonic(), 0.1)
            try:
                futures = self._list(partitions, which, left_s, isolation)
                offsets = {at: int(future.result().offset) for at, future in futures.items()}
                if none_found or min(offsets.values(), default=0) >= 0:
                    return offsets
                # how librdkafka reports that the request to one of several leaders failed
                raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
            except KafkaException as error:
                code = error.args[0].code()
                # A new topic, or one whose broker just came back, has no leader for a moment.
                if code in NO_LEADER and time.monotonic() < deadline:
                    time.sleep(0.05)
                elif code < 0 or code in NO_LEADER:  # below 0 are librdkafka's own
                    raise self._unreachable(error) from error
                else:
                    topics = ", ".join(sorted({at.topic for at in partitions}))
                    raise BusError(f"can't get offsets of {topics}: {error_text(error)}") from error

    def _check_counts(self, wanted: Mapping[str, int], existing: Mapping[str, int]) -> None:
        for topic, count in wanted.items():
            if existing.get(topic, count) != count:
                raise BusError(
                    f"topic {topic} exists with {existing[topic]} partitions, not {count}; "
                    f"ask for {existing[topic]}, or use another name"
                )

    def _wait_until_visible(self, wanted: Mapping[str, int], growing: bool = False) -> None:
        deadline = time.monotonic() + self._settings.reach_s
        while True:
            topics = self._metadata().topics
            counts = {t: len(topics[t].partitions) for t in wanted if t in topics}
            if not growing:
                self._check_counts(wanted, counts)
            if counts == wanted and all(
                p.leader >= 0 for topic in wanted for p in topics[topic].partitions.values()
            ):
                return
            if time.monotonic() > deadline:
                raise BusError(f"new topics {', '.join(wanted)} did not get leaders in time")
            time.sleep(0.05)

    def _client(self, create: Callable[[], _Client]) -> _Client:
        try:
            return create()
        except (KafkaException, ValueError, TypeError) as error:
            # The cause is left out: its text may quote a password.
            text = without_secrets(error_text(error), self._secrets)
            raise BusError(f"Kafka settings: {text}") from None


class _ClaimStore:
    """Claims as the metadata of what the group `GROUP` has committed."""

    def __init__(self, admin: AdminClient, timeout_s: float) -> None:
        self._admin, self._timeout_s = admin, timeout_s

    def read(self, topics: Sequence[str], timeout_s: float | None = None) -> dict[str, Claim]:
        wanted = ConsumerGroupTopicPartitions(GROUP, [KafkaPosition(topic, 0) for topic in topics])
        found = self._asked(self._admin.list_consumer_group_offsets, wanted, timeout_s)
        claims = {each.topic: decode_claim(each.metadata) for each in found}
        return {topic: claim for topic, claim in claims.items() if claim is not None}

    def write(self, claims: Mapping[str, Claim | None], timeout_s: float | None = None) -> None:
        if not claims:
            return
        texts = {
            t: "" if claim is None else encode_claim(claim).decode() for t, claim in claims.items()
        }
        offsets = [KafkaPosition(topic, 0, 0, text) for topic, text in texts.items()]
        wanted = ConsumerGroupTopicPartitions(GROUP, offsets)
        self._asked(self._admin.alter_consumer_group_offsets, wanted, timeout_s)

    def _asked(
        self,
        call: Callable[..., dict[str, Future[Any]]],
        wanted: ConsumerGroupTopicPartitions,
        timeout_s: float | None,
    ) -> list[KafkaPosition]:
        deadline = time.monotonic() + (timeout_s or max(self._timeout_s, _COORDINATOR_S))
        while True:
            left_s = max(min(deadline - time.monotonic(), self._timeout_s), 0.1)
            try:
                answers = call([wanted], request_timeout=left_s)
                found: list[KafkaPosition] = answers[GROUP].result().topic_partitions
                error = next((each.error for each in found if each.error is not None), None)
                if error is not None:
                    raise KafkaException(error)
                return found
            except KafkaException as failure:
                code = failure.args[0].code()
                passing = code in PASSING or code in _NO_RESPONSE
                if passing and time.monotonic() < deadline:
                    time.sleep(0.1)
                elif code in _CLAIMS_REFUSED:
                    raise ClaimsRefusedError(error_text(failure)) from None
                else:
                    raise BusError(f"claims of output topics: {error_text(failure)}") from failure


def _retention_ms(config: Mapping[str, str]) -> int | None:
    """How long after its publisher's time a topic with this configuration keeps a message."""
    retention_ms = int(config.get("retention.ms", -1))
    by_age = "delete" in config.get("cleanup.policy", "delete")
    stamps_itself = config.get("message.timestamp.type") == "LogAppendTime"
    return retention_ms if retention_ms >= 0 and by_age and not stamps_itself else None
