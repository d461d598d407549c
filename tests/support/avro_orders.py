"""Orders in Avro with 30 fields, and chargebacks as Debezium's changes of PostgreSQL rows."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro

T0 = 1_700_000_000_000

USED = [
    {"name": "order_id", "type": "string"},
    {"name": "placed_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    {"name": "amount", "type": "double"},
    {
        "name": "customer",
        "type": {
            "type": "record",
            "name": "Customer",
            "fields": [
                {"name": "id", "type": "string"},
                {"name": "mail", "type": ["null", "string"], "default": None},
            ],
        },
    },
]
UNUSED: list[dict[str, Any]] = [
    *({"name": f"text_{i}", "type": ["null", "string"], "default": None} for i in range(10)),
    *({"name": f"count_{i}", "type": "long"} for i in range(8)),
    *({"name": f"share_{i}", "type": "double"} for i in range(6)),
    {"name": "tags", "type": {"type": "array", "items": "string"}},
    {"name": "extra", "type": {"type": "map", "values": "string"}},
]
SCHEMA = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [*UNUSED[:13], *USED, *UNUSED[13:]],
}
assert len(SCHEMA["fields"]) == 30
_PARSED = fastavro.parse_schema(SCHEMA)

PIPELINE = """
from river import linear_model, preprocessing
from anabranch import (
    Avro, Debezium, Event, Label, Pipeline, Topics, became, field, path, window,
)

REGISTRY = {registry!r}

class Order(Event):
    id: str = path("order_id")
    ts: int = path("placed_at")
    customer: str = path("customer.id")
    amount: float

class Chargeback(Label):
    id: str = path("order_id")
    ts: int = path("$.ts_ms")
    fraud: bool = True

pipeline = Pipeline(
    name="risk",
    topics=Topics(events="prod.orders.v2", labels="pg.public.payments"),
    event=Order,
    format=Avro(registry=REGISTRY),
    label=Chargeback.target("fraud", timeout="1h", default=False),
    label_format=Debezium(),
    label_where=became("status", "chargeback"),
    output_format=Avro(registry=REGISTRY),
    features=[field("amount"), window("customer", "amount", over=("10m", "1h"))],
    model=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    with_features=True,
)
"""


def order(i: int) -> dict[str, Any]:
    """The row of the i-th order."""
    unused: dict[str, Any] = {}
    for field in UNUSED:
        kind = field["type"]
        name = str(field["name"])
        if isinstance(kind, list):
            unused[name] = None if i % 2 else f"text {i}"
        elif kind == "long":
            unused[name] = i * 1000
        elif kind == "double":
            unused[name] = i / 3
        else:
            unused[name] = ["a"] * (i % 3) if name == "tags" else {"k": "v"}
    return unused | {
        "order_id": f"o{i}",
        "placed_at": placed_at(i) * 1000,
        "amount": (i * 37 % 101) / 4,
        "customer": {"id": f"c{i % 7}", "mail": None},
    }


def placed_at(i: int) -> int:
    """The time of the i-th order, epoch ms."""
    return T0 + 1000 * i


def in_avro(row: dict[str, Any], schema_id: int) -> bytes:
    """A row with its schema's prefix."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _PARSED, row)
    return b"\0" + schema_id.to_bytes(4) + out.getvalue()


def chargeback(i: int) -> list[bytes]:
    """What Debezium publishes of the i-th order's payment, in the end charged back."""

    def change(op: str, status: str, before: str | None) -> bytes:
        def row(of: str) -> dict[str, Any]:
            return {"order_id": f"o{i}", "status": of, "updated_at": placed_at(i) + 500}

        source = {"connector": "postgresql", "schema": "public", "table": "payments", "lsn": i}
        payload = {
            "before": None if before is None else row(before), "after": row(status),
            "source": source, "op": op, "ts_ms": placed_at(i) + 500, "transaction": None,
        }  # fmt: skip
        schema = {"type": "struct", "name": "pg.public.payments.Envelope", "fields": []}
        return json.dumps({"schema": schema, "payload": payload}).encode()

    return [
        change("c", "open", None),
        change("u", "paid", "open"),
        change("u", "chargeback", "paid"),
        change("u", "chargeback", "chargeback"),
    ]
