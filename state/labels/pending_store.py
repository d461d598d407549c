"""Predictions that wait for their label: by id, in arrays, until the label or the timeout comes.

Memory per waiting prediction, beside its feature row and its predictions, is 40 bytes, seven of
them hash table. Arrays grow by a quarter at a time, so it is never more than 50 bytes of the most
that ever waited at a time (with the events of a call); what they have grown to is not given back.
16 KB are there whatever waits. A prediction kept for correction takes as much, and as settled.

Beside them are remembered the ids that are *settled*, by a label or by the end of their wait, to
know repeated and late labels for what they are (59 bytes each at most); and the labels that are
*held* because their event has not come yet. See `state.labels.label_rules`.

An id is kept as its 64-bit `hash64`, not as text. Should two ids that wait at the same time have
the same hash, the newer is refused as a duplicate; for n waiting that happens with a probability of
about n² / 3.7e19 (a million: 3 in 100 million).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import F64, I32, I64, U8
from anabranch.state.keys.hashing import hash64
from anabranch.state.keys.id_table import make_table, refill
from anabranch.state.labels.id_ring import IdRing
from anabranch.state.labels.join_kernel import (
    ASSUMED,
    CONFIRMS,
    CONTRADICTS,
    CORRECTED,
    DROPPED,
    DUPLICATE,
    EARLY,
    GIVEN_UP,
    LATE,
    LEARN,
    MOST_SETTLED,
    NO_VALUE,
    PREDICT,
    TOO_OLD,
    UNKNOWN,
    UNTIL,
    read_ahead,
    walk,
)
from anabranch.state.labels.label_rules import LabelRules
from anabranch.state.labels.pending_steps import Walk
from anabranch.state.labels.row_pool import (
    ARRIVALS,
    CAME,
    FREE,
    KEEPS,
    KEPT,
    LEFT,
    NONE,
    TOUCHED,
    WAITING,
    WAITS,
    WATERMARK,
    become_free,
    chain,
)
from anabranch.state.labels.timeout_queue import append_all, begin_at, make_order
from anabranch.state.store.delta import Delta, Rows

__all__ = [
    "ASSUMED",
    "CONFIRMS",
    "CONTRADICTS",
    "CORRECTED",
    "DROPPED",
    "DUPLICATE",
    "EARLY",
    "GIVEN_UP",
    "LATE",
    "LEARN",
    "NO_VALUE",
    "PREDICT",
    "TOO_OLD",
    "UNKNOWN",
    "PendingStore",
    "Walk",
]

_NEVER: Final = -(2**62)
_STORED: Final = ("_keys", "_arrivals", "times", "tags", "features", "values", "labels")
_GROUPS: Final = "groups"
_LISTS: Final = "lists"
_NO_KEYS: Final = np.empty(0, np.uint64)
_WAITS, _IS_KEPT = 1, 2  # what `changes` says of a row


class PendingStore:
    """Feature rows and predictions that wait, by id and by time; O(1) both ways.

    Args:
        width: features per row.
        models: predictions per row.
        groups: small numbers per row that the caller wants back with the label.
        lists: whether there is a large number per row as well.
        rules: how long a prediction waits, and what becomes of labels that find none. A prediction
            is let go by the first event or label whose time is later than `time + wait_ms`,
            whatever the batches are; a label at exactly that time still counts. See `hold`.

    Attributes:
        features: `(capacity, width) float64`.
        values: `(capacity, models) float64`, NaN where a model has not predicted.
        labels: `(capacity, models) uint8`.
        times: `(capacity,) int64` ms, of the event.
        tags: `(capacity,) int32`, whatever the caller gave along.
        groups: `(capacity, groups) uint8`, for the caller to write after a walk.
        lists: `(capacity,) uint64`, the same; 0 at first. Without `lists`, always empty.
        settled: ids that have their label, or whose wait is over.
        early: labels whose events have not come.

    >>> store = PendingStore(width=1, models=1)
    >>> none = np.empty(0, np.int64)
    >>> event = dict(event_times=np.array([5]), features=np.array([[0.5]]))
    >>> store.walk(["a"], label_ids=[], label_times=none, order=np.array([0]), **event).row
    array([0])
    >>> len(store)
    1
    """

    def __init__(
        self,
        width: int,
        models: int,
        rules: LabelRules | None = None,
        groups: int = 0,
        lists: bool = False,
    ) -> None:
        self.rules = rules or LabelRules()
        self._rules = self.rules.numbers
        self.settled, self.early = IdRing(), IdRing()
        self._counters = np.array([0, 0, NONE, NONE, NONE, 0, _NEVER], np.int64)
        self._table = make_table(0)
        self._keys = np.empty(0, np.uint64)
        self._arrivals = np.empty(0, np.uint32)
        self._marks, self._ends = make_order()
        self._links = np.empty((0, 2), np.int32)
        # Whether all rows must be told again.
        self._flags, self._anew = np.empty(0, np.uint8), False
        self._told = self._counters[ARRIVALS:].tobytes()
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
        """Predictions that have their label, and are kept so that it can be corrected."""
        return int(self._counters[KEPT])

    @property
    def watermark(self) -> int | None:
        """The latest time seen, ms; None before the first."""
        latest = int(self._counters[WATERMARK])
        return None if latest == _NEVER else latest

    def hold(self, until: int) -> None:
        """From now on no event or label moves time on beyond `until` (epoch ms).

        For streams that come together here and are not aligned: `until` is the time of the slowest
        of the others, so that no wait is over for a prediction whose label is only read late.
        """
        self._rules[UNTIL] = until

    @property
    def overhead_bytes(self) -> int:
        """Bytes held for rows, free ones too, beside `features`, `values`, `labels` and rings."""
        held = (self._table, self._keys, self._arrivals, self._links, self._flags)
        return sum(array.nbytes for array in (*held, self.times, self.tags))

    @property
    def nbytes(self) -> int:
        """Bytes held for rows, free ones too, without rings."""
        rows = (self.features, self.values, self.labels, self.groups)
        return self.overhead_bytes + sum(array.nbytes for array in rows)

    def walk(
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
            codes: `(labels,) int64`, equal for equal labels; by default all are.
        """
        events, labels = len(ids), len(label_ids)
        become_free(self._counters, self._links)
        self._make_room(events)
        self.settled.begin()
        self.early.begin()
        tags = np.zeros(events, np.int32) if tags is None else tags
        given = (
            order,
            (hash64(ids), event_times, features, tags),
            _label_columns(label_ids, label_times, usable, codes),
        )
        refused_events, refused_labels = np.zeros(events, np.bool_), np.zeros(labels, np.uint8)
        held = np.full(labels, -1)
        parts = self._walk(given, (refused_events, refused_labels, held))
        done = parts[0] if len(parts) == 1 else np.concatenate(parts)
        kind, row, source, time, item = np.ascontiguousarray(done.T)
        return Walk(kind, row, source, time, item, refused_events, refused_labels, held)

    def _walk(self, given: tuple[I64, Any, Any], out: tuple[Any, ...]) -> list[I64]:
        """Steps in pieces, between which there is more room made."""
        order, events, labels = given
        size, rules = order.size, self._rules
        most = int(rules[MOST_SETTLED])
        settled, early = self.settled, self.early
        pending = (
            self._counters, self._table, self._keys, self.times, self._arrivals,
            (self._marks, self._ends, self._links), self._flags, self.features, self.tags,
        )  # fmt: skip
        if len(labels[0]) > 1:
            read_ahead(labels[0], pending, settled.arrays)
        parts: list[I64] = []
        position = 0
        while not parts or position < size:
            if parts and len(settled.keys) < most and settled.crowded:
                settled.begin()
                settled.grow(most)
            if parts and early.full and self.rules.hold_ms > 0:
                early.grow(2**31 - 1)
            steps = np.empty((size + 64 << min(len(parts), 12), 5), np.int64)
            position, written = walk(
                position, order, events, labels, pending, settled.arrays, early.arrays, rules,
                (steps, *out),
            )  # fmt: skip
            parts.append(steps[:written])
        return parts

    def _make_room(self, events: int) -> None:
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
        chain(np.arange(capacity, grown), self._counters, self._links)
        self._table = make_table(grown)
        waiting = np.flatnonzero(self._flags & WAITS)
        refill(self._table, self._keys, waiting)

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

    def regroup(self, places: list[int]) -> None:
        """Give each row the groups at `places` of those it has; 255 where that is -1."""
        if not self._flags.size:
            self.groups = np.empty((0, len(places)), np.uint8)
        elif places != list(range(self.groups.shape[1])):
            found = np.full((len(self._flags), len(places)), 255, np.uint8)
            for column, place in enumerate(places):
                if place >= 0:
                    found[:, column] = self.groups[:, place]
            self.groups, self._anew = found, True

    @property
    def _columns(self) -> tuple[str, ...]:
        """The arrays that are kept with a row."""
        groups = (_GROUPS,) if self.groups.shape[1] else ()
        return (*_STORED, *groups, *((_LISTS,) if self._has_lists else ()))

    def changes(self) -> Delta:
        """What changed since the last call; at first, everything.

        Rows `state`: whether a row waits (1) or is kept (2), of all that came or left. Rows
        `waiting`: what is in it, of all that came. `settled/…`, `early/…`: those of the rings.
        """
        delta = Delta()
        if self._anew:
            delta.cleared, self._anew = {"state", "waiting"}, False
            self._flags[self._flags >= WAITS] |= TOUCHED | CAME
        touched = np.flatnonzero(self._flags & (TOUCHED | CAME))
        if touched.size:
            flags = self._flags[touched]
            waits = np.where(flags & KEEPS, _IS_KEPT, np.where(flags & WAITS, _WAITS, 0))
            delta.rows["state"] = Rows(touched, {"waits": waits.astype(np.uint8)})
            new = touched[(waits > 0) & (flags & CAME > 0)]
            delta.rows["waiting"] = Rows(new, {n: getattr(self, n)[new] for n in self._columns})
            self._flags &= WAITS | KEEPS
        told = self._counters[ARRIVALS:].tobytes()
        if told != self._told:
            delta.blobs["counters"] = self._told = told
        delta.put("settled", self.settled.changes())
        delta.put("early", self.early.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Take up where the store that gave `image` was; for a fresh one, of the same widths."""
        if "counters" not in image.blobs:
            return
        self._told, self._anew = image.blobs["counters"], False
        self._counters[ARRIVALS:] = np.frombuffer(self._told, np.int64)
        self.settled.restore(image.part("settled"))
        self.early.restore(image.part("early"))
        if "state" not in image.rows:
            return
        state, content = image.rows["state"], image.rows["waiting"]
        waits = state.columns["waits"]
        rows, waiting = state.index[waits > 0], state.index[waits == _WAITS]
        stored = content.columns.get(_GROUPS)
        self.groups = np.empty((0, 0 if stored is None else stored.shape[1]), np.uint8)
        self._make_room(int(rows.max(initial=-1)) + 1)
        at = np.searchsorted(content.index, rows)
        for name in self._columns:
            if name in content.columns:
                getattr(self, name)[rows] = content.columns[name][at]
        self._anew = len(content.index) > 0 and set(self._columns) != set(content.columns)
        self._flags[rows] = np.array([0, WAITS, KEEPS], np.uint8)[waits[waits > 0]]
        self._counters[[WAITING, KEPT]] = len(waiting), len(rows) - len(waiting)
        self._counters[[FREE, LEFT]] = NONE
        chain(np.flatnonzero(self._flags == 0), self._counters, self._links)
        # The older came first, though arrivals are counted round and round.
        age = np.uint32(self._counters[ARRIVALS] & 0xFFFFFFFF) - self._arrivals[waiting]
        sorted_rows = waiting[np.lexsort((-age.astype(np.int64), self.times[waiting]))]
        if self.rules.wait_ms is not None:
            begin_at(int(self._counters[WATERMARK]) - self.rules.wait_ms, self._marks)
        append_all(sorted_rows, self.times, self._marks, self._ends, self._links)
        refill(self._table, self._keys, sorted_rows)


def _label_columns(
    ids: Sequence[str], times: I64, usable: U8 | None, codes: I64 | None
) -> tuple[Any, I64, U8, I64]:
    """Labels as `pending_walk` takes them."""
    labels = len(ids)
    usable = np.ones(labels, np.uint8) if usable is None else usable
    codes = np.zeros(labels, np.int64) if codes is None else codes
    return hash64(ids) if labels else _NO_KEYS, times, usable, codes


def _longer(array: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    """A copy with `size` rows; the new ones hold anything."""
    longer = np.empty((size, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer
