"""Where the time of the hot path goes: each stage on its own, in one process, no engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.sink.encoder import Encoder
from anabranch.dataflows.source.decoder import BatchDecoder
from anabranch.dataflows.source.event_time_merge import MergedReader
from anabranch.dataflows.source.late_and_duplicate import LateAndDuplicateFilter
from anabranch.dataflows.steps.model_step import ModelStep
from anabranch.dataflows.steps.window_step import WindowStep
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.state.keys.slots import KeySlots

Made = TypeVar("Made")
STAGES = ("read", "decode", "admit", "keys", "windows", "model", "encode")


def stage_costs(
    pipeline: Pipeline, messages: list[bytes], start_ms: int, every_ms: int
) -> dict[int, dict[str, float]]:
    """Batch size → stage → µs per event; the second of two rounds, so that all is compiled."""
    found: dict[int, dict[str, float]] = {}
    for batch in (1000, 10):
        part = messages if batch == 1000 else messages[: len(messages) // 4]
        _round(pipeline, part[: 20 * batch], start_ms, every_ms, batch)
        found[batch] = _round(pipeline, part, start_ms, every_ms, batch)
    return found


def _round(
    pipeline: Pipeline, messages: list[bytes], start_ms: int, every_ms: int, batch: int
) -> dict[str, float]:
    bus = MemoryBus()
    topic = pipeline.topics.events
    bus.create_topics({topic: 1})
    times = start_ms + every_ms * np.arange(len(messages))
    bus.publisher().append(topic, messages, times=times)
    reader = MergedReader(bus, [topic], worker_id="0", limit=batch)
    reader.add({TopicPartition(topic, 0): 0})
    metrics = WorkerMetrics(pipeline.name)
    decoder, encoder = BatchDecoder(pipeline), Encoder(pipeline)
    late_filter = LateAndDuplicateFilter(pipeline.allowed_lateness, pipeline.dedup_window)
    windows, models = WindowStep(pipeline, metrics), ModelStep(pipeline, metrics)
    keys = {entity: KeySlots() for entity in pipeline.entities}
    clock = _Clock()
    while (raw := clock("read", reader.read)) is not None:
        rows = clock("decode", lambda raw=raw: decoder.decode(raw))  # type: ignore[misc]
        rows = clock("admit", lambda rows=rows: late_filter.apply(rows))  # type: ignore[misc]
        for entity, slots in keys.items():  # the look-ups alone, which windows repeats
            clock("keys", lambda s=slots, e=entity, r=rows: s.slots(r.columns[e]))  # type: ignore[misc]
        clock("windows", lambda rows=rows: windows.fill(rows))  # type: ignore[misc]
        result = clock("model", lambda rows=rows: models.process(rows))  # type: ignore[misc]
        clock("encode", lambda result=result: encoder([("0", result)]))  # type: ignore[misc]
    costs = {name: clock.spent[name] / len(messages) * 1e6 for name in STAGES}
    costs["windows"] -= costs["keys"]
    return {**costs, "engine and delivery": 0.0}


class _Clock:
    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Made]) -> Made:
        start = time.perf_counter()
        made = work()
        self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - start
        return made
