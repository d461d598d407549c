"""What flows between the steps: rows that arrived together, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.taking import take_rows
from anabranch.dataflows.messages.control import Control
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.state.arrays import extent


class RawRows(msgspec.Struct):
    """Messages of one kind as they were read, oldest first: ``n`` payloads with their coordinates.

    ``partitions``, ``offsets`` and ``times`` (epoch ms, as published) are ``(n,) int64``.
    ``partition`` is the one that all are from, None where that is not known.
    """

    topic: str
    values: Sequence[bytes]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    partition: int | None = None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: NDArray[np.int64]) -> RawRows:
        """Only these rows, in this order."""
        return RawRows(
            self.topic,
            take_rows(self.values, rows),
            self.partitions[rows],
            self.offsets[rows],
            self.times[rows],
            self.partition,
        )


NO_SPAN = (0, -1)
_NOTHING = np.zeros(0, np.int64)
NO_ROWS = RawRows("", [], _NOTHING, _NOTHING, _NOTHING)
"""No messages."""


class RawBatch(msgspec.Struct):
    """What a source read in one go.

    ``order`` is ``(events + labels,) int64``: the sequence in which the messages are to be worked
    through; event ``i`` is ``i`` and label ``j`` is ``len(events) + j``. A control message, of
    which ``controls`` holds one at most, comes behind all of them. ``origin`` is the reader,
    ``sequence`` counts its batches; ``read_at`` is the wall clock in seconds.
    """

    origin: str
    sequence: int
    events: RawRows
    labels: RawRows
    order: NDArray[np.int64]
    read_at: float
    controls: RawRows = msgspec.field(default_factory=lambda: NO_ROWS)

    def sorted(self, letters: list[DeadLetter]) -> list[DeadLetter]:
        """Dead letters in the sequence of their causes, whichever step found them."""
        sources = [
            (rows.topic, *at)
            for rows in (self.events, self.labels)
            for at in zip(rows.partitions.tolist(), rows.offsets.tolist(), strict=True)
        ]
        turn = {sources[row]: place for place, row in enumerate(self.order.tolist())}
        controls = self.controls
        for at in zip(controls.partitions.tolist(), controls.offsets.tolist(), strict=True):
            turn[controls.topic, *at] = len(turn)

        def turn_of(letter: DeadLetter) -> int:
            cause = letter.cause
            return turn[cause.topic, cause.partition, cause.offset]

        return sorted(letters, key=turn_of)

    def reached(self, partition: int) -> dict[str, int]:
        """By topic, the greatest offset that was read of a partition; without those with none."""
        found = {}
        for rows in (self.events, self.labels, self.controls):
            offsets = rows.offsets[rows.partitions == partition]
            if len(offsets):
                found[rows.topic] = int(offsets.max())
        return found


@dataclass(slots=True)
class LabelRows:
    """Decoded labels: the id each one judges, its value, its time and where it was read."""

    ids: list[str]
    values: list[Any]
    times: NDArray[np.int64]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    payloads: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.ids)


NO_LABELS = LabelRows([], [], _NOTHING, _NOTHING, _NOTHING, [])
"""No labels."""


class Batch(msgspec.Struct):
    """Decoded rows: ``n`` events with ids and event times (epoch ms, ``(n,) int64``).

    ``raw`` is all that was read, ``rows`` those messages that are the events here. ``span`` is the
    least and the greatest event time, ``(0, -1)`` without events.
    ``features`` is ``(n, columns) float64``: the row features are there from the start, each window
    step adds its own. ``columns`` holds the event fields that are used, ``targets`` the inline
    labels (None without): lists, or where rows came typed, what `TypedRows` has. ``order`` is as in
    `RawBatch`. ``expected`` counts the parts that went to other shards and have to come back before
    the batch is whole. ``control`` is to be followed behind all rows, at event time
    ``control_time`` (epoch ms); where it was read, `RawBatch.controls` says.
    """

    raw: RawBatch
    rows: RawRows
    ids: Sequence[str]
    times: NDArray[np.int64]
    span: tuple[int, int]
    features: NDArray[np.float64]
    columns: dict[str, Any]
    targets: Any
    labels: LabelRows
    order: NDArray[np.int64]
    dead: list[DeadLetter]
    expected: int = 0
    control: Control | None = None
    control_time: int = 0

    @property
    def origin(self) -> str:
        """Who read it."""
        return self.raw.origin

    @property
    def sequence(self) -> int:
        """Its number among those of its origin."""
        return self.raw.sequence

    @property
    def partition(self) -> int | None:
        """The one that all events are from, None where that is not known."""
        return self.rows.partition

    @property
    def partitions(self) -> NDArray[np.int64]:
        """Where each event was read, ``(n,) int64``."""
        return self.rows.partitions

    @property
    def offsets(self) -> NDArray[np.int64]:
        """At which offset each event was read, ``(n,) int64``."""
        return self.rows.offsets

    @property
    def payloads(self) -> Sequence[bytes]:
        """The events as they were read."""
        return self.rows.values

    def __len__(self) -> int:
        return len(self.rows.values)

    def keep(self, keep: NDArray[np.bool_]) -> Batch:
        """This batch with only the events where ``keep`` is true; labels all stay."""
        rows = np.flatnonzero(keep)
        self.order = keep_rows(self.order, keep, np.ones(len(self.labels), np.bool_))
        self.rows = self.rows.take(rows)
        self.ids = take_rows(self.ids, rows)
        self.times, self.features = self.times[rows], self.features[rows]
        self.span = extent(self.times) if len(rows) else NO_SPAN
        self.columns = {name: take_rows(values, rows) for name, values in self.columns.items()}
        if self.targets is not None:
            self.targets = take_rows(self.targets, rows)
        return self


@dataclass(slots=True)
class EntityRows:
    """The rows of a batch that one shard of one entity works on, or its answer.

    On the way there ``keys``, ``times`` and ``columns`` are filled; on the way back ``features``,
    ``(rows, columns of the entity) float64``. ``rows`` are their places in the batch,
    ``shard`` is where their keys belong.
    """

    origin: str
    sequence: int
    entity: str
    rows: NDArray[np.int64]
    keys: Sequence[str]
    times: NDArray[np.int64]
    columns: dict[str, Any]
    features: NDArray[np.float64] | None = None
    shard: int = 0


@dataclass(slots=True)
class Progress:
    """How far event time has come at an origin, for a shard that got no rows of it lately.

    ``watermark`` is in epoch ms; `IDLE` when nothing is there to be read, so that nobody waits.
    """

    origin: str
    watermark: int
    shard: int = 0


@dataclass(slots=True)
class Wake:
    """Nothing to work on: it passes all steps, so that each is asked for its state in this epoch.

    The engine may still hold what a killed run left of the epoch with which the next run begins;
    what every step writes anew in it takes its place.
    """

    shard: int = 0


IDLE = 2**61
"""The watermark of an origin that holds nobody back."""


def keep_rows(
    order: NDArray[np.int64], events: NDArray[np.bool_], labels: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """``order`` without the rows that are not kept, renumbered for what is left.

    >>> keep_rows(np.array([0, 3, 1, 2]), np.array([True, False, True]), np.array([True]))
    array([0, 2, 1])
    """
    keep = np.concatenate([events, labels])
    renumbered = np.cumsum(keep) - 1
    left: NDArray[np.int64] = renumbered[order[keep[order]]]
    return left
