"""Avro: what fastavro writes is read into the declared type, by batches and one by one alike."""

from __future__ import annotations

import datetime
import io
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import fastavro
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch import Avro, Cast, DeclarationError, Event, path
from anabranch.dataflows.bus import BusError, UnreachableError
from anabranch.dataflows.bus.registry_settings import take_registry_settings
from anabranch.dataflows.codec import Codec, make_codec
from anabranch.dataflows.codec.protocol import Undecodable
from tests.support.schema_registry import RegistryServer

T0 = 1_700_000_000_000
MONEY = {
    "type": "record",
    "name": "Money",
    "fields": [
        {
            "name": "amount",
            "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2},
        },
        {
            "name": "currency",
            "type": {"type": "enum", "name": "Currency", "symbols": ["EUR", "USD"]},
        },
    ],
}
ORDER = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "note", "type": ["null", "string"], "default": None},
        {"name": "total", "type": MONEY},
        {"name": "paid", "type": "boolean"},
        {"name": "score", "type": ["null", "double"]},
        {"name": "weight", "type": "float"},
        {"name": "count", "type": "int"},
        {"name": "tags", "type": {"type": "array", "items": ["null", "string"]}},
        {"name": "places", "type": {"type": "map", "values": {"type": "array", "items": "long"}}},
        {
            "name": "delivery",
            "type": [
                "null",
                {
                    "type": "record",
                    "name": "Delivery",
                    "fields": [
                        {"name": "city", "type": "string"},
                        {"name": "cost", "type": ["null", "Money"]},
                    ],
                },
            ],
        },
        {"name": "key", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 6}},
    ],
}


class Order(Event, forbid_unknown_fields=False):
    id: str
    ts: int
    amount: float = path("total.amount")
    currency: str = path("total.currency")
    paid: bool
    score: float | None
    weight: float
    count: int
    city: str | None = path("delivery.city")
    cost: float = path("delivery.cost.amount", default=-1.0)
    added: str = 'none "yet"'
    gone: float | None = None


NAMES = [name for name in Order.__struct_fields__ if name != "ts"]


def written(schema: Any, row: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
    return out.getvalue()


def order(i: int, **changes: Any) -> dict[str, Any]:
    row = {
        "id": f"o{i}",
        "ts": (T0 + i) * 1000 + 999,
        "note": None if i % 3 else "hé",
        "total": {"amount": Decimal(i).scaleb(-2), "currency": "EUR" if i % 2 else "USD"},
        "paid": i % 2 == 0,
        "score": None if i % 5 == 0 else i / 7,
        "weight": i / 3,
        "count": -i,
        "tags": [None, "a"] * (i % 3),
        "places": {"x": [1, 2] * (i % 4), "y": []},
        "delivery": None
        if i % 7 == 0
        else {
            "city": "Köln",
            "cost": None if i % 4 else {"amount": Decimal(i), "currency": "EUR"},
        },
        "key": str(uuid.UUID(int=i)),
        "hash": b"123456",
    }
    return row | changes


def columns(codec: Codec, values: list[bytes], kind: type[Event] = Order) -> Any:
    names = [name for name in kind.__struct_fields__ if name != "ts"]
    decoder = codec.column_decoder(kind, "ts", names)
    assert decoder is not None
    return decoder.read(values, np.zeros(len(values), np.int64))


def check_alike(codec: Codec, values: list[bytes], kind: type[Event] = Order) -> list[Any]:
    """Decode in both ways; the structs."""
    structs = list(map(codec.decoder(kind), values))
    found = columns(codec, values, kind)
    assert found is not None, "the fast path does not take these messages"
    times, decoded, span = found
    assert times.tolist() == [each.ts for each in structs]
    assert span[:2] == (min(times), max(times))
    for name, column in decoded.items():
        assert list(column) == [getattr(each, name) for each in structs], name
    return structs


@pytest.fixture(scope="module")
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        yield server


def test_columns_and_structs_are_alike_and_what_was_written() -> None:
    codec = make_codec(Avro(schema=ORDER))
    structs = check_alike(codec, [written(ORDER, order(i)) for i in range(300)])
    assert structs[8] == Order(
        id="o8", ts=T0 + 8, amount=0.08, currency="USD", paid=True, score=8 / 7,
        weight=float(np.float32(8 / 3)), count=-8, city="Köln", cost=8.0,
    )  # fmt: skip
    assert (structs[7].city, structs[7].cost) == (None, -1.0)  # a path through a null
    assert structs[0].score is None


def test_any_truncation_is_malformed_and_says_so() -> None:
    codec = make_codec(Avro(schema=ORDER))
    whole, decode = written(ORDER, order(3)), codec.decoder(Order)
    for size in range(len(whole)):
        assert columns(codec, [whole[:size]]) is None
        with pytest.raises(Undecodable) as caught:
            decode(whole[:size])
        assert caught.value.reason == "malformed message"
    with pytest.raises(Undecodable, match="1 bytes are left over"):
        decode(whole + b"x")
    assert columns(codec, [whole + b"x"]) is None


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=120))
def test_arbitrary_bytes_are_rejected_or_read_alike(data: bytes) -> None:
    codec = make_codec(Avro(schema=ORDER))
    found = columns(codec, [data])
    try:
        struct = codec.decoder(Order)(data)
    except codec.errors:
        assert found is None
    else:
        assert found is None or found[0].tolist() == [struct.ts]


def test_schemas_of_a_registry_evolve_within_a_batch(registry: RegistryServer) -> None:
    old = {**ORDER, "fields": [f for f in ORDER["fields"] if f["name"] != "note"]}  # type: ignore[index]
    new = {
        **ORDER,
        "fields": [*ORDER["fields"], {"name": "added", "type": "string", "default": ""}],  # type: ignore[misc]
    }
    ids = [registry.add("orders-value", each) for each in (old, ORDER, new)]
    rows = [order(i, added="new") for i in range(90)]
    values = [
        registry.frame(ids[i % 3], written((old, ORDER, new)[i % 3], row))
        for i, row in enumerate(rows)
    ]
    codec = make_codec(Avro(registry=registry.url))
    structs = check_alike(codec, values)
    assert [each.added for each in structs[:3]] == ['none "yet"', 'none "yet"', "new"]
    asked = [each for each in registry.requests if each == f"/schemas/ids/{ids[0]}"]
    assert len(asked) == 1, "a schema is asked for once"


def test_a_readers_schema_gives_names_and_defaults(registry: RegistryServer) -> None:
    fields = [
        {"name": "id", "type": "string"},
        {"name": "ts", "type": "long"},
        {"name": "value", "type": "int"},
    ]
    writer = {"type": "record", "name": "Old", "fields": fields}
    reader = {
        "type": "record",
        "name": "New",
        "aliases": ["Old"],
        "fields": [
            *fields[:2],
            {"name": "amount", "aliases": ["value"], "type": "double"},
            {"name": "kind", "type": "string", "default": "web"},
        ],
    }

    class Renamed(Event, forbid_unknown_fields=False):
        id: str
        ts: int
        amount: float

    class Defaulted(Renamed):
        kind: str

    schema_id = registry.add("renamed-value", writer)
    value = registry.frame(schema_id, written(writer, {"id": "a", "ts": T0, "value": 3}))
    codec = make_codec(Avro(registry=registry.url, schema=reader))
    assert check_alike(codec, [value], Renamed)[0].amount == 3.0
    assert codec.decoder(Defaulted)(value).kind == "web"
    incompatible = {**writer, "fields": [*fields[:2], {"name": "value", "type": "string"}]}
    other = registry.add("other-value", incompatible)
    with pytest.raises(Undecodable, match=f"its schema {other} is not compatible") as caught:
        codec.decoder(Renamed)(registry.frame(other, written(incompatible, {
            "id": "a", "ts": T0, "value": "x",
        })))  # fmt: skip
    assert caught.value.reason == "does not fit the type"


def test_a_schema_that_lacks_a_field_is_a_mismatch(registry: RegistryServer) -> None:
    schema = {"type": "record", "name": "Few", "fields": [{"name": "id", "type": "string"}]}
    value = registry.frame(registry.add("few-value", schema), written(schema, {"id": "a"}))
    codec = make_codec(Avro(registry=registry.url))
    assert columns(codec, [value]) is None
    with pytest.raises(msgspec.ValidationError, match="missing required field"):
        codec.decoder(Order)(value)


def test_an_unknown_id_and_a_missing_prefix_are_dead_letters(registry: RegistryServer) -> None:
    codec = make_codec(Avro(registry=registry.url))
    with pytest.raises(Undecodable, match="no schema with id 4711") as caught:
        codec.decoder(Order)(registry.frame(4711, b"x"))
    assert codec.fault(caught.value)[0] == "unknown schema"
    for value in (b"", b"{}", b"\0\0\0", b"\1\0\0\0\1"):
        with pytest.raises(Undecodable, match="does not begin with the prefix") as caught:
            codec.decoder(Order)(value)
        assert caught.value.reason == "malformed message"
        assert columns(codec, [value]) is None


def test_schemas_refer_to_others(registry: RegistryServer) -> None:
    money = registry.add("money", {**MONEY, "namespace": "shop"})
    order_schema = {
        "type": "record",
        "name": "Ref",
        "namespace": "shop",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "ts", "type": "long"},
            {"name": "total", "type": "shop.Money"},
        ],
    }
    references = [{"name": "shop.Money", "subject": "money", "version": 1}]
    schema_id = registry.add("ref-value", order_schema, references=references)
    assert money != schema_id
    whole = {
        **order_schema,
        "fields": [*order_schema["fields"][:2], {"name": "total", "type": MONEY}],
    }  # type: ignore[index]
    row = {"id": "a", "ts": T0, "total": {"amount": Decimal("1.5"), "currency": "EUR"}}

    class Ref(Event, forbid_unknown_fields=False):
        id: str
        ts: int
        amount: float = path("total.amount")

    codec = make_codec(Avro(registry=registry.url))
    value = registry.frame(schema_id, written(whole, row))
    assert check_alike(codec, [value], Ref)[0].amount == 1.5


def test_a_registry_that_is_away_is_unreachable_and_nothing_is_rejected() -> None:
    with RegistryServer() as server:
        url, schema_id = server.url, server.add("s", ORDER)
        codec = make_codec(Avro(registry=url))
        value = server.frame(schema_id, written(ORDER, order(1)))
        server.status = 503
        with pytest.raises(UnreachableError, match="HTTP 503"):
            codec.decoder(Order)(value)
        with pytest.raises(UnreachableError):
            columns(codec, [value])
        server.status = None
        check_alike(codec, [value])
    codec = make_codec(Avro(registry=f"{url}/"))  # one that knows no schema yet
    with pytest.raises(UnreachableError, match="does not respond"):
        codec.decoder(Order)(value)


def test_credentials_are_settings_of_the_bus_and_never_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("anabranch.dataflows.bus.registry_settings._settings", {})
    with RegistryServer(user_info="me:sesame") as server:
        value = server.frame(server.add("s", ORDER), written(ORDER, order(1)))
        with pytest.raises(BusError, match="refuses access") as caught:
            make_codec(Avro(registry=server.url)).decoder(Order)(value)
        assert not isinstance(caught.value, UnreachableError)
        take_registry_settings({"schema.registry.basic.auth.user.info": "me:sesame"})
        fresh = make_codec(Avro(registry=f"{server.url}/"))
        assert fresh.decoder(Order)(value).id == "o1"
    with pytest.raises(DeclarationError) as refused:
        Avro(registry="http://me:sesame@127.0.0.1:1")
    assert "sesame" not in str(refused.value)


def test_logical_types_become_what_is_declared() -> None:
    schema = {
        "type": "record",
        "name": "Logical",
        "fields": [
            {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
            {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "day", "type": {"type": "int", "logicalType": "date"}},
            {
                "name": "price",
                "type": {
                    "type": "fixed", "name": "P", "size": 12, "logicalType": "decimal",
                    "precision": 20, "scale": 4,
                },
            },
        ],
    }  # fmt: skip

    row = {
        "id": uuid.UUID(int=5),
        "ts": datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC),
        "day": datetime.date(2023, 11, 14),
        "price": Decimal("12345678901234.5678"),
    }

    class Days(Event, forbid_unknown_fields=False):
        id: Cast[str]
        ts: int
        day: int
        price: str

    value = written(schema, row)
    found = make_codec(Avro(schema=schema)).decoder(Days)(value)
    assert found == Days(
        id=str(uuid.UUID(int=5)), ts=T0, day=T0 // 86_400_000 * 86_400_000,
        price="12345678901234.5678",
    )  # fmt: skip
    in_seconds = make_codec(Avro(schema=schema), 1000.0)
    assert in_seconds.decoder(Days)(value).ts == T0 // 1000


def test_with_a_prefix_that_is_skipped() -> None:
    codec = make_codec(Avro(schema=ORDER, prefix=True))
    values = [b"\0\0\0\0\x63" + written(ORDER, order(i)) for i in range(5)]
    assert [each.id for each in check_alike(codec, values)] == ["o0", "o1", "o2", "o3", "o4"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Avro(), "needs registry="),
        (lambda: Avro(schema="no such file.avsc"), "can't be read"),
        (lambda: Avro(registry="localhost:8081"), "must be http://HOST:PORT"),
        (lambda: Avro(registry="http://a", prefix=False), "without its prefix"),
        (lambda: make_codec(Avro(schema={"type": "recrod"})), "not an Avro schema"),
    ],
)
def test_mistakes_are_sentences(make: Any, text: str) -> None:
    with pytest.raises(DeclarationError, match=text):
        make()
