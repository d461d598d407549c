"""The window step: fills in the features of entities, each shard with the state of its own keys.

With one worker a batch goes through whole, and nothing is copied. With several, the intake splits
it by shard: each shard gets only what it needs (keys, times, values), all of them work side by
side, and the model step puts the answers together again. One step serves all entities, since every
operator that a batch passes costs as much as several events do.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from bytewax.operators import StatefulBatchLogic
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import IDLE, Batch, EntityRows, Progress, Wake
from anabranch.dataflows.batch.candidates import FIRST
from anabranch.dataflows.batch.taking import take_rows
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.recovery.state_partition import Place, Token, windows_of
from anabranch.dataflows.sharding.entity_windows import EntityWindows, ValueReader
from anabranch.dataflows.sharding.side_by_side import run_all
from anabranch.dataflows.sharding.worker_watermarks import Origins
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics
from anabranch.models.metrics.ranking import EVENT, LIST
from anabranch.state.keys.hashing import hash64
from anabranch.state.store.delta import Delta

MODELS = "0"
"""The key of the place where the models are; with one worker, of everything."""

if TYPE_CHECKING:
    from anabranch.dataflows.recovery.state_directory import StateDirectory

Item = Batch | EntityRows | Wake | Progress
Keyed = tuple[str, Item]
"""What the intake hands over, and the steps to each other."""

SIDE_BY_SIDE = 2048
"""From so many rows on, entities are worked on by a thread each: below it, that costs more."""

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
            self._model_fields += [EVENT, LIST] if pipeline.has_rollouts else [EVENT]
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


class WindowStep(StatefulBatchLogic[Item, Item, Token | None]):
    """The window features of all entities, for one shard of their keys or for all.

    With several workers, rows of all ``origins`` come together here, and one may be far behind: a
    backlog is only aligned within a worker. Events are let go by the slowest one's watermark;
    before an origin was heard of for the first time, for a minute, not at all.

    With ``state`` it remembers: from ``token``, or from what there is for the shard that its first
    item names.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        metrics: WorkerMetrics,
        origins: int = 1,
        state: StateDirectory | None = None,
        token: Token | None = None,
    ) -> None:
        self._together = origins > 1
        self._origins = Origins(origins)
        self._pipeline = pipeline
        self._entities = list(pipeline.entities)
        self._metrics = metrics
        self._windows: dict[str, EntityWindows] = {}
        self._values = ValueReader(pipeline)
        self._late_rows: dict[str, int] = {}
        metrics.ask(self._tell)
        self._state = state
        self._place: Place | None = None
        if state is not None and token is not None:
            self._open(state.windows(token.place), token)
        elif state is not None and not self._together:
            self._open(state.windows(windows_of(None)), None)

    def on_batch(self, values: list[Item]) -> tuple[list[Item], bool]:
        if self._place is None and self._state is not None:
            self._open(self._state.windows(windows_of(_shard_of(values[0]))), None)
        filled: list[Item] = []
        for item in values:  # in order: an origin's progress is told after the rows behind it
            if isinstance(item, Progress):
                self._note(item)
                if item.shard == int(MODELS):
                    filled.append(item)
            elif isinstance(item, EntityRows):
                filled.append(self._answer(item))
            else:
                filled.append(item)
        return filled, False

    def fill_timed(self, batch: Batch) -> None:
        """`fill`, and the metrics are told how long it took."""
        latency = self._metrics.latency
        if not latency.timed:
            self.fill(batch)
            return
        began = time.perf_counter()
        self.fill(batch)
        latency.spent("windows", began)

    def fill(self, batch: Batch) -> None:
        """Write the features of all entities into the rows of a batch; for a single worker."""
        columns, times, features = batch.columns, batch.times, batch.features
        if not batch.rows.values:
            return
        values = self._values.read(columns)
        tasks = []
        for entity in self._entities:
            windows = self._windows.get(entity) or self.windows(entity, in_place=True)
            if len(times) < SIDE_BY_SIDE:
                windows.fill(columns[entity], times, values, features)
            else:
                tasks.append(partial(windows.fill, columns[entity], times, values, features))
        if tasks:
            run_all(tasks)

    def snapshot(self) -> Token | None:
        if self._place is None:
            return None
        delta = Delta()
        for entity, windows in self._windows.items():
            delta.put(entity, windows.changes())
        return self._place.commit(delta)

    def _open(self, place: Place, token: Token | None) -> None:
        self._place = place
        image = place.open(token)
        for entity in self._pipeline.entities:
            windows = self.windows(entity, in_place=not self._together)
            windows.restore(image.part(entity))
            self._late_rows[entity] = sum(state.late_rows for _, state in windows.groups)
            if self._together:
                windows.hold(self._origins.slowest())

    def windows(self, entity: str, in_place: bool) -> EntityWindows:
        """The windows of an entity, made when its first row comes."""
        found = self._windows.get(entity)
        if found is None:
            found = self._windows[entity] = EntityWindows(self._pipeline, entity, in_place)
            if self._together:
                found.hold(self._origins.slowest())
        return found

    def _note(self, progress: Progress) -> None:
        self._origins.note(progress.origin, progress.watermark)
        slowest = self._origins.slowest()
        for windows in self._windows.values():
            windows.hold(slowest)

    def _answer(self, rows: EntityRows) -> EntityRows:
        began = time.perf_counter()
        windows = self.windows(rows.entity, in_place=False)
        features = np.empty((len(rows.keys), windows.width))
        windows.fill(rows.keys, rows.times, rows.columns, features)
        self._metrics.latency.spent("windows", began)
        return EntityRows(
            rows.origin, rows.sequence, rows.entity, rows.rows, [], rows.times, {}, features
        )

    def _tell(self) -> None:
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


def _shard_of(item: Item) -> int:
    """The shard that an item is for; a batch on its way to the models passes the shard there."""
    return int(MODELS) if isinstance(item, Batch) else item.shard


def to_models(filled: list[Keyed]) -> list[Keyed]:
    """All parts go to the one place where the models are."""
    return [(MODELS, part) for _, part in filled]
