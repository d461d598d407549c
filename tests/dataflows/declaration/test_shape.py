"""Paths, casts and joined fields: where a field's value is in a message, and what it becomes."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch import Cast, DeclarationError, Event, path
from anabranch.dataflows.declaration.casts import cast_to, join_texts, text_of
from anabranch.dataflows.declaration.shape import Path, Shape


class Status(enum.StrEnum):
    PAID = "paid"
    OPEN = "open"


class Grade(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Order(Event, kw_only=True):
    id: str = path("order.number", "order.line")
    ts: int
    customer: int = path("after.customer.id")
    amount: Cast[float] = path("total.amount")
    price: float = path("items[0].price", default=0.5)
    note: str | None = path("meta['a.b'].text")
    status: Status = path("after.status", default=Status.OPEN)


MESSAGE = {
    "order": {"number": 1001, "line": "2"},
    "ts": 7,
    "after": {"customer": {"id": 42}, "status": "paid", "other": 1},
    "total": {"amount": "12.50", "currency": "EUR"},
    "items": [{"price": 2.5, "sku": "x"}, {"price": 3.5}],
    "meta": {"a.b": {"text": "hi"}},
    "extra": {"a": 1},
}


def read(message: Any, kind: type[msgspec.Struct] = Order) -> Any:
    return Shape.of(kind).from_mapping(message)


def changed(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in (MESSAGE | fields).items() if value is not ...}


def test_fields_are_read_by_their_paths() -> None:
    order = read(MESSAGE)
    assert (order.id, order.ts, order.customer, order.amount) == ("1001/2", 7, 42, 12.5)
    assert (order.price, order.note, order.status) == (2.5, "hi", Status.PAID)


@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        ({"items": []}, "price", 0.5),
        ({"items": None}, "price", 0.5),
        ({"items": ...}, "price", 0.5),
        ({"items": [None]}, "price", 0.5),
        ({"meta": None}, "note", None),
        ({"meta": ...}, "note", None),
        ({"meta": {"a.b": None}}, "note", None),
        ({"meta": {"a.b": {"text": None}}}, "note", None),
        ({"after": {"customer": {"id": 1}}}, "status", Status.OPEN),
    ],
)
def test_a_path_through_null_or_nothing_gives_the_default_or_null(fields, name, expected) -> None:
    assert getattr(read(changed(**fields)), name) == expected


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"total": None}, "missing required field `total.amount`: `total` is null"),
        ({"total": ...}, "missing required field `total.amount`"),
        ({"total": {}}, "missing required field `total.amount`: `total` has no `amount`"),
        ({"after": {"customer": None}}, "`after.customer` is null"),
        ({"order": {"number": 1}}, "missing required field `order.line`"),
        ({"order": {"number": 1, "line": None}}, "missing required field `order.line`"),
        ({"total": "12"}, "Expected `object`, got `str` - at `$.total`"),
        ({"items": {}}, "Expected `array`, got `object` - at `$.items`"),
        ({"total": {"amount": "twelve"}}, "'twelve' is not a number - at `$.total.amount`"),
        ({"total": {"amount": "NaN"}}, "'NaN' is not a number - at `$.total.amount`"),
        ({"total": {"amount": None}}, "null is not a number - at `$.total.amount`"),
        ({"after": {"customer": {"id": "1"}}}, "Expected `int`, got `str` - at `$.after.customer"),
        ({"after": {"customer": {"id": 1}, "status": "lost"}}, "'lost' - at `$.after.status`"),
    ],
)
def test_what_does_not_fit_names_the_path(fields, detail) -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        read(changed(**fields))
    assert detail in str(error.value)


def test_a_message_that_is_no_object_does_not_fit() -> None:
    with pytest.raises(msgspec.ValidationError, match="Expected `object`, got `array`"):
        read([MESSAGE])


def test_unknown_fields_are_named_by_their_paths() -> None:
    unknown = list(Shape.of(Order).unknown(MESSAGE))
    assert unknown == ["after.other", "total.currency", "items[0].sku", "extra"]


def test_a_type_that_forbids_unknown_fields_refuses_them() -> None:
    class Strict(Event, forbid_unknown_fields=True):
        amount: float = path("total.amount")

    assert read({"total": {"amount": 1}}, Strict).amount == 1.0
    with pytest.raises(msgspec.ValidationError, match=r"unknown field `total\.tax`"):
        read({"total": {"amount": 1, "tax": 2}}, Strict)


def test_values_that_are_not_in_the_payload_are_given_by_their_place() -> None:
    class Keyed(Event, kw_only=True):
        user: Cast[int] = msgspec.field(name="$key")
        trace: str = msgspec.field(name="$header.trace", default="")
        at: str = msgspec.field(name="$coordinates")

    shape = Shape.of(Keyed)
    assert [(each.origin, each.header) for each in shape.fields] == [
        ("key", ""),
        ("header", "trace"),
        ("coordinates", ""),
    ]
    assert shape.from_mapping({}, {"$key": "7", "$coordinates": "t/0/1"}) == Keyed(
        user=7, at="t/0/1"
    )


def test_a_type_without_paths_and_casts_is_plain() -> None:
    class Plain(Event, rename="camel"):
        order_id: str
        amount: float = 1.0

    class Casting(Event):
        amount: Cast[float]

    assert Shape.of(Plain).is_plain
    assert [str(each.path) for each in Shape.of(Plain).fields] == ["orderId", "amount"]
    assert not Shape.of(Casting).is_plain
    assert not Shape.of(Order).is_plain


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a", ("a",)),
        ("a.b", ("a", "b")),
        ("$.a.b", ("a", "b")),
        ("a[0].b", ("a", 0, "b")),
        ("a[-1][2]", ("a", -1, 2)),
        ("['a.b'].c", ("a.b", "c")),
        ('a["x y"]', ("a", "x y")),
        ("a.['b']", ("a", "b")),
        ("['it''s']", ("it's",)),
        ("order number", ("order number",)),
    ],
)
def test_paths(text, steps) -> None:
    assert Path.parse(text).steps == steps
    assert Path.parse(str(Path.parse(text))).steps == steps


keys = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), min_size=1)


@given(st.lists(keys | st.integers(-9, 99), min_size=1, max_size=4))
def test_every_path_can_be_written(steps) -> None:
    written = Path(tuple(steps))
    assert Path.parse(str(written)) == written

    if '"' not in str(written):

        class Anything(Event):
            value: int = path(str(written))
            both: str = path(str(written), "b", default="")

        fields = Shape.of(Anything).fields
        assert [each.paths for each in fields] == [(written,), (written, Path(("b",)))]


@pytest.mark.parametrize(
    "text", ["", ".", "a.", "a..b", "a[", "a[x]", "a]b", "a['b", ".a", "a[1", "a\\b"]
)
def test_what_is_no_path_is_one_sentence(text) -> None:
    with pytest.raises(DeclarationError, match="is not a path: write keys with dots"):
        path(text)


def test_a_key_with_a_quotation_mark_can_not_be_declared() -> None:
    with pytest.raises(DeclarationError, match="quotation mark"):
        path("""['a"b']""")


def test_several_places_are_joined_to_text_only() -> None:
    class Wrong(Event):
        id: int = path("a", "b")

    with pytest.raises(DeclarationError, match="joins several fields to one text"):
        Shape.of(Wrong)


parts = st.lists(st.text(alphabet="/\\a", max_size=4), min_size=2, max_size=3).map(tuple)


@given(parts, parts)
def test_different_parts_are_never_joined_to_the_same_text(one, other) -> None:
    if len(one) == len(other):
        assert (join_texts(one) == join_texts(other)) == (one == other)


UTC = datetime.UTC
CASTS = [
    (float, "12.50", 12.5),
    (float, " 1e3 ", 1000.0),
    (float, 3, 3.0),
    (float, decimal.Decimal("0.1"), 0.1),
    (int, "7", 7),
    (int, "7.0", 7),
    (int, 7.0, 7),
    (int, "123456789012345678901", 123456789012345678901),
    (bool, 0, False),
    (bool, 1, True),
    (bool, "true", True),
    (bool, "0", False),
    (bool, "FALSE", False),
    (bool, 1.0, True),
    (str, 10, "10"),
    (str, 1.0, "1"),
    (str, 1.5, "1.5"),
    (str, True, "true"),
    (str, "x", "x"),
    (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
    (decimal.Decimal, 1.1, decimal.Decimal("1.1")),
    (datetime.datetime, "1000", datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),
    (datetime.datetime, "1970-01-01T00:00:01Z", datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),
    (datetime.date, "1970-01-02", datetime.date(1970, 1, 2)),
    (
        uuid.UUID,
        "6F9619FF8B86D011B42D00CF4FC964FF",
        uuid.UUID(int=0x6F9619FF8B86D011B42D00CF4FC964FF),
    ),
    (Status, "paid", "paid"),
    (Grade, "2", 2),
    (Literal[1, 2], "2", 2),
    (Literal["1", "2"], 2, "2"),
    (float | None, "", None),
    (float | None, None, None),
    (str | None, "", ""),
    (int | str, "x", "x"),
]


@pytest.mark.parametrize(("kind", "value", "expected"), CASTS)
def test_casts(kind, value, expected) -> None:
    cast = cast_to(kind)(value)
    assert cast == expected
    assert type(cast) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(
            (float, value)
            for value in ("", "x", "1,5", "inf", "nan", "1e999", True, None, [], "0x1")
        ),
        *((int, value) for value in ("1.5", 1.5, float("inf"), True, "x", "1e4000", None)),
        *((bool, value) for value in (2, "2", "maybe", None, -1, [])),
        *((str, value) for value in (None, [], {}, float("nan"))),
        *((decimal.Decimal, value) for value in ("NaN", "Infinity", True, "x", float("inf"))),
        *((datetime.datetime, value) for value in ("yesterday", True, None, 1e300)),
        *((Status, value) for value in ("PAID", 1, None)),
        (Grade, "3"),
        (uuid.UUID, "12"),
        (float | None, "x"),
    ],
)
def test_what_can_not_be_cast_is_one_sentence(kind, value) -> None:
    with pytest.raises(ValueError, match=r"\w") as error:
        cast_to(kind)(value)
    assert "\n" not in str(error.value)


def test_a_number_and_its_text_are_the_same_id() -> None:
    assert text_of(10) == text_of("10") == text_of(10.0) == text_of(decimal.Decimal("1E+1")) == "10"
    assert text_of(True) == "true"
    assert text_of(Grade.HIGH) == "2"
    assert text_of(Status.PAID) == "paid"
    assert text_of(uuid.UUID(int=1)) == "00000000-0000-0000-0000-000000000001"
