"""Protobuf: what the runtime writes is read into the declared type, in batches and one by one."""

from __future__ import annotations

import base64
import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch import DeclarationError, Event, Protobuf, path
from anabranch.dataflows.codec import Codec, make_codec
from anabranch.dataflows.codec.protocol import Filtered, Undecodable
from tests.support.proto_orders import SCALARS, descriptor_set, order_class, order_file
from tests.support.schema_registry import RegistryServer

T0 = 1_700_000_000_000
ORDER = order_class()


class Order(Event, kw_only=True):
    id: str
    ts: int = path("at")
    amount: float
    kind: str
    score: float | None
    scored: float = path("customer.age", default=-1.0)
    customer: str | None = path("customer.id")
    weight: float = 7.5
    d: float
    f: float
    i32: int
    i64: int
    u32: int
    u64: int
    s32: float
    s64: int
    x32: int
    x64: float
    sx32: int
    sx64: int
    flag: bool
    text: str


NAMES = [name for name in Order.__struct_fields__ if name != "ts"]


def order(i: int, **more: Any) -> Any:
    message = ORDER(id=f"o{i}", amount=i / 4, **more)
    message.at.FromMilliseconds(T0 + i)
    return message


def check_alike(codec: Codec, values: list[bytes]) -> list[Any]:
    structs = list(map(codec.decoder(Order), values))
    decoder = codec.column_decoder(Order, "ts", NAMES)
    assert decoder is not None
    found = decoder.read(values, np.zeros(len(values), np.int64))
    assert found is not None, "the fast path does not take these messages"
    assert found[0].tolist() == [each.ts for each in structs]
    for name, column in found[1].items():
        assert list(column) == [getattr(each, name) for each in structs], name
    return structs


def codec() -> Codec:
    return make_codec(Protobuf(descriptor=descriptor_set(), message="shop.Order"))


def test_fields_and_what_is_not_written() -> None:
    full = order(
        1, kind=1, score=0.0, customer={"id": "ü", "age": 30}, tags=["a"], blob=b"\xff",
        text='say "hi"',
    )  # fmt: skip
    full.weight.value = 2.0
    bare = order(2)
    first, second = check_alike(codec(), [each.SerializeToString() for each in (full, bare)])
    assert (first.kind, first.score, first.customer, first.weight) == ("WEB", 0.0, "ü", 2.0)
    assert (first.scored, first.text) == (30.0, 'say "hi"')
    assert (second.kind, second.score, second.customer, second.weight) == (
        "UNKNOWN", None, None, 7.5,
    )  # fmt: skip
    assert (second.scored, second.text, second.i64, second.flag) == (-1.0, "", 0, False)


_INTEGERS = {
    "i32": (-(2**31), 2**31 - 1), "s32": (-(2**31), 2**31 - 1), "sx32": (-(2**31), 2**31 - 1),
    "u32": (0, 2**32 - 1), "x32": (0, 2**32 - 1), "i64": (-(2**63), 2**63 - 1),
    "s64": (-(2**63), 2**63 - 1), "sx64": (-(2**63), 2**63 - 1), "u64": (0, 2**63 - 1),
    "x64": (0, 2**63 - 1),
}  # fmt: skip
_FINITE = st.floats(allow_nan=False, allow_infinity=False)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.integers(*span) for name, span in _INTEGERS.items()},
        "d": _FINITE,
        "f": st.floats(width=32, allow_nan=False, allow_infinity=False),
        "flag": st.booleans(),
        "text": st.text(max_size=20),
        "kind": st.integers(0, 2),
        "score": _FINITE,
        "tags": st.lists(st.text(max_size=3), max_size=3),
        "customer": st.fixed_dictionaries(
            {}, optional={"id": st.text(max_size=5), "age": st.integers(-5, 5)}
        ),
    },
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(MESSAGES, min_size=1, max_size=8))
def test_any_messages_are_read_alike(rows: list[dict[str, Any]]) -> None:
    assert set(SCALARS) <= {*_INTEGERS, "d", "f", "flag", "text"}
    values = [order(i, **row).SerializeToString() for i, row in enumerate(rows)]
    check_alike(codec(), values)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_rejected_or_read_alike(tail: bytes) -> None:
    value = order(1).SerializeToString() + tail
    own = codec()
    decoder = own.column_decoder(Order, "ts", NAMES)
    assert decoder is not None
    found = decoder.read([value], np.zeros(1, np.int64))
    try:
        struct = own.decoder(Order)(value)
    except own.errors:
        assert found is None
        return
    if found is not None:
        assert [getattr(struct, name) for name in NAMES] == [
            next(iter(found[1][name])) for name in NAMES
        ]


def test_bad_messages_are_dead_letters_with_a_reason() -> None:
    own = codec()
    value = order(3, text="abc").SerializeToString()
    with pytest.raises(Undecodable, match=r"not a shop\.Order") as caught:
        own.decoder(Order)(value[:-1])
    assert caught.value.reason == "malformed message"
    unnamed = order(3, kind=9).SerializeToString()  # an enum value that is not declared
    with pytest.raises(msgspec.ValidationError, match="kind"):
        own.decoder(Order)(unnamed)
    large = order(3, u64=2**64 - 1).SerializeToString()
    decoder = own.column_decoder(Order, "ts", NAMES)
    assert decoder is not None
    for bad in (value[:-1], unnamed, large):
        assert decoder.read([bad], np.zeros(1, np.int64)) is None
    untimed = ORDER(id="a").SerializeToString()
    with pytest.raises(msgspec.ValidationError):
        own.decoder(Order)(untimed)


def test_a_generated_class_and_a_file_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "orders.desc"
    file.write_bytes(descriptor_set())
    value = order(5).SerializeToString()
    for format in (
        Protobuf(message=ORDER),
        Protobuf(descriptor=file, message="shop.Order"),
        Protobuf(descriptor=file, message="shop.Order", prefix=True),
    ):
        head = b"\0\0\0\0\1\0" if format.prefix else b""
        assert check_alike(make_codec(format), [head + value])[0].id == "o5"


def zigzag(*numbers: int) -> bytes:
    return bytes(2 * number for number in numbers)


def test_schemas_of_a_registry_and_their_message_indexes() -> None:
    with RegistryServer() as registry:
        text = base64.b64encode(order_file("default").SerializeToString()).decode()
        schema_id = registry.add("orders-value", text, "PROTOBUF")
        heads = [b"\0" + schema_id.to_bytes(4) + zigzag(1, 1), registry.frame(schema_id, b"\0")]
        values = [heads[0] + order(i).SerializeToString() for i in range(5)]
        own = make_codec(Protobuf(registry=registry.url))
        assert [each.id for each in check_alike(own, values)] == [f"o{i}" for i in range(5)]
        other = heads[1] + b"\x0a\x01x"  # a message of the first type
        with pytest.raises(msgspec.ValidationError):
            own.decoder(Order)(other)
        named = make_codec(Protobuf(registry=registry.url, message="shop.Order"))
        with pytest.raises(Filtered):
            named.decoder(Order)(other)
        assert named.decoder(Order)(values[0]).id == "o0"
        for bad, why in (
            (registry.frame(schema_id, zigzag(1, 7)), "no message type at the indexes"),
            (registry.frame(schema_id, b""), "no indexes"),
            (registry.frame(99, b"\0"), "no schema with id 99"),
        ):
            with pytest.raises(Undecodable, match=why):
                own.decoder(Order)(bad)
        text_only = registry.add("text", 'syntax = "proto3"; message A {}', "PROTOBUF")
        with pytest.raises(Exception, match="as text only"):
            own.decoder(Order)(registry.frame(text_only, b"\0"))


def test_times_in_another_unit_and_before_1970() -> None:
    message = order(0)
    message.at.FromDatetime(datetime.datetime(1960, 1, 1, 0, 0, 0, 1500, tzinfo=datetime.UTC))
    found = check_alike(codec(), [message.SerializeToString()])
    assert found[0].ts == -315619199999
    in_seconds = make_codec(Protobuf(message=ORDER), 1000.0)
    assert in_seconds.decoder(Order)(order(0).SerializeToString()).ts == T0 // 1000


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Protobuf(), "needs registry="),
        (lambda: Protobuf(descriptor=b"", registry="http://a"), "needs message="),
        (lambda: Protobuf(descriptor="no.desc", message="a"), "can't be read"),
        (lambda: Protobuf(message=int), "no class that protoc has generated"),
        (lambda: make_codec(Protobuf(descriptor=descriptor_set(), message="shop.Odd")), "Order"),
        (lambda: make_codec(Protobuf(descriptor=b"\xff", message="a")), "is not what protoc"),
    ],
)
def test_mistakes_are_sentences(make: Any, text: str) -> None:
    with pytest.raises(DeclarationError, match=text):
        make()
