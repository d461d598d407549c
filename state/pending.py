"""Predictions that wait for their label: by id, in arrays, until the label or the timeout comes.

Memory per waiting prediction, beside its feature row and its predictions, is 41 bytes and 6 to 12
bytes of hash table; arrays grow by half at a time and are not given back.

An id is kept as its 64-bit `hash64`, not as text. Should two ids that wait at the same time have
the same hash, the newer is refused as a duplicate; for n waiting that happens with a probability of
about n² / 3.7e19 (a million: 3 in 100 million).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from state.compile import F64, I32, I64, U8, kernel
from state.delta import Delta, Rows
from state.hashing import hash64

U64 = NDArray[np.uint64]

PREDICT, LEARN, DROPPED = 0, 1, 2
"""Kinds of steps. DROPPED: the time is up, and nothing is known about the label."""

_EMPTY: Final = -1
# Fields of the counters. Rows are kept in `rows`, a permutation of all rows in three parts:
# [0, WAITING) a heap of those that wait, [WAITING, FREE) those that were left during this call and
# must keep their content until it ends, [FREE, capacity) free ones.
_WAITING, _FREE, _ARRIVALS, _WATERMARK = 0, 1, 2, 3
_NEVER: Final = -(2**62)
_KEPT: Final = ("_keys", "_arrivals", "times", "tags", "features", "values", "labels")


@kernel
def _find(key: np.uint64, table: I32, keys: U64) -> np.int64:
    """The place of `key` in the table, or that of the empty cell where it would go."""
    mask = table.size - 1
    at = np.int64(key & np.uint64(mask))
    while table[at] != _EMPTY and keys[table[at]] != key:
        at = (at + 1) & mask
    return at


@kernel
def _erase(at: np.int64, table: I32, keys: U64) -> None:
    """Empty a cell and close the gap (Knuth 6.4, algorithm R), so that no tombstones pile up."""
    mask = table.size - 1
    gap = at
    while True:
        table[gap] = _EMPTY
        while True:
            at = (at + 1) & mask
            if table[at] == _EMPTY:
                return
            home = np.int64(keys[table[at]] & np.uint64(mask))
            # The entry may fill the gap unless its home lies cyclically in (gap, at].
            if ((at - home) & mask) >= ((at - gap) & mask):
                break
        table[gap] = table[at]
        gap = at


@kernel
def _earlier(a: int, b: int, times: I64, arrivals: I64) -> bool:
    earlier: bool = times[a] < times[b] or (times[a] == times[b] and arrivals[a] < arrivals[b])
    return earlier


@kernel
def _rise(at: int, rows: I32, places: I32, times: I64, arrivals: I64) -> None:
    row = rows[at]
    while at > 0:
        parent = (at - 1) >> 1
        if not _earlier(row, rows[parent], times, arrivals):
            break
        rows[at] = rows[parent]
        places[rows[at]] = at
        at = parent
    rows[at] = row
    places[row] = at


@kernel
def _sink(at: int, size: int, rows: I32, places: I32, times: I64, arrivals: I64) -> None:
    row = rows[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _earlier(rows[child + 1], rows[child], times, arrivals):
            child += 1
        if not _earlier(rows[child], row, times, arrivals):
            break
        rows[at] = rows[child]
        places[rows[at]] = at
        at = child
    rows[at] = row
    places[row] = at


@kernel
def _leave(
    row: int, counters: I64, table: I32, keys: U64, times: I64, arrivals: I64, rows: I32,
    places: I32, touched: U8,
) -> None:  # fmt: skip
    """Take `row` out of the table and of the heap; its content stays until the call ends."""
    _erase(_find(keys[row], table, keys), table, keys)
    touched[row] = 1
    counters[_WAITING] -= 1
    last = counters[_WAITING]
    at, moved = places[row], rows[last]
    rows[last] = row
    if at < last:
        rows[at] = moved
        places[moved] = at
        _rise(at, rows, places, times, arrivals)
        _sink(places[moved], last, rows, places, times, arrivals)


@kernel
def _walk(
    start: int, order: I64, event_keys: U64, event_times: I64, event_features: F64,
    event_tags: I32, label_keys: U64, label_times: I64, usable: U8, wait_ms: int,
    otherwise: bool, counters: I64, table: I32, keys: U64, times: I64, arrivals: I64, rows: I32,
    places: I32, touched: U8, features: F64, tags: I32, steps: I64, refused: U8,
) -> tuple[int, int]:  # fmt: skip
    """Work through `order[start:]`; returns how far it came, and how many steps it wrote.

    `steps` is `(capacity, 4)`: kind, row, source (event or label; -1 at a timeout), time. It stops
    early when that is full. `refused` has a place per event and per label.
    """
    events = event_times.size
    step = 0
    for position in range(start, order.size):
        item = order[position]
        moment = event_times[item] if item < events else label_times[item - events]
        if moment > counters[_WATERMARK]:
            counters[_WATERMARK] = moment
        while wait_ms >= 0 and counters[_WAITING] > 0:
            row = rows[0]
            if times[row] + wait_ms >= counters[_WATERMARK]:
                break
            if step == len(steps):
                return position, step
            _leave(row, counters, table, keys, times, arrivals, rows, places, touched)
            steps[step, 0] = LEARN if otherwise else DROPPED
            steps[step, 1], steps[step, 2], steps[step, 3] = row, -1, times[row] + wait_ms
            step += 1
        if step == len(steps):
            return position, step
        if item < events:
            waiting, free = counters[_WAITING], counters[_FREE]
            row = rows[free]
            rows[free] = rows[waiting]
            rows[waiting] = row
            counters[_FREE] += 1
            for j in range(features.shape[1]):
                features[row, j] = event_features[item, j]
            times[row], tags[row], keys[row] = moment, event_tags[item], event_keys[item]
            at = _find(keys[row], table, keys)
            if table[at] == _EMPTY:
                table[at] = row
                touched[row] = 1
                arrivals[row], places[row] = counters[_ARRIVALS], waiting
                counters[_ARRIVALS] += 1
                counters[_WAITING] += 1
                _rise(waiting, rows, places, times, arrivals)
            else:
                refused[item] = 1
            steps[step, 0], steps[step, 1], steps[step, 2], steps[step, 3] = 0, row, item, moment
            step += 1
        else:
            label = item - events
            row = table[_find(label_keys[label], table, keys)] if usable[label] else _EMPTY
            if row == _EMPTY:
                refused[item] = 1
                continue
            _leave(row, counters, table, keys, times, arrivals, rows, places, touched)
            steps[step, 0], steps[step, 1], steps[step, 2], steps[step, 3] = 1, row, label, moment
            step += 1
    return order.size, step


@kernel
def _refill(table: I32, keys: U64, rows: I32, waiting: int) -> None:
    for i in range(waiting):
        table[_find(keys[rows[i]], table, keys)] = rows[i]


@dataclass(slots=True)
class Walk:
    """What has to be done, in order. Rows are those of the store, until its next `walk`.

    Attributes:
        kind: `(steps,) int64`: `PREDICT`, `LEARN` or `DROPPED`.
        row: `(steps,) int64` into the store's arrays.
        source: `(steps,) int64`: the event predicted or the label learned; -1 at a timeout.
        time: `(steps,) int64` ms: of the event or label; of a timeout, the moment that it was due.
        refused_events: `(events,) bool`: predicted but not stored, its id is waiting already.
        refused_labels: `(labels,) bool`: no prediction waits for it, or its value is unusable.
    """

    kind: I64
    row: I64
    source: I64
    time: I64
    refused_events: NDArray[np.bool_]
    refused_labels: NDArray[np.bool_]


class PendingStore:
    """Feature rows and predictions that wait, by id; O(1) by id, O(log waiting) by time.

    Args:
        width: features per row.
        models: predictions per row.
        wait_ms: how long a prediction waits, in event time; None for ever. It is let go by the
            first event or label whose time is later than `time + wait_ms`, whatever the batches
            are; a label at exactly that time still counts.
        otherwise: whether a timeout means something that is to be learned (LEARN, source -1)
            rather than DROPPED.

    Attributes:
        features: `(capacity, width) float64`.
        values: `(capacity, models) float64`, NaN where a model has not predicted.
        labels: `(capacity, models) uint8`.
        times: `(capacity,) int64` ms, of the event.
        tags: `(capacity,) int32`, whatever the caller gave along.

    >>> store = PendingStore(width=1, models=1, wait_ms=None)
    >>> none = np.empty(0, np.int64)
    >>> event = dict(event_times=np.array([5]), features=np.array([[0.5]]))
    >>> store.walk(["a"], label_ids=[], label_times=none, order=np.array([0]), **event).row
    array([0])
    >>> len(store)
    1
    """

    def __init__(
        self, width: int, models: int, wait_ms: int | None, otherwise: bool = False
    ) -> None:
        self.wait_ms = wait_ms
        self.otherwise = otherwise
        self._counters = np.array([0, 0, 0, _NEVER], np.int64)
        self._table = np.full(16, _EMPTY, np.int32)
        self._keys = np.empty(0, np.uint64)
        self._arrivals = np.empty(0, np.int64)
        self._rows = np.empty(0, np.int32)
        self._places = np.empty(0, np.int32)
        # Since the last `changes`: rows that came or left; whether all must be told again.
        self._touched, self._anew = np.empty(0, np.uint8), False
        self._told = self._counters[_ARRIVALS:].tobytes()
        self.times = np.empty(0, np.int64)
        self.tags = np.empty(0, np.int32)
        self.features = np.empty((0, width))
        self.values = np.empty((0, models))
        self.labels = np.empty((0, models), np.uint8)

    def __len__(self) -> int:
        return int(self._counters[_WAITING])

    @property
    def watermark(self) -> int | None:
        """The latest time seen, ms; None before the first."""
        latest = int(self._counters[_WATERMARK])
        return None if latest == _NEVER else latest

    @property
    def overhead_bytes(self) -> int:
        """Bytes held, free rows included, beside `features`, `values` and `labels`."""
        held = (self._table, self._keys, self._arrivals, self._rows, self._places, self._touched)
        return sum(array.nbytes for array in (*held, self.times, self.tags))

    def walk(
        self,
        ids: list[str],
        event_times: I64,
        features: F64,
        label_ids: list[str],
        label_times: I64,
        order: I64,
        usable: U8 | None = None,
        tags: I32 | None = None,
    ) -> Walk:
        """Store events, find the rows of labels, let go what is out of time; in `order`.

        Args:
            ids: of the events. A duplicate of one that waits is predicted but not stored.
            event_times: `(events,) int64` ms.
            features: `(events, width) float64`.
            label_ids: the event that each label judges.
            label_times: `(labels,) int64` ms.
            order: `(events + labels,) int64`: event i as i, label j as `events + j`.
            usable: `(labels,) uint8`: 0 where the label's value can't be learned. It is refused and
                the prediction waits on.
            tags: `(events,) int32`, kept with the row; 0 by default.
        """
        events, labels = len(ids), len(label_ids)
        self._make_room(events)
        event_keys, label_keys = hash64(ids), hash64(label_ids)
        refused = np.zeros(events + labels, np.uint8)
        usable = np.ones(labels, np.uint8) if usable is None else usable
        tags = np.zeros(events, np.int32) if tags is None else tags
        wait_ms = -1 if self.wait_ms is None else self.wait_ms
        self._counters[_FREE] = self._counters[_WAITING]
        parts: list[I64] = []
        position = 0
        while not parts or position < order.size:
            steps = np.empty((order.size + 64, 4), np.int64)
            position, written = _walk(
                position, order, event_keys, event_times, features, tags, label_keys,
                label_times, usable, wait_ms, self.otherwise, self._counters, self._table,
                self._keys, self.times, self._arrivals, self._rows, self._places, self._touched,
                self.features, self.tags, steps, refused,
            )  # fmt: skip
            parts.append(steps[:written])
        done = parts[0] if len(parts) == 1 else np.concatenate(parts)
        flags = refused.view(np.bool_)
        kind, row, source, time = np.ascontiguousarray(done.T)
        return Walk(kind, row, source, time, flags[:events], flags[events:])

    def _make_room(self, events: int) -> None:
        """Grow until each of `events` can have a row of its own."""
        capacity, needed = self._rows.size, len(self) + events
        if needed <= capacity:
            return
        grown = max(needed, capacity + capacity // 2, 16)
        for name in ("_places", *_KEPT):
            setattr(self, name, _longer(getattr(self, name), grown))
        self._touched = np.append(self._touched, np.zeros(grown - capacity, np.uint8))
        self._rows = np.concatenate([self._rows, np.arange(capacity, grown, dtype=np.int32)])
        cells = 1 << (grown + grown // 2).bit_length()
        if cells > self._table.size:
            self._table = np.full(cells, _EMPTY, np.int32)
            _refill(self._table, self._keys, self._rows, len(self))

    def add_model(self) -> None:
        """One more prediction per row; of the rows that wait already, it has none."""
        self.values = np.column_stack([self.values, np.full(len(self.values), np.nan)])
        self.labels = np.column_stack([self.labels, np.full(len(self.labels), 255, np.uint8)])
        self._anew = True

    def drop_model(self, model: int) -> None:
        """Forget one model's predictions; those after it move up."""
        self.values = np.delete(self.values, model, axis=1)
        self.labels = np.delete(self.labels, model, axis=1)
        self._anew = True

    def changes(self) -> Delta:
        """What changed since the last call; at first, everything.

        Rows `state`: whether a row waits, of all that came or left. Rows `waiting`: what is in it.
        """
        delta, waiting = Delta(), self._counters[_WAITING]
        if self._anew:
            delta.cleared, self._anew = {"state", "waiting"}, False
            self._touched[self._rows[:waiting]] = 1
        touched = np.flatnonzero(self._touched)
        if touched.size:
            # The place of a row that never waited is any number.
            at = np.clip(self._places[touched], 0, self._rows.size - 1)
            waits = (at < waiting) & (self._rows[at] == touched)
            delta.rows["state"] = Rows(touched, {"waits": waits.view(np.uint8)})
            kept = touched[waits]
            delta.rows["waiting"] = Rows(kept, {n: getattr(self, n)[kept] for n in _KEPT})
            self._touched[:] = 0
        told = self._counters[_ARRIVALS:].tobytes()
        if told != self._told:
            delta.blobs["counters"] = self._told = told
        return delta

    def restore(self, image: Delta) -> None:
        """Take up where the store that gave `image` was; for a fresh one, of the same widths."""
        if "counters" not in image.blobs:
            return
        self._told, self._anew = image.blobs["counters"], False
        self._counters[_ARRIVALS:] = np.frombuffer(self._told, np.int64)
        if "state" not in image.rows:
            return
        state, content = image.rows["state"], image.rows["waiting"]
        rows = state.index[state.columns["waits"] == 1]
        self._make_room(int(rows.max(initial=-1)) + 1)
        at = np.searchsorted(content.index, rows)
        for name in _KEPT:
            getattr(self, name)[rows] = content.columns[name][at]
        # Sorted rows are a heap, and any heap gives them up in the same order.
        heap = rows[np.lexsort((self._arrivals[rows], self.times[rows]))]
        self._rows = np.append(heap, np.delete(np.arange(self._rows.size), rows)).astype(np.int32)
        self._places[heap] = np.arange(len(heap))
        self._counters[:_ARRIVALS] = len(heap)
        _refill(self._table, self._keys, self._rows, len(heap))


def _longer(array: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    """A copy with `size` rows; the new ones hold anything."""
    longer = np.empty((size, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer
