"""Prometheus metrics of a worker, right across worker processes.

Counting is plain additions; twice a second they are brought into the metrics, since one update of a
Prometheus metric costs as much as an event.

With several processes every worker writes into files of the directory that
``PROMETHEUS_MULTIPROC_DIR`` names, and the supervisor serves their sum (prometheus_client's
multi-process mode). With one, the process serves its own.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

from anabranch.dataflows.batch.batch import Batch, RawBatch
from anabranch.dataflows.batch.outgoing import Outgoing
from anabranch.dataflows.sink.encoder import Results
from anabranch.dataflows.source.event_time_merge import AlignedReader
from anabranch.dataflows.telemetry.drift import ShiftMetrics
from anabranch.dataflows.telemetry.http_server import HEARTBEAT, READY
from anabranch.dataflows.telemetry.latency import UNDER_LOAD, LatencyMetrics, observe_many
from anabranch.dataflows.telemetry.rollouts import RolloutMetrics
from anabranch.dataflows.telemetry.state import StateMetrics
from anabranch.models.prequential.outcome import ASSUMED_LABEL, Outcome

if TYPE_CHECKING:
    from anabranch.models.metrics.sliced_metrics import Report

FLUSH_EVERY_S = 0.5
_NEVER_MS = -(2**62)
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class WorkerMetrics:
    """What one worker tells of itself. ``registry`` is for tests; by default a new one.

    What it tells of rollouts is in `rollouts`, of distributions in `shifts`, of time in `latency`,
    of what is remembered in `state`.
    """

    def __init__(self, pipeline: str, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.rollouts = RolloutMetrics(pipeline, self.registry)
        self.shifts = ShiftMetrics(pipeline, self.registry)
        self.latency = LatencyMetrics(pipeline, self.registry)
        self.state = StateMetrics(pipeline, self.registry)
        self._pipeline = pipeline
        self._clock = time.monotonic
        self._flush_at = 0.0
        self._counts: Tally[str] = Tally()
        self._dead_counts: Tally[str] = Tally()
        self._batch_rows: list[int] = []
        # Of every batch, so plain numbers.
        self._events = self._published = self._learned = 0
        self._label_counts: Tally[str] = Tally()
        self._newest_ms = _NEVER_MS
        self._tellers: list[Callable[[], None]] = []
        self._window_sizes: dict[str, dict[object, tuple[int, int]]] = {}
        self._make_counters()
        self._rows = Histogram(
            "anabranch_batch_rows", "Messages in a batch" + UNDER_LOAD, ("pipeline",),
            registry=self.registry, buckets=_ROWS,
        )  # fmt: skip
        self._make_gauges()

    def _make_counters(self) -> None:
        self._counters = {
            "events": self._counter("anabranch_events", "Events read, good and bad"),
            "labels": self._counter("anabranch_labels", "Labels read, good and bad"),
            "predictions": self._counter("anabranch_predictions", "Predictions published"),
            "learned": self._counter("anabranch_learned", "Labels that a model has learned"),
            "suspect": self._counter(
                "anabranch_quarantined_labels",
                "Labels that were scored, not learned: suspect",
            ),
        }
        self._dead = self._counter("anabranch_dead_letters", "Unusable messages", "reason")
        self._outcomes = self._counter(
            "anabranch_label_outcomes", "What became of predictions' labels", "outcome"
        )
        for counter in self._counters.values():
            counter.labels(self._pipeline)  # 0: the first one is an increase
        self._drift = self._counter(
            "anabranch_drift_signals", "Changes seen", "subject", "severity"
        )
        self._late = self._counter(
            "anabranch_inexact_rows", "Rows later than what their windows still remember", "entity"
        )

    def _make_gauges(self) -> None:
        self._lag = self._gauge(
            "anabranch_lag_messages", "Messages not yet read", "topic", "partition"
        )
        self._quality = self._gauge(
            "anabranch_prequential", "Quality on labels so far", "model", "metric"
        )
        self._slice_quality = self._gauge(
            "anabranch_slice_prequential",
            "Quality on labels so far, by slice",
            *("model", "metric", "slice", "value"),
        )
        self._slice_labels = self._gauge(
            "anabranch_slice_labels", "Labels so far, by slice", "slice", "value"
        )
        self._segments = self._gauge(
            "anabranch_model_segments", "Segments with a model of their own"
        )
        self._shared = self._gauge(
            "anabranch_shared_segment_labels", "Labels of segments without a model of their own"
        )
        self._keys = self._gauge("anabranch_window_keys", "Keys with events in windows", "entity")
        self._bytes = self._gauge("anabranch_window_bytes", "Bytes of window state", "entity")
        self._heartbeat = Gauge(
            HEARTBEAT, "When the worker reported that is silent for the longest, since 1970",
            ("pipeline",), registry=self.registry, multiprocess_mode="livemin",
        )  # fmt: skip
        self._ready = Gauge(
            READY, "Workers that have taken up their state and read", ("pipeline",),
            registry=self.registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._event_time = self._gauge(
            "anabranch_event_time_seconds", "Greatest event time admitted, seconds since 1970"
        )

    def ask(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` at every flush: it sets the figures that only its owner knows."""
        self._tellers.append(tell)

    def flush_if_due(self) -> None:
        """Flush when it is time (twice a second)."""
        if self._clock() >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        """Bring what was counted since the last time into the metrics."""
        for tell in self._tellers:
            tell()
        self._heartbeat.labels(self._pipeline).set(time.time())
        self._ready.labels(self._pipeline).set(1)
        pipeline, counts = self._pipeline, self._counts
        counts["events"], counts["learned"] = self._events, self._learned
        counts["predictions"] = self._published
        self._events = self._learned = self._published = 0
        self._flush_at = self._clock() + FLUSH_EVERY_S
        for reason, count in self._dead_counts.items():
            self._dead.labels(pipeline, reason).inc(count)
        for outcome, count in self._label_counts.items():
            self._outcomes.labels(pipeline, outcome).inc(count)
        observe_many(self._rows.labels(pipeline), np.array(self._batch_rows, np.float64))
        self.latency.flush()
        for name, counter in self._counters.items():
            if counts[name]:
                counter.labels(pipeline).inc(counts[name])
        self._batch_rows.clear()
        self._label_counts.clear()
        if self._newest_ms > _NEVER_MS:
            self._event_time.labels(pipeline).set(self._newest_ms / 1000)
        counts.clear()
        self._dead_counts.clear()

    def on_batch(self, raw: RawBatch, batch: Batch) -> None:
        """A batch was read, decoded and admitted."""
        self._events += len(raw.events.values)
        if raw.labels.values:
            self._counts["labels"] += len(raw.labels.values)
        for letter in batch.dead:
            self._dead_counts[letter.reason] += 1
        if self.latency.timed:
            rows = len(raw.events.values) + len(raw.labels.values) + len(raw.controls.values)
            self._batch_rows.append(rows)
            self.latency.on_admitted(batch.times, self._newest_ms)
        if batch.rows.values and batch.span[1] > self._newest_ms:
            self._newest_ms = batch.span[1]

    def on_lag(self, reader: AlignedReader) -> None:
        """Tell how many messages are waiting, by topic partition."""
        for at, lag in reader.lag().items():
            self._lag.labels(self._pipeline, at.topic, str(at.partition)).set(lag)

    def on_windows(
        self, shard: object, entity: str, keys: int, nbytes: int, late_rows: int
    ) -> None:
        """How the windows of one shard stand; ``late_rows`` is how many more rows came too late."""
        sizes = self._window_sizes.setdefault(entity, {})
        sizes[shard] = keys, nbytes
        self._keys.labels(self._pipeline, entity).set(sum(each[0] for each in sizes.values()))
        self._bytes.labels(self._pipeline, entity).set(sum(each[1] for each in sizes.values()))
        if late_rows:
            self._late.labels(self._pipeline, entity).inc(late_rows)

    def on_results(self, results: Results, learned: int, suspect: int = 0) -> None:
        """The model step has worked through a batch and scored so many labels.

        Those that are ``suspect`` were not learned.
        """
        self._learned += learned - suspect
        if suspect:
            self._counts["suspect"] += suspect
        for letter in results.dead:
            self._dead_counts[letter.reason] += 1
        for signal in results.signals:
            self._drift.labels(self._pipeline, signal.subject, signal.severity).inc()
        if results.decisions:
            self.rollouts.on_decisions(results.decisions)

    def on_monitors(self, subjects: Iterable[str]) -> None:
        """These are watched, and nothing was seen yet."""
        for subject in subjects:
            self._drift.labels(self._pipeline, subject, "drift")

    def on_labels(self, outcome: Outcome) -> None:
        """What became of labels on a topic of their own, and of waits that are over."""
        learned, counts = outcome.learned, self._label_counts
        came = learned.label != ASSUMED_LABEL
        self.latency.on_delays(learned.delays[came])
        found = {
            "label": int(came.sum()),
            "assumed": int(len(came) - came.sum()),
            "dropped": outcome.dropped,
            "corrected": len(outcome.corrected or ()),
            "confirmed": outcome.confirmed,
            "held": outcome.buffered,
        }
        for what, count in found.items():
            if count:
                counts[what] += count

    def on_quality(self, quality: Mapping[tuple[str, str], float]) -> None:
        """How good the models are, by model and metric name."""
        for (model, name), value in quality.items():
            self._quality.labels(self._pipeline, model, name).set(value)

    def on_slices(self, report: Report) -> None:
        """How good predictions are by slice."""
        for name, values in report.items():
            for value, told in values.items():
                self._slice_labels.labels(self._pipeline, name, value).set(told["labels"])
                for model, quality in told["quality"].items():
                    for metric, number in quality.items():
                        gauge = self._slice_quality.labels(
                            self._pipeline, model, metric, name, value
                        )
                        gauge.set(number)

    def on_segments(self, report: Mapping[str, Mapping[str, Any]]) -> None:
        """How many segments have a model; see `models.learners.segments`."""
        told = report.values()
        self._segments.labels(self._pipeline).set(sum(each["own"] for each in told))
        shared = sum(each["labels"] for each in told if not each["own"])
        self._shared.labels(self._pipeline).set(shared)

    def on_written(self, outgoing: Outgoing, now: float) -> None:
        """Messages were handed to the bus."""
        published = len(outgoing.published)
        if published:
            self._published += published
            if self.latency.timed:
                self.latency.on_written(outgoing, now)
        if self._clock() >= self._flush_at:
            self.flush()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ("pipeline", *labels), registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        mode: Any = "livesum" if name in _SUMMED else "mostrecent"
        return Gauge(
            name, text, ("pipeline", *labels), registry=self.registry, multiprocess_mode=mode
        )


_SUMMED = {"anabranch_lag_messages", "anabranch_window_keys", "anabranch_window_bytes"}


def shared_registry(directory: str) -> CollectorRegistry:
    """The registry that sums up all workers which write into ``directory``."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=directory)  # type: ignore[no-untyped-call]
    return registry
