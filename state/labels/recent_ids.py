"""Deduplication by id: which ids were seen recently, so that a repeated message counts once.

Ids are kept as 64-bit hashes in two open-addressing tables, a current and a previous one. They are
rotated whenever event time passes a multiple of the horizon, so an id is remembered for at least
one horizon and at most two, whatever the batches are. Different ids are mistaken for each other
with a probability of about n² / 4e19 for n ids remembered.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anabranch.state.compile import I64, entry, kernel
from anabranch.state.keys.hashing import hash64
from anabranch.state.keys.text_column import Texts
from anabranch.state.store.delta import Delta, Rows

U64 = NDArray[np.uint64]

_EMPTY = 0  # a hash of 0 is stored as 1
_BOOL = np.dtype(np.bool_)


class RecentIds:
    """Tells new ids from those seen within ``horizon_ms`` of event time.

    >>> seen = RecentIds(horizon_ms=60_000)
    >>> seen.is_new(["a", "b", "a"], np.array([0, 1, 2]))
    array([ True,  True, False])
    >>> seen.is_new(["a", "c"], 200_000) is None  # all new: "a" has expired
    True
    """

    def __init__(self, horizon_ms: int, watermark: int | None = None) -> None:
        self.horizon_ms = max(int(horizon_ms), 1)
        self._current = np.zeros(1024, np.uint64)
        self._previous = np.zeros(1024, np.uint64)
        self._count = 0
        self._rotate_at: int | None = None
        # By table: the ids that were added since the last commit (None before the first one), and
        # the number committed before.
        self._added: dict[str, list[NDArray[np.uint64]]] | None = None
        self._committed: dict[str, int] = {}
        self._dropped: set[str] = set()
        self._remember = entry(
            _remember, self._current, self._previous, self._current, np.zeros(0, np.bool_)
        )
        if watermark is not None:
            self._rotate(watermark)

    @property
    def nbytes(self) -> int:
        """Bytes of both tables."""
        return self._current.nbytes + self._previous.nbytes

    def is_new(self, ids: Sequence[str], watermarks: I64 | int) -> NDArray[np.bool_] | None:
        """``(n,) bool``: False where an id was seen before; None when all are new.

        ``ids`` are remembered from now on. ``watermarks`` is the largest event time (epoch ms) up
        to and including each row, ``(n,) int64`` and ascending, or one number for all rows.
        """
        hashes = ids.hashes if type(ids) is Texts else hash64(ids)
        if isinstance(watermarks, int):
            if self._rotate_at is None or watermarks >= self._rotate_at:
                self._rotate(watermarks)
            return self._check(hashes)
        fresh = np.ones(len(ids), np.bool_)
        start = 0
        while start < len(ids):
            rotate_at = self._rotate(int(watermarks[start]))
            stop = start + int(np.searchsorted(watermarks[start:], rotate_at, side="left"))
            part = self._check(hashes[start:stop])
            if part is not None:
                fresh[start:stop] = part
            start = stop
        return None if fresh.all() else fresh

    def rotates_before(self, watermark: int) -> bool:
        """Whether the tables are rotated before this watermark is reached."""
        return self._rotate_at is None or watermark >= self._rotate_at

    def _check(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_] | None:
        rows = len(hashes)
        if (self._count + rows) * 3 > self._current.size * 2:
            self._reserve(rows)
        fresh = np.empty(rows, _BOOL)
        added = self._remember(self._current, self._previous, hashes, fresh)
        self._count += added
        if self._added is not None and added:
            table = _table(self._rotate_at or 0)
            self._added.setdefault(table, []).append(hashes if added == rows else hashes[fresh])
        return None if added == rows else fresh

    def _rotate(self, watermark: int) -> int:
        """Make the current table the previous one if it is due; returns when it is due next."""
        if self._rotate_at is not None and watermark < self._rotate_at:
            return self._rotate_at
        if self._rotate_at is not None:
            skipped = watermark >= self._rotate_at + self.horizon_ms
            self._drop(self._rotate_at - self.horizon_ms, *([self._rotate_at] if skipped else []))
            self._previous = np.zeros(1024, np.uint64) if skipped else self._current
            self._current = np.zeros(1024, np.uint64)
            self._count = 0
        self._rotate_at = (watermark // self.horizon_ms + 1) * self.horizon_ms
        return self._rotate_at

    def changes(self) -> Delta:
        """The ids added since the last call; all of them on the first one."""
        if self._rotate_at is None or (self._added == {} and not self._dropped):
            return Delta()
        delta = Delta(blobs={"turn": b"%d" % self._rotate_at}, cleared=self._dropped)
        if self._added is None:
            tables = self._rotate_at - self.horizon_ms, self._rotate_at
            kept = self._previous, self._current
            self._added = {
                _table(at): [ids[ids != _EMPTY]] for at, ids in zip(tables, kept, strict=True)
            }
        for name, added in self._added.items():
            first = self._committed.get(name, 0)
            ids = np.concatenate(added)
            self._committed[name] = first + len(ids)
            delta.rows[name] = Rows(np.arange(first, first + len(ids)), {"id": ids})
        self._added, self._dropped = {}, set()
        return delta

    def restore(self, image: Delta) -> None:
        """Restore, into a new object, what all calls of `changes` returned."""
        if "turn" in image.blobs:
            self._rotate_at = int(image.blobs["turn"])
            previous, current = _table(self._rotate_at - self.horizon_ms), _table(self._rotate_at)
            self._previous = self._read(image, previous)
            self._current = self._read(image, current)
            self._count = self._committed[current]
        self._added = {}

    def _read(self, image: Delta, name: str) -> NDArray[np.uint64]:
        """A table of the ids that were stored under this name."""
        rows = image.rows.get(name)
        ids = rows.columns["id"] if rows is not None else np.zeros(0, np.uint64)
        self._committed[name] = len(ids)
        table = np.zeros(1024, np.uint64)
        while len(ids) * 3 > len(table) * 2:
            table = np.zeros(2 * len(table), np.uint64)
        _rehash(ids, table)
        return table

    def _drop(self, *rotations: int) -> None:
        """Remove the ids of these tables from what is stored."""
        if self._added is not None:
            for name in map(_table, rotations):
                self._added.pop(name, None)
                if self._committed.pop(name, None) is not None:
                    self._dropped.add(name)

    def _reserve(self, more: int) -> None:
        size = len(self._current)
        while (self._count + more) * 3 > size * 2:
            size *= 2
        if size > len(self._current):
            grown = np.zeros(size, np.uint64)
            _rehash(self._current, grown)
            self._current = grown


def _table(rotate_at: int) -> str:
    """The name under which the ids are stored that were added before this rotation."""
    return f"before {rotate_at}"


@kernel
def _remember(current: U64, previous: U64, hashes: U64, fresh: NDArray[np.bool_]) -> int:
    added = 0
    for i in range(hashes.shape[0]):
        h = hashes[i]
        if h == _EMPTY:
            h = np.uint64(1)
        if _contains(previous, h):
            fresh[i] = False
            continue
        mask = np.uint64(current.shape[0] - 1)
        place = h & mask
        fresh[i] = True
        while current[place] != _EMPTY and current[place] != h:
            place = (place + np.uint64(1)) & mask
        if current[place] == h:
            fresh[i] = False
        else:
            current[place] = h
            added += 1
    return added


@kernel
def _contains(table: U64, h: np.uint64) -> bool:
    mask = np.uint64(table.shape[0] - 1)
    place = h & mask
    while table[place] != _EMPTY:
        if table[place] == h:
            return True
        place = (place + np.uint64(1)) & mask
    return False


@kernel
def _rehash(old: U64, new: U64) -> None:
    mask = np.uint64(new.shape[0] - 1)
    for h in old:
        if h != _EMPTY:
            place = h & mask
            while new[place] != _EMPTY:
                place = (place + np.uint64(1)) & mask
            new[place] = h
