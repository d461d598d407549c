"""Deltas are encoded, decoded and merged without loss."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta, Items, Rows, decode, encode, merge


def table(index, values):
    return Rows(np.array(index, np.int64), {"x": np.array(values, np.float64)})


def test_every_kind_of_part_is_decoded_as_encoded():
    delta = Delta(
        rows={
            "card/0/slots": Rows(
                np.array([3, 1]),
                {"a": np.array([[1, 2], [3, 4]], np.int32), "b": np.array([0.1, np.nan])},
            ),
            "empty": Rows(np.zeros(0, np.int64), {"x": np.zeros((0, 3), np.uint8)}),
        },
        items={"keys": Items(np.array([0, 7]), ["ann\u00e9".encode(), None])},
        blobs={"models": b"\x00\x01", "none": b""},
        cleared={"old"},
    )
    back = decode(encode(delta))
    assert back.blobs == delta.blobs
    assert back.cleared == {"old"}
    assert back.items["keys"].values == delta.items["keys"].values
    for name, rows in delta.rows.items():
        np.testing.assert_array_equal(back.rows[name].index, rows.index)
        for column, values in rows.columns.items():
            np.testing.assert_array_equal(back.rows[name].columns[column], values)
            assert back.rows[name].columns[column].dtype == values.dtype


@given(
    st.lists(
        st.dictionaries(st.integers(0, 8), st.floats(allow_nan=False), max_size=6), max_size=6
    ),
    st.integers(0, 6),
)
def test_merging_in_steps_equals_merging_at_once_and_the_last_write_wins(changes, cut):
    deltas = [Delta(rows={"a": table(list(c), list(c.values()))}) for c in changes]
    whole = merge(deltas)
    stepwise = merge([merge(deltas[:cut]), merge(deltas[cut:])])
    expected: dict[int, float] = {}
    for change in changes:
        expected.update(change)
    for merged in (whole, stepwise):
        found = merged.rows.get("a", table([], []))
        assert dict(zip(found.index.tolist(), found.columns["x"].tolist(), strict=True)) == expected


def test_cleared_parts_are_removed_and_parts_of_the_same_delta_kept():
    old = Delta(rows={"log": table([0, 1, 2], [1, 2, 3])}, blobs={"full": b"1"})
    new = Delta(rows={"log": table([0], [9])}, cleared={"log"})
    merged = merge([old, new])
    assert merged.rows["log"].index.tolist() == [0]
    assert merged.blobs == {"full": b"1"}
    # A merged delta still clears earlier ones.
    assert merge([old, merge([new])]).rows["log"].index.tolist() == [0]


def test_parts_are_added_under_a_name_and_read_from_there():
    delta = Delta()
    delta.put("card", Delta(blobs={"meta": b"m"}, cleared={"x"}))
    delta.put("cards", Delta(blobs={"meta": b"n"}))
    assert delta.part("card") == Delta(blobs={"meta": b"m"}, cleared={"x"})


def test_a_damaged_record_is_one_sentence():
    with pytest.raises(StateError, match="can't be read"):
        decode({"r/a": b"\xff\xff\xff\xff nonsense"})
