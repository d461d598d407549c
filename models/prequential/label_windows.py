"""Windows over labels: what the events of an entity turned out to be, as far as was known by then.

A label names its event alone. So the entity's key waits with the prediction, as a 64-bit hash, and
the label enters the windows of that key when it is learned, at its own time::

    order      event 1   event 2   label of 1   event 3   label of 3   event 4
    sees       nothing   nothing                label 1                labels 1 and 3

An event looks at its windows as of its own time, and sees the labels with a time in (t - w, t] that
came before it in the order of the stream: also one that is late, and never its own. A label that is
assumed enters when it is assumed, at the end of the wait; one that was held enters right after its
event. One that corrects another enters in addition, at its own time, as it teaches in addition.

Two keys with the same hash would share their windows: with n keys that happens with a probability
of about n² / 3.7e19.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import LEARN, PREDICT, Targets, Task
from anabranch.models.learners.targets import as_targets, usable
from anabranch.models.prequential.label_join import Joined
from anabranch.state.arrays import LARGEST
from anabranch.state.keys.hashing import hash64
from anabranch.state.labels.pending_store import PendingStore
from anabranch.state.store.delta import Delta, Rows
from anabranch.state.windows.entity_state import EntityState
from anabranch.state.windows.event_log import INSERT_ONLY, QUERY_ONLY
from anabranch.state.windows.specs import WindowSpec

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]

LABEL_WINDOWS = "label-windows"
"""What they are called among the parts of a pipeline's models."""

_MODES = np.zeros(2, np.uint8)
_MODES[PREDICT], _MODES[LEARN] = QUERY_ONLY, INSERT_ONLY


class LabelWindows:
    """Windows over the labels of entities.

    Beyond what the pending store takes, a waiting prediction takes 8 bytes per entity, and one.

    Args:
        declared: entity → its windows, each with the columns of the feature row that it fills. All
            specs name the same value.
        lateness_ms: how far an event may be behind the latest one and still be answered exactly.

    >>> spec = WindowSpec("y", (1000,), ("count", "mean"))
    >>> windows, rows = LabelWindows({"shop": [(spec, slice(1, 3))]}, 0), np.zeros((3, 3))
    >>> windows.fill_inline([["a", "a", "b"]], np.array([0, 9, 9]), np.ones(3), Task.BINARY, rows)
    >>> rows
    array([[0., 0., 0.],
           [0., 1., 1.],
           [0., 0., 0.]])
    """

    def __init__(
        self, declared: Mapping[str, Sequence[tuple[WindowSpec, slice]]], lateness_ms: int
    ) -> None:
        self._windows: list[tuple[EntityState, I64]] = []
        for features in declared.values():
            state = EntityState([spec for spec, _ in features], lateness_ms)
            state.follow_queries()  # labels come long behind the events, or ahead of late ones
            columns = [np.arange(place.start, place.stop) for _, place in features]
            self._windows.append((state, np.concatenate(columns)))
        self._value = next(spec.value for features in declared.values() for spec, _ in features)
        self.entities = tuple(declared)
        self._owners: U64 = np.zeros((0, len(declared)), np.uint64)
        self._came = np.zeros(0, np.bool_)

    def fill(
        self, joined: Joined, pending: PendingStore, keys: Sequence[list[str]], features: F64
    ) -> None:
        """Work through the steps of a batch, and write the features of its events.

        Args:
            joined: the steps; nothing of them was predicted yet.
            pending: where they wait: its feature rows are written as well.
            keys: of the events, for each entity.
            features: `(events, columns) float64`, of the events.
        """
        asked = joined.asked
        rows, events = joined.row[asked], joined.source[asked]
        self._keep(rows, [hash64(of_entity)[events] for of_entity in keys], len(pending.times))
        modes, values = _MODES[joined.op], _numbers(joined.target)
        for number, (_, columns) in enumerate(self._windows):
            found = self._work(number, self._owners[joined.row, number], joined.time, values, modes)
            features[events[:, None], columns] = found[asked]
            pending.features[rows[:, None], columns] = found[asked]

    def fill_inline(
        self, keys: Sequence[list[str]], times: I64, targets: Targets, task: Task, features: F64
    ) -> None:
        """As `fill`, for events that carry their own label, which enters right after each.

        Args:
            keys: of the events, for each entity.
            times: `(events,) int64` ms.
            targets: of the events, as `Prequential.run_inline` takes them.
            task: which of them can be learned: the others do not enter.
            features: `(events, columns) float64`.
        """
        events = len(times)
        targets = as_targets(targets, task)
        keep = np.ones(2 * events, np.bool_)
        keep[1::2] = usable(targets, task)
        row = np.repeat(np.arange(events), 2)[keep]
        modes = np.tile(_MODES[[PREDICT, LEARN]], events)[keep]
        values = _numbers(targets)[row]
        asked = np.flatnonzero(modes == QUERY_ONLY)
        for number, (_, columns) in enumerate(self._windows):
            hashes = hash64(keys[number])[row]
            found = self._work(number, hashes, times[row], values, modes)
            features[:, columns] = found[asked]

    def hold(self, watermark: int) -> None:
        """Let labels go by this time (epoch ms), as `EntityState.advance_watermark`: where streams meet."""
        for state, _ in self._windows:
            state.advance_watermark(watermark)

    @property
    def states(self) -> dict[str, EntityState]:
        """Entity → its windows, whose keys are hashes as 16 hex digits."""
        return {
            entity: state for entity, (state, _) in zip(self.entities, self._windows, strict=True)
        }

    def changes(self) -> Delta:
        """What changed since the last call; at first, everything."""
        delta = Delta()
        came = np.flatnonzero(self._came)
        if came.size:
            delta.rows["owners"] = Rows(came, {"keys": self._owners[came]})
            self._came[:] = False
        for entity, state in self.states.items():
            delta.put(entity, state.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Take up, in fresh ones of the same declaration, what all calls of `changes` gave."""
        if "owners" in image.rows:
            owners = image.rows["owners"]
            self._make_room(int(owners.index.max()) + 1)
            self._owners[owners.index] = owners.columns["keys"]
        for entity, state in self.states.items():
            state.restore(image.part(entity))

    def _keep(self, rows: I64, hashes: list[U64], capacity: int) -> None:
        """Let the keys of events wait, in the rows of the pending store."""
        self._make_room(capacity)
        self._came[rows] = True
        for number, of_entity in enumerate(hashes):
            self._owners[rows, number] = of_entity

    def _make_room(self, capacity: int) -> None:
        missing = capacity - len(self._came)
        if missing > 0:
            more = np.zeros((missing, len(self.entities)), np.uint64)
            self._owners = np.concatenate([self._owners, more])
            self._came = np.concatenate([self._came, np.zeros(missing, np.bool_)])

    def _work(self, number: int, hashes: U64, times: I64, values: F64, modes: U8) -> F64:
        """Look and insert, in order; `(rows, features) float64`, finite where a row looks.

        The square of a huge label is beyond what models take: such a statistic stands at the limit.
        """
        state, _ = self._windows[number]
        keys = list(map("%016x".__mod__, hashes.tolist()))
        return np.clip(state.update(keys, times, {self._value: values}, modes), -LARGEST, LARGEST)


def _numbers(targets: Targets) -> F64:
    """Labels as floats; of a step without one, 0."""
    if isinstance(targets, np.ndarray):
        return np.where(np.isfinite(targets), targets, 0.0)
    given = [0.0 if each is None else each for each in targets]
    return np.array(given, np.float64)
