"""Routes the rows of a batch to the shards that hold the state of their keys."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import IDLE, MODELS, Batch, EntityRows, Progress, Wake
from anabranch.dataflows.batch.candidates import FIRST
from anabranch.dataflows.batch.columns import take_rows
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.sharding.entity_windows import ValueReader
from anabranch.models.metrics.ranking import EVENT, LIST
from anabranch.state.keys.hashing import hash64

Item = Batch | EntityRows | Wake | Progress
Keyed = tuple[str, Item]
"""What the intake hands over, and the steps to each other."""

TELL_EVERY_S = 1.0
"""How often a worker tells the shards how far it is."""


class Router:
    """Says where the rows of a batch are worked on: here with one worker, else shard by shard."""

    def __init__(self, pipeline: Pipeline, shards: int, workers: int) -> None:
        self._shards = shards
        self._workers = workers
        self._tell_at = 0.0
        self._values = ValueReader(pipeline)
        self._model_fields = pipeline.model_fields
        self._needed = {
            entity: {feature.value for feature, _ in features if feature.value is not None}
            for entity, features in pipeline.entities.items()
        }
        if pipeline.candidates is not None:
            self._model_fields += [EVENT, LIST] if pipeline.controlled else [EVENT]
            for names in self._needed.values():
                names.add(FIRST)

    def route(self, batch: Batch, watermark: int) -> list[Keyed]:
        """Keyed items for the window step, all of the batch; it tells the batch how many parts.

        ``watermark`` is how far event time has come here (epoch ms): no shard may let go of events
        that a slower worker's rows will still ask for, so all are told, now and then.
        """
        if self._workers == 1 or not len(batch):
            return [(MODELS, batch)]
        values = self._values.read(batch.columns)
        parts: list[Keyed] = []
        for entity, names in self._needed.items():
            parts += self._split(batch, entity, {name: values[name] for name in names})
        batch.expected = len(parts)
        batch.columns = {name: batch.columns[name] for name in self._model_fields}
        return [*parts, (MODELS, batch), *self.progress(batch.origin, watermark)]

    def wake(self) -> list[Keyed]:
        """For every shard, and so for the models and the outputs: see `Wake`."""
        return [(str(shard), Wake(shard)) for shard in range(self._shards)]

    def progress(self, origin: str, watermark: int) -> list[Keyed]:
        """For every shard, once a second at most: how far this worker is."""
        now = time.monotonic()
        if self._workers == 1 or now < self._tell_at:
            return []
        self._tell_at = now + TELL_EVERY_S
        return self._told(origin, watermark)

    def farewell(self, origin: str) -> list[Keyed]:
        """For every shard: nothing more comes from this worker."""
        return [] if self._workers == 1 else self._told(origin, IDLE)

    def _told(self, origin: str, watermark: int) -> list[Keyed]:
        return [(str(shard), Progress(origin, watermark, shard)) for shard in range(self._shards)]

    def _split(self, batch: Batch, entity: str, columns: dict[str, NDArray[Any]]) -> list[Keyed]:
        keys = batch.columns[entity]
        shards = hash64(keys) % np.uint64(self._shards)
        parts: list[Keyed] = []
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            part = EntityRows(
                batch.origin,
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
    """The shard that an item is for; a batch on its way to the models passes the shard there."""
    return int(MODELS) if isinstance(item, Batch) else item.shard


def to_models(filled: list[Keyed]) -> list[Keyed]:
    """All parts go to the one place where the models are."""
    return [(MODELS, part) for _, part in filled]
