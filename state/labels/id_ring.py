"""A bounded memory of ids, oldest evicted first: a ring buffer of arrays with a hash table.

Entries are numbered as they are added; number n is in slot `n % capacity`. `TAIL` is the oldest,
`HEAD` the next to be added, and what was evicted since `FLOOR` keeps its content until
`release_evicted`::

    floor ····· tail ●●●○●●●●●●●●●● head        ○ removed out of turn, or added again since

An entry takes 33 bytes and 14 of table; arrays grow by a quarter at a time, so at most 59 bytes of
the largest number of entries at a time.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I32, I64, U8, kernel
from anabranch.state.keys.id_table import EMPTY, erase, find, make_table
from anabranch.state.store.delta import Delta, Rows

TAIL, HEAD, FLOOR, LIVE = 0, 1, 2, 3
"""Cells of a ring's marks; `LIVE` counts the entries that can be found."""

_COLUMNS: Final = ("keys", "moments", "codes", "more")
_LEAST: Final = 64


class RingArrays(NamedTuple):
    """The arrays of a ring, as kernels take them."""

    marks: I64
    """`(4,)`: see `TAIL`."""
    table: I32
    """Hash table from id to slot, see `id_table`."""
    keys: NDArray[np.uint64]
    """`(capacity,)`: ids."""
    moments: I64
    """`(capacity,)`: event time at which each was added, ms."""
    codes: I64
    """`(capacity,)`: codes of labels."""
    more: I64
    """`(capacity,)`: one more number, for the caller."""
    touched: U8
    """`(capacity,)`: whether the slot changed since the last commit."""


@kernel
def add(key: np.uint64, moment: int, code: int, more: int, ring: RingArrays) -> Any:
    """Add an entry, for which there must be space, and return its number. It replaces an older."""
    number = ring.marks[HEAD]
    slot = number % ring.keys.size
    at = find(key, ring.table, ring.keys)
    ring.marks[LIVE] += ring.table[at] == EMPTY
    ring.keys[slot], ring.moments[slot], ring.codes[slot], ring.more[slot] = key, moment, code, more
    ring.touched[slot] = 1
    ring.table[at] = slot
    ring.marks[HEAD] = number + 1
    return number


@kernel
def evict_oldest(ring: RingArrays) -> Any:
    """Evict the oldest entry; its slot, or -1 if it was removed or replaced before."""
    slot = ring.marks[TAIL] % ring.keys.size
    ring.marks[TAIL] += 1
    at = find(ring.keys[slot], ring.table, ring.keys)
    if ring.table[at] != slot:
        return np.int64(-1)
    erase(at, ring.table, ring.keys)
    ring.marks[LIVE] -= 1
    return slot


@kernel
def remove(at: np.int64, ring: RingArrays) -> None:
    """Remove the entry in cell `at` of the table."""
    ring.touched[ring.table[at]] = 1
    erase(at, ring.table, ring.keys)
    ring.marks[LIVE] -= 1


@kernel
def _copy_entries(old: RingArrays, new: RingArrays) -> None:
    """Copy all entries from the floor on into a ring of another size, with the same marks."""
    for number in range(old.marks[FLOOR], old.marks[HEAD]):
        slot, to = number % old.keys.size, number % new.keys.size
        key = old.keys[slot]
        new.keys[to], new.moments[to] = key, old.moments[slot]
        new.codes[to], new.more[to] = old.codes[slot], old.more[slot]
        if number >= old.marks[TAIL] and old.table[find(key, old.table, old.keys)] == slot:
            new.table[find(key, new.table, new.keys)] = to
            new.touched[to] = 1


@kernel
def _find_live(ring: RingArrays, live: U8, slots: I64) -> None:
    """Set `live` for the slots that are found by their ids."""
    for i in range(slots.size):
        live[i] = ring.table[find(ring.keys[slots[i]], ring.table, ring.keys)] == slots[i]


@kernel
def _fill_table(ring: RingArrays, live: U8) -> None:
    """Fill an empty table with the live slots, oldest first."""
    for number in range(ring.marks[TAIL], ring.marks[HEAD]):
        slot = number % ring.keys.size
        if live[slot]:
            at = find(ring.keys[slot], ring.table, ring.keys)
            ring.marks[LIVE] += ring.table[at] == EMPTY
            ring.table[at] = slot


class IdRing:
    """Entries by 64-bit id, each with the event time of its arrival, a code and one more number.

    Kernels work on `arrays`; this class resizes and persists them.

    Attributes:
        arrays: what kernels take; another object after `grow` and `restore`.
    """

    def __init__(self) -> None:
        self._allocate(0, np.zeros(4, np.int64))
        self._stored_marks, self._rewrite = self._packed_marks(), False

    def __len__(self) -> int:
        return int(self.arrays.marks[LIVE])

    def _allocate(self, capacity: int, marks: I64) -> None:
        moments, codes, more = (np.zeros(capacity, np.int64) for _ in range(3))
        self.arrays = RingArrays(
            marks,
            make_table(2 * capacity),  # sparse, since most look-ups find nothing
            np.zeros(capacity, np.uint64),
            moments,
            codes,
            more,
            np.zeros(capacity, np.uint8),
        )

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return len(self.arrays.keys)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, free slots included."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def full(self) -> bool:
        """Whether there is no space for one more entry."""
        marks = self.arrays.marks
        return int(marks[HEAD] - marks[FLOOR]) == self.capacity

    @property
    def must_evict(self) -> bool:
        """Whether one more entry would replace the oldest."""
        marks = self.arrays.marks
        return int(marks[HEAD] - marks[TAIL]) == self.capacity

    def release_evicted(self) -> None:
        """Allow the slots of evicted entries to be overwritten from now on."""
        self.arrays.marks[FLOOR] = self.arrays.marks[TAIL]

    def grow(self, max_entries: int) -> None:
        """Add a quarter to the slots, up to `max_entries` in all; one at least."""
        old, capacity = self.arrays, self.capacity
        wanted = max(_LEAST, capacity + capacity // 4)
        self._allocate(max(capacity + 1, min(wanted, max_entries)), old.marks)
        _copy_entries(old, self.arrays)
        self._rewrite = True

    def changes(self) -> Delta:
        """What changed since the last call; everything on the first one. Not within a join."""
        delta = Delta()
        if self._rewrite:
            delta.cleared, self._rewrite = {"entries"}, False
        slots = np.flatnonzero(self.arrays.touched)
        if slots.size:
            live = np.empty(slots.size, np.uint8)
            _find_live(self.arrays, live, slots)
            columns: dict[str, Any] = {n: getattr(self.arrays, n)[slots] for n in _COLUMNS}
            delta.rows["entries"] = Rows(slots, {**columns, "lives": live})
            self.arrays.touched[:] = 0
        marks = self._packed_marks()
        if marks != self._stored_marks:
            delta.blobs["marks"] = self._stored_marks = marks
        return delta

    def restore(self, image: Delta) -> None:
        """Restore, into a new ring, what all calls of `changes` returned."""
        if "marks" not in image.blobs:
            return
        tail, head, capacity = np.frombuffer(image.blobs["marks"], np.int64).tolist()
        self._allocate(capacity, np.array([tail, head, tail, 0], np.int64))
        live = np.zeros(capacity, np.uint8)
        if "entries" in image.rows:
            entries = image.rows["entries"]
            for name in _COLUMNS:
                getattr(self.arrays, name)[entries.index] = entries.columns[name]
            live[entries.index] = entries.columns["lives"]
        _fill_table(self.arrays, live)
        self._stored_marks, self._rewrite = self._packed_marks(), False

    def _packed_marks(self) -> bytes:
        marks = self.arrays.marks
        return np.array([marks[TAIL], marks[HEAD], self.capacity], np.int64).tobytes()
