"""Columns decoded straight from JSON equal what msgspec decodes, or the batch is rejected.

The reference decodes each message into a struct with msgspec, and reads its fields.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch import Event, path
from anabranch.dataflows.codec.json_decoder import json_column_decoder
from anabranch.state.keys.hashing import hash64


class Reading(Event, kw_only=True):
    id: str
    ts: int
    place: str
    value: float
    count: int = 5
    good: bool
    ignored: float
    shop: str = "größte"
    rate: float = 0.5
    new: bool = True
    note: str | None = None


WANTED = ("good", "id", "place", "value", "count", "shop", "rate", "new")


def reader() -> Any:
    decoder = json_column_decoder(Reading, "ts", WANTED)
    assert decoder is not None
    return decoder


READER = reader()
DECODE = msgspec.json.Decoder(Reading).decode


def by_struct(values: list[bytes]) -> dict[str, list[Any]] | None:
    """What the columns should be; None if a message is invalid."""
    try:
        rows = list(map(DECODE, values))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return {name: [getattr(row, name) for row in rows] for name in (*WANTED, "ts")}


def exactly(values: list[Any]) -> list[Any]:
    """The values with their types, and every bit of floats."""
    return [(type(v), struct.pack("<d", v) if type(v) is float else v) for v in values]


def check(values: list[bytes]) -> bool:
    """Whether the messages were accepted; if so, the columns must be right."""
    READER._rejected = READER._pause = 0
    READER._is_flat = True
    READER.take_unknown()
    published = np.arange(len(values)) + 7
    decoded = READER.read(values, published)
    if decoded is None:
        return False
    expected = by_struct(values)
    assert expected is not None, "a message that msgspec rejects was accepted"
    times, columns, extents = decoded
    assert extents == (min(expected["ts"]), max(expected["ts"]), 7)
    assert times.tolist() == expected.pop("ts")
    for name, column in expected.items():
        assert exactly(list(columns[name])) == exactly(column), name
    for name in ("id", "place", "shop"):
        assert columns[name].hashes.tolist() == hash64(expected[name]).tolist()
    return True


blank = st.text(" \t\r", max_size=2)
plain_text = st.text(
    st.characters(codec="utf-8", exclude_characters='"\\', min_codepoint=32), max_size=40
)
short_float = st.builds(
    lambda digits, places: float(f"{digits}e-{places}"),
    st.integers(-8 * 10**14, 8 * 10**14),
    st.integers(0, 15),
).filter(lambda x: x != 0)
common = st.fixed_dictionaries(
    {
        "id": plain_text.map(lambda text: f'"{text}"'),
        "ts": st.integers(-(10**17), 10**17).map(str),
        "place": plain_text.map(lambda text: f'"{text}"'),
        "value": short_float.map(repr),
        "good": st.booleans().map(lambda b: str(b).lower()),
        "ignored": short_float.map(repr),
    },
    optional={
        "count": st.integers(-(10**17), 10**17).map(str),
        "shop": plain_text.map(lambda text: f'"{text}"'),
        "rate": short_float.map(repr),
        "new": st.booleans().map(lambda b: str(b).lower()),
        "note": plain_text.map(lambda text: f'"{text}"'),
    },
)
ODD = """
0 -0 -0.0 00 01 1. .5 1e 1e5 1E+2 1e-400 1e400 0e999999 - +1 1.5 123456789012345678
123456789012345678901
0.99999999999999999999 9007199254740993 9007199254740993.0 0.1e23 1e23 1e22 -1.7976931348623157e308
2.5e-324 null true false tru truee "" "a\\n" "\\u00e9" "\\" "é" "\x00" "\x7f" "unclosed [] {}
nan Infinity
"""
odd_value = st.sampled_from([*ODD.split(), "", "1 2", '"\t"', '"\n"'])
odd_number = st.one_of(odd_value, st.floats().map(repr), st.integers().map(str))


@st.composite
def message(draw: st.DrawFn, change: bool) -> bytes:
    fields = dict(draw(common))
    if change and draw(st.booleans()):
        fields[draw(st.sampled_from(sorted(fields)))] = draw(odd_number)
    items = draw(st.permutations(list(fields.items())))
    if change:
        odd = items[1:], [*items, items[0]], [*items, ("x", "1")], [*items, ("note", '"x"')]
        items = draw(st.sampled_from([items, items, items, *odd]))
    pieces = [
        f'{draw(blank)}"{name}"{draw(blank)}:{draw(blank)}{value}{draw(blank)}'
        for name, value in items
    ]
    text = f"{draw(blank)}{{{','.join(pieces)}}}{draw(blank)}"
    return text.encode("utf-8", "surrogatepass")


@settings(max_examples=200, deadline=None)
@given(st.lists(message(change=False), min_size=1, max_size=5))
def test_messages_of_the_common_form_are_accepted(values: list[bytes]) -> None:
    assert check(values)


@settings(max_examples=400, deadline=None)
@given(st.lists(message(change=True), min_size=1, max_size=3))
def test_odd_messages_are_decoded_correctly_or_rejected(values: list[bytes]) -> None:
    check(values)


ONE = np.zeros(1, np.int64)
VALID = b'{"id":"a","ts":1,"place":"b","value":1.5,"count":2,"good":true,"ignored":0.25}'


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_damaged_messages_are_decoded_correctly_or_rejected(data: st.DataObject) -> None:
    value = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(value) - 1))
        piece = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"\n", b'"', b"{}", b",", b"\\"])
        )
        value[at : at + data.draw(st.integers(0, 3))] = piece
        if not value:
            break
    check([bytes(value), VALID])
    check([VALID, bytes(value)])
    check([bytes(value)])


@pytest.mark.parametrize(
    "values",
    [
        [VALID + b"\n" + VALID, b""],
        [VALID[:40], VALID[40:]],
        [VALID.replace(b",", b"\n,", 1)],
        [b"", VALID + b"\n" + VALID],
        [VALID + b"\n"],
        [b""],
        [VALID.replace(b'"a"', b'"\xff"')],
        [VALID.replace(b'"a"', b'"\xc3'), b'\xa9"' + VALID],
        [b"{}"],
        [VALID[:-1] + b",}"],
    ],
)
def test_line_ends_in_messages_do_not_blur_their_bounds(values: list[bytes]) -> None:
    assert not check(values)


def test_a_number_that_takes_more_than_a_division_is_left_to_msgspec() -> None:
    assert not check([VALID.replace(b"1.5", b"0.30000000000000004")])
    assert check([VALID.replace(b"1.5", b"1.7976931348623157")]) == (17976931348623157 <= 2**53)
    assert check([VALID.replace(b"1.5", b"-0.0")])


def test_after_many_rejected_batches_it_pauses() -> None:
    decoder = reader()
    odd = [VALID.replace(b'"a"', b'"\\n"')]
    for _ in range(20):
        assert decoder.read(odd, ONE) is None
    assert decoder.read([VALID], ONE) is None  # it pauses
    for _ in range(200):
        decoder.read([VALID], ONE)
    assert decoder.read([VALID], ONE) is not None


def test_types_that_it_cannot_check_are_left_to_msgspec() -> None:
    class Either(Event):
        id: str
        ts: int
        value: float | str

    class Nested(Event):
        id: str
        ts: int
        value: list[int]

    class Renamed(Event, rename="camel"):
        id: str
        ts: int
        some_value: float

    class Within(Event):
        id: str
        ts: int
        value: float = path("id.value")

    class Mixed(Event):
        id: str
        ts: int
        value: float = path("items[0]")
        other: float = path("items.other")

    class Tagged(Event, tag="x"):
        id: str
        ts: int

    class Checked(Event):
        id: str
        ts: int

        def __post_init__(self) -> None:
            raise ValueError

    for kind in (Either, Nested, Within, Mixed, Tagged, Checked):
        assert json_column_decoder(kind, "ts", ["id"]) is None, kind
    assert json_column_decoder(Renamed, "ts", ["id"]) is not None
