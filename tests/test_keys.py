"""Keys to slots: dense, stable while held, used again when released."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.keys import KeySlots


@given(st.lists(st.tuples(st.lists(st.sampled_from("abcdefgh"), max_size=6), st.booleans())))
def test_slots_follow_a_dictionary(steps: list[tuple[list[str], bool]]) -> None:
    keys, model = KeySlots(), dict[str, int]()
    for names, release in steps:
        slots = keys.slots(names).tolist()
        for name, slot in zip(names, slots, strict=True):
            assert model.setdefault(name, slot) == slot
            assert keys.key_of(slot) == name
        assert len(set(model.values())) == len(model) == len(keys)
        assert all(slot < keys.high_water for slot in slots)
        if release and names:
            keys.release([model.pop(names[0])])
            assert keys.known(names)[0] == -1


def test_free_slots_are_given_first() -> None:
    keys = KeySlots()
    keys.slots(["a", "b", "c"])
    keys.release([1])
    assert keys.slots(["d"]).tolist() == [1]
    assert keys.high_water == 3


def test_a_free_slot_has_no_key() -> None:
    keys = KeySlots()
    keys.slots(["a"])
    keys.release([0])
    for slot in (0, -1, 5):
        with pytest.raises(KeyError):
            keys.key_of(slot)
