"""Windows over labels: aggregates of the labels of an entity's past events, as features.

A label names only its event. So the entity's key is stored with the pending prediction, as a 64-bit
hash, and the label enters the windows of that key when it is learned, at its own time::

    order      event 1   event 2   label of 1   event 3   label of 3   event 4
    sees       nothing   nothing                label 1                labels 1 and 3

An event queries its windows as of its own time, and sees the labels with a time in (t - w, t] that
precede it in the order of the stream: also a late one, and never its own. An assumed label enters
at the timeout; a buffered early label enters right after its event. A label that corrects another
enters in addition, at its own time, as it is learned in addition.

Two keys with the same hash would share their windows: with n keys that happens with a probability
of about n² / 3.7e19.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import LEARN, PREDICT, Targets, Task
from anabranch.models.learners.targets import as_targets, usable
from anabranch.models.prequential.joined_steps import JoinedSteps
from anabranch.state.arrays import LARGEST
from anabranch.state.keys.hashing import NO_KEY_HASH, hash64
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
"""The name of this part in the state of the model step."""

_MODES = np.zeros(2, np.uint8)
_MODES[PREDICT], _MODES[LEARN] = QUERY_ONLY, INSERT_ONLY


class LabelWindows:
    """Windows over the labels of entities.

    A pending prediction takes 8 bytes per entity, and one, beyond what the pending store takes.

    Args:
        declared: entity → its windows, each with the columns of the feature row that it fills. All
            specs name the same value.
        allowed_lateness_ms: how far an event may be behind the latest one and still see exact
            aggregates.

    Attributes:
        entities: the names, in order.

    >>> spec = WindowSpec("y", (1000,), ("count", "mean"))
    >>> windows, rows = LabelWindows({"shop": [(spec, slice(1, 3))]}, 0), np.zeros((3, 3))
    >>> windows.fill_inline([["a", "a", "b"]], np.array([0, 9, 9]), np.ones(3), Task.BINARY, rows)
    >>> rows
    array([[0., 0., 0.],
           [0., 1., 1.],
           [0., 0., 0.]])
    """

    def __init__(
        self,
        declared: Mapping[str, Sequence[tuple[WindowSpec, slice]]],
        allowed_lateness_ms: int,
    ) -> None:
        self._windows: list[tuple[EntityState, I64]] = []
        for features in declared.values():
            state = EntityState([spec for spec, _ in features], allowed_lateness_ms)
            state.follow_queries()  # labels come long behind the events, or ahead of late ones
            columns = [np.arange(each.start, each.stop) for _, each in features]
            self._windows.append((state, np.concatenate(columns)))
        self._value = next(spec.value for features in declared.values() for spec, _ in features)
        self.entities = tuple(declared)
        # By row of the pending store: the key hashes, and whether they changed since `changes`.
        self._keys: U64 = np.zeros((0, len(declared)), np.uint64)
        self._touched = np.zeros(0, np.bool_)

    def fill(
        self,
        joined: JoinedSteps,
        pending: PendingStore,
        keys: Sequence[Sequence[str]],
        features: F64,
    ) -> None:
        """Add the labels of a batch, and write the features of its events.

        Args:
            joined: the steps of the batch, before any of them is predicted.
            pending: the pending store, whose feature rows are written as well.
            keys: per entity, the key of each event.
            features: `(events, columns) float64`, of the events; written.
        """
        steps = joined.predict_steps
        rows, events = joined.row[steps], joined.source[steps]
        self._store_keys(rows, [hash64(of_entity)[events] for of_entity in keys], pending)
        modes, values = _MODES[joined.op], _as_floats(joined.target)
        for entity, (_, columns) in enumerate(self._windows):
            hashes = self._keys[joined.row, entity]
            aggregates = self._update(entity, hashes, joined.time, values, modes)[steps]
            features[events[:, None], columns] = aggregates
            pending.features[rows[:, None], columns] = aggregates

    def fill_inline(
        self, keys: Sequence[Sequence[str]], times: I64, targets: Targets, task: Task, features: F64
    ) -> None:
        """As `fill`, for events that carry their own label, which enters right after its event.

        Args:
            keys: per entity, the key of each event.
            times: `(events,) int64` ms.
            targets: of the events, as `Prequential.run_inline` takes them.
            task: decides which targets are usable; the others do not enter.
            features: `(events, columns) float64`; written.
        """
        events = len(times)
        targets = as_targets(targets, task)
        keep = np.ones(2 * events, np.bool_)
        keep[1::2] = usable(targets, task)
        row = np.repeat(np.arange(events), 2)[keep]
        modes = np.tile(_MODES[[PREDICT, LEARN]], events)[keep]
        values = _as_floats(targets)[row]
        queries = np.flatnonzero(modes == QUERY_ONLY)
        for entity, (_, columns) in enumerate(self._windows):
            hashes = hash64(keys[entity])[row]
            features[:, columns] = self._update(entity, hashes, times[row], values, modes)[queries]

    def advance_watermark(self, watermark: int) -> None:
        """Expire labels by this time (epoch ms), where the streams of several workers meet."""
        for state, _ in self._windows:
            state.advance_watermark(watermark)

    @property
    def states(self) -> dict[str, EntityState]:
        """Entity → its windows; their keys are hashes as 16 hex digits."""
        return {
            entity: state for entity, (state, _) in zip(self.entities, self._windows, strict=True)
        }

    def changes(self) -> Delta:
        """What changed since the last call; everything at the first."""
        delta = Delta()
        touched = np.flatnonzero(self._touched)
        if touched.size:
            delta.rows["owners"] = Rows(touched, {"keys": self._keys[touched]})
            self._touched[:] = False
        for entity, state in self.states.items():
            delta.put(entity, state.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Restore what all calls of `changes` returned, into new windows of equal declaration."""
        if "owners" in image.rows:
            owners = image.rows["owners"]
            self._make_room(int(owners.index.max()) + 1)
            self._keys[owners.index] = owners.columns["keys"]
        for entity, state in self.states.items():
            state.restore(image.part(entity))

    def _store_keys(self, rows: I64, hashes: list[U64], pending: PendingStore) -> None:
        """Store the keys of events under their rows of the pending store."""
        self._make_room(len(pending.times))
        self._touched[rows] = True
        for entity, of_entity in enumerate(hashes):
            self._keys[rows, entity] = of_entity

    def _make_room(self, capacity: int) -> None:
        missing = capacity - len(self._touched)
        if missing > 0:
            more = np.zeros((missing, len(self.entities)), np.uint64)
            self._keys = np.concatenate([self._keys, more])
            self._touched = np.concatenate([self._touched, np.zeros(missing, np.bool_)])

    def _update(self, entity: int, hashes: U64, times: I64, values: F64, modes: U8) -> F64:
        """Query and insert, in order; `(rows, features) float64`, finite where a row queries.

        The square of a huge label is beyond what models take: such a statistic is clipped.
        """
        state, _ = self._windows[entity]
        no_key = hashes == NO_KEY_HASH
        if no_key.any():
            modes = np.where(no_key, np.uint8(QUERY_ONLY), modes)
        keys = list(map("%016x".__mod__, hashes.tolist()))
        return np.clip(state.update(keys, times, {self._value: values}, modes), -LARGEST, LARGEST)


def _as_floats(targets: Targets) -> F64:
    """`(steps,) float64`: labels as floats; 0 for a step without one."""
    if isinstance(targets, np.ndarray):
        return np.where(np.isfinite(targets), targets, 0.0)
    return np.array([0.0 if each is None else each for each in targets], np.float64)
