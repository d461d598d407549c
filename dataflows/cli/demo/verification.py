"""Counts what a run has done from its topics, which unlike metrics are exact across a crash.

A killed worker loses the metrics of its last half second, and one that resumes from a checkpoint
counts the messages that it reads again a second time.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from anabranch.dataflows.batch.output_records import Provenance
from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.cli.demo.topic_sample import all_messages
from anabranch.dataflows.codec import codec_of
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.recovery.resume_point import read_resume_point

_EVENTS, _LABELS, _LEARNED = "anabranch_events", "anabranch_labels", "anabranch_learned_labels"
_PREDICTIONS, _LAG = "anabranch_predictions", "anabranch_lag_messages"
_DEAD, _DRIFT = "anabranch_dead_letters", "anabranch_drift_signals"
_FROM_TOPICS = {_EVENTS, _LABELS, _LEARNED, _PREDICTIONS, _LAG, _DEAD, _DRIFT}
_KEYS = "anabranch_window_keys"
_POLL_LIMIT = 10_000


class _Cause(msgspec.Struct, gc=False):
    """The fields of a dead letter or drift signal that are counted."""

    topic: str
    offset: int
    reason: str = ""
    subject: str = ""


@dataclass(frozen=True, slots=True)
class _Read:
    """Numbers of events and labels read, and of labels learned."""

    events: int = 0
    labels: int = 0
    learned: int = 0

    def __add__(self, other: _Read) -> _Read:
        return _Read(
            self.events + other.events, self.labels + other.labels, self.learned + other.learned
        )

    def __sub__(self, other: _Read) -> _Read:
        return _Read(
            self.events - other.events, self.labels - other.labels, self.learned - other.learned
        )


class TopicCounts(CollectorRegistry):
    """The metrics of ``workers``, with all counts of messages replaced by those on the topics.

    An event counts once it has its prediction or dead letter. The number of messages read is the
    offsets at which the worker started plus what it has counted since. Thread-safe. Call `on_loss`
    when a worker has failed, and `on_restart` before the next one is started.
    """

    def __init__(self, pipeline: Pipeline, bus: Bus, workers: CollectorRegistry) -> None:
        super().__init__()
        self._name, self._topics = pipeline.name, pipeline.topics
        self._labels = [pipeline.topics.labels] if pipeline.has_label_topic else []
        self._bus, self._workers = bus, workers
        self._lock = threading.Lock()
        sides = (self._topics.dead_letters, self._topics.drift)
        places = {TopicPartition(t, p): 0 for t in sides for p in range(len(bus.end_offsets(t)))}
        self._sides = bus.reader(places)
        self._decode = {topic: codec_of(pipeline, topic).decoder(_Cause) for topic in sides}
        self._dead: Counter[str] = Counter()
        self._drift: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()  # dead letters by input topic
        self._at_start = self._counted_at_start = _Read()
        self._lost = False
        self._keys: Metric | None = None

    def close(self) -> None:
        """Close the readers."""
        with self._lock:
            self._sides.close()

    def started(self) -> bool:
        """Whether a worker has started to read."""
        with self._lock:
            return any(family.name == _LAG for family in self._workers.collect())

    def on_loss(self) -> None:
        """Ignore the gauges of the failed worker from now on."""
        self._lost = True

    def on_restart(self, recovery: Path) -> None:
        """Reset the counts to the checkpoint in ``recovery``, where the next worker resumes."""
        offsets: Counter[str] = Counter()
        for _, part in read_resume_point(recovery).partitions():
            offsets.update(part.offsets)
        labels = sum(offsets[topic] for topic in self._labels)
        with self._lock:
            self._read_sides()
            learned = labels - sum(self._rejected[topic] for topic in self._labels)
            self._at_start = _Read(offsets[self._topics.events], labels, max(learned, 0))
            self._counted_at_start = _counted(self._workers.collect())
            self._lost = False

    def unread(self) -> int:
        """Number of messages on the input topics that no worker has read."""
        with self._lock:
            return self._unread(self._read(self._workers.collect()))

    def collect(self) -> Iterable[Metric]:
        """The metric families of the workers, with those that count messages replaced."""
        with self._lock:
            families = list(self._workers.collect())
            kept = [family for family in families if family.name not in {*_FROM_TOPICS, _KEYS}]
            return [*kept, *self._window_keys(families), *self._counts(families)]

    def _counts(self, families: Iterable[Metric]) -> list[Metric]:
        self._read_sides()
        read = self._read(families)
        predictions = self._end(self._topics.predictions)
        events = predictions + self._rejected[self._topics.events]
        usable = read.labels - sum(self._rejected[topic] for topic in self._labels)
        counts = {
            _EVENTS: events,
            _PREDICTIONS: predictions,
            _LABELS: read.labels,
            _LEARNED: min(read.learned, usable),
        }
        metrics: list[Metric] = []
        for name, count in counts.items():
            family = CounterMetricFamily(name, name, labels=["pipeline"])
            family.add_metric([self._name], count)
            metrics.append(family)
        for name, label, by_label in (
            (_DEAD, "reason", self._dead),
            (_DRIFT, "subject", self._drift),
        ):
            family = CounterMetricFamily(name, name, labels=["pipeline", label])
            for value, count in by_label.items():
                family.add_metric([self._name, value], count)
            metrics.append(family)
        lag = GaugeMetricFamily(_LAG, _LAG, labels=["pipeline"])
        lag.add_metric([self._name], self._lag(families, read))
        return [*metrics, lag]

    def _window_keys(self, families: Iterable[Metric]) -> list[Metric]:
        """The last values seen: a worker that has just started has not reported any yet."""
        self._keys = next((each for each in families if each.name == _KEYS), self._keys)
        return [] if self._keys is None else [self._keys]

    def _lag(self, families: Iterable[Metric], read: _Read) -> int:
        """The workers' own lag once reported (they do so twice a second), else the unread count."""
        unread = self._unread(read)
        if self._lost or read == self._at_start:
            return unread
        reported = [s.value for family in families if family.name == _LAG for s in family.samples]
        return min(unread, int(sum(reported)))

    def _read(self, families: Iterable[Metric]) -> _Read:
        return self._at_start + (_counted(families) - self._counted_at_start)

    def _unread(self, read: _Read) -> int:
        published = sum(map(self._end, [self._topics.events, *self._labels]))
        return max(published - read.events - read.labels, 0)

    def _end(self, topic: str) -> int:
        return sum(self._bus.end_offsets(topic))

    def _read_sides(self) -> None:
        """Count the dead letters and drift signals that are new."""
        while slices := self._sides.poll(_POLL_LIMIT):
            for piece in slices:
                for cause in map(self._decode[piece.topic], piece.values):
                    if piece.topic == self._topics.drift:
                        self._drift[cause.subject] += 1
                    else:
                        self._dead[cause.reason] += 1
                        self._rejected[cause.topic] += 1


def _counted(families: Iterable[Metric]) -> _Read:
    """What all workers so far have counted, including messages that were read again."""
    sums = dict.fromkeys((_EVENTS, _LABELS, _LEARNED), 0.0)
    for family in families:
        if family.name in sums:
            sums[family.name] += sum(sample.value for sample in family.samples)
    return _Read(*map(int, sums.values()))


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether every event has exactly one prediction or dead letter.

    Attributes:
        events, predictions, dead_letters: numbers on the topics.
        duplicated: events with more than one prediction or dead letter; should be 0.
        lost: events with none; should be 0.
        unknown: predictions and dead letters of no event; should be 0.
        first: partition and offset of the first event that is duplicated or lost.
    """

    events: int
    predictions: int
    dead_letters: int
    duplicated: int
    lost: int
    unknown: int
    first: tuple[int, int] | None

    @property
    def exactly_once(self) -> bool:
        """Whether every event has exactly one prediction or dead letter."""
        return not (self.duplicated or self.lost or self.unknown)


def verify(bus: Bus, pipeline: Pipeline) -> Verification:
    """Count, for every event on its topic, the predictions and dead letters that refer to it."""
    topics, provenance = pipeline.topics, Provenance.of(pipeline)
    starts, ends = bus.start_offsets(topics.events), bus.end_offsets(topics.events)
    results = [np.zeros(end - start, np.int64) for start, end in zip(starts, ends, strict=True)]
    totals: Counter[str] = Counter()
    unknown = 0
    for topic in (topics.predictions, topics.dead_letters):
        decode = codec_of(pipeline, topic).decoder(provenance.record_type(topic))
        for message in map(decode, all_messages(bus, topic)):
            if message.topic != topics.events:
                continue
            totals[topic] += 1
            partition, row = message.partition, message.offset - starts[message.partition]
            if 0 <= row < len(results[partition]):
                results[partition][row] += 1
            else:
                unknown += 1
    wrong = [
        (number, int(row) + starts[number])
        for number, counts in enumerate(results)
        for row in np.flatnonzero(counts != 1)
    ]
    return Verification(
        events=sum(map(len, results)),
        predictions=totals[topics.predictions],
        dead_letters=totals[topics.dead_letters],
        duplicated=sum(int((counts > 1).sum()) for counts in results),
        lost=sum(int((counts == 0).sum()) for counts in results),
        unknown=unknown,
        first=min(wrong, default=None),
    )
