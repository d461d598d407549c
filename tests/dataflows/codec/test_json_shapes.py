"""Columns of nested, cast and unknown fields equal what msgspec and `Shape` make of each message.

The reference decodes each message to dicts with msgspec, and takes the fields out by their paths.
"""

from __future__ import annotations

import decimal
import enum
import json
import uuid
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch import Cast, Event, path
from anabranch.dataflows.codec.json_codec import JsonCodec
from anabranch.dataflows.codec.json_decoder import json_column_decoder
from anabranch.dataflows.declaration.casts import text_of
from anabranch.dataflows.declaration.shape import Shape
from anabranch.dataflows.messages.inputs import OTHER_FIELDS
from anabranch.state.keys.hashing import hash64, keys_of


class Color(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Order(Event, kw_only=True):
    id: int = path("order.number")
    ts: Cast[int] = path("meta.at")
    both: str = path("order.line", "shop_name", "ok")
    customer: uuid.UUID | None = path("after.customer.id")
    shop: int | str
    open: bool = path("after.open")
    amount: Cast[float] = path("total.amount")
    tax: decimal.Decimal = path("total.tax", default=decimal.Decimal("1.5"))
    pieces: Cast[int] = path("total.pieces", default=3)
    paid: Cast[bool] = path("after.paid")
    word: Cast[str]
    first: float = path("items[0].price", default=0.5)
    third: float | None = path("items[2].price", default=None)
    ratio: float | None = path("ratios.a")
    color: Color = Color.RED
    level: Level = path("after.level", default=Level.HIGH)
    kind: Literal["a", "b"] = path("kind", default="a")
    ignored: str | None = None
    nick: int | None = None
    store: int = path("after.store")
    store_number: int = path("$.after.store")


TEXTS = {"id", "nick", "customer", "shop", "open", "store"}
WANTED = [each.name for each in Shape.of(Order).fields if each.name not in ("ts", "ignored")]
DECODE = JsonCodec().decoder(Order)
MESSAGE: dict[str, Any] = {
    "order": {"number": 1001, "lines": [1, {"a": None}], "line": 2},
    "shop_name": "a",
    "ok": True,
    "meta": {"at": 17, "by": "x"},
    "after": {
        "customer": {"name": "n", "id": "00000000-0000-0000-0000-00000000000a"},
        "open": False,
        "paid": "1",
        "store": 12,
        "level": 1,
    },
    "shop": "s",
    "total": {"amount": "12.50", "tax": "0.25", "currency": "EUR", "pieces": "4"},
    "word": 10,
    "items": [{"price": 2.5}, {"price": 1.0}, {"sku": "\\u00e9", "price": 3.5}],
    "ratios": None,
    "color": "blue",
    "extra": {"deep": [[], {}, [{"a": "\\n"}], -0.5e2, True]},
}


def reader() -> Any:
    decoder = json_column_decoder(Order, "ts", WANTED, TEXTS)
    assert decoder is not None
    return decoder


READER = reader()


def plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    return float(value) if isinstance(value, decimal.Decimal) else value


def expected_columns(values: list[bytes]) -> dict[str, list[Any]] | None:
    try:
        rows = list(map(DECODE, values))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    columns = {name: [plain(getattr(row, name)) for row in rows] for name in (*WANTED, "ts")}
    for name in TEXTS:
        columns[name] = [None if v is None else text_of(v) for v in columns[name]]
    return columns


def check(values: list[bytes]) -> bool:
    """Whether the messages were accepted; if so, columns and counts must be right."""
    READER._rejected = READER._pause = 0
    READER.take_unknown()
    decoded = READER.read(values, np.arange(len(values)) + 7)
    expected = expected_columns(values)
    if decoded is None:
        assert not READER.take_unknown()[0]
        return False
    assert expected is not None, "a message that does not fit was accepted"
    times, columns, extents = decoded
    assert extents == (min(expected["ts"]), max(expected["ts"]), 7)
    assert times.tolist() == expected.pop("ts")
    for name, column in expected.items():
        assert list(columns[name]) == column, name
        assert list(map(type, columns[name])) == list(map(type, column)), name
        if name in TEXTS:
            assert hash64(keys_of(columns[name])).tolist() == hash64(keys_of(column)).tolist()
    unknown = [name for v in values for name in Shape.of(Order).unknown(msgspec.json.decode(v))]
    by_name = {name: unknown.count(name) for name in unknown}
    counts, _ = READER.take_unknown()
    assert sum(by_name.values()) == sum(counts.values())
    assert OTHER_FIELDS in counts or by_name == dict(counts)
    return True


def encoded(message: Any) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")


def changed(**parts: Any) -> bytes:
    """The message with other values; of a dict only what is named, where `...` means absent."""
    message = json.loads(json.dumps(MESSAGE))
    for name, value in parts.items():
        merged = message.get(name)
        if isinstance(value, dict) and isinstance(merged, dict):
            value = {k: v for k, v in {**merged, **value}.items() if v is not ...}
        if value is ...:
            del message[name]
        else:
            message[name] = value
    return encoded(message)


@pytest.mark.parametrize(
    "value",
    [
        changed(),
        changed(shop=7),
        changed(shop_name="a/b"),
        changed(order={"line": "x"}, ok="y"),
        changed(word="x"),
        changed(word=True),
        changed(total={"amount": 12.5, "tax": 2}),
        changed(total={"tax": ..., "pieces": 7}),
        changed(after={"paid": False}),
        changed(after={"paid": "false", "level": ...}),
        changed(after={"paid": 0, "open": True}),
        changed(after={"customer": None}),
        changed(after={"customer": {}}),
        changed(after={"customer": {"id": None}}),
        changed(nick=None),
        changed(nick=7),
        changed(items=[]),
        changed(items=None),
        changed(items=...),
        changed(items=[{}, [], {"price": 1.5}]),
        changed(items=[{"price": 1, "x": [1, 2]}]),
        changed(ratios={}),
        changed(ratios=...),
        changed(ratios={"a": 2.5, "b": []}),
        changed(ignored="a\nb"),
        changed(ignored=None),
        changed(meta={"at": "18"}),
        changed(extra="\u00fc"),
        changed(ü=1),
    ],
)
def test_messages_of_the_common_form_are_accepted(value: bytes) -> None:
    assert expected_columns([value]) is not None
    assert check([value])
    assert check([value, changed(), value])


@pytest.mark.parametrize(
    "value",
    [
        changed(order=None),
        changed(shop_name=None),
        changed(ok=...),
        changed(ok={}),
        changed(order={"number": "7"}),
        changed(order={"number": 1.5}),
        changed(order=[1]),
        changed(after={"open": 0}),
        changed(after={"paid": 2}),
        changed(after={"paid": None}),
        changed(after={"level": 3}),
        changed(after={"store": "1"}),
        changed(after={"store": ...}),
        changed(after={"customer": {"id": "x"}}),
        changed(total={"amount": "12,50"}),
        changed(total={"amount": "NaN"}),
        changed(total={"amount": True}),
        changed(total={"pieces": "1.5"}),
        changed(items=[{"price": "1"}]),
        changed(items={"price": 1}),
        changed(color="green"),
        changed(kind="c"),
        changed(shop=None),
        changed(meta={})[:-1],
        changed().replace(b'"extra": {', b'"extra": {,'),
        changed().replace(b'"extra"', b'"ext'),
        changed().replace(b"-50.0", b"-050.0"),
        changed().replace(b"true", b"tru"),
        changed(extra="x").replace(b'"x"', b'"\\x"'),
        changed(extra=0).replace(b'"extra": 0', b'"extra": [1,]'),
        changed(extra=0).replace(b'"extra": 0', b'"extra": {"a":1,}'),
        changed(extra=0).replace(b'"extra": 0', b'"extra": [}'),
    ],
)
def test_messages_that_do_not_fit_are_rejected(value: bytes) -> None:
    assert expected_columns([value]) is None or b"050" in value
    assert not check([changed(), value])
    assert check([changed()])


# What msgspec takes as well, but the scanner leaves to it.
@pytest.mark.parametrize(
    "value",
    [
        changed(order={"number": 10**20}),
        changed(total={"amount": "1" * 20}),
        changed(after={"customer": {"id": "6F9619FF-8B86-D011-B42D-00CF4FC964FF"}}),
        changed(word=1.5),
        changed(total={"pieces": 7.0}),
        changed(extra=0).replace(b'"extra": 0', b'"extra": ' + b"[" * 70 + b"]" * 70),
        changed(extra="x").replace(b'"x"', b'"\\ud83d\\ude00"'),
        changed().replace(b'"extra"', b'"\\u0065xtra"'),
        changed().replace(b'"color"', b'"\\u0063olor"'),
    ],
)
def test_other_valid_messages_are_left_to_msgspec(value: bytes) -> None:
    assert expected_columns([value]) is not None
    assert not check([value])


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
PLACES: list[tuple[str, ...]] = [
    ("order",), ("order", "number"), ("meta",), ("meta", "at"), ("after",), ("after", "customer"),
    ("after", "customer", "id"), ("after", "paid"), ("shop",), ("total", "amount"), ("total",),
    ("word",), ("items",), ("ratios",), ("ratios", "a"), ("color",), ("extra",), ("new",),
    ("total", "new"), ("after", "customer", "new"), ("shop_name",), ("ok",),
]  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    message = json.loads(json.dumps(MESSAGE))
    for place in draw(st.lists(st.sampled_from(PLACES), max_size=3)):
        inner = message
        for step in place[:-1]:
            if not isinstance(inner.get(step), dict):
                inner[step] = {}
            inner = inner[step]
        inner[place[-1]] = draw(anything)
    items = draw(st.permutations(list(message.items())))
    text = json.dumps(
        dict(items),
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\r: ")])),
    )
    value = text.encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        at = draw(st.integers(0, len(value)))
        end = at + draw(st.integers(0, 2))
        value = (
            value[:at] + draw(st.sampled_from([b"", b"}", b"]", b",", b'"', b"0"])) + value[end:]
        )
    return value


@settings(max_examples=400, deadline=None)
@given(st.lists(messages(), min_size=1, max_size=3))
def test_messages_are_decoded_correctly_or_rejected(values: list[bytes]) -> None:
    check(values)


@settings(max_examples=200, deadline=None)
@given(anything)
def test_unknown_values_of_any_form_are_skipped(value: Any) -> None:
    written = json.dumps(value, ensure_ascii=False)
    deep_or_large = any(len(part) > 190 for part in written.split(","))
    if "e+" not in written and not deep_or_large:  # no power of more than two digits
        assert check([changed(extra=value)]) or "e" in written


def test_new_names_are_expected_from_then_on_and_counted() -> None:
    decoder = reader()
    one = np.array([7])
    assert decoder.read([changed()], one) is not None
    assert decoder.has_new_fields
    counts, examples = decoder.take_unknown()
    assert counts == {
        "order.lines": 1, "meta.by": 1, "after.customer.name": 1, "total.currency": 1,
        "items[2].sku": 1, "extra": 1,
    }  # fmt: skip
    assert examples["total.currency"] == "EUR"
    order = [str(node.step) for node in decoder._root.children]
    assert order[:5] == ["order", "shop_name", "ok", "meta", "after"]
    assert order.index("extra") > order.index("color") > order.index("ratios")
    assert decoder.read([changed(channel="web"), changed()], np.array([7, 8])) is not None
    counts, _ = decoder.take_unknown()
    assert counts["channel"] == 1
    assert counts["extra"] == 2


def test_names_without_end_are_counted_together() -> None:
    decoder = reader()
    for number in range(200):
        assert decoder.read([changed(**{f"x{number}": 1})], np.array([7])) is not None
    assert decoder.take_unknown()[0][OTHER_FIELDS] > 100
    assert len(decoder._plan) < 700


def test_a_type_that_forbids_unknown_fields_rejects_them() -> None:
    class Strict(Event, forbid_unknown_fields=True):
        id: str
        ts: int
        amount: float = path("total.amount")

    decoder = json_column_decoder(Strict, "ts", ["id", "amount"])
    assert decoder is not None
    valid = b'{"id":"a","ts":1,"total":{"amount":2.5}}'
    assert decoder.read([valid], np.array([7])) is not None
    assert decoder.read([valid.replace(b"2.5", b'2.5,"x":1')], np.array([7])) is None
    assert decoder.read([valid.replace(b"1,", b'1,"x":1,')], np.array([7])) is None
