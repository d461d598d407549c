"""Reassembles batches whose rows were processed by several shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import Batch, EntityRows
from anabranch.dataflows.declaration.features import EntityFeature
from anabranch.dataflows.declaration.pipeline import Pipeline


@dataclass(slots=True)
class _Incomplete:
    batch: Batch | None = None
    parts: list[EntityRows] = field(default_factory=list)

    def is_complete(self) -> bool:
        return self.batch is not None and len(self.parts) >= self.batch.expected


class Reassembly:
    """Collects the parts of batches, and returns complete ones in the order of their worker."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._columns = {
            entity: entity_columns(features) for entity, features in pipeline.entities.items()
        }
        self._incomplete: dict[tuple[str, int], _Incomplete] = {}
        self._next: dict[str, int] = {}

    def add(self, item: Batch | EntityRows) -> list[Batch]:
        """Add a batch or a part of one; returns the batches that are complete now, oldest first."""
        worker_id = item.worker_id
        if isinstance(item, Batch) and item.expected == 0 and not self._incomplete:
            self._next[worker_id] = item.sequence + 1
            return [item]
        key = worker_id, item.sequence
        incomplete = self._incomplete.setdefault(key, _Incomplete())
        if isinstance(item, Batch):
            incomplete.batch = item
        else:
            incomplete.parts.append(item)
        complete: list[Batch] = []
        number = self._next.get(worker_id, 0)
        while (first := self._incomplete.get((worker_id, number))) and first.is_complete():
            del self._incomplete[worker_id, number]
            complete.append(self._fill(first))
            number += 1
        self._next[worker_id] = number
        return complete

    def is_waiting_for(self, worker_id: str) -> bool:
        """Whether parts of this worker's batches are still to come."""
        return any(waiting == worker_id for waiting, _ in self._incomplete)

    def _fill(self, complete: _Incomplete) -> Batch:
        batch = complete.batch
        assert batch is not None
        for part in complete.parts:
            columns = self._columns[part.entity]
            if isinstance(columns, slice):
                batch.features[part.rows, columns] = part.features
            else:
                batch.features[np.ix_(part.rows, columns)] = part.features
        return batch


def entity_columns(features: Iterable[tuple[EntityFeature, slice]]) -> slice | NDArray[np.int64]:
    """The columns of an entity's features in a row: a slice if contiguous, else their indices."""
    slices = [columns for _, columns in features]
    if all(a.stop == b.start for a, b in pairwise(slices)):
        return slice(slices[0].start, slices[-1].stop)
    return np.concatenate([np.arange(columns.start, columns.stop) for columns in slices])
