"""The sink operator: publishes each message once, and checks that it arrived.

An item is ``(partition number, OutputRecords)``; one sink partition writes one partition number of
every output topic, so that each of those has one writer and keeps its order.

With recovery on, a sink partition remembers where its outputs ended when an epoch did. After a
crash the sources go back to the last confirmed epoch and the flow makes again what came after it.
So the sink reads its outputs back from those ends, and suppresses what is there already::

    outputs  ──●──●──●──┃──●──●──●            ┃ ends of the last confirmed epoch
    replay              ┃  ○  ○  ○  ●  ●      ○ suppressed

Until the flow has passed all that was read back, the old ends stay in the state: after another
crash in between it must be read back again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from anabranch.dataflows.batch.output_records import OutputRecords, Provenance
from anabranch.dataflows.bus import Bus, BusError, Publisher, TopicPartition, UnreachableError
from anabranch.dataflows.codec import Codec
from anabranch.dataflows.error_guard import ErrorGuard
from anabranch.dataflows.recovery.tokens import SinkState, decode_sink, encode
from anabranch.dataflows.sink.delivery_retry import DeliveryRetry
from anabranch.dataflows.sink.output_topics import OutputTopics
from anabranch.dataflows.sink.published import Published
from anabranch.dataflows.sink.read_back import ReadBack
from anabranch.dataflows.telemetry.latency import LatencyMetrics

Ends = dict[str, int]
"""Output topic → the offset up to which one partition of it is confirmed."""

TopicIds = dict[str, str]
Confirmed = bytes | Ends | None
"""What a partition keeps: an encoded `SinkState`; the ends alone if the topics have no ids."""

LOG = logging.getLogger("anabranch.sink")
OnWritten = Callable[[OutputRecords, float], None]
_FLUSH_S = 1.0
_LAST_FLUSH_S = 10.0
_STALE_LIST_S = 5.0


@dataclass(slots=True)
class SinkRecovery:
    """What a sink needs to publish each message once, whatever happens.

    Attributes:
        since: the ends of the outputs when the state was made; a topic that is not there did not
            exist. A partition without state may have written everything that follows.
        provenance: which rows messages are made of.
        codec_of: the codec of each output topic.
        progress, accept_loss: see `ReadBack`.
        not_before: offsets of outputs before which nothing is of the present inputs; without one
            all may be.
    """

    since: Mapping[TopicPartition, int]
    provenance: Provenance
    codec_of: Callable[[str], Codec]
    progress: Callable[[str], None] = LOG.info
    accept_loss: bool = False
    not_before: Mapping[TopicPartition, int] = field(default_factory=dict)


class BusSink(FixedPartitionedSink[OutputRecords, Confirmed]):
    """Publishes to the partition number that each item names.

    Args:
        bus: where the output topics are.
        partitions: how many partitions each has.
        on_written: called with each item after it was handed to the bus, and the wall clock; of a
            replayed item only with what was not published before.
        recovery: makes a restart continue where the last run ended; None: nothing is kept.
        retry: waits for a bus that is unavailable.
        guard: watches for errors that the user should see alone.
        latency: measures how long items take to be handed over.
        topics: the output topics, which are watched; None: they are not.
    """

    def __init__(
        self,
        bus: Bus,
        partitions: int,
        on_written: OnWritten | None = None,
        *,
        recovery: SinkRecovery | None = None,
        retry: DeliveryRetry | None = None,
        guard: ErrorGuard | None = None,
        latency: LatencyMetrics | None = None,
        topics: OutputTopics | None = None,
    ) -> None:
        self._partitions = partitions
        self._recovery = recovery
        self._read_back: ReadBack | None = None
        retry = retry or DeliveryRetry()
        outputs: tuple[str, ...] = ()
        if recovery is not None:
            outputs = tuple(recovery.provenance.discriminators)
            self._read_back = ReadBack(
                bus, recovery.provenance, recovery.codec_of, retry, recovery.progress,
                recovery.accept_loss,
            )  # fmt: skip
        self._writer = _Writer(bus, outputs, retry, guard, topics)
        self._writer.on_written, self._writer.latency = on_written, latency

    def list_parts(self) -> list[str]:
        return [part_name(number) for number in range(self._partitions)]

    def part_fn(self, item_key: str) -> int:
        return int(item_key)

    def build_part(
        self, step_id: str, for_part: str, resume_state: Confirmed
    ) -> StatefulSinkPartition[OutputRecords, Confirmed]:
        part: _SinkPartition = self._writer.guarded(self._build, int(for_part), resume_state)
        return part

    def _build(self, number: int, resume: Confirmed) -> _SinkPartition:
        start: Ends = {}
        former: tuple[Ends, TopicIds] = {}, {}
        published = None
        if self._read_back is not None and self._recovery is not None:
            stored = decode_sink(resume)
            confirmed, ids = stored.ends, stored.topic_ids
            for topic in self._recovery.provenance.discriminators:
                at, now = TopicPartition(topic, number), self._writer.topic_ids.get(topic, "")
                end = confirmed.get(topic, self._recovery.since.get(at, 0))
                if topic in confirmed and now and ids.get(topic, now) != now:
                    end = 0  # of a topic that is gone
                start[topic] = max(end, self._recovery.not_before.get(at, 0))
            published = self._read_back.published(number, start)
            former = (
                {topic: end for topic, end in confirmed.items() if topic not in start},
                {topic: each for topic, each in ids.items() if topic not in start},
            )
        part = _SinkPartition(number, self._writer, published, start, former)
        self._writer.open_parts += 1
        return part


@cache
def part_name(number: int) -> str:
    """Sink partitions are ordered by name, so numbers are padded."""
    return f"{number:06d}"


class _Writer:
    """What the partitions of one worker share: the publisher, and where their outputs end."""

    def __init__(
        self,
        bus: Bus,
        outputs: tuple[str, ...],
        retry: DeliveryRetry,
        guard: ErrorGuard | None,
        topics: OutputTopics | None,
    ) -> None:
        self._bus = bus
        self._topics = topics
        self.topic_ids: TopicIds = {} if topics is None else topics.ids
        self._outputs = outputs
        self._retry = retry
        self.guard = guard
        self.on_written: OnWritten | None = None
        self.latency: LatencyMetrics | None = None
        self._publisher: Publisher | None = None
        self._ends: dict[str, list[int]] = {}
        self.open_parts = 0
        self.unconfirmed = True
        self.broken = False

    def guarded(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function, watched by the guard if there is one."""
        return function(*args) if self.guard is None else self.guard.call(function, *args)

    def publish(self, item: OutputRecords) -> None:
        self.unconfirmed = True
        publisher = self._publisher
        if publisher is None:
            publisher = self._publisher = self._open()
        try:
            for topic, messages in item.messages.items():
                publisher.append(
                    topic,
                    messages,
                    partitions=item.partition,
                    keys=item.keys.get(topic),
                    headers=item.headers.get(topic),
                )
        except BaseException as error:
            self.broken = True
            if isinstance(error, UnreachableError):  # the flow is stopping: no retry
                raise BusError(str(error)) from error
            if isinstance(error, BusError) and self._topics is not None:
                self._explain(self._topics, error)
            raise

    def _explain(self, topics: OutputTopics, error: BusError) -> None:
        """Raise a clearer error in place of ``error``, if an output topic was deleted.

        A broker may still list for a moment what another one knows to be gone.
        """
        is_missing = "does not exist" in str(error)
        give_up_at = time.monotonic() + (_STALE_LIST_S if is_missing else 0.0)
        try:
            self._retry.call(topics.check)
            while time.monotonic() < give_up_at:
                time.sleep(0.1)
                self._retry.call(topics.check)
        except BusError as clearer:
            if self.guard is not None:
                self.guard.replace(clearer)
            raise

    def _open(self) -> Publisher:
        stop = self._retry.stop
        return self._bus.publisher() if stop is None else self._bus.publisher(stop)

    def confirm(self) -> dict[str, list[int]]:
        """Wait until everything is stored; returns the ends of the outputs, by topic and partition.

        One flush serves all partitions of a worker: nothing is written between their snapshots.
        """
        if self.broken:
            raise BusError("nothing more can be confirmed: publishing has failed before")
        if self.unconfirmed:
            try:
                self._confirm()
            except BaseException:
                self.broken = True
                raise
            self.unconfirmed = False
        return self._ends

    def _confirm(self) -> None:
        publisher, call, topics = self._publisher, self._retry.call, self._topics
        try:
            if publisher is not None:
                call(lambda: self._flush(publisher))
            if topics is not None:
                call(topics.check)
            if self.guard is not None and self.guard.failed:  # then a watched flush does nothing
                raise BusError("nothing is confirmed: a step of the flow has failed")
            for topic in self._outputs:
                self._ends[topic] = call(lambda topic=topic: self._bus.end_offsets(topic))  # type: ignore[misc]
        except BusError as error:
            if topics is not None:
                self._explain(topics, error)
            raise

    def _flush(self, publisher: Publisher) -> None:
        """Flush; while messages can't be delivered, look whether it is for want of a topic."""
        try:
            publisher.flush(_FLUSH_S)
        except UnreachableError:
            if self._topics is not None:
                self._topics.check()
            raise

    def leave(self) -> None:
        """Remove a partition; the last one closes the publisher, unless the flow has failed.

        What is not confirmed then stays as it is: the next run finds out what arrived.
        """
        self.open_parts -= 1
        publisher = self._publisher
        if self.open_parts or publisher is None or self.broken:
            return
        if self.unconfirmed and self._outputs:
            return
        if self.unconfirmed:
            publisher.flush(_LAST_FLUSH_S)
        self._publisher = None
        publisher.close()


class _SinkPartition(StatefulSinkPartition[OutputRecords, Confirmed]):
    def __init__(
        self,
        number: int,
        writer: _Writer,
        published: Published | None,
        start: Ends,
        former: tuple[Ends, TopicIds],
    ) -> None:
        self._number = number
        self._writer = writer
        self._published = published or None  # empty: nothing to suppress
        self._start = start
        self._former = former  # of topics that may become outputs again

    def write_batch(self, items: list[OutputRecords]) -> None:
        writer = self._writer
        latency, on_written = writer.latency, writer.on_written
        try:
            for item in items:
                if self._published is not None:
                    item = self._published.without(item)
                if latency is None or not latency.timed:
                    writer.publish(item)
                else:
                    began = time.perf_counter()
                    writer.publish(item)
                    latency.spent("publish", began)
                if on_written is not None:
                    on_written(item, time.time())
        except BaseException as error:
            if writer.guard is not None:
                writer.guard.record(error)
            raise

    def snapshot(self) -> Confirmed:
        ends: dict[str, list[int]] = self._writer.guarded(self._writer.confirm)
        if not self._start:  # without recovery
            return None
        if self._published is not None:
            if not self._published.passed():
                return self._state(self._start)
            self._published = None
        return self._state({topic: ends[topic][self._number] for topic in self._start})

    def _state(self, ends: Ends) -> Confirmed:
        former_ends, former_ids = self._former
        ends = {**former_ends, **ends}
        ids = {**former_ids, **self._writer.topic_ids}
        return encode(SinkState(ends, ids)) if ids else ends

    def close(self) -> None:
        self._writer.leave()
