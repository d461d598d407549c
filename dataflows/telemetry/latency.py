"""Prometheus metrics of time: how late events are, how long they take, and in which step."""

from __future__ import annotations

import time
from array import array
from typing import Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Histogram

from anabranch.dataflows.batch.output_records import OutputRecords
from anabranch.dataflows.telemetry.latency_kernels import count_late, count_written
from anabranch.state.compile import entry
from anabranch.state.durations import parse_duration_ms

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

SECONDS: Final = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 60.0, 600.0, 3600.0, 86400.0,
)  # fmt: skip
STEPS: Final = ("read", "decode", "windows", "models", "encode", "publish")
_OF_STEPS = (0.00001, 0.00002, 0.00005, *SECONDS[:-5])
_LATE = (0.0, 0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0)
_DELAYS = tuple(
    parse_duration_ms(each) / 1000
    for each in (
        "1s", "10s", "1m", "5m", "10m", "30m", "1h", "3h", "6h", "12h", "1d", "2d", "4d", "7d",
        "14d", "30d",
    )
)  # fmt: skip
UNDER_LOAD: Final = " (above 200 batches a second, of one in 16)"
_MANY = 100  # between two flushes, which are half a second apart
_ONE_IN = 16


class LatencyMetrics:
    """Counts by plain arrays, which `flush` brings into the metrics.

    Attributes:
        timed: whether times are told of the batch under way. The first `_MANY` after a flush are,
            and then one in `_ONE_IN`: to tell of all would take longer than some rows.
    """

    def __init__(self, pipeline: str, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            names = ("pipeline", *labels)
            return Histogram(name, text, names, registry=registry, buckets=buckets)

        self._pipeline = pipeline
        self._since = [
            histogram(
                "anabranch_latency_seconds",
                "From a message's time to its prediction published" + UNDER_LOAD,
                SECONDS,
            ),
            histogram(
                "anabranch_event_latency_seconds",
                "From an event's own time to its prediction published" + UNDER_LOAD,
                SECONDS,
            ),
            histogram(
                "anabranch_processing_seconds",
                "From read to prediction published" + UNDER_LOAD,
                SECONDS,
            ),
        ]
        self._steps = histogram(
            "anabranch_step_seconds",
            "A batch in one step of its way" + UNDER_LOAD,
            _OF_STEPS,
            "step",
        )
        self._late = histogram(
            "anabranch_lateness_seconds",
            "Event time behind the newest of its worker" + UNDER_LOAD,
            _LATE,
        )
        self._delay = histogram(
            "anabranch_label_delay_seconds", "From an event's time to its label's", _DELAYS
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
        """A batch sets out."""
        self._batches += 1
        self.timed = self._batches <= _MANY or self._batches % _ONE_IN == 0

    def spent(self, step: str, since: float) -> float:
        """The batch under way leaves a step of `STEPS` that it entered then; now (perf_counter)."""
        now = time.perf_counter()
        self._spent[step].append(now - since)
        return now

    def on_admitted(self, times: I64, newest_ms: int) -> None:
        """Events were admitted, with their times; behind the newest before them (ms)."""
        self._late_sum += count_late(times, newest_ms, self._late_bounds, self._late_counts)

    def on_written(self, outgoing: OutputRecords, now: float) -> None:
        """Predictions were handed to the bus."""
        self._count_written(
            outgoing.published, outgoing.event_times, now, now - outgoing.read_at, self._bounds,
            self._counts, self._sums,
        )  # fmt: skip

    def on_delays(self, delays_ms: I64) -> None:
        """Labels came so long after their events."""
        self._delays_ms.append(delays_ms)

    def flush(self) -> None:
        """Bring what was counted into the metrics."""
        pipeline = self._pipeline
        self._batches = 0
        if self._counts[0].any():
            for histogram, counts, total in zip(
                self._since, self._counts, self._sums.tolist(), strict=True
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
    """Observe every value, at the cost of one observation per bucket that is hit."""
    bounds = np.array(histogram._upper_bounds)
    places = np.minimum(np.searchsorted(bounds, values), len(bounds) - 1)
    counts = np.bincount(places, minlength=len(bounds)).astype(np.float64)
    add_counts(histogram, counts, float(values.sum()))


def add_counts(histogram: Histogram, counts: F64, total: float) -> None:
    """Observe values that are counted by bucket already, and their sum."""
    for bucket, count in enumerate(counts.tolist()):
        if count:
            histogram._buckets[bucket].inc(count)
    histogram._sum.inc(total)
