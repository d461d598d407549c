"""Declarations that users have: ids, keys, categories, labels and values of many types."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any, Literal

import msgspec
import pytest
from river import linear_model, preprocessing

from anabranch import (
    Cast,
    DeclarationError,
    Event,
    Label,
    Pipeline,
    count_distinct,
    field,
    hashed,
    inline,
    one_hot,
    path,
    window,
)


class Country(enum.Enum):
    DE = "DE"
    US = "US"


class CountryText(enum.StrEnum):
    DE = "DE"
    US = "US"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Place(msgspec.Struct):
    lat: float
    lon: float


BASIC: dict[str, Any] = {"id": str, "ts": int, "amount": float, "y": bool}
BY_USER = {"features": [window("user", "amount", over="1h")]}


def declare(fields: dict[str, Any], **parts: Any) -> Pipeline:
    """A pipeline whose event type has `BASIC` and these fields."""
    annotations = BASIC | fields
    defaults = {name: each[1] for name, each in annotations.items() if isinstance(each, tuple)}
    annotations = {
        name: each[0] if isinstance(each, tuple) else each for name, each in annotations.items()
    }
    kind = type(Event)("Payment", (Event,), {"__annotations__": annotations, **defaults})
    return Pipeline(
        **{
            "name": "payments",
            "event": kind,
            "label": inline("y"),
            "features": [field("amount")],
            "model": preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        }
        | parts
    )


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        *(({"id": kind}, {}) for kind in (int, int | str, uuid.UUID, bool, Country, Level)),
        *(
            ({"user": kind}, BY_USER)
            for kind in (
                *(int, int | str, str | None, int | None, uuid.UUID, Literal["a", "b"], Level),
                *(Literal[1, 2], bool, Cast[str], Cast[int], CountryText),
            )
        ),
        ({"c": Country}, {"features": [one_hot("c", ("DE", "US"))]}),
        ({"c": Country}, {"features": [one_hot("c", (Country.DE, Country.US))]}),
        ({"c": CountryText}, {"features": [one_hot("c", ("DE", "US"))]}),
        ({"c": Level}, {"features": [one_hot("c", (1, 2))]}),
        ({"c": bool}, {"features": [one_hot("c", (True, False))]}),
        ({"c": int}, {"features": [one_hot("c", (1, 2))]}),
        ({"c": int}, {"features": [hashed("c")]}),
        ({"c": bool}, {"features": [hashed("c")]}),
        ({"c": Country}, {"features": [hashed("c")]}),
        ({"u": str, "c": int}, {"features": [count_distinct("u", "c", over="1h")]}),
        ({"u": str, "c": Level | None}, {"features": [count_distinct("u", "c", over="1h")]}),
        ({"u": str, "c": float | None}, {"features": [window("u", "c", over="1h")]}),
        ({"u": int}, {"features": [window("u", over="1h", stats="count"), one_hot("u", (1, 2))]}),
        ({"u": int | None, "c": Country}, {
            "features": [window(("u", "c"), "amount", over="1h"), window("u", over="1h")],
        }),
        ({"amount": decimal.Decimal}, {}),
        ({"amount": Cast[float]}, {}),
        ({"amount": Annotated[float, msgspec.Meta(ge=0)]}, {}),
        *(
            ({"ts": kind}, {})
            for kind in (str, float, datetime.datetime, Cast[int], Cast[datetime.datetime])
        ),
        ({"day": datetime.date, "at": datetime.datetime | None}, {}),
        ({"place": Place, "tags": list[float], "more": dict[str, Any]}, {}),
        ({"y": Cast[bool]}, {}),
        ({"store": int, "store_number": (int, path("$.store"))}, {
            "features": [window("store", "amount", over="1h"), field("store_number")],
        }),
    ],
)  # fmt: skip
def test_what_can_be_declared(fields: dict[str, Any], parts: dict[str, Any]) -> None:
    assert declare(fields, **parts).columns


@pytest.mark.parametrize(
    ("fields", "parts", "sentence"),
    [
        ({"id": float}, {}, "field 'id' in pipeline 'payments' (id=) must be a text, an integer, "
         "a boolean, a UUID or an enum, but Payment.id is a number"),
        ({"id": str | None}, {}, "declare Payment.id without None"),
        ({"amount": float | str}, {}, "Payment.amount is neither a number nor text; if its text "
         "is that of a number, declare it as amount: Cast[float]"),
        ({"amount": str}, {}, "declare it as amount: Cast[float]"),
        ({"y": int}, {}, "the label 'y' of pipeline 'payments' is a number, and "
         "LogisticRegression predicts true or false: if it is 0 or 1, declare it as y: Cast[bool]"),
        ({"y": Literal[0, 1]}, {}, "declare it as y: Cast[bool]"),
        ({"y": bool | None}, {}, "field 'y' in inline('y') may be null"),
        ({"place": Place}, {"features": [field("place.lat")]}, "unknown field 'place.lat'"),
        ({"place": Place}, {"features": [field("place")]}, "neither a number nor text"),
        ({"xs": list[float]}, {"features": [field("xs")]}, "neither a number nor text"),
        ({"c": int}, {"features": [one_hot("c", ("1", "2"))]}, "'1' in one_hot('c') is never"),
        ({"user": float}, BY_USER, "field 'user' in window(user) must be a text, an integer"),
        ({"c": int | None}, {"features": [hashed("c")]}, "may be null"),
        ({"u": int}, {"features": [window(("u", "c"), over="1h")]},
         "unknown field 'c' in window(u+c): Payment has id, ts, amount, y, u"),
        ({"u": int}, {"features": [window(("u", "y"), over="1h")]}, "would reveal the label"),
        ({"u": float, "c": int}, {"features": [window(("u", "c"), over="1h")]},
         "field 'u' in window(u+c) must be a text, an integer"),
        ({"store": int}, {"features": [window("store", over="1h"), field("store")]},
         "field 'store' of pipeline 'payments' is used as a number, and as a key or category too: "
         "declare it once more for the number, such as store_number: int = path('$.store')"),
    ],
)  # fmt: skip
def test_what_can_not_is_one_sentence(
    fields: dict[str, Any], parts: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DeclarationError) as raised:
        declare(fields, **parts)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("entity", [(), ("u",), ("u", "u"), ("u", 1), 7, ("u", "a b")])
def test_an_entity_is_a_field_or_several_different_ones(entity: Any) -> None:
    with pytest.raises(DeclarationError, match=r"two or more different ones in a tuple"):
        window(entity, over="1h")


def test_the_columns_of_a_combination_are_named_after_its_fields() -> None:
    declared = declare({"u": int, "c": str}, features=[window(("u", "c"), "amount", over="1h")])
    assert declared.columns == ["u_c_amount_1h_count", "u_c_amount_1h_mean"]
    assert declared.partition_field is None


def test_a_number_as_a_delayed_label_of_a_binary_model_is_one_sentence() -> None:
    class Verdict(Label):
        id: int
        ts: int
        y: int

    with pytest.raises(DeclarationError, match=r"declare it as y: Cast\[bool\]"):
        declare({}, label=Verdict.target("y"))


def test_a_field_in_an_object_is_declared_by_its_path() -> None:
    with pytest.raises(DeclarationError) as raised:
        declare({"place": Place}, features=[field("place.lat")])
    assert "declare lat: float = path('place.lat')" in str(raised.value)
