"""What flows between the steps: rows that arrived together, column by column."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflows.messages import DeadLetter
from state.extent import extent


@dataclass(slots=True)
class RawRows:
    """Messages of one kind as they were read, oldest first: ``n`` payloads with their coordinates.

    ``partitions``, ``offsets`` and ``times`` (epoch ms, as published) are ``(n,) int64``.
    ``partition`` is the one that all are from, None where that is not known.
    """

    topic: str
    values: list[bytes]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    partition: int | None = None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: NDArray[np.int64]) -> RawRows:
        """Only these rows, in this order."""
        values = self.values
        return RawRows(
            self.topic,
            [values[row] for row in rows.tolist()],
            self.partitions[rows],
            self.offsets[rows],
            self.times[rows],
            self.partition,
        )


NO_SPAN = (0, -1)
_NOTHING = np.zeros(0, np.int64)
NO_ROWS = RawRows("", [], _NOTHING, _NOTHING, _NOTHING)
"""No messages."""


@dataclass(slots=True)
class RawBatch:
    """What a source read in one go.

    ``order`` is ``(events + labels,) int64``: the sequence in which the messages are to be worked
    through; event ``i`` is ``i`` and label ``j`` is ``len(events) + j``. ``origin`` is the reader,
    ``sequence`` counts its batches; ``read_at`` is the wall clock in seconds.
    """

    origin: str
    sequence: int
    events: RawRows
    labels: RawRows
    order: NDArray[np.int64]
    read_at: float


@dataclass(slots=True)
class Sources:
    """Where the messages of a raw batch came from, and the sequence in which they stood."""

    topic: str
    event_partitions: NDArray[np.int64]
    event_offsets: NDArray[np.int64]
    label_partitions: NDArray[np.int64]
    label_offsets: NDArray[np.int64]
    order: NDArray[np.int64]

    def sorted(self, letters: list[DeadLetter]) -> list[DeadLetter]:
        """Dead letters in the sequence of their causes, whichever step found them."""
        events = zip(self.event_partitions.tolist(), self.event_offsets.tolist(), strict=True)
        labels = zip(self.label_partitions.tolist(), self.label_offsets.tolist(), strict=True)
        sources = [(True, *at) for at in events] + [(False, *at) for at in labels]
        turn = {sources[row]: place for place, row in enumerate(self.order.tolist())}

        def at(letter: DeadLetter) -> int:
            cause = letter.cause
            return turn[cause.topic == self.topic, cause.partition, cause.offset]

        return sorted(letters, key=at)


@dataclass(slots=True)
class LabelRows:
    """Decoded labels: the id each one judges, its value, its time and where it was read."""

    ids: list[str]
    values: list[Any]
    times: NDArray[np.int64]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    payloads: list[bytes]

    def __len__(self) -> int:
        return len(self.ids)


NO_LABELS = LabelRows([], [], _NOTHING, _NOTHING, _NOTHING, [])
"""No labels."""


@dataclass(slots=True)
class Batch:
    """Decoded rows. ``n`` events with ids, event times (epoch ms, ``(n,) int64``) and coordinates.

    ``span`` is the least and the greatest event time, ``(0, -1)`` without events; ``partition`` the
    one that all events are from, None where that is not known.
    ``features`` is ``(n, columns) float64``: the row features are there from the start, each window
    step adds its own. ``columns`` holds the event fields that are used, ``targets`` the inline
    labels. ``order`` is as in `RawBatch`, ``sources`` are those of all that was read. ``expected``
    counts the parts that went to other shards and have to come back before the batch is whole.
    """

    origin: str
    sequence: int
    ids: list[str]
    times: NDArray[np.int64]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    published: NDArray[np.int64]
    payloads: list[bytes]
    features: NDArray[np.float64]
    columns: dict[str, Any]
    targets: list[Any] | None
    labels: LabelRows
    order: NDArray[np.int64]
    read_at: float
    span: tuple[int, int]
    sources: Sources
    dead: list[DeadLetter] = field(default_factory=list)
    expected: int = 0
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    partition: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def array(
        self, name: str, make: Callable[[list[Any]], NDArray[np.generic]]
    ) -> NDArray[np.generic]:
        """Column ``name`` as ``make`` makes an array of it; made once, several may ask."""
        found = self.arrays.get(name)
        if found is None:
            found = self.arrays[name] = make(self.columns[name])
        return found

    def keep(self, keep: NDArray[np.bool_]) -> Batch:
        """This batch with only the events where ``keep`` is true; labels all stay."""
        rows = np.flatnonzero(keep)
        places = rows.tolist()
        self.order = keep_rows(self.order, keep, np.ones(len(self.labels), np.bool_))
        self.ids = [self.ids[row] for row in places]
        self.payloads = [self.payloads[row] for row in places]
        for name in ("times", "partitions", "offsets", "published", "features"):
            setattr(self, name, getattr(self, name)[rows])
        self.span = extent(self.times) if places else NO_SPAN
        self.columns = {
            name: [values[row] for row in places] for name, values in self.columns.items()
        }
        self.arrays = {}
        if self.targets is not None:
            self.targets = [self.targets[row] for row in places]
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
    keys: list[str]
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
