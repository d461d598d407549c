"""Slots of keys that arrive as codes of a dictionary: one look-up for a whole column."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from anabranch.state.compile import I32, I64
from anabranch.state.keys.text_dictionary import CodedTexts, TextDictionary

_NONE = -1


class CodeSlots:
    """A cache of the slot of each code; its owner reports released slots.

    It takes 4 bytes per code and per slot.
    """

    def __init__(self) -> None:
        self._dictionary: TextDictionary | None = None
        self._slot_of: I32 = np.zeros(0, np.int32)
        self._code_of: I32 = np.zeros(0, np.int32)

    def slots(self, keys: CodedTexts, allocate: Callable[[Sequence[str]], I64]) -> I64:
        """The slot of each key, `(rows,) int64`.

        `allocate` is called with the keys that are not cached, each once, in the order of their
        first rows, and returns their slots.
        """
        codes = keys.codes
        if keys.dictionary is not self._dictionary:
            self._dictionary = keys.dictionary
            self._slot_of[:] = _NONE
            self._code_of[:] = _NONE
        self._slot_of = _extended(self._slot_of, len(keys.dictionary))
        slots = self._slot_of[codes]
        missing = codes[slots == _NONE]
        if len(missing):
            unique, first = np.unique(missing, return_index=True)
            new = unique[np.argsort(first)]
            allocated = allocate([keys.dictionary.text(code) for code in new.tolist()])
            self._slot_of[new] = allocated
            self._code_of = _extended(self._code_of, int(allocated.max()) + 1)
            self._code_of[allocated] = new
            slots = self._slot_of[codes]
        return slots.astype(np.int64)

    def forget(self, slots: list[int]) -> None:
        """Forget released slots."""
        cached = np.array(slots, np.int64)
        cached = cached[cached < len(self._code_of)]
        codes = self._code_of[cached]
        self._slot_of[codes[codes != _NONE]] = _NONE
        self._code_of[cached] = _NONE


def _extended(array: I32, size: int) -> I32:
    """The array, or a copy with at least `size` elements."""
    if size <= len(array):
        return array
    grown = np.full(max(size, len(array) + len(array) // 2), _NONE, np.int32)
    grown[: len(array)] = array
    return grown
