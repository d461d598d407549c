"""Keys to slots: the dense integers that identify keys inside a shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anabranch.state.arrays import larger
from anabranch.state.compile import I32, I64, U8, entry
from anabranch.state.keys.code_slots import CodeSlots
from anabranch.state.keys.hashing import texts_of, texts_of_parts
from anabranch.state.keys.id_table import make_table
from anabranch.state.keys.key_table import (
    END,
    FREE,
    LIVE,
    META,
    SIZE,
    START,
    USED,
    WASTE,
    KeyArrays,
    close_gaps,
    fill_table,
    find_slots,
    list_free,
    release_all,
)
from anabranch.state.keys.text_column import Texts
from anabranch.state.keys.text_dictionary import CodedTexts
from anabranch.state.store.delta import Delta, Items

_LEAST: Final = 64
_INT64 = np.dtype(np.int64)


class KeySlots:
    """A dictionary from keys to dense integers, which are reused once released.

    Slots are below `high_water`, the largest number of keys that ever lived at once. A key takes
    its own bytes and about 40 more; bytes are compared, so different keys never share a slot.

    Attributes:
        capacity: an upper bound of the slots in use.

    >>> keys = KeySlots()
    >>> keys.slots(["ann", "bob", "ann"])
    array([0, 1, 0])
    >>> keys.release([0]); keys.slots(["cid", "bob"]), len(keys), keys.key_of(0)
    (array([0, 1]), 2, 'cid')
    """

    def __init__(self) -> None:
        self._coded: CodeSlots | None = None  # created by the first coded column
        self._meta: I64 = np.zeros(META, np.int64)
        self._meta[FREE] = -1
        self._table: I32 = make_table(_LEAST)
        self._hash_of: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._places: I64 = np.zeros((0, 2), np.int64)
        self._arena: U8 = np.zeros(0, np.uint8)
        self._changed: U8 = np.zeros(0, np.uint8)
        self._committed = False
        self.capacity = 0
        self._collect_arrays()
        nothing = np.zeros((2, 0), np.int64), np.zeros(0, np.uint64), 1, np.zeros(0, np.int64)
        self._find_slots = entry(find_slots, 0, b"", *nothing, self._arrays)

    def _collect_arrays(self) -> None:
        """Collect the arguments of kernels; most arrays are enlarged in place."""
        self._arrays = KeyArrays(
            self._table, self._hash_of, self._places, self._arena, self._changed, self._meta
        )

    def __len__(self) -> int:
        return int(self._meta[LIVE])

    def __contains__(self, key: str) -> bool:
        return bool(self.find([key])[0] >= 0)

    @property
    def high_water(self) -> int:
        """Number of slots ever used: every slot is below it."""
        return int(self._meta[USED])

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(array.nbytes for array in self._arrays)

    def slots(self, keys: Sequence[str]) -> I64:
        """The slot of each key, `(rows,) int64`; new keys are added, released slots first."""
        if type(keys) is CodedTexts:  # isinstance with Sequence is slow
            self._coded = self._coded or CodeSlots()
            return self._coded.slots(keys, self.slots)
        texts = keys if type(keys) is Texts else texts_of(keys)
        blob, spans, hashes = texts.blob, texts.spans, texts.hashes
        rows = len(hashes)
        out = np.empty(rows, _INT64)
        row = self._find_slots(0, blob, spans, hashes, 1, out, self._arrays)
        while row < rows:
            self._reserve_key(texts, row)
            row = self._find_slots(row, blob, spans, hashes, 1, out, self._arrays)
        return out

    def find(self, keys: Sequence[str]) -> I64:
        """The slot of each key, `(rows,) int64`; -1 for a key that has none."""
        texts, out = texts_of(keys), np.empty(len(keys), _INT64)
        self._find_slots(0, texts.blob, texts.spans, texts.hashes, 0, out, self._arrays)
        return out

    def by_key(self) -> dict[str, int]:
        """Key → slot, sorted by key."""
        slots = np.flatnonzero(self._places[: self.high_water, SIZE] >= 0)
        keys = [_text(key) for key in self._keys(slots) if key is not None]
        return dict(sorted(zip(keys, slots.tolist(), strict=True)))

    def key_of(self, slot: int) -> str:
        """The key of `slot`. Raises KeyError when it is free."""
        if not 0 <= slot < self.high_water or self._places[slot, SIZE] < 0:
            raise KeyError(slot)
        start, size = self._places[slot].tolist()
        return _text(self._arena[start : start + size].tobytes())

    def release(self, slots: Iterable[int]) -> None:
        """Remove the keys of `slots`; the slots can be reused for other keys."""
        released = np.fromiter(slots, np.int64)
        if self._coded is not None:
            self._coded.forget(released.tolist())
        release_all(released, self._table, self._hash_of, self._places, self._changed, self._meta)

    def changes(self) -> Delta:
        """Slots that were allocated or released since the last call, as items `keys`."""
        used = self.high_water
        changed = np.flatnonzero(self._changed[:used]) if self._committed else np.arange(used)
        self._changed[:] = 0
        self._committed = True
        return Delta(items={"keys": Items(changed, self._keys(changed))})

    def restore(self, image: Delta) -> None:
        """Restore, into a new object, what all calls of `changes` returned."""
        self._committed = True
        items = image.items.get("keys")
        if items is None or not len(items):
            return
        used = int(items.index.max()) + 1
        self._reserve(used)
        self._places[:, SIZE] = -1
        used_slots = np.array([value is not None for value in items.values])
        keys = texts_of_parts([value for value in items.values if value is not None])
        slots, sizes = items.index[used_slots], keys.spans[1] - keys.spans[0]
        self._places[slots, START], self._places[slots, SIZE] = keys.spans[0], sizes
        self._hash_of[slots] = keys.hashes
        self._arena = np.frombuffer(keys.blob, np.uint8).copy()
        self._meta[[USED, LIVE, END, WASTE]] = used, len(slots), self._arena.size, 0
        self._meta[WASTE] = self._arena.size - sizes.sum()
        list_free(self._places, self._meta)
        self._fill_table(used)

    def _keys(self, slots: I64) -> list[bytes | None]:
        """The keys of slots in UTF-8, None for free slots."""
        blob = self._arena.tobytes() if len(slots) else b""
        starts, sizes = self._places[slots, START], self._places[slots, SIZE]
        bounds = zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
        keys: list[bytes | None] = [blob[start:stop] for start, stop in bounds]
        for at in np.flatnonzero(sizes < 0).tolist():
            keys[at] = None
        return keys

    def _reserve_key(self, texts: Texts, row: int) -> None:
        """Enlarge what is too small for the key of `row`."""
        meta = self._meta
        size = int(texts.spans[1, row] - texts.spans[0, row])
        if meta[FREE] < 0 and meta[USED] == len(self._hash_of):
            self._reserve(int(meta[USED]) + 1)
        if meta[END] + size > self._arena.size and meta[WASTE] * 2 > meta[END]:
            slots = np.flatnonzero(self._places[: meta[USED], SIZE] >= 0)
            order = slots[np.argsort(self._places[slots, START], kind="stable")]
            close_gaps(order, self._places, self._arena, meta)
        if meta[END] + size > self._arena.size:
            more = max(8 * _LEAST, self._arena.size // 8, size)
            self._arena.resize(self._arena.size + more, refcheck=False)
        if (meta[LIVE] + 1) * 5 > self._table.size * 3:
            self._fill_table(int(meta[LIVE]) * 3 // 2)

    def _reserve(self, least: int) -> None:
        slots = self.capacity
        while slots < least:
            slots = larger(slots)
        self.capacity = slots
        self._hash_of.resize(slots, refcheck=False)
        self._places.resize((slots, 2), refcheck=False)
        self._changed.resize(slots, refcheck=False)

    def _fill_table(self, keys: int) -> None:
        """Rebuild the table, with space for `keys` keys."""
        self._table = make_table(max(keys, _LEAST))
        fill_table(self._table, self._hash_of, self._places, self._meta)
        self._collect_arrays()


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")
