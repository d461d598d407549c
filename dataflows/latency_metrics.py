"""Prometheus metrics of time: how late events are, how long they take, and in which step."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Histogram

from dataflows.sink.outgoing import Outgoing
from state.durations import parse_duration_ms
from state.tally_bins import count_by_bounds

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

SECONDS = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 60.0, 600.0,
)  # fmt: skip
_STEPS = (0.00001, 0.00002, 0.00005, *SECONDS[:-2])
_LATE = (0.0, 0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0)
_DELAYS = tuple(
    parse_duration_ms(each) / 1000
    for each in (
        "1s", "10s", "1m", "5m", "10m", "30m", "1h", "3h", "6h", "12h", "1d", "2d", "4d", "7d",
        "14d", "30d",
    )
)  # fmt: skip
_MANY = 1000
_NEVER_MS = -(2**62)


class LatencyMetrics:
    """What is noted at each batch is kept in lists, and brought into the metrics by `flush`.

    Attributes:
        read, decode, windows, models, encode, publish: seconds that a batch took in that step, for
            its owner to append to where the batch is `timed`.
        timed: whether the batch under way is. All are, until more than a thousand come between two
            flushes: then one in sixteen.
    """

    def __init__(self, pipeline: str, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            names = ("pipeline", *labels)
            return Histogram(name, text, names, registry=registry, buckets=buckets)

        self._pipeline = pipeline
        self.timed, self._batches, self._every = True, 0, 1
        self.read = array("d")
        self.decode = array("d")
        self.windows = array("d")
        self.models = array("d")
        self.encode = array("d")
        self.publish = array("d")
        self._latency = histogram(
            "anabranch_latency_seconds",
            "From a message's time to its prediction published",
            SECONDS,
        )
        self._since_event = histogram(
            "anabranch_event_latency_seconds",
            "From an event's own time to its prediction published",
            (*SECONDS, 3600.0, 86400.0),
        )
        self._working = histogram(
            "anabranch_processing_seconds", "From read to prediction published", SECONDS
        )
        self._steps = histogram(
            "anabranch_step_seconds", "A batch in one step of its way", _STEPS, "step"
        )
        self._late = histogram(
            "anabranch_lateness_seconds", "Event time behind the newest event of its worker", _LATE
        )
        self._delay = histogram(
            "anabranch_label_delay_seconds", "From an event's time to its label's", _DELAYS
        )
        # Of what was written: times of messages and of events, and by item when, and after what.
        self._published: list[I64] = []
        self._event_times: list[I64] = []
        self._written_at, self._took = array("d"), array("d")
        self._times: list[I64] = []
        self._newest_ms = _NEVER_MS
        self._delays_ms: list[I64] = []

    def on_admitted(self, times: I64) -> None:
        """Events were admitted, with their times (ms)."""
        self._times.append(times)

    def next_batch(self) -> None:
        """A batch sets out."""
        self._batches += 1
        self.timed = self._every == 1 or self._batches % self._every == 0

    def on_written(self, outgoing: Outgoing, now: float) -> None:
        """Predictions were handed to the bus."""
        self._published.append(outgoing.published)
        self._event_times.append(outgoing.event_times)
        self._written_at.append(now)
        self._took.append(now - outgoing.read_at)

    def on_delays(self, delays_ms: I64) -> None:
        """Labels came so long after their events."""
        self._delays_ms.append(delays_ms)

    def flush(self) -> int:
        """Bring what was noted into the metrics; how many predictions were published."""
        count = self._flush_written()
        self._every = 1 if self._batches <= _MANY else 16
        self._batches = 0
        pipeline = self._pipeline
        if self._times:
            times = np.concatenate([[self._newest_ms], *self._times])
            newest = np.maximum.accumulate(times)
            observe_many(self._late.labels(pipeline), (newest - times)[1:] / 1000)
            self._newest_ms = int(newest[-1])
            self._times.clear()
        if self._delays_ms:
            observe_many(self._delay.labels(pipeline), np.concatenate(self._delays_ms) / 1000)
            self._delays_ms.clear()
        for step in ("read", "decode", "windows", "models", "encode", "publish"):
            seconds: array[float] = getattr(self, step)
            if seconds:
                observe_many(self._steps.labels(pipeline, step), np.array(seconds))
                del seconds[:]
        return count

    def _flush_written(self) -> int:
        if not self._published:
            return 0
        pipeline, rows = self._pipeline, list(map(len, self._published))
        now = np.repeat(self._written_at, rows)
        for histogram, arrays in (
            (self._latency, self._published), (self._since_event, self._event_times),
        ):  # fmt: skip
            times = np.concatenate(arrays)
            if len(times) == len(now):
                observe_many(histogram.labels(pipeline), now - times / 1000)
            arrays.clear()
        observe_many(self._working.labels(pipeline), np.repeat(self._took, rows))
        del self._written_at[:], self._took[:]
        return len(now)


def observe_many(histogram: Histogram, values: F64) -> None:
    """Observe every value, at the cost of one observation per bucket that is hit."""
    bounds = np.array(histogram._upper_bounds)
    counts = np.zeros(len(bounds))
    total = count_by_bounds(values, bounds, counts)
    for bucket, count in enumerate(counts.tolist()):
        if count:
            histogram._buckets[bucket].inc(count)
    histogram._sum.inc(total)
