"""Dictionary-encoded keys get the same slots as plain texts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from anabranch.state.keys.hashing import hash64
from anabranch.state.keys.slots import KeySlots
from anabranch.state.keys.text_dictionary import CodedTexts, TextDictionary

TEXTS = st.lists(st.text(max_size=3, alphabet="abö\0") | st.sampled_from(["ann", "bob"]))


def coded(dictionary: TextDictionary, texts: list[str]) -> CodedTexts:
    parts = [text.encode() for text in texts]
    return dictionary.code(b"".join(parts), np.array([len(p) for p in parts], np.int64))


@given(st.lists(TEXTS, max_size=5))
def test_coded_texts_are_the_texts(pieces: list[list[str]]) -> None:
    dictionary = TextDictionary()
    columns = [coded(dictionary, texts) for texts in pieces]
    for texts, column in zip(pieces, columns, strict=True):
        assert list(column) == texts == [column[row] for row in range(len(column))]
        assert column.hashes.tolist() == hash64(texts).tolist()
        assert list(column[1:]) == texts[1:]
        rows = np.arange(len(texts))[::-1]
        assert list(column.take(rows)) == texts[::-1]
    assert len(dictionary) == len({text for texts in pieces for text in texts})


@given(TEXTS, TEXTS)
def test_columns_of_several_dictionaries_are_joined(one: list[str], other: list[str]) -> None:
    columns = [coded(TextDictionary(), texts) for texts in (one, other)]
    assert list(CodedTexts.joined(columns)) == one + other


def test_a_dictionary_grows_and_distinguishes_texts_of_one_hash() -> None:
    texts = [f"key {number}" * (number % 9) for number in range(5000)]
    dictionary = TextDictionary()
    for _ in range(2):
        assert list(coded(dictionary, texts)) == texts
    # All of one hash now: only the bytes differ.
    dictionary = TextDictionary()
    first = coded(dictionary, ["a", "b"])
    dictionary._hash_of[:2] = hash64(["b"])[0]
    dictionary._table[:] = -1
    dictionary._table[int(hash64(["b"])[0]) & 2047] = 0
    second = coded(dictionary, ["b"])
    assert list(first) == ["a", "b"]
    assert list(second) == ["b"]


STEPS = st.lists(
    st.tuples(TEXTS, st.sampled_from(["coded", "reset", "plain"]), st.integers(0, 3)), max_size=8
)


@given(STEPS)
def test_slots_of_codes_are_those_of_texts(steps: list[tuple[list[str], str, int]]) -> None:
    slots, expected = KeySlots(), KeySlots()
    dictionary = TextDictionary()
    for texts, how, released in steps:
        if how == "reset":
            dictionary = TextDictionary()
        keys = texts if how == "plain" else coded(dictionary, texts)
        assert slots.slots(keys).tolist() == expected.slots(texts).tolist()
        assert slots.find(keys).tolist() == expected.find(texts).tolist()
        held = list(expected.by_key().values())[:released]
        slots.release(held)
        expected.release(held)
        assert slots.by_key() == expected.by_key()
