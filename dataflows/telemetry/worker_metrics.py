"""Prometheus metrics of a worker, summed over worker processes.

Counting is plain additions, which are added to the metrics twice a second, since one update of a
Prometheus metric costs as much as an event.

With several processes every worker writes into files of the directory that
``PROMETHEUS_MULTIPROC_DIR`` names, and the supervisor serves their sum (prometheus_client's
multi-process mode). A single process serves its own.
"""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

from anabranch.dataflows.batch.batch import Batch, RawBatch
from anabranch.dataflows.batch.output_records import OutputRecords
from anabranch.dataflows.batch.results import Results
from anabranch.dataflows.bus.protocol import TopicPartition
from anabranch.dataflows.messages.inputs import OTHER_FIELDS
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.telemetry.drift import DriftMetrics
from anabranch.dataflows.telemetry.http_server import HEARTBEAT, READY, UPTIME
from anabranch.dataflows.telemetry.latency import SAMPLED, LatencyMetrics, observe_many
from anabranch.dataflows.telemetry.rollouts import RolloutMetrics
from anabranch.dataflows.telemetry.state import StateMetrics
from anabranch.models.prequential.outcome import ASSUMED_LABEL, Outcome

if TYPE_CHECKING:
    from anabranch.models.metrics.sliced_metrics import Report

FLUSH_EVERY_S = 0.5
_NEVER_MS = -(2**62)
_MOST_UNKNOWN_NAMES = 50  # of a topic
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class WorkerMetrics:
    """The metrics of one worker.

    Args:
        pipeline: its name, a label of every metric.
        registry: where they are registered; by default a new one.

    Attributes:
        rollouts, drift, latency, state: the metrics of those.
    """

    def __init__(self, pipeline: str, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.rollouts = RolloutMetrics(pipeline, self.registry)
        self.drift = DriftMetrics(pipeline, self.registry)
        self.latency = LatencyMetrics(pipeline, self.registry)
        self.state = StateMetrics(pipeline, self.registry)
        self._pipeline = pipeline
        self._clock = time.monotonic
        self._flush_at = 0.0
        self._counts: Counts[str] = Counts()
        self._dead_counts: Counts[str] = Counts()
        self._unknown_counts: Counts[tuple[str, str]] = Counts()
        self._unknown_names: dict[str, set[str]] = {}
        self._batch_rows: list[int] = []
        # Added to at every batch, so plain numbers.
        self._events = self._published = self._learned = 0
        self._label_counts: Counts[str] = Counts()
        self._newest_ms = _NEVER_MS
        self._reporters: list[Callable[[], None]] = []
        self._final_reporters: list[Callable[[], None]] = []
        self._window_sizes: dict[str, dict[object, tuple[int, int]]] = {}
        self._make_counters()
        self._rows = Histogram(
            "anabranch_batch_rows", "Messages in a batch" + SAMPLED, ("pipeline",),
            registry=self.registry, buckets=_ROWS,
        )  # fmt: skip
        self._make_gauges()

    def _make_counters(self) -> None:
        self._counters = {
            "events": self._counter("anabranch_events", "Events read, invalid ones included"),
            "labels": self._counter("anabranch_labels", "Labels read, invalid ones included"),
            "predictions": self._counter("anabranch_predictions", "Predictions published"),
            "learned": self._counter("anabranch_learned_labels", "Labels that models have learned"),
            "quarantined": self._counter(
                "anabranch_quarantined_labels",
                "Labels that were scored but not learned, their events being in quarantine",
            ),
        }
        self._dead = self._counter(
            "anabranch_dead_letters", "Messages that could not be used, by reason", "reason"
        )
        self._unknown = self._counter(
            "anabranch_unknown_fields",
            "Fields of messages that their type does not declare, which are ignored",
            *("topic", "field"),
        )
        self._filtered = self._counter(
            "anabranch_filtered_messages",
            "Messages that were skipped: not selected by a filter, or tombstones",
            "topic",
        )
        self._outcomes = self._counter(
            "anabranch_label_outcomes",
            "Predictions whose label came, or timed out, and labels that came early or late",
            "outcome",
        )
        for counter in self._counters.values():
            counter.labels(self._pipeline)  # at 0, so that the first one is an increase
        self._drift_signals = self._counter(
            "anabranch_drift_signals", "Messages on the drift topic", "subject", "severity"
        )
        self._late = self._counter(
            "anabranch_late_beyond_retention",
            "Events so late that part of their windows had expired: features may be too low",
            "entity",
        )

    def _make_gauges(self) -> None:
        self._lag = self._gauge(
            "anabranch_lag_messages", "Messages not read yet", "topic", "partition"
        )
        self._unread_partitions = self._gauge(
            "anabranch_unread_partitions",
            "Partitions that were added to an input topic since the run started, and are read "
            "from its next start on",
            "topic",
        )
        self._quality = self._gauge(
            "anabranch_model_quality",
            "Prequential metric over all labels so far",
            *("model", "metric"),
        )
        self._slice_quality = self._gauge(
            "anabranch_slice_quality",
            "Prequential metric over all labels of a slice so far",
            *("model", "metric", "slice", "value"),
        )
        self._slice_labels = self._gauge(
            "anabranch_slice_labels", "Labels so far, by slice", "slice", "value"
        )
        self._segments = self._gauge(
            "anabranch_model_segments", "Segments that have a model of their own"
        )
        self._shared = self._gauge(
            "anabranch_shared_segment_labels", "Labels of segments without a model of their own"
        )
        self._keys = self._gauge("anabranch_window_keys", "Keys with events in windows", "entity")
        self._bytes = self._gauge("anabranch_window_bytes", "Bytes of window state", "entity")
        self._heartbeat = Gauge(
            HEARTBEAT, "Unix time of the last report of the worker that is silent for longest",
            ("pipeline",), registry=self.registry, multiprocess_mode="livemin",
        )  # fmt: skip
        self._uptime = Gauge(
            UPTIME, "Seconds since the host was started, at that report; clocks that are set don't "
            "move it", ("pipeline",), registry=self.registry, multiprocess_mode="livemin",
        )  # fmt: skip
        self._ready = Gauge(
            READY, "Workers that have restored their state and started to read", ("pipeline",),
            registry=self.registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._time_unit = Gauge(
            "anabranch_unlikely_time_unit",
            "1 if the times of a topic would be of today in this unit, not in the declared one",
            ("pipeline", "topic", "unit"), registry=self.registry, multiprocess_mode="max",
        )  # fmt: skip
        self._unjoined = Gauge(
            "anabranch_unjoined_label",
            "1 for the id of a label that had found no event when the run ended, and for that of "
            "an event beside it", ("pipeline", "label_id", "event_id"), registry=self.registry,
            multiprocess_mode="max",
        )  # fmt: skip
        self._event_time = self._gauge(
            "anabranch_event_timestamp_seconds", "Greatest event time so far, as Unix time"
        )

    def add_reporter(self, report: Callable[[], None]) -> None:
        """Call ``report`` before every flush, to set what is not counted batch by batch."""
        self._reporters.append(report)

    def add_final_reporter(self, report: Callable[[], None]) -> None:
        """Call ``report`` when the run has ended, before the last flush."""
        self._final_reporters.append(report)

    def finish(self) -> None:
        """Flush for the last time."""
        for report in self._final_reporters:
            report()
        self.flush()

    def flush_if_due(self) -> None:
        """Flush when it is time (twice a second)."""
        if self._clock() >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        """Add what was counted since the last time to the metrics."""
        for report in self._reporters:
            report()
        self._heartbeat.labels(self._pipeline).set(time.time())
        self._uptime.labels(self._pipeline).set(time.monotonic())
        self._ready.labels(self._pipeline).set(1)
        pipeline, counts = self._pipeline, self._counts
        counts["events"], counts["learned"] = self._events, self._learned
        counts["predictions"] = self._published
        self._events = self._learned = self._published = 0
        self._flush_at = self._clock() + FLUSH_EVERY_S
        for reason, count in self._dead_counts.items():
            self._dead.labels(pipeline, reason).inc(count)
        for (topic, name), count in self._unknown_counts.items():
            self._unknown.labels(pipeline, topic, name).inc(count)
        self._unknown_counts.clear()
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
        """Count a batch that was read and decoded."""
        self._events += len(raw.events.values)
        if raw.labels.values:
            self._counts["labels"] += len(raw.labels.values)
        for letter in batch.dead_letters:
            self._dead_counts[letter.reason] += 1
        if self.latency.timed:
            rows = len(raw.events.values) + len(raw.labels.values) + len(raw.controls.values)
            self._batch_rows.append(rows)
            self.latency.on_admitted(batch.times, self._newest_ms)
        if batch.rows.values and batch.span[1] > self._newest_ms:
            self._newest_ms = batch.span[1]

    def on_lag(self, lag: Mapping[TopicPartition, int]) -> None:
        """Set how many messages are not read yet, by topic partition."""
        for at, messages in lag.items():
            self._lag.labels(self._pipeline, at.topic, str(at.partition)).set(messages)

    def on_time_unit(self, topic: str, unit: str) -> None:
        """Tell that the times of a topic seem to be in this unit, not in the declared one."""
        self._time_unit.labels(self._pipeline, topic, unit).set(1)

    def on_filtered(self, topic: str, count: int) -> None:
        """Count messages of a topic that were none of the pipeline's, and skipped."""
        self._filtered.labels(self._pipeline, topic).inc(count)

    def on_unknown_fields(self, topic: str, counts: Mapping[str, int]) -> None:
        """Count fields that are ignored, by name up to a number of names."""
        names = self._unknown_names.setdefault(topic, set())
        for name, count in counts.items():
            if name not in names and len(names) >= _MOST_UNKNOWN_NAMES:
                name = OTHER_FIELDS
            names.add(name)
            self._unknown_counts[topic, name] += count

    def on_unjoined_label(self, label_id: str, event_id: str) -> None:
        """Tell of a label that found no event, beside an event."""
        self._unjoined.labels(self._pipeline, label_id, event_id).set(1)

    def on_unread_partitions(self, topic: str, partitions: int) -> None:
        """Set how many partitions were added to a topic, which this run does not read."""
        self._unread_partitions.labels(self._pipeline, topic).set(partitions)

    def on_windows(
        self, shard: object, entity: str, keys: int, nbytes: int, late_rows: int
    ) -> None:
        """Set the size of a shard's windows; ``late_rows`` more rows came too late for them."""
        sizes = self._window_sizes.setdefault(entity, {})
        sizes[shard] = keys, nbytes
        self._keys.labels(self._pipeline, entity).set(sum(each[0] for each in sizes.values()))
        self._bytes.labels(self._pipeline, entity).set(sum(each[1] for each in sizes.values()))
        if late_rows:
            self._late.labels(self._pipeline, entity).inc(late_rows)

    def on_results(self, results: Results, scored: int, quarantined: int = 0) -> None:
        """Count what the model step made of a batch: so many labels were scored.

        Those in quarantine were not learned.
        """
        self._learned += scored - quarantined
        if quarantined:
            self._counts["quarantined"] += quarantined
        for letter in results.dead_letters:
            self._dead_counts[letter.reason] += 1
        for signal in results.signals:
            self._drift_signals.labels(self._pipeline, signal.subject, signal.severity).inc()
        if results.decisions:
            self.rollouts.on_decisions(results.decisions)

    def on_dead_letters(self, letters: Iterable[DeadLetter]) -> None:
        """Count dead letters that come neither with a batch nor with results."""
        for letter in letters:
            self._dead_counts[letter.reason] += 1

    def on_monitors(self, subjects: Iterable[str]) -> None:
        """Create the series of all subjects, so that the first signal is an increase."""
        for subject in subjects:
            self._drift_signals.labels(self._pipeline, subject, "drift")

    def on_labels(self, outcome: Outcome) -> None:
        """Count the labels of a topic of their own, and the timeouts of predictions."""
        learned, counts = outcome.learned, self._label_counts
        came = learned.label != ASSUMED_LABEL
        self.latency.on_delays(learned.delays[came])
        outcomes = {
            "learned": int(came.sum()),
            "defaulted": int(len(came) - came.sum()),
            "expired": outcome.dropped,
            "updated": len(outcome.corrected or ()),
            "confirmed": outcome.confirmed,
            "buffered": outcome.buffered,
        }
        for name, count in outcomes.items():
            if count:
                counts[name] += count

    def on_quality(self, quality: Mapping[tuple[str, str], float]) -> None:
        """Set the quality of models, by model and metric name."""
        for (model, name), value in quality.items():
            self._quality.labels(self._pipeline, model, name).set(value)

    def on_slices(self, report: Report) -> None:
        """Set the quality of models by slice."""
        for name, values in report.items():
            for value, figures in values.items():
                self._slice_labels.labels(self._pipeline, name, value).set(figures["labels"])
                for model, quality in figures["quality"].items():
                    for metric, number in quality.items():
                        gauge = self._slice_quality.labels(
                            self._pipeline, model, metric, name, value
                        )
                        gauge.set(number)

    def on_segments(self, report: Mapping[str, Mapping[str, Any]]) -> None:
        """Set how many segments have a model; see `models.learners.segments`."""
        segments = report.values()
        self._segments.labels(self._pipeline).set(sum(each["own"] for each in segments))
        shared = sum(each["labels"] for each in segments if not each["own"])
        self._shared.labels(self._pipeline).set(shared)

    def on_written(self, outgoing: OutputRecords, now: float) -> None:
        """Count messages that were handed to the bus at ``now`` (seconds)."""
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
    """The registry that sums the metrics of all workers that write into ``directory``."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=directory)  # type: ignore[no-untyped-call]
    return registry
