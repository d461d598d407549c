"""Bytes that are no JSON are named as what they are, in the detail of their dead letter."""

from __future__ import annotations

import gzip
import pickle
import struct

import msgspec
import pytest

from anabranch.dataflows.codec.foreign_formats import foreign_format

JSON = b'{"id":"a","ts":1}'


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "it has no value (on a compacted topic, a tombstone"),
        (b" \n", "it is blank"),
        (b"\x00" + struct.pack(">I", 7) + b"\x02a", "schema id 7"),
        (b"\x00" + struct.pack(">I", 300) + JSON, "schema id 300, and JSON follows"),
        (b"\x03\x00" + bytes(range(16)) + b"abc",
         "AWS Glue schema-registry prefix, schema version 00010203-0405-0607-0809-0a0b0c0d0e0f"),
        (gzip.compress(JSON, mtime=0), "begins with gzip"),
        (b"\x28\xb5\x2f\xfd....", "begins with zstd"),
        (b"\xef\xbb\xbf" + JSON, "byte order mark of UTF-8"),
        (JSON.decode().encode("utf-16"), "byte order mark of UTF-16"),
        (JSON.decode().encode("utf-16-le"), "text in UTF-16"),
        (JSON.decode().encode("utf-16-be"), "text in UTF-16"),
        (b"Obj\x01\x04\x14avro.codec", "header of an Avro file"),
        (b"PAR1\x15\x04", "header of a Parquet file"),
        (b"<?xml version='1.0'?>", "begins with XML"),
        (b"{'id': 'a'}", "single quotes"),
        (b'{"id": "a", "x": NaN}', "JSON has no NaN"),
        (b"\x0a\x03o-1\x10\x80\xa0\xe8\x8f\x0f\x1d\x00\x00\x80\x3f",
         "looks like Protobuf, with the fields 1, 2 and 3"),
    ],
)  # fmt: skip
def test_what_is_known(message: bytes, says: str) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        msgspec.json.decode(message)
    found = foreign_format(message)
    assert found is not None
    assert says in found


@pytest.mark.parametrize(
    "message",
    [b"{", b'{"id":', b"hello", b"id,ts", b"[1,", b"\xff", b"null x", pickle.dumps(1, 0)],
)
def test_what_is_not_known_is_not_guessed(message: bytes) -> None:
    assert foreign_format(message) is None
