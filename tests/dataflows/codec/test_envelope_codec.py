"""Envelopes and conditions: Debezium, Connect and CloudEvents, in JSON and in Avro."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import msgspec
import numpy as np
import pytest

from anabranch import (
    Avro,
    CloudEvents,
    Connect,
    Debezium,
    DeclarationError,
    Event,
    Format,
    Json,
    MessagePack,
    became,
    path,
)
from anabranch.dataflows.codec import Codec, make_codec
from anabranch.dataflows.codec.envelope_codec import EnvelopeCodec
from anabranch.dataflows.codec.protocol import Filtered, Undecodable
from anabranch.dataflows.declaration.conditions import condition_of

T0 = 1_700_000_000_000


class Payment(Event, forbid_unknown_fields=False):
    id: str
    ts: int = path("updated_at")
    amount: float
    op: str = path("$.op")
    table: str = path("$.source.table", default="")
    at: int = path("$.ts_ms", default=0)


def change(
    op: str, after: Any, before: Any = None, wrapped: bool = False, **more: Any
) -> dict[str, Any]:
    """A change event in the form that Debezium's PostgreSQL connector documents."""
    source = {
        "version": "2.7.0.Final", "connector": "postgresql", "name": "shop", "ts_ms": T0,
        "snapshot": "true" if op == "r" else "false", "db": "shop", "sequence": '["1","2"]',
        "schema": "public", "table": "payments", "txId": 5, "lsn": 24023128, "xmin": None,
    }  # fmt: skip
    payload = {
        "before": before, "after": after, "source": source, "transaction": None, "op": op,
        "ts_ms": T0 + 5, **more,
    }  # fmt: skip
    return {"schema": {"type": "struct", "fields": []}, "payload": payload} if wrapped else payload


def row(i: int, **more: Any) -> dict[str, Any]:
    return {"id": str(i), "updated_at": T0 + i, "amount": i / 4, "status": "paid", **more}


fields = msgspec.structs.asdict


def encoded(message: Any) -> bytes:
    return json.dumps(message).encode()


def codec_with(format: Format, where: Any = None) -> Codec:
    if where is None:
        return make_codec(format)
    inside = make_codec(format.format if isinstance(format, Debezium) else format)
    return EnvelopeCodec(inside, format, 1.0, condition_of(where, "where", "p", format))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("op", ["c", "u", "r", "d"])
def test_the_row_of_a_change_is_the_event(op: str, wrapped: bool) -> None:
    decode = make_codec(Debezium()).decoder(Payment)
    old, new = row(1, amount=9.0), row(1)
    states = (None, old) if op == "d" else (new, old if op == "u" else None)
    found = decode(encoded(change(op, *states, wrapped=wrapped)))
    amount = 9.0 if op == "d" else 0.25
    wanted = Payment(id="1", ts=T0 + 1, amount=amount, op=op, table="payments", at=T0 + 5)
    assert fields(found) == fields(wanted)


def test_what_is_no_change_of_a_row() -> None:
    codec = make_codec(Debezium(operations=("c", "d")))
    decode = codec.decoder(Payment)
    null = {"schema": {}, "payload": None}
    skipped = [b"", encoded(null), *(encoded(change(op, row(1))) for op in "rutm")]
    for payload in skipped:  # tombstones, other operations, a truncated table, a message
        with pytest.raises(Filtered):
            decode(payload)
    for payload, why in (
        (encoded(change("d", None)), "a delete without the row"),
        (encoded(change("c", None)), "without a row"),
        (encoded({"id": 1}), "has no `op`"),
        (encoded([1]), "Expected `object`"),
        (b"{", "truncated"),
    ):
        with pytest.raises(codec.errors) as caught:
            decode(payload)
        assert why in codec.fault(caught.value)[1]
    with pytest.raises(codec.errors) as caught:
        decode(b"nonsense")
    assert codec.fault(caught.value)[0] == "not JSON"
    with pytest.raises(msgspec.ValidationError, match=r"`\$\.after\.amount`|after.amount"):
        decode(encoded(change("c", row(1, amount="x"))))


SCHEMA = {
    "type": "record",
    "name": "Envelope",
    "fields": [
        {
            "name": "before",
            "type": [
                "null",
                {
                    "type": "record",
                    "name": "Value",
                    "fields": [
                        {"name": "id", "type": "string"},
                        {"name": "updated_at", "type": "long"},
                        {"name": "amount", "type": "double"},
                        {"name": "status", "type": ["null", "string"], "default": None},
                    ],
                },
            ],
            "default": None,
        },
        {"name": "after", "type": ["null", "Value"], "default": None},
        {
            "name": "source",
            "type": {
                "type": "record",
                "name": "Source",
                "fields": [
                    {"name": "table", "type": "string"},
                    {"name": "lsn", "type": ["null", "long"], "default": None},
                ],
            },
        },
        {"name": "op", "type": "string"},
        {"name": "ts_ms", "type": ["null", "long"], "default": None},
    ],
}


def in_avro(message: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(SCHEMA), message)
    return out.getvalue()


class Row(Event, forbid_unknown_fields=False):
    id: str
    ts: int = path("updated_at")
    amount: float
    op: str = path("$.op")


def test_avro_in_an_envelope_goes_straight_to_columns() -> None:
    codec = make_codec(Debezium(Avro(schema=SCHEMA)))
    values = [in_avro(change("cur"[i % 3], row(i))) for i in range(50)]
    decoder = codec.column_decoder(Row, "ts", ["id", "amount", "op"])
    assert decoder is not None
    found = decoder.read(values, np.zeros(50, np.int64))
    assert found is not None
    structs = list(map(codec.decoder(Row), values))
    assert found[0].tolist() == [each.ts for each in structs]
    assert {name: list(column) for name, column in found[1].items()} == {
        name: [getattr(each, name) for each in structs] for name in ("id", "amount", "op")
    }
    values.append(in_avro(change("d", None, row(7))))
    assert decoder.read(values, np.zeros(51, np.int64)) is None, "a delete has another row"
    assert codec.decoder(Row)(values[-1]).op == "d"


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ({"status": "paid"}, "ab"),
        ({"status": ["open", None]}, "cd"),
        ({"status": "paid", "$.op": "c"}, "a"),
        ({"flag": 1}, ""),
        ({"flag": True}, "b"),
        (lambda row: row["amount"] > 1, "cd"),
    ],
)
def test_conditions_choose_messages(where: Any, taken: str) -> None:
    rows = {
        "a": change("c", row(1)),
        "b": change("u", row(2, flag=True)),
        "c": change("u", row(8, status="open")),
        "d": change("c", row(9, status=None)),
    }
    decode = codec_with(Debezium(), where).decoder(Payment)
    found = ""
    for name, message in rows.items():
        try:
            decode(encoded(message))
        except Filtered:
            continue
        found += name
    assert found == taken


def test_a_value_that_a_row_has_become() -> None:
    codec = codec_with(Debezium(), became("status", "chargeback"))
    decode = codec.decoder(Payment)
    back = row(1, status="chargeback")
    taken = [
        change("c", back),
        change("u", back, row(1)),
        change("u", back),  # before is not known
        change("r", back),
    ]
    for message in taken:
        assert decode(encoded(message)).id == "1"
    for message in (change("u", back, back), change("u", row(1), back), change("d", None, back)):
        with pytest.raises(Filtered):
            decode(encoded(message))


def test_a_condition_in_plain_formats_and_its_mistakes() -> None:
    class Order(Event, forbid_unknown_fields=False):
        id: str
        ts: int

    for format in (Json(), MessagePack()):
        encode = msgspec.json.encode if format == Json() else msgspec.msgpack.encode
        codec = codec_with(format, {"kind.name": "order"})
        message = {"id": "a", "ts": T0, "kind": {"name": "order"}}
        assert codec.decoder(Order)(encode(message)).id == "a"
        with pytest.raises(Filtered):
            codec.decoder(Order)(encode({"kind": {"name": "view"}}))
        with pytest.raises(Filtered):
            codec.decoder(Order)(encode({"kind": 7}))
    failing = codec_with(Json(), lambda row: row["nothing"])
    with pytest.raises(Undecodable, match=r"failed: KeyError.*test_envelope_codec.py") as caught:
        failing.decoder(Order)(b'{"id":"a"}')
    assert caught.value.reason == "does not fit the type"
    for where, text in (
        (7, "give fields and their values"),
        ({}, "needs fields"),
        ({"a": {"b": 1}}, "compares with"),
        ({"a..b": 1}, "is not a path"),
        ({"$header.kind": "order"}, "what is around the payload"),
        (became("a", 1), "declare the format as Debezium"),
    ):
        with pytest.raises(DeclarationError, match=text):
            condition_of(where, "where", "p", Json())


def test_connect_and_cloud_events() -> None:
    class Order(Event, forbid_unknown_fields=False):
        id: str
        ts: int
        kind: str = path("$.type", default="-")

    body = {"id": "a", "ts": T0}
    connect = make_codec(Connect()).decoder(Order)
    assert connect(encoded({"schema": {"type": "struct"}, "payload": body})).id == "a"
    assert connect(encoded(body)).id == "a"
    with pytest.raises(Filtered):
        connect(b"")
    cloud = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "order", "data": body}
    codec = make_codec(CloudEvents())
    found = codec.decoder(Order)(encoded(cloud))
    assert fields(found) == fields(Order(id="a", ts=T0, kind="order"))
    for wrong, why in (
        (body, "no `specversion`"),
        ({**cloud, "data": "x"}, "is no object"),
        ({"specversion": "1.0", "data_base64": "eA=="}, "binary data"),
    ):
        with pytest.raises(Undecodable, match=why):
            codec.decoder(Order)(encoded(wrong))
    binary = make_codec(CloudEvents(MessagePack(), mode="binary"))
    assert binary.decoder(Order)(msgspec.msgpack.encode(body)).id == "a"


def test_strict_types_refuse_unknown_fields_of_the_row_only() -> None:
    class Strict(Event, forbid_unknown_fields=True):
        id: str
        ts: int

    decode = make_codec(Debezium()).decoder(Strict)
    assert decode(encoded(change("c", {"id": "a", "ts": T0}))).id == "a"
    with pytest.raises(msgspec.ValidationError, match="unknown field `amount`"):
        decode(encoded(change("c", {"id": "a", "ts": T0, "amount": 1})))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Debezium(Debezium()), "needs the format"),
        (lambda: Debezium(operations=("x",)), "must be some of"),
        (lambda: Debezium(operations=()), "must be some of"),
        (lambda: CloudEvents(mode="other"), "must be 'structured' or 'binary'"),  # type: ignore[arg-type]
        (lambda: CloudEvents(MessagePack()), "structured CloudEvent is JSON"),
    ],
)
def test_mistakes_are_sentences(make: Any, text: str) -> None:
    with pytest.raises(DeclarationError, match=text):
        make()
