"""Reads messages of any registered schema, for people to look at."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec

from anabranch.dataflows.codec.avro_codec import AvroCodec
from anabranch.dataflows.codec.protocol import Undecodable
from anabranch.dataflows.codec.schema_registry import open_registry, split_prefix
from anabranch.dataflows.declaration.formats import Avro, Protobuf, check_registry
from anabranch.state.errors import DeclarationError, InputError


def registered_as_json(url: str) -> Callable[[bytes], bytes]:
    """A function that makes JSON of a message by its schema; a message without one stays as it is.

    Raises:
        InputError: ``url`` is no registry's.
    """
    try:
        check_registry(url, "--schema-registry")
    except DeclarationError as error:
        raise InputError(str(error)) from None
    registry = open_registry(url)
    decoders: dict[str, Callable[[bytes], dict[str, Any]]] = {}

    def as_json(payload: bytes) -> bytes:
        try:
            schema_id, data = split_prefix(payload)
            kind = registry.schema(schema_id).type
            if kind == "JSON":
                return data
            if kind not in decoders:
                decoders[kind] = _decoder(kind, url)
            return msgspec.json.encode(decoders[kind](payload), enc_hook=_shown)
        except Undecodable:
            return payload

    return as_json


def _decoder(kind: str, url: str) -> Callable[[bytes], dict[str, Any]]:
    if kind == "PROTOBUF":
        from anabranch.dataflows.codec.protobuf_codec import ProtobufCodec

        return ProtobufCodec(Protobuf(registry=url)).decode_dict
    return AvroCodec(Avro(registry=url)).decode_dict


def _shown(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
