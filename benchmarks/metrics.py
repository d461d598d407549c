"""The cost of metrics: the hot path with and without them.

How such a comparison can mislead, and what is done about it:

* A few percent are less than the noise of a machine. Both sides take turns, many times, and the
  best time of each counts.
* Metrics that are not scraped. A thread scrapes them every second; a common interval is 15 s.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import generate_latest

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from benchmarks.hotpath import make_messages, make_pipeline, timed
from benchmarks.prepared import Discard, PreparedBus
from benchmarks.report import Report, Target

BATCHES = (10, 100, 1000)
_SCRAPE_S = 1.0


class Mute(WorkerMetrics):
    """Metrics whose methods all do nothing."""

    def __init__(self, pipeline: str) -> None:
        super().__init__(pipeline)
        self.latency.timed = False
        self.latency.next_batch = _nothing  # type: ignore[method-assign]
        self.on_batch = self.on_results = self.on_written = _nothing  # type: ignore[method-assign]
        self.flush_if_due = self.flush = _nothing  # type: ignore[method-assign]


def _nothing(*_: Any) -> None:
    """Does nothing, in place of any method."""


def seconds(pipeline: Pipeline, messages: list[bytes], batch: int, muted: bool) -> float:
    """Seconds that the hot path takes over the messages."""
    metrics = (Mute if muted else WorkerMetrics)(pipeline.name)
    bus = PreparedBus(pipeline, messages, Discard())
    options = SourceOptions(limit=batch, until_end=True)
    with _scraped(metrics, muted):
        return timed(lambda: run_worker(pipeline, bus, options, metrics=metrics))


@contextmanager
def _scraped(metrics: WorkerMetrics, muted: bool) -> Iterator[None]:
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(_SCRAPE_S):
            generate_latest(metrics.registry)

    thread = threading.Thread(target=scrape, daemon=True)
    if not muted:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if not muted:
            thread.join()


def run(quick: bool) -> Report:
    """Compare the two."""
    rounds = 8 if quick else 24
    pipeline = make_pipeline()
    messages = make_messages(200_000, cards=1000, merchants=300)
    best: dict[tuple[int, bool], float] = {}
    for turn in range(rounds):
        for batch in BATCHES:
            part = messages[: len(messages) // (2 if batch == 10 else 1)]
            for muted in (True, False) if turn % 2 else (False, True):
                us = seconds(pipeline, part, batch, muted) / len(part) * 1e6
                best[batch, muted] = min(best.get((batch, muted), us), us)
    rows = [
        {"µs per event": label, **{f"batch {b}": best[b, muted] for b in BATCHES}}
        for label, muted in (("with metrics", False), ("without", True))
    ]
    shares = {b: best[b, False] / best[b, True] for b in BATCHES}
    targets = [Target(f"with / without, batch {b}", shares[b], 1.03) for b in BATCHES[1:]]
    notes = [
        f"best of {rounds} rounds, in turns; scraped every {_SCRAPE_S:.0f} s",
        f"batch 10, some 20,000 batches a second: {shares[10]:.3f}; under load they are larger",
    ]
    return Report("metrics", rows, targets, notes)
