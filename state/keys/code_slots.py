"""Slots of keys that come as codes of a dictionary: looked up in one step for a whole column."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from anabranch.state.compile import I32, I64
from anabranch.state.keys.text_dictionary import CodedTexts, TextDictionary

_NONE = -1


class CodeSlots:
    """Remembers the slot of each code. Whoever hands out slots also says which are no longer held.

    It holds 4 bytes per code and slot, and nothing that could not be asked for again.
    """

    def __init__(self) -> None:
        self._dictionary: TextDictionary | None = None
        self._slot_of: I32 = np.zeros(0, np.int32)
        self._code_of: I32 = np.zeros(0, np.int32)

    def slots(self, keys: CodedTexts, ask: Callable[[Sequence[str]], I64]) -> I64:
        """The slot of each key, `(rows,) int64`; `ask` gives those of keys that are not known here.

        It is asked for each of them once, in the order in which they first come.
        """
        codes = keys.codes
        if keys.dictionary is not self._dictionary:
            self._dictionary = keys.dictionary
            self._slot_of[:] = _NONE
            self._code_of[:] = _NONE
        self._slot_of = _reaching(self._slot_of, len(keys.dictionary))
        slots = self._slot_of[codes]
        strange = codes[slots == _NONE]
        if len(strange):
            found, first = np.unique(strange, return_index=True)
            new = found[np.argsort(first)]
            given = ask([keys.dictionary.text(code) for code in new.tolist()])
            self._slot_of[new] = given
            self._code_of = _reaching(self._code_of, int(given.max()) + 1)
            self._code_of[given] = new
            slots = self._slot_of[codes]
        return slots.astype(np.int64)

    def forget(self, slots: list[int]) -> None:
        """Nobody holds these slots any longer."""
        numbers = np.array(slots, np.int64)
        numbers = numbers[numbers < len(self._code_of)]
        codes = self._code_of[numbers]
        self._slot_of[codes[codes != _NONE]] = _NONE
        self._code_of[numbers] = _NONE


def _reaching(array: I32, size: int) -> I32:
    """The array, or a longer one that begins with it."""
    if size <= len(array):
        return array
    grown = np.full(max(size, len(array) + len(array) // 2), _NONE, np.int32)
    grown[: len(array)] = array
    return grown
