"""The source operator: reads, decodes and admits; one batch an item.

The engine's partitions are the numbers of the bus's partitions: number 3 stands for partition 3 of
every input topic, and its state is their offsets. All partitions that the engine gives to a worker
share one reader, which merges them in time (`dataflows.source.event_time_merge`).

An epoch must end for all partitions of a worker at the same row. So once one of them has been
snapshotted, nothing is read until all of them have.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from bytewax.inputs import AbortExecution, FixedPartitionedSource, StatefulSourcePartition

from anabranch.dataflows.batch.batch import IDLE, Batch
from anabranch.dataflows.batch.candidates import Candidates
from anabranch.dataflows.bus import Bus, Lost, TopicPartition
from anabranch.dataflows.declaration.input_topics import partition_count
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.event_time import FIRST_MS
from anabranch.dataflows.recovery.state_partition import Place, Token
from anabranch.dataflows.source.decoder import BatchDecoder
from anabranch.dataflows.source.event_time_merge import AlignedReader
from anabranch.dataflows.source.late_and_duplicate import Admission
from anabranch.dataflows.steps.window_step import Keyed, Router
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.state.errors import AnabranchError
from anabranch.state.store.delta import Delta

if TYPE_CHECKING:
    from anabranch.dataflows.recovery.state_directory import StateDirectory


@dataclass(frozen=True, slots=True)
class PartitionState:
    """What the engine keeps of one partition number.

    ``offsets`` are to be read next, by topic, of topics too that are no input any more; ``latest``
    the times that rows had risen to, by topic (epoch ms). ``watermark`` is the reader's, ``token``
    that of the ids seen; None without state.
    """

    offsets: dict[str, int]
    latest: dict[str, int]
    watermark: int
    token: Token | None


_FOLLOWER_NAP = timedelta(milliseconds=200)
_COMMIT_EVERY_S = 5.0
_IDLE_AFTER_S = 10.0


@dataclass(slots=True)
class IntakeOptions:
    """How a worker reads: batch size, where to begin without state, and when to end.

    ``stop`` ends the flow after what was read; ``until_end`` ends it at the offsets that were the
    end when the worker started. ``begin`` is ``earliest`` or ``latest``. ``lost`` says what to do
    when unread messages were removed: ``stop``, or go on from the ``earliest``. A failure of the
    bus is left in ``failure``, and the flow is aborted.

    ``patience_s`` is `AlignedReader`'s. ``places`` are offsets that the kept state names instead of
    where the reader is: what was read stands in for what lies before them.
    """

    origin: str = "0"
    limit: int = 1000
    begin: str = "earliest"
    lost: Lost = "stop"
    until_end: bool = False
    group: str | None = None
    patience_s: float = 5.0
    places: Mapping[TopicPartition, int] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    failure: AnabranchError | None = None


class Intake(FixedPartitionedSource[Keyed, PartitionState]):
    """All input topics of a pipeline as one aligned stream of admitted batches.

    ``router`` makes the keyed items of a batch that the next step works on.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        bus: Bus,
        options: IntakeOptions,
        router: Router,
        metrics: WorkerMetrics,
        state: StateDirectory | None = None,
    ) -> None:
        self._partitions = partition_count(pipeline, bus)
        self._shared = _SharedReader(pipeline, bus, options, router, metrics, state)

    def list_parts(self) -> list[str]:
        return [str(number) for number in range(self._partitions)]

    def build_part(
        self, step_id: str, for_part: str, resume_state: PartitionState | None
    ) -> StatefulSourcePartition[Keyed, PartitionState]:
        return _IntakePartition(int(for_part), self._shared, resume_state)


class _SharedReader:
    """What the partitions of one worker have in common."""

    def __init__(
        self,
        pipeline: Pipeline,
        bus: Bus,
        options: IntakeOptions,
        router: Router,
        metrics: WorkerMetrics,
        state: StateDirectory | None,
    ) -> None:
        self.inputs = pipeline.inputs
        self._state = state
        self.asleep = state is not None and state.identity.by_shard
        self.options = options
        self._router = router
        self._quiet_since: float | None = None
        self._told_end = False
        self._metrics = metrics
        self._bus = bus
        self.reader = AlignedReader(
            bus,
            self.inputs,
            control=pipeline.topics.control if pipeline.has_rollouts else None,
            origin=options.origin,
            group=options.group,
            lost=options.lost,
            limit=options.limit,
            patience_s=options.patience_s,
        )
        self._decoder = BatchDecoder(pipeline)
        self._candidates = None if pipeline.candidates is None else Candidates(pipeline)
        self._admission = Admission(
            pipeline.topics.events, pipeline.allowed_lateness, pipeline.dedup_window
        )
        self._ends: dict[TopicPartition, int] | None = None
        self._aside: dict[int, dict[str, int]] = {}
        self._committed_at = time.monotonic()
        self.parts: list[_IntakePartition] = []
        metrics.ask(lambda: metrics.on_lag(self.reader))

    def join(self, part: _IntakePartition, resume: PartitionState | None) -> Place | None:
        """Add a partition; without ``resume`` it begins where the options say.

        A topic that was no input before begins with its first message, and where one that is no
        input now was left is remembered: it may become one again.

        Returns where it keeps the ids that it has seen; None without state.
        """
        offsets = resume.offsets if resume is not None else {}
        at = {
            TopicPartition(topic, part.number): offsets[topic]
            if topic in offsets
            else self._beginning(topic, part.number, "earliest" if offsets else self.options.begin)
            for topic in self.inputs
        }
        self._aside[part.number] = {t: o for t, o in offsets.items() if t not in self.inputs}
        place = None
        if self._state is not None:
            place = self._state.intake(part.number)
            image = place.open(None if resume is None else resume.token)
            self._admission.restore(
                part.number, image, FIRST_MS if resume is None else resume.watermark
            )
            if resume is None:
                places = self.options.places
                self._state.begins(
                    part.number,
                    {t.topic: None if t in places else begin for t, begin in at.items()},
                )
        # The engine asks them in the order of their names, and where committing takes as long as an
        # epoch each round ends one: then only the first finds that none has been snapshotted.
        self.parts.append(part)
        self.parts.sort(key=lambda each: str(each.number))
        latest = {} if resume is None else resume.latest
        self.reader.add(at, {TopicPartition(t, part.number): ms for t, ms in latest.items()})
        if self.options.until_end:
            self._ends = self._ends or {}
            for topic in self.inputs:
                end = self._bus.end_offsets(topic)[part.number]
                self._ends[TopicPartition(topic, part.number)] = end
        return place

    def state_of(self, part: _IntakePartition, token: Token | None) -> PartitionState:
        """What a partition needs to go on from here."""
        own = {topic: TopicPartition(topic, part.number) for topic in self.inputs}
        positions, latest = {**self.reader.positions, **self.options.places}, self.reader.latest
        return PartitionState(
            {**self._aside[part.number], **{topic: positions[at] for topic, at in own.items()}},
            {topic: latest[at] for topic, at in own.items() if at in latest},
            self._admission.watermark_ms,
            token,
        )

    def changes(self, part: _IntakePartition) -> Delta:
        """The ids that came on a partition since the last call."""
        return self._admission.changes(part.number)

    def finished(self) -> bool:
        """Whether this worker has read all that it should."""
        if self._ends is None:
            return self.options.stop.is_set()
        positions = self.reader.positions
        for at, end in self._ends.items():
            if positions[at] < end:
                return self.options.stop.is_set()
        return True

    def read(self) -> list[Keyed]:
        """The next batch, routed; nothing when none is there or an epoch is being closed."""
        if len(self.parts) > 1 and len({part.snapshots for part in self.parts}) > 1:
            return []
        began = time.perf_counter()
        raw = self.reader.read()
        self._commit_sometimes()
        if raw is None:
            return self._nothing()
        latency = self._metrics.latency
        latency.next_batch()
        if latency.timed:
            began = latency.spent("read", began)
        self._quiet_since = None
        if self._candidates is None:
            batch = self._admission.admit(self._decoder.decode(raw))
        else:
            batch = self._candidates.check(self._decoder.decode(raw))
            batch = self._candidates.spread(self._admission.admit(batch))
        if batch.control is not None:
            batch.control_time = self._time_of_control(batch)
        self._metrics.on_batch(raw, batch)
        if latency.timed:
            latency.spent("decode", began)
        return self._router.route(batch, self._admission.watermark_ms)

    def _time_of_control(self, batch: Batch) -> int:
        """How far event time has come; before the first event, when the message was published."""
        watermark = self._admission.watermark_ms
        return watermark if watermark > FIRST_MS else int(batch.raw.controls.times[0])

    def wake(self) -> list[Keyed]:
        """Once, before all else: have every step tell its state in the first epoch."""
        self.asleep = False
        return self._router.wake()

    def _nothing(self) -> list[Keyed]:
        """Nothing to read: after a while, say that nobody needs to wait for this worker."""
        self._metrics.flush_if_due()
        now = time.monotonic()
        self._quiet_since = self._quiet_since or now
        if now - self._quiet_since < _IDLE_AFTER_S or any(self.reader.lag().values()):
            return []
        return self._router.progress(self.options.origin, IDLE)

    def end(self) -> list[Keyed]:
        """Once, when all is read that was there: nobody needs to wait for this worker any more."""
        if self._told_end or self.options.stop.is_set():
            return []
        self._told_end = True
        return self._router.farewell(self.options.origin)

    def leave(self, part: _IntakePartition) -> None:
        """The last partition to leave closes the reader."""
        if part in self.parts:
            self.parts.remove(part)
            if not self.parts:
                self._metrics.on_lag(self.reader)
                self.reader.close()

    def _commit_sometimes(self) -> None:
        now = time.monotonic()
        if now - self._committed_at >= _COMMIT_EVERY_S:
            self._committed_at = now
            self.reader.commit()

    def _beginning(self, topic: str, partition: int, begin: str) -> int:
        ask = self._bus.end_offsets if begin == "latest" else self._bus.start_offsets
        return ask(topic)[partition]


class _IntakePartition(StatefulSourcePartition[Keyed, PartitionState]):
    def __init__(self, number: int, shared: _SharedReader, resume: PartitionState | None) -> None:
        self.number = number
        self.snapshots = 0
        self._shared = shared
        self._token = None if resume is None else resume.token
        self._place = shared.join(self, resume)

    def next_batch(self) -> list[Keyed]:
        shared = self._shared
        leads = shared.parts[0] is self
        if shared.asleep and leads:
            return shared.wake()
        if shared.finished():
            if told := shared.end():
                return told
            raise StopIteration
        if not leads:
            return []
        try:
            return shared.read()
        except AnabranchError as error:
            shared.options.failure = error
            raise AbortExecution from error

    def next_awake(self) -> datetime | None:
        shared = self._shared
        if shared.parts[0] is self or shared.options.stop.is_set():
            return None
        return datetime.now(UTC) + _FOLLOWER_NAP

    def snapshot(self) -> PartitionState:
        self.snapshots += 1
        if self._place is not None:
            delta = self._shared.changes(self)
            if delta or self._token is None:
                self._token = self._place.commit(delta)
        return self._shared.state_of(self, self._token)

    def close(self) -> None:
        self._shared.leave(self)
