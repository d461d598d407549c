"""Keys to slots: dense, stable while allocated, reused when released."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.state.keys.slots import KeySlots
from anabranch.state.keys.text_column import Texts
from anabranch.state.store.delta import Delta, decode, encode, merge


@settings(deadline=None)  # the first call compiles
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
            assert keys.find(names)[0] == -1


def test_released_slots_are_reused_first() -> None:
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


def test_two_keys_of_one_hash_are_two_keys() -> None:
    texts = Texts(
        b"annbobannabob", np.array([[0, 3, 6, 10], [3, 6, 10, 13]]), np.zeros(4, np.uint64)
    )
    keys = KeySlots()
    assert keys.slots(texts).tolist() == [0, 1, 2, 1]
    keys.release([1])
    assert keys.slots(texts).tolist() == [0, 1, 2, 1]
    assert keys.by_key() == {"ann": 0, "anna": 2, "bob": 1}


any_key = st.text(st.characters(), max_size=30) | st.integers(0, 60).map(str)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.lists(any_key, max_size=80), st.sets(st.integers(0, 40)))))
def test_restored_slots_have_the_same_keys(steps: list[tuple[list[str], set[int]]]) -> None:
    """Whatever a key contains: a zero byte, nothing, half of a surrogate pair."""
    keys, deltas = KeySlots(), list[Delta]()
    for names, released in steps:
        keys.slots(names)
        keys.release(keys.by_key()[name] for name in sorted(keys.by_key())[::3][: len(released)])
        deltas.append(decode(encode(keys.changes())))
        back = KeySlots()
        back.restore(merge(deltas))
        assert back.by_key() == keys.by_key()
        assert len(back) == len(keys)
        for name, slot in keys.by_key().items():
            assert back.key_of(slot) == name
            assert name in back
        assert back.slots(names).tolist() == [back.by_key()[name] for name in names]


def test_memory_does_not_grow_with_released_keys() -> None:
    keys = KeySlots()
    sizes = []
    for turn in range(200):
        slots = keys.slots([f"{'long' * 10}-{turn}-{n}" for n in range(100)])
        keys.release(slots[:90])
        if turn < 20:
            keys.release(slots[90:])
        sizes.append(keys.nbytes)
    assert len(keys) == 180 * 10
    assert max(sizes[:20]) < 2 * sizes[2]
    assert keys.nbytes < 1.5 * len(keys) * (50 + 60)
    assert sorted(keys.by_key().values()) == sorted({*keys.by_key().values()})
