"""The source operator: reads, decodes and filters the input topics, one batch at a time.

The engine's partitions are those of the bus: partition 3 of the engine stands for partition 3 of
every input topic that has one, and its state is their offsets. All partitions that the engine
assigns to a worker share one reader, which merges them in event time
(`dataflows.source.event_time_merge`).

An epoch must end at the same row for all partitions of a worker. So once one of them has been
snapshotted, nothing is read until all of them have.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bytewax.inputs import AbortExecution, FixedPartitionedSource, StatefulSourcePartition

from anabranch.dataflows.batch.batch import Batch, RawBatch, time_batch
from anabranch.dataflows.batch.candidates import Candidates
from anabranch.dataflows.bus import (
    Bus,
    BusError,
    OnOutOfRange,
    TopicPartition,
    UnreachableError,
)
from anabranch.dataflows.bus.merge_times import tolerance_ms
from anabranch.dataflows.bus.read_to_end import at_end, ends_now
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.event_time import FIRST_MS
from anabranch.dataflows.messages.outputs import Cause
from anabranch.dataflows.recovery.state_partition import StatePartition
from anabranch.dataflows.recovery.tokens import (
    PartitionState,
    StepState,
    Token,
    decode_partition,
    encode,
)
from anabranch.dataflows.recovery.topic_identity import changed_topics, input_recreated
from anabranch.dataflows.sharding.router import Keyed, Router
from anabranch.dataflows.sink.delivery_retry import DeliveryRetry
from anabranch.dataflows.source.decoder import BatchDecoder
from anabranch.dataflows.source.event_time_merge import MergedReader
from anabranch.dataflows.source.late_and_duplicate import LateAndDuplicateFilter
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.state.errors import AnabranchError, StateError
from anabranch.state.store.delta import Delta

if TYPE_CHECKING:
    from anabranch.dataflows.recovery.state_directory import StateDirectory


LOG = logging.getLogger("anabranch.bus")
_ALWAYS_DUE = datetime(1970, 1, 1, tzinfo=UTC)
_IDLE_SLEEP_S = 0.001
_COMMIT_EVERY_S = 5.0
_IDLE_AFTER_S = 10.0
_LIST_TOPICS_EVERY_S = 10.0


@dataclass(slots=True)
class SourceOptions:
    """How a worker reads.

    Attributes:
        worker_id: the worker that reads, in what it sends to others.
        limit: the most messages in a batch.
        start_offset: where a partition without state starts, ``earliest`` or ``latest``.
        start_offsets: where partitions without state start in place of that.
        on_out_of_range: what to do when unread messages were removed: ``stop``, or continue from
            the ``earliest`` that is left.
        until_end: end at the offsets that were the ends when the worker started.
        group: the consumer group that positions are reported to; None: none.
        idle_timeout_s: see `MergedReader`.
        recorded_offsets: offsets that the state records in place of the reader's own, where what is
            read replaces messages before them.
        list_topics: asked now and then which topics there are; may raise; None: the bus is.
        of_files: topics whose messages are rows of files, and so JSON whatever their format.
        stop: ends the flow once set, after what was read.
        failure: the error of the bus by which the flow was aborted.
    """

    worker_id: str = "0"
    limit: int = 1000
    start_offset: str = "earliest"
    start_offsets: Mapping[TopicPartition, int] = field(default_factory=dict)
    on_out_of_range: OnOutOfRange = "stop"
    until_end: bool = False
    group: str | None = None
    idle_timeout_s: float = 5.0
    recorded_offsets: Mapping[TopicPartition, int] = field(default_factory=dict)
    list_topics: Callable[[], Mapping[str, int]] | None = None
    of_files: Collection[str] = ()
    stop: threading.Event = field(default_factory=threading.Event)
    failure: AnabranchError | None = None


class BusSource(FixedPartitionedSource[Keyed, StepState]):
    """All input topics of a pipeline as one stream of batches, merged in event time.

    ``router`` makes the keyed items of a batch that the next step works on. The first
    ``partitions`` of each topic are read, as many as it has; more that are added while it runs are
    reported.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        bus: Bus,
        options: SourceOptions,
        router: Router,
        metrics: WorkerMetrics,
        partitions: int,
        state: StateDirectory | None = None,
    ) -> None:
        self._partitions = partitions
        self._reader = _WorkerReader(pipeline, bus, options, router, metrics, partitions, state)

    def list_parts(self) -> list[str]:
        return [str(number) for number in range(self._partitions)]

    def build_part(
        self, step_id: str, for_part: str, resume_state: StepState
    ) -> StatefulSourcePartition[Keyed, StepState]:
        return _SourcePartition(int(for_part), self._reader, decode_partition(resume_state))


def _log_waiting(seconds: float, why: str) -> None:
    LOG.warning("waiting for %.0f s to decode what was read: %s", seconds, why)


class _WorkerReader:
    """What the partitions of one worker share: the reader, the decoder and the filters."""

    def __init__(
        self,
        pipeline: Pipeline,
        bus: Bus,
        options: SourceOptions,
        router: Router,
        metrics: WorkerMetrics,
        partitions: int,
        state: StateDirectory | None,
    ) -> None:
        self._unread: dict[str, int] = {}  # topic → partitions added since the start
        self.inputs = pipeline.inputs
        topics = bus.topics()
        self._counts = {topic: min(topics[topic], partitions) for topic in self.inputs}
        self._control = pipeline.topics.control
        self._state = state
        self.needs_bootstrap = state is not None and state.manifest.by_shard
        self.options = options
        self._router = router
        self._quiet_since: float | None = None
        self._end_sent = False
        self._metrics = metrics
        self._bus = bus
        self._topic_ids = {} if state is None else bus.topic_ids(self.inputs)
        self.reader = MergedReader(
            bus,
            self.inputs,
            headers=pipeline.needs_headers,
            event_topics=len(pipeline.topics.all_events),
            control=pipeline.topics.control if pipeline.has_rollouts else None,
            worker_id=options.worker_id,
            group=options.group,
            on_out_of_range=options.on_out_of_range,
            limit=options.limit,
            idle_timeout_s=options.idle_timeout_s,
            tolerance_ms=tolerance_ms(pipeline.max_clock_skew),
        )
        self._decoder = BatchDecoder(
            pipeline,
            on_time_unit=metrics.on_time_unit,
            on_unknown_fields=metrics.on_unknown_fields,
            on_filtered=metrics.on_filtered,
            of_files=options.of_files,
        )
        # While a schema registry does not respond, what was read waits here.
        self._decode_retry = DeliveryRetry(
            options.stop, _log_waiting, grace_s=0.0, of="the schema registry"
        )
        self._candidates = None if pipeline.candidates is None else Candidates(pipeline)
        self._filter = LateAndDuplicateFilter(pipeline.allowed_lateness, pipeline.dedup_window)
        self._ends: dict[TopicPartition, int] | None = None
        self._former_inputs: dict[int, dict[str, int]] = {}
        self._committed_at = time.monotonic()
        self._missing: dict[str, dict[int, int]] = {}  # topic → partition → first offset
        self.parts: list[_SourcePartition] = []
        metrics.add_reporter(lambda: metrics.on_lag(self.reader.lag()))
        metrics.add_reporter(self._decoder.report_unknown_fields)
        if options.worker_id == "0":
            metrics.add_reporter(self._report_added_partitions)
        self._list_topics = options.list_topics or bus.topics
        if options.worker_id == "0" and pipeline.topics.patterns:
            metrics.add_reporter(self._report_new_topics)
        self._topics, self._told = pipeline.topics, set(pipeline.inputs)
        self._topics_listed_at = time.monotonic()

    def join(self, part: _SourcePartition, resume: PartitionState | None) -> StatePartition | None:
        """Add a partition; without ``resume`` it starts where the options say.

        A topic that was no input before starts at its first message. Where a former input was left
        is remembered: it may become one again.

        Returns the state partition with the ids seen on it; None without state.
        """
        own = self._topics_with(part.number)
        offsets = {} if resume is None else resume.offsets
        latest = {} if resume is None else resume.latest
        if resume is not None and (gone := self._recreated(resume)):
            offsets = {topic: offset for topic, offset in offsets.items() if topic not in gone}
            latest = {topic: ms for topic, ms in latest.items() if topic not in gone}
        self._check_that_none_is_lost(part.number, offsets)
        added = self._state is not None and part.number >= self._state.manifest.first_partitions
        start = "earliest" if resume is not None or added else self.options.start_offset
        given = {} if resume is not None or added else self.options.start_offsets
        if resume is None and start == "earliest" and not given:
            self._note_missing_beginning(part.number)
        at = {
            TopicPartition(topic, part.number): offsets[topic]
            if topic in offsets
            else self._start_offset(topic, part.number, start)
            for topic in own
        }
        at |= {place: given[place] for place in at if place in given}
        self._former_inputs[part.number] = {
            topic: offset for topic, offset in offsets.items() if topic not in self.inputs
        }
        place = None
        if self._state is not None:
            place = self._state.input_partition(part.number)
            image = place.open(None if resume is None else resume.token)
            self._filter.restore(
                part.number, image, FIRST_MS if resume is None else resume.watermark
            )
            if resume is None:
                recorded = self.options.recorded_offsets
                self._state.write_start_offsets(
                    part.number,
                    {t.topic: None if t in recorded else offset for t, offset in at.items()},
                )
        # The engine asks them in the order of their names, and where committing takes as long as an
        # epoch each round ends one: then only the first finds that none has been snapshotted.
        self.parts.append(part)
        self.parts.sort(key=lambda each: str(each.number))
        self.reader.add(at, {TopicPartition(t, part.number): ms for t, ms in latest.items()})
        if self.options.until_end:
            self._ends = {**(self._ends or {}), **ends_now(self._bus, at)}
        return place

    def _topics_with(self, number: int) -> list[str]:
        """The input topics that have a partition of this number."""
        return [topic for topic in self.inputs if number < self._counts[topic]]

    def _check_that_none_is_lost(self, number: int, offsets: Mapping[str, int]) -> None:
        for topic in offsets:
            count = self._counts.get(topic, number + 1)
            if number >= count and self._state is not None:
                raise StateError(
                    f"topic {topic} has {count} partitions, and {self._state.path} says how far "
                    f"partition {number} of it was read: topics never lose partitions, so this is "
                    "another one; start from scratch with another --state"
                )

    def _recreated(self, resume: PartitionState) -> list[str]:
        """Inputs that were deleted and created again since: the offsets are not of these.

        Raises:
            StateError: that was not accepted when the state was opened.
        """
        assert self._state is not None
        accepted = self._state.manifest.topic_ids
        gone = changed_topics(self.inputs, resume.topic_ids, self._topic_ids)
        for topic in gone:
            if accepted.get(topic) != self._topic_ids[topic]:
                raise input_recreated(topic, self._state.path)
        return gone

    def _note_missing_beginning(self, number: int) -> None:
        """Of a partition that is to be read from its start: remember what is gone already."""
        for topic in self._topics_with(number):
            first = self._start_offset(topic, number, "earliest")
            if first > 0 and TopicPartition(topic, number) not in self.options.recorded_offsets:
                self._missing.setdefault(topic, {})[number] = first

    def _warn_of_missing_beginnings(self) -> None:
        for topic, firsts in self._missing.items():
            at = ", ".join(f"{first:,} (partition {n})" for n, first in sorted(firsts.items()))
            LOG.warning(
                "topic %s no longer has its beginning: it starts at offset %s, and what was before "
                "that was deleted (retention goes by the times of messages; retention.ms=-1 keeps "
                "them)",
                *(topic, at),
            )
        self._missing.clear()

    def _report_new_topics(self) -> None:
        """Once for each topic that has come to match a pattern since the start."""
        now = time.monotonic()
        if now - self._topics_listed_at < _LIST_TOPICS_EVERY_S:
            return
        self._topics_listed_at = now
        try:
            topics = self._topics.resolved(self._list_topics())
        except BusError:  # an outage is told of elsewhere
            return
        for topic in (*topics.all_events, *topics.all_labels):
            if topic not in self._told:
                self._told.add(topic)
                LOG.warning(
                    "topic %s matches a pattern of the pipeline and did not exist when this run "
                    "started: it is not read yet; stop the run and start it again to read it from "
                    "its first message on",
                    topic,
                )

    def _report_added_partitions(self) -> None:
        """Once for each topic that grows: its new partitions are read from the next start on."""
        for topic, count in self.reader.partition_counts().items():
            before = self._counts.get(topic, count)
            unread = max(count - before, 0)
            if unread == self._unread.get(topic, 0):
                continue
            self._unread[topic] = unread
            self._metrics.on_unread_partitions(topic, unread)
            if unread:
                LOG.warning(
                    "topic %s has %d partitions now, and had %d when this run started: the new "
                    "ones are not read yet; stop the run and start it again to read them from "
                    "their first message on",
                    *(topic, count, before),
                )

    def state_of(self, part: _SourcePartition, token: Token | None) -> PartitionState:
        """What a partition needs to resume from here."""
        topics = self._topics_with(part.number)
        own = {topic: TopicPartition(topic, part.number) for topic in topics}
        positions = {**self.reader.positions, **self.options.recorded_offsets}
        latest = self.reader.latest
        offsets = {topic: positions[at] for topic, at in own.items()}
        return PartitionState(
            {**self._former_inputs[part.number], **offsets},
            {topic: latest[at] for topic, at in own.items() if at in latest},
            self._filter.watermark_ms,
            token,
            self._topic_ids,
        )

    def changes(self, part: _SourcePartition) -> Delta:
        """The ids that came on a partition since the last call."""
        return self._filter.changes(part.number)

    def finished(self) -> bool:
        """Whether this worker has read all that it should."""
        if self._missing:
            self._warn_of_missing_beginnings()
        if self._ends is None:
            return self.options.stop.is_set()
        return at_end(self.reader.positions, self._ends) or self.options.stop.is_set()

    def read(self) -> list[Keyed]:
        """The next batch, routed; empty if none is ready or an epoch is being closed."""
        if len(self.parts) > 1 and len({part.snapshots for part in self.parts}) > 1:
            return []
        began = time.perf_counter()
        raw = self.reader.read()
        self._commit_if_due()
        if raw is None:
            return self._on_empty_read()
        latency = self._metrics.latency
        latency.next_batch()
        if latency.timed:
            began = latency.spent("read", began)
        self._quiet_since = None
        if self._candidates is None:
            batch = self._filter.apply(self._decode(raw))
        else:
            batch = self._candidates.check(self._decode(raw))
            batch = self._candidates.expand(self._filter.apply(batch))
        if batch.control is not None:
            batch.control_time = self._control_time(batch)
        self._metrics.on_batch(raw, batch)
        if latency.timed:
            latency.spent("decode", began)
        return self._router.route(batch, self._filter.watermark_ms)

    def _decode(self, raw: RawBatch) -> Batch:
        """Decode what was read; wait for a schema registry that does not respond."""
        try:
            return self._decoder.decode(raw)
        except UnreachableError:
            return self._decode_retry.call(lambda: self._decode_again(raw))

    def _decode_again(self, raw: RawBatch) -> Batch:
        self._metrics.flush_if_due()  # this worker waits, and is not stuck
        return self._decoder.decode(raw)

    def _control_time(self, batch: Batch) -> int:
        """The watermark; before the first event, when the message was published (epoch ms)."""
        watermark = self._filter.watermark_ms
        return watermark if watermark > FIRST_MS else int(batch.raw.controls.times[0])

    def bootstrap(self) -> list[Keyed]:
        """Once, before any batch: make every step write its state in the first epoch."""
        self.needs_bootstrap = False
        return self._router.bootstrap()

    def _on_empty_read(self) -> list[Keyed]:
        """After a while without messages, notify the shards not to wait for this worker."""
        self._metrics.flush_if_due()
        now = time.monotonic()
        self._quiet_since = self._quiet_since or now
        if now - self._quiet_since < _IDLE_AFTER_S or any(self.reader.lag().values()):
            return []
        return self._router.idle(self.options.worker_id, self._time_batch)

    def end_of_stream(self) -> list[Keyed]:
        """Once, when all is read that was there: notify the shards that nothing more comes."""
        if self._end_sent or self.options.stop.is_set():
            return []
        self._end_sent = True
        return self._router.end_of_stream(self.options.worker_id, self._time_batch)

    def _time_batch(self) -> Batch | None:
        """A batch that lets time pass as far as this worker has come; None if it has read nothing.

        It stands for the last message of the last of its partitions, which is always the same one
        as long as nothing is read.
        """
        last = max(
            (at for at, n in self.reader.positions.items() if n > 0 and at.topic != self._control),
            default=None,
        )
        if last is None:
            return None
        batch = self._decoder.decode(self.reader.empty_batch())
        if self._candidates is not None:
            batch = self._candidates.expand(batch)
        cause = Cause(last.topic, last.partition, self.reader.positions[last] - 1)
        return time_batch(batch, cause, self._filter.watermark_ms)

    def leave(self, part: _SourcePartition) -> None:
        """Remove a partition; the last one closes the reader."""
        if part in self.parts:
            self.parts.remove(part)
            if not self.parts:
                self._metrics.on_lag(self.reader.lag())
                self.reader.close()

    def _commit_if_due(self) -> None:
        now = time.monotonic()
        if now - self._committed_at >= _COMMIT_EVERY_S:
            self._committed_at = now
            self.reader.commit()

    def _start_offset(self, topic: str, partition: int, start: str) -> int:
        offsets = self._bus.end_offsets if start == "latest" else self._bus.start_offsets
        return offsets(topic)[partition]


class _SourcePartition(StatefulSourcePartition[Keyed, StepState]):
    def __init__(self, number: int, reader: _WorkerReader, resume: PartitionState | None) -> None:
        self.number = number
        self.snapshots = 0
        self._reader = reader
        self._token = None if resume is None else resume.token
        self._place = reader.join(self, resume)

    def next_batch(self) -> list[Keyed]:
        reader = self._reader
        is_first = reader.parts[0] is self  # it reads for all partitions of the worker
        if reader.needs_bootstrap and is_first:
            return reader.bootstrap()
        if not is_first:
            return []
        if reader.finished():
            if items := reader.end_of_stream():
                return items
            raise StopIteration  # the next partition becomes the first
        try:
            items = reader.read()
            if not items:
                time.sleep(_IDLE_SLEEP_S)
            return items
        except AnabranchError as error:
            reader.options.failure = error
            raise AbortExecution from error

    def next_awake(self) -> datetime | None:
        # The engine waits by the wall clock: with a moment near now, or with none, it would stand
        # still for an hour if the clock is set back by one. `next_batch` pauses by itself.
        return _ALWAYS_DUE

    def snapshot(self) -> StepState:
        self.snapshots += 1
        if self._place is not None:
            delta = self._reader.changes(self)
            if delta or self._token is None:
                self._token = self._place.commit(delta)
        return encode(self._reader.state_of(self, self._token))

    def close(self) -> None:
        self._reader.leave(self)
