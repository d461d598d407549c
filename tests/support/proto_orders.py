"""A Protobuf schema, as protoc would describe it, made without protoc."""

from __future__ import annotations

from typing import Any

from google.protobuf import timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import (
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

SCALARS = {
    "d": "DOUBLE", "f": "FLOAT", "i32": "INT32", "i64": "INT64", "u32": "UINT32", "u64": "UINT64",
    "s32": "SINT32", "s64": "SINT64", "x32": "FIXED32", "x64": "FIXED64", "sx32": "SFIXED32",
    "sx64": "SFIXED64", "flag": "BOOL", "text": "STRING",
}  # fmt: skip


def field(message: Any, name: str, number: int, kind: str, **more: Any) -> Any:
    """Add a field; ``of`` names its type, ``optional`` and ``repeated`` are as in proto3."""
    made = message.field.add(name=name, number=number, json_name=name)
    made.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind}")
    repeated = more.get("repeated", False)
    made.label = FieldDescriptorProto.Label.Value(
        "LABEL_REPEATED" if repeated else "LABEL_OPTIONAL"
    )
    if "of" in more:
        made.type_name = more["of"]
    if more.get("optional"):
        made.proto3_optional = True
        made.oneof_index = len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{name}")
    return made


def order_file(name: str = "orders.proto") -> FileDescriptorProto:
    """``package shop; message Other {}; message Order {…}``."""
    file = FileDescriptorProto(name=name, package="shop", syntax="proto3")
    file.dependency.extend(["google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto"])
    other = file.message_type.add(name="Other")
    field(other, "id", 1, "STRING")
    order = file.message_type.add(name="Order")
    kind = order.enum_type.add(name="Kind")
    for number, text in enumerate(("UNKNOWN", "WEB", "SHOP")):
        kind.value.add(name=text, number=number)
    field(order, "id", 1, "STRING")
    field(order, "at", 2, "MESSAGE", of=".google.protobuf.Timestamp")
    field(order, "amount", 3, "DOUBLE")
    field(order, "kind", 4, "ENUM", of=".shop.Order.Kind")
    field(order, "score", 5, "DOUBLE", optional=True)
    customer = order.nested_type.add(name="Customer")
    field(customer, "id", 1, "STRING")
    field(customer, "age", 2, "INT32", optional=True)
    field(order, "customer", 6, "MESSAGE", of=".shop.Order.Customer")
    field(order, "weight", 7, "MESSAGE", of=".google.protobuf.DoubleValue")
    field(order, "tags", 8, "STRING", repeated=True)
    field(order, "blob", 9, "BYTES")
    for number, (name_of, type_of) in enumerate(SCALARS.items(), 20):
        field(order, name_of, number, type_of)
    return file


def descriptor_set() -> bytes:
    """What ``protoc --include_imports --descriptor_set_out`` would write."""
    files = []
    for module in (timestamp_pb2, wrappers_pb2):
        files.append(FileDescriptorProto())
        module.DESCRIPTOR.CopyToProto(files[-1])
    return FileDescriptorSet(file=[*files, order_file()]).SerializeToString()


def order_class() -> Any:
    """The class that protoc would generate."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(descriptor_set()).file:
        pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("shop.Order"))
