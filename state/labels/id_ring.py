"""Ids remembered for a while, oldest forgotten first: a ring of arrays, and a table over it.

Entries are numbered as they come; number n is in slot `n % capacity`. `TAIL` is the oldest, `HEAD`
the next to come, and what was forgotten since `FLOOR` keeps its content until `begin`::

    floor ····· tail ●●●○●●●●●●●●●● head        ○ forgotten out of turn, or entered anew since

An entry takes 33 bytes and 14 of table; arrays grow by a quarter at a time, so at most 59 bytes of
the most that were ever there.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from anabranch.state.compile import I64, U8, kernel
from anabranch.state.keys.id_table import EMPTY, erase, find, make_table
from anabranch.state.store.delta import Delta, Rows

TAIL, HEAD, FLOOR, LIVE = 0, 1, 2, 3
"""Fields of a ring's marks; `LIVE` counts the entries that can be found."""

_COLUMNS: Final = ("keys", "moments", "codes", "more")
_LEAST: Final = 64


@kernel
def enter(key: np.uint64, moment: int, code: int, more: int, ring: Any) -> Any:
    """Add an entry, for which there must be room; its number. It stands for `key` from now on."""
    marks, table, keys, moments, codes, others, touched = ring
    number = marks[HEAD]
    slot = number % keys.size
    at = find(key, table, keys)
    marks[LIVE] += table[at] == EMPTY
    keys[slot], moments[slot], codes[slot], others[slot] = key, moment, code, more
    touched[slot] = 1
    table[at] = slot
    marks[HEAD] = number + 1
    return number


@kernel
def forget_oldest(ring: Any) -> Any:
    """Pass over the oldest entry; its slot, or -1 if it was forgotten already."""
    marks, table, keys, _, _, _, _ = ring
    slot = marks[TAIL] % keys.size
    marks[TAIL] += 1
    at = find(keys[slot], table, keys)
    if table[at] != slot:
        return np.int64(-1)
    erase(at, table, keys)
    marks[LIVE] -= 1
    return slot


@kernel
def forget(at: np.int64, ring: Any) -> None:
    """Forget the entry in cell `at` of the table."""
    marks, table, keys, _, _, _, touched = ring
    touched[table[at]] = 1
    erase(at, table, keys)
    marks[LIVE] -= 1


@kernel
def _lay_anew(old: Any, new: Any) -> None:
    """Copy all entries from the floor on into a ring of another size."""
    marks, table, keys, moments, codes, others, _ = old
    _, new_table, new_keys, new_moments, new_codes, new_others, new_touched = new
    for number in range(marks[FLOOR], marks[HEAD]):
        slot, to = number % keys.size, number % new_keys.size
        new_keys[to], new_moments[to] = keys[slot], moments[slot]
        new_codes[to], new_others[to] = codes[slot], others[slot]
        if number >= marks[TAIL] and table[find(keys[slot], table, keys)] == slot:
            new_table[find(keys[slot], new_table, new_keys)] = to
            new_touched[to] = 1


@kernel
def _find_all(ring: Any, lives: U8, slots: I64) -> None:
    """Which of the slots are found by their ids."""
    _, table, keys, _, _, _, _ = ring
    for i in range(slots.size):
        lives[i] = table[find(keys[slots[i]], table, keys)] == slots[i]


@kernel
def _enter_again(ring: Any, lives: U8) -> None:
    """Fill the table, oldest first, with the slots that live."""
    marks, table, keys, _, _, _, _ = ring
    for number in range(marks[TAIL], marks[HEAD]):
        slot = number % keys.size
        if lives[slot]:
            at = find(keys[slot], table, keys)
            marks[LIVE] += table[at] == EMPTY
            table[at] = slot


class IdRing:
    """Entries by 64-bit id, each with the moment that it came, a code and one more number.

    Kernels work on `arrays`; here is what grows it, and what keeps it.

    Attributes:
        marks: `(4,) int64`.
        keys: `(capacity,) uint64`; `moments` (ms), `codes` and `more` are `(capacity,) int64`.
    """

    def __init__(self) -> None:
        self.marks = np.zeros(4, np.int64)
        self._allocate(0)
        self._told, self._anew = self._brief(), False

    def __len__(self) -> int:
        return int(self.marks[LIVE])

    def _allocate(self, capacity: int) -> None:
        self.keys = np.zeros(capacity, np.uint64)
        self.moments, self.codes, self.more = (np.zeros(capacity, np.int64) for _ in range(3))
        self._touched = np.zeros(capacity, np.uint8)
        self._table = make_table(2 * capacity)  # sparse, since most searches are in vain

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What the kernels take as a ring."""
        return (
            self.marks, self._table, self.keys, self.moments, self.codes, self.more, self._touched,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes held, free slots included."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def full(self) -> bool:
        """Whether there is no room for one more entry."""
        return int(self.marks[HEAD] - self.marks[FLOOR]) == len(self.keys)

    @property
    def crowded(self) -> bool:
        """Whether one more entry would take the place of the oldest."""
        return int(self.marks[HEAD] - self.marks[TAIL]) == len(self.keys)

    def begin(self) -> None:
        """What was forgotten may lose its content from now on."""
        self.marks[FLOOR] = self.marks[TAIL]

    def grow(self, most: int) -> None:
        """Make room for a quarter more, but for no more than `most` entries; one at least."""
        old, capacity = self.arrays, len(self.keys)
        wanted = max(_LEAST, capacity + capacity // 4)
        self._allocate(max(capacity + 1, min(wanted, most)))
        _lay_anew(old, self.arrays)
        self._anew = True

    def changes(self) -> Delta:
        """What changed since the last call; at first, everything. Between kernels' calls only."""
        delta = Delta()
        if self._anew:
            delta.cleared, self._anew = {"entries"}, False
        slots = np.flatnonzero(self._touched)
        if slots.size:
            lives = np.empty(slots.size, np.uint8)
            _find_all(self.arrays, lives, slots)
            columns: dict[str, Any] = {name: getattr(self, name)[slots] for name in _COLUMNS}
            delta.rows["entries"] = Rows(slots, {**columns, "lives": lives})
            self._touched[:] = 0
        told = self._brief()
        if told != self._told:
            delta.blobs["marks"] = self._told = told
        return delta

    def restore(self, image: Delta) -> None:
        """Take up where the ring that gave `image` was; for a fresh one."""
        if "marks" not in image.blobs:
            return
        tail, head, capacity = np.frombuffer(image.blobs["marks"], np.int64).tolist()
        self._allocate(capacity)
        self.marks[:] = tail, head, tail, 0
        lives = np.zeros(capacity, np.uint8)
        if "entries" in image.rows:
            entries = image.rows["entries"]
            for name in _COLUMNS:
                getattr(self, name)[entries.index] = entries.columns[name]
            lives[entries.index] = entries.columns["lives"]
        _enter_again(self.arrays, lives)
        self._told, self._anew = self._brief(), False

    def _brief(self) -> bytes:
        return np.array([self.marks[TAIL], self.marks[HEAD], len(self.keys)], np.int64).tobytes()
