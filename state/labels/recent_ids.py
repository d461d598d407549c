"""Deduplication by id: which ids were seen recently, so that a repeated message counts once.

Ids are kept as 64-bit hashes in two open-addressing tables, a current and a previous one. They are
rotated whenever event time passes a multiple of the horizon, so an id is remembered for at least
one horizon and at most two, whatever the batches are. The ids of all partitions that are read
together share the tables; they are stored by partition, as partitions move. Different ids are
mistaken for each other with a probability of about n² / 4e19 for n ids remembered.
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


class _Log:
    """The ids of one partition that are to be stored, by table.

    Attributes:
        added: those that were added since the last commit.
        committed: how many were committed before.
        dropped: tables that are no longer needed.
    """

    __slots__ = ("added", "committed", "dropped")

    def __init__(self) -> None:
        self.added: dict[str, list[U64]] = {}
        self.committed: dict[str, int] = {}
        self.dropped: set[str] = set()

    def drop_before(self, moment: int) -> None:
        """Remove the tables of rotations before ``moment``."""
        for name in [each for each in self.added if _moment(each) < moment]:
            del self.added[name]
        for name in [each for each in self.committed if _moment(each) < moment]:
            del self.committed[name]
            self.dropped.add(name)

    def changes(self, rotate_at: int) -> Delta:
        """What changed since the last call."""
        if not self.added and not self.dropped:
            return Delta()
        delta = Delta(blobs={"turn": b"%d" % rotate_at}, cleared=self.dropped)
        for name, added in self.added.items():
            first, ids = self.committed.get(name, 0), np.concatenate(added)
            self.committed[name] = first + len(ids)
            delta.rows[name] = Rows(np.arange(first, first + len(ids)), {"id": ids})
        self.added, self.dropped = {}, set()
        return delta


class RecentIds:
    """Tells new ids from those seen within ``horizon_ms`` of event time, on whichever partition.

    >>> seen = RecentIds(horizon_ms=60_000)
    >>> seen.is_new(["a", "b", "a"], np.array([0, 1, 2]))
    array([ True,  True, False])
    >>> seen.is_new(["a", "c"], 200_000) is None  # all new: "a" has expired
    True
    """

    def __init__(self, horizon_ms: int) -> None:
        self.horizon_ms = max(int(horizon_ms), 1)
        self._current = np.zeros(1024, np.uint64)
        self._previous = np.zeros(1024, np.uint64)
        self._count = 0
        self._rotate_at: int | None = None
        self._logs: dict[int, _Log] = {}  # by partition, of those that are stored
        self._restored: list[tuple[int, U64]] = []  # tables, until the first rotation is known
        self._remember = entry(
            _remember, self._current, self._previous, self._current, np.zeros(0, np.bool_)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of both tables."""
        return self._current.nbytes + self._previous.nbytes

    def is_new(
        self, ids: Sequence[str], watermarks: I64 | int, partitions: I64 | int = 0
    ) -> NDArray[np.bool_] | None:
        """``(n,) bool``: False where an id was seen before; None when all are new.

        ``ids`` are remembered from now on. ``watermarks`` is the largest event time (epoch ms) up
        to and including each row, ``(n,) int64`` and ascending, or one number for all rows;
        ``partitions`` is where they were read, likewise.
        """
        hashes = ids.hashes if type(ids) is Texts else hash64(ids)
        if isinstance(watermarks, int):
            if self._rotate_at is None or watermarks >= self._rotate_at:
                self._rotate(watermarks)
            return self._check(hashes, partitions)
        fresh = np.ones(len(ids), np.bool_)
        start = 0
        while start < len(ids):
            rotate_at = self._rotate(int(watermarks[start]))
            stop = start + int(np.searchsorted(watermarks[start:], rotate_at, side="left"))
            own = partitions if isinstance(partitions, int) else partitions[start:stop]
            part = self._check(hashes[start:stop], own)
            if part is not None:
                fresh[start:stop] = part
            start = stop
        return None if fresh.all() else fresh

    def rotates_before(self, watermark: int) -> bool:
        """Whether the tables are rotated before this watermark is reached."""
        return self._rotate_at is None or watermark >= self._rotate_at

    def _check(self, hashes: U64, partitions: I64 | int) -> NDArray[np.bool_] | None:
        rows = len(hashes)
        if (self._count + rows) * 3 > self._current.size * 2:
            self._reserve(rows)
        fresh = np.empty(rows, _BOOL)
        added = self._remember(self._current, self._previous, hashes, fresh)
        self._count += added
        if self._logs and added:
            table = _table(self._rotate_at or 0)
            if isinstance(partitions, int):
                if (log := self._logs.get(partitions)) is not None:
                    new = hashes if added == rows else hashes[fresh]
                    log.added.setdefault(table, []).append(new)
            else:
                for number, log in self._logs.items():
                    own = fresh & (partitions == number)
                    if own.any():
                        log.added.setdefault(table, []).append(hashes[own])
        return None if added == rows else fresh

    def _rotate(self, watermark: int) -> int:
        """Make the current table the previous one if it is due; returns when it is due next."""
        before = self._rotate_at
        if before is not None and watermark < before:
            return before
        after = self._rotate_at = (watermark // self.horizon_ms + 1) * self.horizon_ms
        if before is None:
            self._place_restored(after)
        else:
            skipped = watermark >= before + self.horizon_ms
            self._previous = np.zeros(1024, np.uint64) if skipped else self._current
            self._current = np.zeros(1024, np.uint64)
            self._count = 0
        for log in self._logs.values():
            log.drop_before(after - self.horizon_ms)
        return after

    def changes(self, partition: int = 0) -> Delta:
        """The ids added on a partition since the last call, or since it was restored.

        If it was not restored, all ids on the first call.
        """
        if self._rotate_at is None:
            return Delta()
        log = self._logs.get(partition)
        if log is None:
            log = self._logs[partition] = _Log()
            tables = self._rotate_at - self.horizon_ms, self._rotate_at
            kept = self._previous, self._current
            log.added = {
                _table(at): [ids[ids != _EMPTY]] for at, ids in zip(tables, kept, strict=True)
            }
        return log.changes(self._rotate_at)

    def restore(self, image: Delta, partition: int = 0) -> None:
        """Restore what all calls of `changes` returned for a partition; before any id is checked.

        Partitions may come from different workers, of which one was ahead.
        """
        log = self._logs[partition] = _Log()
        for name, rows in image.rows.items():
            ids = rows.columns["id"]
            log.committed[name] = len(ids)
            self._restored.append((_moment(name), ids))

    def _place_restored(self, rotate_at: int) -> None:
        """Fill the tables; those of a worker that was ahead are kept for longer."""
        current = [ids for moment, ids in self._restored if moment >= rotate_at]
        previous = [ids for moment, ids in self._restored if moment == rotate_at - self.horizon_ms]
        self._restored.clear()
        self._current, self._previous = _filled(current), _filled(previous)
        self._count = sum(map(len, current))

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


def _moment(table: str) -> int:
    """The rotation before which the ids of a table were added."""
    return int(table.removeprefix("before "))


def _filled(parts: list[U64]) -> U64:
    """A table of these ids."""
    ids = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    table = np.zeros(1024, np.uint64)
    while len(ids) * 3 > len(table) * 2:
        table = np.zeros(2 * len(table), np.uint64)
    _rehash(ids, table)
    return table


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
