"""Routes the rows of a batch to the shards that hold the state of their keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import (
    IDLE,
    MODELS,
    Batch,
    Bootstrap,
    EntityRows,
    WorkerWatermark,
)
from anabranch.dataflows.batch.candidates import FIRST
from anabranch.dataflows.batch.columns import take_rows
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.sharding.entity_windows import ValueReader
from anabranch.models.metrics.ranking import EVENT, LIST
from anabranch.state.keys.hashing import hash64, keys_of

Item = Batch | EntityRows | Bootstrap | WorkerWatermark
Keyed = tuple[str, Item]
"""An item with the key of the shard that it is for; what the source and the steps emit."""

WATERMARK_INTERVAL_S = 1.0
"""How often a worker sends its watermark to the shards."""


class Router:
    """Splits batches by the shard of their keys; with one worker a batch stays whole."""

    def __init__(self, pipeline: Pipeline, shards: int, workers: int) -> None:
        self._shards = shards
        self._workers = workers
        self._next_watermark = 0.0
        self._values = ValueReader(pipeline)
        self._model_fields = pipeline.model_fields
        self._needed = {
            entity: {feature.value for feature, _ in features if feature.value is not None}
            for entity, features in pipeline.entities.items()
        }
        if pipeline.candidates is not None:
            self._model_fields += [EVENT, LIST] if pipeline.has_rollouts else [EVENT]
            for names in self._needed.values():
                names.add(FIRST)

    def route(self, batch: Batch, watermark: int) -> list[Keyed]:
        """The keyed items of a batch for the window step; sets `Batch.expected`.

        ``watermark`` is this worker's (epoch ms). It is sent to all shards from time to time: none
        may expire events that a slower worker's rows will still query.
        """
        if self._workers == 1 or not len(batch):
            return [(MODELS, batch)]
        values = self._values.read(batch.columns)
        parts: list[Keyed] = []
        for entity, names in self._needed.items():
            parts += self._split(batch, entity, {name: values[name] for name in names})
        batch.expected = len(parts)
        batch.columns = {name: batch.columns[name] for name in self._model_fields}
        return [*parts, (MODELS, batch), *self.watermark(batch.worker_id, watermark)]

    def bootstrap(self) -> list[Keyed]:
        """An item for every shard, and so for the models and the outputs; see `Bootstrap`."""
        return [(str(shard), Bootstrap(shard)) for shard in range(self._shards)]

    def watermark(self, worker_id: str, watermark: int) -> list[Keyed]:
        """This worker's watermark for every shard, once a second at most."""
        now = time.monotonic()
        if self._workers == 1 or now < self._next_watermark:
            return []
        self._next_watermark = now + WATERMARK_INTERVAL_S
        return self._to_all_shards(worker_id, watermark)

    def idle(self, worker_id: str, last: Callable[[], Batch | None]) -> list[Keyed]:
        """For every shard, once a second at most: this worker has nothing to read.

        ``last`` makes the batch that lets time pass as far as this worker has come.
        """
        items = self.watermark(worker_id, IDLE)
        for key, item in items:
            if key == MODELS and isinstance(item, WorkerWatermark):
                item.time_batch = last()
        return items

    def end_of_stream(
        self, worker_id: str, last: Callable[[], Batch | None] = lambda: None
    ) -> list[Keyed]:
        """`idle`, at once: nothing more comes from this worker."""
        self._next_watermark = 0.0
        return self.idle(worker_id, last)

    def _to_all_shards(self, worker_id: str, watermark: int) -> list[Keyed]:
        return [
            (str(shard), WorkerWatermark(worker_id, watermark, shard))
            for shard in range(self._shards)
        ]

    def _split(self, batch: Batch, entity: str, columns: dict[str, NDArray[Any]]) -> list[Keyed]:
        keys = keys_of(batch.columns[entity])
        shards = hash64(keys) % np.uint64(self._shards)
        parts: list[Keyed] = []
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            part = EntityRows(
                batch.worker_id,
                batch.sequence,
                entity,
                rows,
                take_rows(keys, rows),
                batch.times[rows],
                {name: values[rows] for name, values in columns.items()},
                shard=shard,
            )
            parts.append((str(shard), part))
        return parts


def shard_of(item: Item) -> int:
    """The shard that an item is for; a batch passes through the shard of the models."""
    return int(MODELS) if isinstance(item, Batch) else item.shard


def to_models(filled: list[Keyed]) -> list[Keyed]:
    """Send all parts to the models."""
    return [(MODELS, part) for _, part in filled]
