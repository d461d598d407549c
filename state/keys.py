"""Keys to slots: the dense integers that stand for keys inside a shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np

from state.code_slots import CodeSlots
from state.compile import I64
from state.delta import Delta, Items
from state.text_dictionary import CodedTexts


class KeySlots:
    """A dictionary from keys to dense integers that are used again once released.

    Slots are below `high_water`, the largest number of keys that ever lived at once.

    >>> keys = KeySlots()
    >>> keys.slots(["ann", "bob", "ann"])
    array([0, 1, 0])
    >>> keys.release([0]); keys.slots(["cid", "bob"]), len(keys), keys.key_of(0)
    (array([0, 1]), 2, 'cid')
    """

    def __init__(self) -> None:
        self._slot_of: dict[str, int] = {}
        self._key_of: list[str | None] = []
        self._free: list[int] = []
        self._changed: list[int] | None = None  # None before the first commit: all of them
        self._coded: CodeSlots | None = None  # made by the first column that comes coded

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, key: str) -> bool:
        return key in self._slot_of

    @property
    def high_water(self) -> int:
        """Slots ever handed out: every slot is below it."""
        return len(self._key_of)

    def slots(self, keys: Sequence[str]) -> I64:
        """The slot of each key, `(rows,) int64`; a new key is given a slot, freed ones first."""
        if type(keys) is not list and isinstance(keys, CodedTexts):
            self._coded = self._coded or CodeSlots()
            return self._coded.slots(keys, self.slots)
        try:
            return np.fromiter(map(self._slot_of.__getitem__, keys), np.int64, len(keys))
        except KeyError:
            for key in keys:
                if key not in self._slot_of:
                    self._add(key)
            return np.fromiter(map(self._slot_of.__getitem__, keys), np.int64, len(keys))

    def known(self, keys: Sequence[str]) -> I64:
        """The slot of each key, `(rows,) int64`; -1 for a key that has none."""
        get = self._slot_of.get
        return np.fromiter((get(key, -1) for key in keys), np.int64, len(keys))

    def by_key(self) -> dict[str, int]:
        """Key → slot, keys rising."""
        return dict(sorted(self._slot_of.items()))

    def key_of(self, slot: int) -> str:
        """The key that holds `slot`. Raises KeyError when none does."""
        key = self._key_of[slot] if 0 <= slot < len(self._key_of) else None
        if key is None:
            raise KeyError(slot)
        return key

    def release(self, slots: Iterable[int]) -> None:
        """Forget the keys of `slots`; the slots are free for other keys."""
        numbers = list(map(int, slots))
        if self._coded is not None:
            self._coded.forget(numbers)
        for number in numbers:
            del self._slot_of[self.key_of(number)]
            self._key_of[number] = None
            self._free.append(number)
            if self._changed is not None:
                self._changed.append(number)

    def changes(self) -> Delta:
        """Slots that were given to a key or released since the last call, as items `keys`."""
        changed = range(len(self._key_of)) if self._changed is None else sorted(set(self._changed))
        self._changed = []
        keys = [self._key_of[slot] for slot in changed]
        values = [None if key is None else key.encode("utf-8", "surrogatepass") for key in keys]
        return Delta(items={"keys": Items(np.array(changed, np.int64), values)})

    def restore(self, image: Delta) -> None:
        """Read back into fresh ones what all calls of `changes` gave."""
        self._changed = []
        items = image.items.get("keys")
        if items is None or not len(items):
            return
        values = [value for value in items.values if value is not None]
        held = np.array([value is not None for value in items.values])
        slots = items.index[held].tolist()
        keys = list(map(bytes.decode, values, repeat("utf-8"), repeat("surrogatepass")))
        self._slot_of = dict(zip(keys, slots, strict=True))
        self._key_of = [None] * (int(items.index.max()) + 1)
        for slot, key in zip(slots, keys, strict=True):
            self._key_of[slot] = key
        self._free = [slot for slot, key in enumerate(self._key_of) if key is None][::-1]

    def _add(self, key: str) -> None:
        if self._free:
            slot = self._free.pop()
            self._key_of[slot] = key
        else:
            slot = len(self._key_of)
            self._key_of.append(key)
        self._slot_of[key] = slot
        if self._changed is not None:
            self._changed.append(slot)
