"""Puts the parts of a batch together again that shards have worked on."""

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
class _Assembly:
    batch: Batch | None = None
    parts: list[EntityRows] = field(default_factory=list)

    def whole(self) -> bool:
        return self.batch is not None and len(self.parts) >= self.batch.expected


class Assembler:
    """Collects the parts of batches, and gives back whole ones in the order of their origin."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._places = {
            entity: entity_columns(features) for entity, features in pipeline.entities.items()
        }
        self._waiting: dict[tuple[str, int], _Assembly] = {}
        self._next: dict[str, int] = {}

    def add(self, item: Batch | EntityRows) -> list[Batch]:
        """Take in a batch or a part; the batches that are whole now, oldest first."""
        origin = item.origin
        if isinstance(item, Batch) and item.expected == 0 and not self._waiting:
            self._next[origin] = item.sequence + 1
            return [item]
        assembly = self._waiting.setdefault((origin, item.sequence), _Assembly())
        if isinstance(item, Batch):
            assembly.batch = item
        else:
            assembly.parts.append(item)
        ready: list[Batch] = []
        number = self._next.get(origin, 0)
        while (found := self._waiting.get((origin, number))) is not None and found.whole():
            del self._waiting[origin, number]
            ready.append(self._fill(found))
            number += 1
        self._next[origin] = number
        return ready

    def waits_for(self, origin: str) -> bool:
        """Whether parts of its batches are still to come."""
        return any(waiting == origin for waiting, _ in self._waiting)

    def _fill(self, assembly: _Assembly) -> Batch:
        batch = assembly.batch
        assert batch is not None
        for part in assembly.parts:
            columns = self._places[part.entity]
            if isinstance(columns, slice):
                batch.features[part.rows, columns] = part.features
            else:
                batch.features[np.ix_(part.rows, columns)] = part.features
        return batch


def entity_columns(features: Iterable[tuple[EntityFeature, slice]]) -> slice | NDArray[np.int64]:
    """Where an entity's features stand in the row: a slice if side by side, else their indices."""
    places = [place for _, place in features]
    if all(a.stop == b.start for a, b in pairwise(places)):
        return slice(places[0].start, places[-1].stop)
    return np.concatenate([np.arange(place.start, place.stop) for place in places])
