"""The steps of two workers, called by the test, which decides who reads what and when."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anabranch.dataflows.batch.batch import Batch, time_batch
from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.bus.partitioner import partition_of_key
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.outputs import Cause
from anabranch.dataflows.sharding.router import Keyed, Router
from anabranch.dataflows.source.decoder import BatchDecoder
from anabranch.dataflows.source.event_time_merge import MergedReader
from anabranch.dataflows.source.late_and_duplicate import LateAndDuplicateFilter
from anabranch.dataflows.steps.model_step import ModelStep
from anabranch.dataflows.steps.window_step import WindowStep
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.learners.targets import select
from anabranch.models.prequential.outcome import ASSUMED_LABEL
from tests.support.history import EVENTS, LABELS, Message

WORKERS, SHARDS, PARTITIONS = 2, 3, 4
Learned = tuple[str, float, int]
"""A label: the event's id, the value, the time."""


class Reader:
    """The source of a worker, which reads every second partition."""

    def __init__(self, pipeline: Pipeline, bus: Bus, number: int) -> None:
        self._reader = MergedReader(bus, list(pipeline.inputs), worker_id=str(number), limit=50)
        own = range(number, PARTITIONS, WORKERS)
        self._reader.add({TopicPartition(topic, n): 0 for topic in (EVENTS, LABELS) for n in own})
        self._decoder = BatchDecoder(pipeline)
        self._filter = LateAndDuplicateFilter(pipeline.allowed_lateness, pipeline.dedup_window)

    def time_batch(self) -> Batch:
        """A batch that lets time pass as far as this worker has come."""
        batch = self._decoder.decode(self._reader.empty_batch())
        (at, position) = max((at, n) for at, n in self._reader.positions.items() if n)
        return time_batch(batch, Cause(*at, position - 1), self._filter.watermark_ms)

    def read(self) -> list[Batch]:
        """Read all available batches."""
        found = []
        while (raw := self._reader.read()) is not None:
            found.append(self._filter.apply(self._decoder.decode(raw)))
        return found


class Cluster:
    """Two workers and their shards, and the results of the model step."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.bus = MemoryBus()
        self.bus.create_topics(dict.fromkeys(pipeline.inputs, PARTITIONS))
        metrics = WorkerMetrics(pipeline.name)
        self.router = Router(pipeline, SHARDS, WORKERS)
        self.readers = [Reader(pipeline, self.bus, number) for number in range(WORKERS)]
        self.shards = {str(n): WindowStep(pipeline, metrics, WORKERS) for n in range(SHARDS)}
        self.models = ModelStep(pipeline, metrics, workers=WORKERS)
        self.made: list[Results] = []

    def publish(self, messages: Sequence[Message], labels_apart: bool = False) -> None:
        """Labels go to the partitions of their events, or each to that of the other worker."""
        publisher = self.bus.publisher()
        for each in messages:
            place = partition_of_key(each.key or b"", PARTITIONS)
            if labels_apart and each.topic == LABELS:
                place = (place + 1) % PARTITIONS
            publisher.append(each.topic, [each.value], partitions=place, times=[each.time])
        publisher.close()

    def in_step(self) -> None:
        """Both workers read; batches are processed by the time of their first message."""
        both = [batch for reader in self.readers for batch in reader.read()]
        for batch in sorted(both, key=_first_time):
            self.work(batch)

    def one_after_the_other(self, first: int) -> None:
        """One worker reads everything before the other starts."""
        for number in (first, 1 - first):
            for batch in self.readers[number].read():
                self.work(batch)

    def end(self) -> None:
        """Nothing more comes from any worker."""
        for number, reader in enumerate(self.readers):
            self.pass_on(self.router.end_of_stream(str(number), reader.time_batch))

    def work(self, batch: Batch) -> None:
        self.pass_on(self.router.route(batch, batch.span[1]))

    def pass_on(self, items: Sequence[Keyed]) -> None:
        for key, item in items:
            for filled in self.shards[key].on_batch([item])[0]:
                for made in self.models.on_batch([filled])[0]:
                    assert isinstance(made, Results)
                    self.made.append(made)

    def learned(self) -> dict[str, list[Learned]]:
        """The labels learned (without assumed ones), by the worker that read them."""
        found: dict[str, list[Learned]] = {"0": [], "1": []}
        ids: list[str] = []
        for results in self.made:
            ids += results.batch.ids
            own = found[results.batch.worker_id]
            if (learned := results.learned) is not None:
                given = np.flatnonzero(learned.label != ASSUMED_LABEL)
                tags, times = learned.tags[given].tolist(), learned.times[given].tolist()
                rows = zip(tags, select(learned.target, given), times, strict=True)
                own += [(ids[tag], float(y), at) for tag, y, at in rows]
            if (again := results.corrected) is not None:
                more = zip(again.tags.tolist(), again.target, again.times.tolist(), strict=True)
                own += [(ids[tag], float(y), at) for tag, y, at in more]
        return found


def _first_time(batch: Batch) -> int:
    return min(int(rows.times[0]) for rows in (batch.raw.events, batch.raw.labels) if len(rows))
