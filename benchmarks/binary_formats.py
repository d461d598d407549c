"""The same payments in Avro, Protobuf and Debezium's envelopes, for `benchmarks.formats`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fastavro
import msgspec
import orjson
from google.protobuf.descriptor_pb2 import (
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass

from anabranch.dataflows.codec import make_codec
from anabranch.dataflows.codec.protocol import Codec
from anabranch.dataflows.declaration.formats import Avro, Debezium, Protobuf

Row = Mapping[str, Any]
Libraries = Mapping[str, Callable[[bytes], Any]]
_AVRO = {str: "string", int: "long", float: "double", bool: "boolean"}
_PROTOBUF = {str: "STRING", int: "INT64", float: "DOUBLE", bool: "BOOL"}


def in_avro(rows: Sequence[Row]) -> tuple[list[bytes], Codec, Libraries]:
    """The rows in Avro; fastavro's schemaless reader is the library."""
    fields = [{"name": name, "type": _AVRO[type(value)]} for name, value in rows[0].items()]
    schema = {"type": "record", "name": "Payment", "fields": fields}
    parsed = fastavro.parse_schema(schema)
    messages = []
    for row in rows:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, row)
        messages.append(out.getvalue())
    read = fastavro.schemaless_reader
    return (
        messages,
        make_codec(Avro(schema=schema)),
        {"fastavro": lambda payload: read(io.BytesIO(payload), parsed, None)},
    )


def in_protobuf(rows: Sequence[Row]) -> tuple[list[bytes], Codec, Libraries]:
    """The rows in Protobuf; the runtime's MessageToDict is the library."""
    file = FileDescriptorProto(name="payment.proto", package="shop", syntax="proto3")
    message = file.message_type.add(name="Payment")
    for number, (name, value) in enumerate(rows[0].items(), 1):
        field = message.field.add(name=name, number=number, json_name=name)
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{_PROTOBUF[type(value)]}")
        field.label = FieldDescriptorProto.Label.Value("LABEL_OPTIONAL")
    pool = DescriptorPool()
    pool.Add(file)
    payment = GetMessageClass(pool.FindMessageTypeByName("shop.Payment"))
    messages = [payment(**row).SerializeToString() for row in rows]
    files = FileDescriptorSet(file=[file]).SerializeToString()

    def to_dict(payload: bytes) -> Any:
        return MessageToDict(payment.FromString(payload))

    codec = make_codec(Protobuf(descriptor=files, message="shop.Payment"))
    return messages, codec, {"protobuf": to_dict}


def in_debezium(rows: Sequence[Row]) -> tuple[list[bytes], Codec, Libraries]:
    """The rows as they were updated, in Debezium's JSON without schemas."""
    source = {
        "version": "2.7.0.Final", "connector": "postgresql", "name": "shop", "ts_ms": 1,
        "snapshot": "false", "db": "shop", "schema": "public", "table": "payments", "lsn": 24023128,
    }  # fmt: skip
    messages = [
        json.dumps(
            {"before": None, "after": row, "source": source, "op": "u", "ts_ms": row["ts"]},
            separators=(",", ":"),
        ).encode()
        for row in rows
    ]
    libraries = {"msgspec": msgspec.json.Decoder().decode, "orjson": orjson.loads}
    return messages, make_codec(Debezium()), libraries
