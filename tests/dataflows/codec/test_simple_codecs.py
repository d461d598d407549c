"""MessagePack, CSV, JSON with a registry's prefix, and a user's own function, as they are read."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from anabranch import (
    Cast,
    Csv,
    Custom,
    DeclarationError,
    Event,
    JsonSchema,
    MessagePack,
    path,
)
from anabranch.dataflows.codec import Codec, make_codec
from anabranch.dataflows.codec.protocol import Undecodable
from tests.support.schema_registry import RegistryServer

T0 = 1_700_000_000_000


class Order(Event, kw_only=True):
    id: str
    ts: int | str
    amount: float
    count: int | None = None
    paid: bool = False


def fault(codec: Codec, payload: bytes, kind: type[Event] = Order) -> tuple[str, str]:
    with pytest.raises(codec.errors) as caught:
        codec.decoder(kind)(payload)
    reason, detail = codec.fault(caught.value)
    return str(reason), detail


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (b"a,1700000000000,2.5,3,true", Order(id="a", ts=T0, amount=2.5, count=3, paid=True)),
        (b'"a,""b""",2023-11-14,1,,0\r\n', Order(id='a,"b"', ts="2023-11-14", amount=1.0)),
        ("é,1,1e3,-1,no".encode(), Order(id="é", ts=1, amount=1000.0, count=-1)),
    ],
)
def test_csv_rows_in_the_declared_order(row: bytes, expected: Order) -> None:
    found = make_codec(Csv("id", "ts", "amount", "count", "paid")).decoder(Order)(row)
    assert str(found.ts) == str(expected.ts)
    assert msgspec.structs.replace(found, ts=0) == msgspec.structs.replace(expected, ts=0)


def test_csv_rows_that_do_not_fit() -> None:
    codec = make_codec(Csv("id", "ts", "amount", delimiter=";"))
    assert fault(codec, b"a;1") == (
        "malformed message", "it has 2 values, and 3 columns are declared",
    )  # fmt: skip
    assert fault(codec, b'"a;1;2')[0] == "malformed message"
    assert fault(codec, b"a;1;x") == (
        "does not fit the type",
        "'x' is not a number - at `$.amount`",
    )
    assert "amount" in fault(codec, b"a;1;")[1]
    assert fault(codec, b"\xff;1;2")[0] == "malformed message"
    assert fault(codec, b"")[0] == "malformed message"
    for wrong in (lambda: Csv(), lambda: Csv("a", "a"), lambda: Csv("a", delimiter='"')):
        with pytest.raises(DeclarationError):
            wrong()


def test_message_pack_with_paths_and_casts() -> None:
    class Nested(Event):
        id: Cast[str] = path("order.number")
        ts: int
        price: float = path("items[0].price")

    codec = make_codec(MessagePack())
    message = {"order": {"number": 7}, "ts": T0, "items": [{"price": 1.5}]}
    found = codec.decoder(Nested)(msgspec.msgpack.encode(message))
    assert (found.id, found.price) == ("7", 1.5)
    assert fault(codec, b"\xc1", Nested)[0] == "malformed message"
    empty = msgspec.msgpack.encode({**message, "items": []})
    assert fault(codec, empty, Nested)[0] == "does not fit the type"


def test_a_users_own_function() -> None:
    def decode(payload: bytes) -> Any:
        if payload == b"list":
            return []
        name, amount = payload.decode().split("|")
        return {"id": name, "ts": T0, "amount": float(amount)}

    codec = make_codec(Custom(decode))
    assert codec.decoder(Order)(b"a|2").amount == 2.0
    reason, detail = fault(codec, b"a")
    assert reason == "malformed message"
    assert "ValueError" in detail
    assert "test_simple_codecs.py" in detail
    assert fault(codec, b"list") == (
        "malformed message",
        "the decode function gave list, not a dict",
    )


def test_json_with_a_prefix_keeps_the_fast_path() -> None:
    class Plain(Event):
        id: str
        ts: int
        amount: float

    with RegistryServer() as registry:
        schema_id = registry.add("orders-value", '{"type": "object"}', "JSON")
        other = registry.add("avro-value", '"string"', "AVRO")
        codec = make_codec(JsonSchema(registry=registry.url))
        rows = [{"id": str(i), "ts": T0 + i, "amount": i / 2, "more": 1} for i in range(9)]
        values = [registry.frame(schema_id, msgspec.json.encode(row)) for row in rows]
        decoder: Any = codec.column_decoder(Plain, "ts", ["id", "amount"])
        found = decoder.read(values, np.zeros(9, np.int64))
        assert found is not None
        assert list(found[1]["amount"]) == [row["amount"] for row in rows]
        assert decoder.take_unknown()[0] == {"more": 9}
        assert codec.decoder(Plain)(values[3]).id == "3"
        for bad in (b"{}", registry.frame(99, b"{}"), registry.frame(other, b"{}")):
            assert decoder.read([bad], np.zeros(1, np.int64)) is None
            with pytest.raises(Undecodable):
                codec.decoder(Plain)(bad)
        assert fault(codec, registry.frame(schema_id, b"{"), Plain)[0] == "not JSON"
