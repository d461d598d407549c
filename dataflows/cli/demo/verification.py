"""What a run has done, counted on its topics.

A worker that is killed takes along what it has counted in its last half second, and one that goes
on from an earlier generation counts again what it reads again. The topics know neither.
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
from anabranch.dataflows.cli.topic_sample import all_messages
from anabranch.dataflows.codec import codec_of
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.recovery.resume_point import read_resume_point

_EVENTS, _LABELS, _LEARNED = "anabranch_events", "anabranch_labels", "anabranch_learned_labels"
_PREDICTIONS, _LAG = "anabranch_predictions", "anabranch_lag_messages"
_DEAD, _DRIFT = "anabranch_dead_letters", "anabranch_drift_signals"
_OURS = {_EVENTS, _LABELS, _LEARNED, _PREDICTIONS, _LAG, _DEAD, _DRIFT}
_KEYS = "anabranch_window_keys"
_AT_ONCE = 10_000


class _Cause(msgspec.Struct, gc=False):
    """Of a side message: the row it was made of, and what it is about."""

    topic: str
    offset: int
    reason: str = ""
    subject: str = ""


@dataclass(frozen=True, slots=True)
class _Read:
    """How many events and labels have been read, and labels learned."""

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
    """The metrics of ``workers``, with every count of messages as it is on the topics.

    An event counts once it has its prediction or dead letter. What has been read is the offsets
    that the worker began at, and what it has counted since. It may be asked from any thread; call
    `lose` when a worker was lost, and `go_on` before the next one is started.
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
        self._refused: Counter[str] = Counter()  # dead letters by input topic
        self._began = self._counted_before = _Read()
        self._lost = False
        self._keys: Metric | None = None

    def close(self) -> None:
        """Let go of the topics."""
        with self._lock:
            self._sides.close()

    def heard(self) -> bool:
        """Whether a worker has begun to read."""
        with self._lock:
            return any(family.name == _LAG for family in self._workers.collect())

    def lose(self) -> None:
        """The worker is gone, and what it said last of how things stand is no longer so."""
        self._lost = True

    def go_on(self, recovery: Path) -> None:
        """The next worker goes on from what the recovery store says."""
        offsets: Counter[str] = Counter()
        for _, part in read_resume_point(recovery).partitions():
            offsets.update(part.offsets)
        labels = sum(offsets[topic] for topic in self._labels)
        with self._lock:
            self._look_aside()
            learned = labels - sum(self._refused[topic] for topic in self._labels)
            self._began = _Read(offsets[self._topics.events], labels, max(learned, 0))
            self._counted_before = _counted(self._workers.collect())
            self._lost = False

    def unread(self) -> int:
        """Messages on the input topics that no worker has read."""
        with self._lock:
            return self._unread(self._read(self._workers.collect()))

    def collect(self) -> Iterable[Metric]:
        """The metric families of the workers, those that count messages replaced."""
        with self._lock:
            families = list(self._workers.collect())
            kept = [family for family in families if family.name not in {*_OURS, _KEYS}]
            return [*kept, *self._window_keys(families), *self._own(families)]

    def _own(self, families: Iterable[Metric]) -> list[Metric]:
        self._look_aside()
        read = self._read(families)
        predictions = self._end(self._topics.predictions)
        events = predictions + self._refused[self._topics.events]
        usable = read.labels - sum(self._refused[topic] for topic in self._labels)
        counts = {
            _EVENTS: events,
            _PREDICTIONS: predictions,
            _LABELS: read.labels,
            _LEARNED: min(read.learned, usable),
        }
        found: list[Metric] = []
        for name, count in counts.items():
            family = CounterMetricFamily(name, name, labels=["pipeline"])
            family.add_metric([self._name], count)
            found.append(family)
        for name, label, by_label in (
            (_DEAD, "reason", self._dead),
            (_DRIFT, "subject", self._drift),
        ):
            family = CounterMetricFamily(name, name, labels=["pipeline", label])
            for value, count in by_label.items():
                family.add_metric([self._name, value], count)
            found.append(family)
        lag = GaugeMetricFamily(_LAG, _LAG, labels=["pipeline"])
        lag.add_metric([self._name], self._lag(families, read))
        return [*found, lag]

    def _window_keys(self, families: Iterable[Metric]) -> list[Metric]:
        """Those last heard of: a worker that has just been started has not said anything yet."""
        self._keys = next((each for each in families if each.name == _KEYS), self._keys)
        return [] if self._keys is None else [self._keys]

    def _lag(self, families: Iterable[Metric], read: _Read) -> int:
        """Workers count twice a second; how much waits they know better, once they have counted."""
        unread = self._unread(read)
        if self._lost or read == self._began:
            return unread
        told = [s.value for family in families if family.name == _LAG for s in family.samples]
        return min(unread, int(sum(told)))

    def _read(self, families: Iterable[Metric]) -> _Read:
        return self._began + (_counted(families) - self._counted_before)

    def _unread(self, read: _Read) -> int:
        published = sum(map(self._end, [self._topics.events, *self._labels]))
        return max(published - read.events - read.labels, 0)

    def _end(self, topic: str) -> int:
        return sum(self._bus.end_offsets(topic))

    def _look_aside(self) -> None:
        """Read on in dead letters and drift signals."""
        while slices := self._sides.poll(_AT_ONCE):
            for piece in slices:
                for cause in map(self._decode[piece.topic], piece.values):
                    if piece.topic == self._topics.drift:
                        self._drift[cause.subject] += 1
                    else:
                        self._dead[cause.reason] += 1
                        self._refused[cause.topic] += 1


def _counted(families: Iterable[Metric]) -> _Read:
    """What all workers so far have counted, what they read again included."""
    sums = dict.fromkeys((_EVENTS, _LABELS, _LEARNED), 0.0)
    for family in families:
        if family.name in sums:
            sums[family.name] += sum(sample.value for sample in family.samples)
    return _Read(*map(int, sums.values()))


@dataclass(frozen=True, slots=True)
class Settled:
    """What has come of all events: ``twice`` and ``lost`` should be 0.

    ``twice`` counts events with more than one prediction or dead letter, ``lost`` those with none;
    ``first`` is the first of them. ``unknown`` are predictions and dead letters of no event.
    """

    events: int
    predictions: int
    dead_letters: int
    twice: int
    lost: int
    unknown: int
    first: tuple[int, int] | None

    @property
    def once(self) -> bool:
        """Whether every event has exactly one prediction or dead letter."""
        return not (self.twice or self.lost or self.unknown)


def settle(bus: Bus, pipeline: Pipeline) -> Settled:
    """Look up, for every event on its topic, how many predictions and dead letters name it."""
    topics, provenance = pipeline.topics, Provenance.of(pipeline)
    starts, ends = bus.start_offsets(topics.events), bus.end_offsets(topics.events)
    answers = [np.zeros(end - start, np.int64) for start, end in zip(starts, ends, strict=True)]
    found: Counter[str] = Counter()
    unknown = 0
    for topic in (topics.predictions, topics.dead_letters):
        decode = codec_of(pipeline, topic).decoder(provenance.record_type(topic))
        for message in map(decode, all_messages(bus, topic)):
            if message.topic != topics.events:
                continue
            found[topic] += 1
            partition, place = message.partition, message.offset - starts[message.partition]
            if 0 <= place < len(answers[partition]):
                answers[partition][place] += 1
            else:
                unknown += 1
    wrong = [
        (p, int(at) + starts[p]) for p, a in enumerate(answers) for at in np.flatnonzero(a != 1)
    ]
    return Settled(
        events=sum(map(len, answers)),
        predictions=found[topics.predictions],
        dead_letters=found[topics.dead_letters],
        twice=sum(int((each > 1).sum()) for each in answers),
        lost=sum(int((each == 0).sum()) for each in answers),
        unknown=unknown,
        first=min(wrong, default=None),
    )
