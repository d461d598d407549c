"""Prometheus metrics of time: lateness of events, latency of predictions, time spent by step.

Times are counted into arrays of buckets as they come; nothing is kept of a batch.
"""

from __future__ import annotations

import time
from array import array
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry, Histogram

from anabranch.dataflows.batch.output_records import OutputRecords
from anabranch.state.compile import F64, I64, entry, inlined, kernel
from anabranch.state.durations import parse_duration_ms

SECONDS: Final = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 60.0, 600.0, 3600.0, 86400.0,
)  # fmt: skip
STEPS: Final = ("read", "decode", "windows", "models", "encode", "publish")
_STEP_SECONDS = (0.00001, 0.00002, 0.00005, *SECONDS[:-5])
_LATE = (0.0, 0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0)
_DELAYS = tuple(
    parse_duration_ms(each) / 1000
    for each in (
        "1s", "10s", "1m", "5m", "10m", "30m", "1h", "3h", "6h", "12h", "1d", "2d", "4d", "7d",
        "14d", "30d",
    )
)  # fmt: skip
SAMPLED: Final = " (above 200 batches per second, 1 in 16 is sampled)"
_ALL_TIMED = 100  # batches between two flushes, which are half a second apart
_ONE_IN = 16


class LatencyMetrics:
    """Counts into plain arrays, which `flush` adds to the metrics.

    Attributes:
        timed: whether the current batch is timed. The first `_ALL_TIMED` after a flush are, and
            then one in `_ONE_IN`: to time all of them would cost as much as some rows.
    """

    def __init__(self, pipeline: str, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            names = ("pipeline", *labels)
            return Histogram(name, text, names, registry=registry, buckets=buckets)

        self._pipeline = pipeline
        self._latencies = [
            histogram(
                "anabranch_latency_seconds",
                "Seconds from publishing a message to publishing its prediction" + SAMPLED,
                SECONDS,
            ),
            histogram(
                "anabranch_event_latency_seconds",
                "Seconds from an event's own time to publishing its prediction" + SAMPLED,
                SECONDS,
            ),
            histogram(
                "anabranch_processing_seconds",
                "Seconds from reading an event to publishing its prediction" + SAMPLED,
                SECONDS,
            ),
        ]
        self._steps = histogram(
            "anabranch_step_seconds",
            "Seconds that a batch spends in each step" + SAMPLED,
            _STEP_SECONDS,
            "step",
        )
        self._late = histogram(
            "anabranch_lateness_seconds",
            "Seconds that events are behind the newest of their worker" + SAMPLED,
            _LATE,
        )
        self._delay = histogram(
            "anabranch_label_delay_seconds",
            "Seconds from an event's time to its label's",
            _DELAYS,
        )
        self.timed, self._batches = True, 0
        self._spent = {step: array("d") for step in STEPS}
        self._bounds = np.array([*SECONDS, np.inf])
        self._counts, self._sums = np.zeros((3, len(self._bounds))), np.zeros(3)
        self._late_bounds = np.array([*_LATE, np.inf])
        self._late_counts, self._late_sum = np.zeros(len(self._late_bounds)), 0.0
        self._delays_ms: list[I64] = []
        none = np.zeros(0, np.int64)
        self._count_written = entry(
            count_written, none, none, 0.0, 0.0, self._bounds, self._counts, self._sums
        )

    def next_batch(self) -> None:
        """Decide whether the batch that follows is timed."""
        self._batches += 1
        self.timed = self._batches <= _ALL_TIMED or self._batches % _ONE_IN == 0

    def spent(self, step: str, since: float) -> float:
        """Count the time that the batch spent in a step of `STEPS` since it entered it; now."""
        now = time.perf_counter()
        self._spent[step].append(now - since)
        return now

    def on_admitted(self, times: I64, newest_ms: int) -> None:
        """Count the lateness of events by their times, and the newest before them (ms)."""
        self._late_sum += count_late(times, newest_ms, self._late_bounds, self._late_counts)

    def on_written(self, outgoing: OutputRecords, now: float) -> None:
        """Count the latencies of predictions that were handed to the bus at ``now`` (seconds)."""
        self._count_written(
            outgoing.published, outgoing.event_times, now, now - outgoing.read_at, self._bounds,
            self._counts, self._sums,
        )  # fmt: skip

    def on_delays(self, delays_ms: I64) -> None:
        """Count the delays of labels behind their events."""
        self._delays_ms.append(delays_ms)

    def flush(self) -> None:
        """Add what was counted to the metrics."""
        pipeline = self._pipeline
        self._batches = 0
        if self._counts[0].any():
            for histogram, counts, total in zip(
                self._latencies, self._counts, self._sums.tolist(), strict=True
            ):
                add_counts(histogram.labels(pipeline), counts, total)
            self._counts[:], self._sums[:] = 0.0, 0.0
        if self._late_counts.any():
            add_counts(self._late.labels(pipeline), self._late_counts, self._late_sum)
            self._late_counts[:], self._late_sum = 0.0, 0.0
        if self._delays_ms:
            observe_many(self._delay.labels(pipeline), np.concatenate(self._delays_ms) / 1000)
            self._delays_ms.clear()
        for step, seconds in self._spent.items():
            if seconds:
                observe_many(self._steps.labels(pipeline, step), np.array(seconds))
                del seconds[:]


def observe_many(histogram: Histogram, values: F64) -> None:
    """Observe all values, at the cost of one observation for each bucket that is hit."""
    bounds = np.array(histogram._upper_bounds)
    buckets = np.minimum(np.searchsorted(bounds, values), len(bounds) - 1)
    counts = np.bincount(buckets, minlength=len(bounds)).astype(np.float64)
    add_counts(histogram, counts, float(values.sum()))


def add_counts(histogram: Histogram, counts: F64, total: float) -> None:
    """Observe values that are counted by bucket already, and their sum."""
    for bucket, count in enumerate(counts.tolist()):
        if count:
            histogram._buckets[bucket].inc(count)
    histogram._sum.inc(total)


@inlined
def _bucket(value: float, bounds: F64, at: int) -> int:
    """The first of the rising ``bounds`` that is not below a value; searched from ``at``."""
    last = bounds.size - 1
    while at < last and value > bounds[at]:
        at += 1
    while at > 0 and value <= bounds[at - 1]:
        at -= 1
    return at


@kernel
def count_written(
    published: I64, events: I64, now: float, took: float, bounds: F64, counts: F64, sums: F64
) -> int:
    """Count the latencies of predictions that were published at ``now`` (seconds) into buckets.

    Args:
        published: `(predictions,) int64` ms: when their messages were published.
        events: `(predictions,) int64` ms: their event times.
        now: seconds since 1970.
        took: seconds since their batch was read.
        bounds: `(buckets,) float64` seconds, rising to infinity.
        counts: `(3, buckets) float64`, added to: since messages, since events, and since read.
        sums: `(3,) float64` seconds, added to likewise.

    Returns:
        How many predictions there are.
    """
    at = before = 0
    for i in range(published.size):
        since = now - published[i] / 1000.0
        at = _bucket(since, bounds, at)
        counts[0, at] += 1.0
        sums[0] += since
    for i in range(events.size):
        since = now - events[i] / 1000.0
        before = _bucket(since, bounds, before)
        counts[1, before] += 1.0
        sums[1] += since
    counts[2, _bucket(took, bounds, 0)] += published.size
    sums[2] += took * published.size
    return published.size


@kernel
def count_late(times: I64, newest: int, bounds: F64, counts: F64) -> float:
    """Count how far event times (ms) are behind the ``newest`` before each; the sum in seconds."""
    total, at = 0.0, 0
    for i in range(times.size):
        newest = max(newest, times[i])
        late = (newest - times[i]) / 1000.0
        at = _bucket(late, bounds, at)
        counts[at] += 1.0
        total += late
    return total
