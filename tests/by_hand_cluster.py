"""The steps of two workers, called by hand: so it is known who reads what, and when."""

from __future__ import annotations

from collections.abc import Sequence

from dataflows.admission import Admission
from dataflows.alignment import AlignedReader
from dataflows.batch import Batch
from dataflows.bus import Bus, TopicPartition
from dataflows.bus.memory import MemoryBus
from dataflows.bus.partitioner import partition_of_key
from dataflows.decode import BatchDecoder
from dataflows.encode import Results
from dataflows.metrics import WorkerMetrics
from dataflows.model_step import ModelStep
from dataflows.pipeline import Pipeline
from dataflows.windows import Keyed, Router, WindowStep
from models.outcome import ASSUMED_LABEL
from tests.history import EVENTS, LABELS, Message

WORKERS, SHARDS, PARTITIONS = 2, 3, 4
Learned = tuple[str, float, int]
"""Of a label: the event's id, its value, its time."""


class Reader:
    """What a worker reads, of every second partition."""

    def __init__(self, pipeline: Pipeline, bus: Bus, number: int) -> None:
        self._reader = AlignedReader(bus, list(pipeline.inputs), origin=str(number), limit=50)
        own = range(number, PARTITIONS, WORKERS)
        self._reader.add({TopicPartition(topic, n): 0 for topic in (EVENTS, LABELS) for n in own})
        self._decoder = BatchDecoder(pipeline)
        self._admission = Admission(pipeline.topics.events, pipeline.lateness, pipeline.duplicates)

    def read(self) -> list[Batch]:
        """All that is there."""
        found = []
        while (raw := self._reader.read()) is not None:
            found.append(self._admission.admit(self._decoder.decode(raw)))
        return found


class Cluster:
    """Two workers and their shards, and what the models made."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.bus = MemoryBus()
        self.bus.create_topics(dict.fromkeys(pipeline.inputs, PARTITIONS))
        metrics = WorkerMetrics(pipeline.name)
        self.router = Router(pipeline, SHARDS, WORKERS)
        self.readers = [Reader(pipeline, self.bus, number) for number in range(WORKERS)]
        self.shards = {str(n): WindowStep(pipeline, metrics, WORKERS) for n in range(SHARDS)}
        self.models = ModelStep(pipeline, metrics, origins=WORKERS)
        self.made: list[Results] = []

    def publish(self, messages: Sequence[Message]) -> None:
        publisher = self.bus.publisher()
        for each in messages:
            place = partition_of_key(each.key or b"", PARTITIONS)
            publisher.append(each.topic, [each.value], partitions=place, times=[each.time])
        publisher.close()

    def in_step(self) -> None:
        """Both read what is there, batches by the time of their first message."""
        both = [batch for reader in self.readers for batch in reader.read()]
        for batch in sorted(both, key=_first_time):
            self.work(batch)

    def one_after_the_other(self, first: int) -> None:
        """One reads all that is there before the other begins."""
        for number in (first, 1 - first):
            for batch in self.readers[number].read():
                self.work(batch)

    def work(self, batch: Batch) -> None:
        self.pass_on(self.router.route(batch, batch.span[1]))

    def pass_on(self, items: Sequence[Keyed]) -> None:
        for key, item in items:
            for filled in self.shards[key].on_batch([item])[0]:
                for made in self.models.on_batch([filled])[0]:
                    assert isinstance(made, Results)
                    self.made.append(made)

    def learned(self) -> dict[str, list[Learned]]:
        """What was learned of labels, not assumed, by the worker that read them."""
        found: dict[str, list[Learned]] = {"0": [], "1": []}
        ids: list[str] = []
        for results in self.made:
            ids += results.batch.ids
            own = found[results.batch.origin]
            if (taught := results.learned) is not None:
                rows = zip(
                    taught.label.tolist(), taught.tags.tolist(), taught.target,
                    taught.times.tolist(), strict=True,
                )  # fmt: skip
                own += [
                    (ids[tag], float(y), at) for label, tag, y, at in rows if label != ASSUMED_LABEL
                ]
            if (again := results.corrected) is not None:
                more = zip(again.tags.tolist(), again.target, again.times.tolist(), strict=True)
                own += [(ids[tag], float(y), at) for tag, y, at in more]
        return found


def _first_time(batch: Batch) -> int:
    return min(int(rows.times[0]) for rows in (batch.raw.events, batch.raw.labels) if len(rows))
