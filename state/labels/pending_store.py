"""Predictions that wait for their label: by id, in arrays, until the label or the timeout comes.

Memory per pending prediction, beside its feature row and its predictions, is 40 bytes, seven of
them hash table. Arrays grow by a quarter at a time, so it is never more than 50 bytes of the
largest number pending at a time (with the events of a call); allocated memory is not given back.
16 KB are allocated in any case. A prediction kept for updates takes as much, and a resolved id.

Ids that are *resolved*, by a label or by their timeout, are remembered to recognise repeated and
late labels (59 bytes each at most); and labels are buffered that arrive *early*, before their
event. See `state.labels.label_limits`.

An id is kept as its 64-bit `hash64`, not as text. Should two ids that are pending at the same time
have the same hash, the newer is rejected as a duplicate; for n pending that happens with a
probability of about n² / 3.7e19 (a million: 3 in 100 million).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import F64, I32, I64, U8
from anabranch.state.keys.hashing import hash64
from anabranch.state.keys.id_table import make_table, refill
from anabranch.state.labels.id_ring import IdRing
from anabranch.state.labels.label_join import (
    AFTER_TIMEOUT,
    CONFIRMS,
    CONTRADICTS,
    DEFAULTED,
    DROPPED,
    DUPLICATE,
    EARLY,
    EXPIRED,
    LATE,
    LEARN,
    MAX_RESOLVED,
    NO_EVENT,
    NO_SPACE,
    NO_VALUE,
    PREDICT,
    TIME_LIMIT,
    TOO_OLD,
    UNKNOWN,
    UPDATED,
    join,
    read_ahead,
)
from anabranch.state.labels.label_limits import LabelLimits
from anabranch.state.labels.row_pool import (
    ARRIVALS,
    FREE,
    FREED,
    KEEPS,
    KEPT,
    NEW,
    NONE,
    TOUCHED,
    WAITING,
    WAITS,
    WATERMARK,
    add_free,
    reclaim_freed,
)
from anabranch.state.labels.timeout_queue import advance_empty, append_all, make_queue
from anabranch.state.store.delta import Delta, Rows

__all__ = [
    "AFTER_TIMEOUT",
    "CONFIRMS",
    "CONTRADICTS",
    "DEFAULTED",
    "DROPPED",
    "DUPLICATE",
    "EARLY",
    "EXPIRED",
    "LATE",
    "LEARN",
    "NO_EVENT",
    "NO_SPACE",
    "NO_VALUE",
    "PREDICT",
    "TOO_OLD",
    "UNKNOWN",
    "UPDATED",
    "JoinResult",
    "PendingStore",
]

_NEVER: Final = -(2**62)
_STORED: Final = ("_keys", "_arrivals", "times", "tags", "features", "values", "labels")
_GROUPS: Final = "groups"
_LISTS: Final = "lists"
_NO_KEYS: Final = np.empty(0, np.uint64)
_WAITS, _IS_KEPT = 1, 2  # status of a row in `changes`


@dataclass(slots=True)
class JoinResult:
    """What is to be done, in order. Rows are those of the store, valid until its next `join`.

    The kinds of steps:

    * `PREDICT`: an event, `source` is its index.
    * `LEARN`: a label for a pending prediction, `source` is its index.
    * `DEFAULTED`: the timeout is over, and the default label is to be learned.
    * `DROPPED`: the timeout is over, and there is no default label.
    * `UPDATED`: a label, `source`, that differs from what was learned before.
    * `EARLY`: a buffered label, number `source`, is learned right after its event's prediction.
    * `EXPIRED`: a buffered label, number `source`. `row` is `NO_EVENT` if its event did not arrive
      in time; `NO_SPACE` if it was evicted for a newer one; `AFTER_TIMEOUT` if it is too late for
      its event, of which another worker read it first. `time` is when it arrived.

    Why a label is not learned: `NO_VALUE`, `UNKNOWN` (no such id, and nothing is buffered),
    `DUPLICATE` and `CONTRADICTS` (its id has a label already), `LATE` (after the timeout),
    `TOO_OLD` (no such id, and older than any that is pending), `CONFIRMS` (it equals the default).

    Attributes:
        kind: `(steps,) int64`.
        row: `(steps,) int64` into the store's arrays.
        source: `(steps,) int64`; -1 for a timeout.
        time: `(steps,) int64` ms: of the event; of the label, if not before its event; of a
            timeout, when it was due.
        item: `(steps,) int64`: the event, or events + label, at which it happened.
        rejected_events: `(events,) bool`: predicted but not stored, its id is pending already.
        rejected_labels: `(labels,) uint8`: why, or 0.
        early_numbers: `(labels,) int64`: the number under which a label is buffered, or -1.
    """

    kind: I64
    row: I64
    source: I64
    time: I64
    item: I64
    rejected_events: NDArray[np.bool_]
    rejected_labels: U8
    early_numbers: I64


class PendingStore:
    """Pending feature rows and predictions, by id and by time; O(1) both ways.

    Args:
        width: features per row.
        models: predictions per row.
        rules: how long a prediction waits, and what happens to labels that find none. A prediction
            times out at the first event or label whose time is later than `time + timeout_ms`,
            whatever the batches are; a label at exactly that time still counts. See `limit_time`.
        groups: small numbers per row, stored for the caller.
        lists: whether there is a large number per row as well.

    Attributes:
        features: `(capacity, width) float64`.
        values: `(capacity, models) float64`, NaN where a model has not predicted.
        labels: `(capacity, models) uint8`.
        times: `(capacity,) int64` ms, of the event.
        tags: `(capacity,) int32`, as passed to `join`.
        groups: `(capacity, groups) uint8`, for the caller to write after a join.
        lists: `(capacity,) uint64`, the same; initially 0. Without `lists`, always empty.
        resolved: ids that have their label, or timed out.
        early: buffered labels whose events have not arrived.

    >>> store = PendingStore(width=1, models=1)
    >>> none = np.empty(0, np.int64)
    >>> event = dict(event_times=np.array([5]), features=np.array([[0.5]]))
    >>> store.join(["a"], label_ids=[], label_times=none, order=np.array([0]), **event).row
    array([0])
    >>> len(store)
    1
    """

    def __init__(
        self,
        width: int,
        models: int,
        rules: LabelLimits | None = None,
        groups: int = 0,
        lists: bool = False,
    ) -> None:
        self.rules = rules or LabelLimits()
        self._rules = self.rules.numbers
        self.resolved, self.early = IdRing(), IdRing()
        self._counters = np.array([0, 0, NONE, NONE, NONE, 0, _NEVER], np.int64)
        self._table = make_table(0)
        self._keys = np.empty(0, np.uint64)
        self._arrivals = np.empty(0, np.uint32)
        self._marks, self._ends = make_queue()
        self._links = np.empty((0, 2), np.int32)
        self._flags = np.empty(0, np.uint8)
        self._rewrite = False  # whether all rows must be stored again
        self._stored_counters = self._counters[ARRIVALS:].tobytes()
        self.times = np.empty(0, np.int64)
        self.tags = np.empty(0, np.int32)
        self.features = np.empty((0, width))
        self.values = np.empty((0, models))
        self.labels = np.empty((0, models), np.uint8)
        self.groups = np.empty((0, groups), np.uint8)
        self.lists, self._has_lists = np.empty(0, np.uint64), lists

    def __len__(self) -> int:
        return int(self._counters[WAITING])

    @property
    def kept(self) -> int:
        """Number of predictions that have their label, and are kept so that it can be updated."""
        return int(self._counters[KEPT])

    @property
    def watermark(self) -> int | None:
        """The latest time seen, ms; None before the first."""
        latest = int(self._counters[WATERMARK])
        return None if latest == _NEVER else latest

    def limit_time(self, until: int) -> None:
        """From now on no event or label advances event time beyond `until` (epoch ms).

        For streams that are merged here and are not aligned: `until` is the time of the slowest of
        the others, so that no prediction times out whose label is merely read late.
        """
        self._rules[TIME_LIMIT] = until

    @property
    def overhead_bytes(self) -> int:
        """Bytes allocated for rows, beside `features`, `values`, `labels` and rings."""
        arrays = (self._table, self._keys, self._arrivals, self._links, self._flags)
        return sum(array.nbytes for array in (*arrays, self.times, self.tags))

    @property
    def nbytes(self) -> int:
        """Bytes allocated for rows, without rings."""
        rows = (self.features, self.values, self.labels, self.groups)
        return self.overhead_bytes + sum(array.nbytes for array in rows)

    def join(
        self,
        ids: Sequence[str],
        event_times: I64,
        features: F64,
        label_ids: list[str],
        label_times: I64,
        order: I64,
        usable: U8 | None = None,
        tags: I32 | None = None,
        codes: I64 | None = None,
    ) -> JoinResult:
        """Store events, find the rows of labels, and time out what is due; in `order`.

        Args:
            ids: of the events. A duplicate of a pending one is predicted but not stored.
            event_times: `(events,) int64` ms.
            features: `(events, width) float64`.
            label_ids: the id of the event that each label belongs to.
            label_times: `(labels,) int64` ms.
            order: `(events + labels,) int64`: event i as i, label j as `events + j`.
            usable: `(labels,) uint8`: 0 where the label's value can't be learned. It is rejected,
                and the prediction stays pending.
            tags: `(events,) int32`, stored with the row; 0 by default.
            codes: `(labels,) int64`, equal for equal labels; by default all are.
        """
        events, labels = len(ids), len(label_ids)
        reclaim_freed(self._counters, self._links)
        self._reserve(events)
        self.resolved.release_evicted()
        self.early.release_evicted()
        tags = np.zeros(events, np.int32) if tags is None else tags
        event_columns = (hash64(ids), event_times, features, tags)
        label_columns = _label_columns(label_ids, label_times, usable, codes)
        rejected_events, rejected_labels = np.zeros(events, np.bool_), np.zeros(labels, np.uint8)
        early_numbers = np.full(labels, -1)
        out = (rejected_events, rejected_labels, early_numbers)
        parts = self._join(order, event_columns, label_columns, out)
        steps = parts[0] if len(parts) == 1 else np.concatenate(parts)
        kind, row, source, time, item = np.ascontiguousarray(steps.T)
        return JoinResult(kind, row, source, time, item, *out)

    def _join(
        self,
        order: I64,
        events: tuple[Any, ...],
        labels: tuple[Any, ...],
        out: tuple[Any, ...],
    ) -> list[I64]:
        """The steps in parts, between which arrays are enlarged.

        Tuples are plain, in the order of `EventColumns`, `LabelColumns`, `PendingArrays` and
        `JoinOutput`: see `label_join`.
        """
        size, rules = order.size, self._rules
        most = int(rules[MAX_RESOLVED])
        resolved, early = self.resolved, self.early
        pending = (
            self._counters, self._table, self._keys, self.times, self._arrivals, self._marks,
            self._ends, self._links, self._flags, self.features, self.tags,
        )  # fmt: skip
        if len(labels[0]) > 1:
            read_ahead(labels[0], pending, tuple(resolved.arrays))
        parts: list[I64] = []
        position = 0
        while not parts or position < size:
            if parts and resolved.capacity < most and resolved.must_evict:
                resolved.release_evicted()
                resolved.grow(most)
            if parts and early.full and self.rules.early_ms > 0:
                early.grow(2**31 - 1)
            steps = np.empty((size + 64 << min(len(parts), 12), 5), np.int64)
            position, written = join(
                position, order, events, labels, pending, tuple(resolved.arrays),
                tuple(early.arrays), rules, (steps, *out),
            )  # fmt: skip
            parts.append(steps[:written])
        return parts

    def _reserve(self, events: int) -> None:
        """Grow until each of `events` can have a row of its own."""
        capacity = len(self._flags)
        needed = len(self) + self.kept + events
        if needed <= capacity:
            return
        grown = max(needed, capacity + capacity // 4, 16)
        for name in ("_links", *self._columns):
            setattr(self, name, _longer(getattr(self, name), grown))
        self.lists[capacity:] = 0
        self._flags = np.append(self._flags, np.zeros(grown - capacity, np.uint8))
        add_free(np.arange(capacity, grown), self._counters, self._links)
        self._table = make_table(grown)
        waiting = np.flatnonzero(self._flags & WAITS)
        refill(self._table, self._keys, waiting)

    def add_model(self) -> None:
        """Add a prediction to each row; NaN in those that are pending already."""
        self.values = np.column_stack([self.values, np.full(len(self.values), np.nan)])
        self.labels = np.column_stack([self.labels, np.full(len(self.labels), 255, np.uint8)])
        self._rewrite = True

    def drop_model(self, model: int) -> None:
        """Remove one model's predictions; those after it move up."""
        self.values = np.delete(self.values, model, axis=1)
        self.labels = np.delete(self.labels, model, axis=1)
        self._rewrite = True

    def regroup(self, sources: list[int]) -> None:
        """Select and reorder the columns of `groups`: from `sources`, 255 where that is -1."""
        if not self._flags.size:
            self.groups = np.empty((0, len(sources)), np.uint8)
        elif sources != list(range(self.groups.shape[1])):
            groups = np.full((len(self._flags), len(sources)), 255, np.uint8)
            for column, source in enumerate(sources):
                if source >= 0:
                    groups[:, column] = self.groups[:, source]
            self.groups, self._rewrite = groups, True

    @property
    def _columns(self) -> tuple[str, ...]:
        """The arrays that are stored with a row."""
        groups = (_GROUPS,) if self.groups.shape[1] else ()
        return (*_STORED, *groups, *((_LISTS,) if self._has_lists else ()))

    def changes(self) -> Delta:
        """What changed since the last call; everything on the first one.

        Rows `state`: whether a row waits (1), is kept (2) or is free, where that changed. Rows
        `waiting`: its content, where that is new. `settled/…`, `early/…`: those of the rings.
        """
        delta = Delta()
        if self._rewrite:
            delta.cleared, self._rewrite = {"state", "waiting"}, False
            self._flags[self._flags >= WAITS] |= TOUCHED | NEW
        touched = np.flatnonzero(self._flags & (TOUCHED | NEW))
        if touched.size:
            flags = self._flags[touched]
            waits = np.where(flags & KEEPS, _IS_KEPT, np.where(flags & WAITS, _WAITS, 0))
            delta.rows["state"] = Rows(touched, {"waits": waits.astype(np.uint8)})
            new = touched[(waits > 0) & (flags & NEW > 0)]
            delta.rows["waiting"] = Rows(new, {n: getattr(self, n)[new] for n in self._columns})
            self._flags &= WAITS | KEEPS
        counters = self._counters[ARRIVALS:].tobytes()
        if counters != self._stored_counters:
            delta.blobs["counters"] = self._stored_counters = counters
        delta.put("settled", self.resolved.changes())
        delta.put("early", self.early.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Restore, into a new store of the same widths, what all calls of `changes` returned."""
        if "counters" not in image.blobs:
            return
        self._stored_counters, self._rewrite = image.blobs["counters"], False
        self._counters[ARRIVALS:] = np.frombuffer(self._stored_counters, np.int64)
        self.resolved.restore(image.part("settled"))
        self.early.restore(image.part("early"))
        if "state" not in image.rows:
            return
        state, content = image.rows["state"], image.rows["waiting"]
        waits = state.columns["waits"]
        rows, waiting = state.index[waits > 0], state.index[waits == _WAITS]
        stored = content.columns.get(_GROUPS)
        self.groups = np.empty((0, 0 if stored is None else stored.shape[1]), np.uint8)
        self._reserve(int(rows.max(initial=-1)) + 1)
        at = np.searchsorted(content.index, rows)
        for name in self._columns:
            if name in content.columns:
                getattr(self, name)[rows] = content.columns[name][at]
        self._rewrite = len(content.index) > 0 and set(self._columns) != set(content.columns)
        self._flags[rows] = np.array([0, WAITS, KEEPS], np.uint8)[waits[waits > 0]]
        self._counters[[WAITING, KEPT]] = len(waiting), len(rows) - len(waiting)
        self._counters[[FREE, FREED]] = NONE
        add_free(np.flatnonzero(self._flags == 0), self._counters, self._links)
        # Arrivals are counted modulo 2**32: ages show which came first.
        age = np.uint32(self._counters[ARRIVALS] & 0xFFFFFFFF) - self._arrivals[waiting]
        sorted_rows = waiting[np.lexsort((-age.astype(np.int64), self.times[waiting]))]
        if self.rules.timeout_ms is not None:
            watermark = int(self._counters[WATERMARK])
            advance_empty(watermark - self.rules.timeout_ms, self._marks)
        append_all(sorted_rows, self.times, self._marks, self._ends, self._links)
        refill(self._table, self._keys, sorted_rows)


def _label_columns(
    ids: Sequence[str], times: I64, usable: U8 | None, codes: I64 | None
) -> tuple[Any, I64, U8, I64]:
    """`LabelColumns`, as a plain tuple."""
    labels = len(ids)
    usable = np.ones(labels, np.uint8) if usable is None else usable
    codes = np.zeros(labels, np.int64) if codes is None else codes
    return hash64(ids) if labels else _NO_KEYS, times, usable, codes


def _longer(array: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    """A copy with `size` rows; the new ones are not initialised."""
    longer = np.empty((size, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer
