"""The window step: computes the features of entities, each shard from the state of its own keys.

With one worker a batch passes whole, and nothing is copied. With several, the source splits it by
shard: each shard gets only what it needs (keys, times, values), all of them work in parallel, and
the model step gathers the features again. One step serves all entities, since every operator that
a batch passes costs as much as several events do.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from bytewax.operators import StatefulBatchLogic

from anabranch.dataflows.batch.batch import MODELS, Batch, EntityRows, WorkerWatermark
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.recovery.state_partition import StatePartition, windows_partition
from anabranch.dataflows.recovery.tokens import StepState, Token, encode
from anabranch.dataflows.sharding.entity_windows import EntityWindows, ValueReader, run_in_threads
from anabranch.dataflows.sharding.router import Item, shard_of
from anabranch.dataflows.sharding.worker_watermarks import WorkerWatermarks
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.state.keys.hashing import keys_of
from anabranch.state.store.delta import Delta

if TYPE_CHECKING:
    from anabranch.dataflows.recovery.state_directory import StateDirectory

THREADS_FROM_ROWS = 2048
"""From so many rows on each entity gets a thread: below, starting them costs more."""


class WindowStep(StatefulBatchLogic[Item, Item, StepState]):
    """The window features of all entities, for one shard of their keys or for all.

    With several workers, rows of all of them meet here, and one may be far behind: a backlog is
    only aligned within a worker. So windows expire by the watermark of the slowest; until each
    worker has reported one, for a minute at most, not at all.

    Args:
        pipeline: what it runs.
        metrics: of this worker.
        workers: how many there are.
        state: where it is stored; None in a run that keeps none.
        token: the generation to resume from; None in a new state, where the first item says for
            which shard this step is.
        readers: how many workers send rows here; None: all.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        metrics: WorkerMetrics,
        workers: int = 1,
        state: StateDirectory | None = None,
        token: Token | None = None,
        readers: int | None = None,
    ) -> None:
        self._by_shard = workers > 1
        self._watermarks = WorkerWatermarks(readers or workers)
        self._pipeline = pipeline
        self._entities = list(pipeline.entities)
        fields = pipeline.schema.fields
        self._nullable = {entity for entity in self._entities if fields[entity].optional}
        self._metrics = metrics
        self._windows: dict[str, EntityWindows] = {}
        self._values = ValueReader(pipeline)
        self._late_rows: dict[str, int] = {}
        metrics.add_reporter(self._report)
        self._state = state
        self._partition: StatePartition | None = None
        if state is not None and token is not None:
            self._open(state.windows(token.partition), token)
        elif state is not None and not self._by_shard:
            self._open(state.windows(windows_partition(None)), None)

    def on_batch(self, values: list[Item]) -> tuple[list[Item], bool]:
        if self._partition is None and self._state is not None:
            self._open(self._state.windows(windows_partition(shard_of(values[0]))), None)
        filled: list[Item] = []
        for item in values:  # in order: a watermark is sent after the rows that it covers
            if isinstance(item, WorkerWatermark):
                self._advance(item)
                if item.shard == int(MODELS):
                    filled.append(item)
            elif isinstance(item, EntityRows):
                filled.append(self._fill_rows(item))
            else:
                filled.append(item)
        return filled, False

    def fill_timed(self, batch: Batch) -> None:
        """`fill`, with the time it took counted."""
        latency = self._metrics.latency
        if not latency.timed:
            self.fill(batch)
            return
        started = time.perf_counter()
        self.fill(batch)
        latency.spent("windows", started)

    def fill(self, batch: Batch) -> None:
        """Write the features of all entities into the rows of a batch; for a single worker."""
        columns, times, features = batch.columns, batch.times, batch.features
        if not batch.rows.values:
            return
        values = self._values.read(columns)
        tasks = []
        for entity in self._entities:
            windows = self._windows.get(entity) or self.windows(entity, in_place=True)
            keys = columns[entity]
            if entity in self._nullable:
                keys = keys_of(keys)
            if len(times) < THREADS_FROM_ROWS:
                windows.fill(keys, times, values, features)
            else:
                tasks.append(partial(windows.fill, keys, times, values, features))
        if tasks:
            run_in_threads(tasks)

    def snapshot(self) -> StepState:
        return encode(self.commit())

    def commit(self) -> Token | None:
        """Write what changed since the last time; None in a run without state."""
        if self._partition is None:
            return None
        delta = Delta()
        for entity, windows in self._windows.items():
            delta.put(entity, windows.changes())
        return self._partition.commit(delta)

    def windows(self, entity: str, in_place: bool) -> EntityWindows:
        """The windows of an entity, created when its first row comes."""
        windows = self._windows.get(entity)
        if windows is None:
            windows = self._windows[entity] = EntityWindows(self._pipeline, entity, in_place)
            if self._by_shard:
                windows.advance_watermark(self._watermarks.slowest())
        return windows

    def _open(self, partition: StatePartition, token: Token | None) -> None:
        self._partition = partition
        image = partition.open(token)
        for entity in self._pipeline.entities:
            windows = self.windows(entity, in_place=not self._by_shard)
            windows.restore(image.part(entity))
            self._late_rows[entity] = sum(state.late_rows for _, state in windows.groups)
            if self._by_shard:
                windows.advance_watermark(self._watermarks.slowest())

    def _advance(self, received: WorkerWatermark) -> None:
        self._watermarks.update(received.worker_id, received.watermark)
        slowest = self._watermarks.slowest()
        for windows in self._windows.values():
            windows.advance_watermark(slowest)

    def _fill_rows(self, rows: EntityRows) -> EntityRows:
        started = time.perf_counter()
        windows = self.windows(rows.entity, in_place=False)
        features = np.empty((len(rows.keys), windows.width))
        windows.fill(rows.keys, rows.times, rows.columns, features)
        self._metrics.latency.spent("windows", started)
        return EntityRows(
            rows.worker_id, rows.sequence, rows.entity, rows.rows, [], rows.times, {}, features
        )

    def _report(self) -> None:
        for entity, windows in self._windows.items():
            states = [state for _, state in windows.groups]
            late_rows = sum(state.late_rows for state in states)
            self._metrics.on_windows(
                self,
                entity,
                sum(state.keys for state in states),
                sum(state.nbytes for state in states),
                late_rows - self._late_rows.get(entity, 0),
            )
            self._late_rows[entity] = late_rows
