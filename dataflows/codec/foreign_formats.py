"""Recognises what the bytes of a message are that could not be decoded, for its dead letter."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip: it is compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd: it is compressed"),
    (b"\x04\x22\x4d\x18", "LZ4: it is compressed"),
    (b"\xff\x06\x00\x00sNaPpY", "Snappy: it is compressed"),
    (b"\x82SNAPPY\x00", "Snappy: it is compressed"),
    (b"BZh", "bzip2: it is compressed"),
    (b"\xef\xbb\xbf", "a byte order mark of UTF-8, which JSON does not have"),
    (b"\xff\xfe", "a byte order mark of UTF-16: it is not UTF-8"),
    (b"\xfe\xff", "a byte order mark of UTF-16: it is not UTF-8"),
    (b"Obj\x01", "the header of an Avro file"),
    (b"\xc3\x01", "the marker of a single Avro object, and its schema's fingerprint"),
    (b"PAR1", "the header of a Parquet file"),
    (b"ARROW1", "the header of an Arrow file"),
    (b"\xac\xed\x00\x05", "the header of serialised Java"),
    (b"PK\x03\x04", "the header of a ZIP archive"),
    (b"<", "XML"),
)
_PREFIX_BYTES = 5
_GLUE_PREFIX_BYTES = 18
_MAX_FIELD = 1 << 29
_MOST_SCANNED = 4096


def foreign_format(message: bytes) -> str | None:
    r"""What the bytes are, as the end of a sentence about them; None if that is not known.

    >>> foreign_format(bytes([0, 0, 0, 0, 7]) + b'{"id":"a"}')
    'it begins with a Confluent schema-registry prefix, schema id 7, and JSON follows'
    >>> foreign_format(b"{'id': 'a'}")
    'it is in single quotes, as Python prints a dict: write JSON (`json.dumps`)'
    >>> foreign_format(b"{"), foreign_format(b"\x0a\x01a\x10\x07")
    (None, 'it looks like Protobuf, with the fields 1 and 2')
    """
    for recognise in (_empty, _utf16, _registry, _beginning, _python, _protobuf):
        found = recognise(message)
        if found is not None:
            return found
    return None


def _empty(message: bytes) -> str | None:
    if not message:
        return "it has no value (on a compacted topic, a tombstone: its key is deleted)"
    return None if message.strip() else "it is blank"


def _registry(message: bytes) -> str | None:
    if message[:1] == b"\x00" and len(message) >= _PREFIX_BYTES:
        number = int.from_bytes(message[1:_PREFIX_BYTES])
        rest = message[_PREFIX_BYTES:]
        follows = ", and JSON follows" if rest.lstrip()[:1] == b"{" else ""
        return f"it begins with a Confluent schema-registry prefix, schema id {number}{follows}"
    if message[:1] == b"\x03" and message[1:2] in b"\x00\x05" and len(message) > _GLUE_PREFIX_BYTES:
        digits = message[2:_GLUE_PREFIX_BYTES].hex()
        ends = (0, 8, 12, 16, 20, 32)
        name = "-".join(digits[a:b] for a, b in pairwise(ends))
        return f"it begins with an AWS Glue schema-registry prefix, schema version {name}"
    return None


def _beginning(message: bytes) -> str | None:
    found = next((what for start, what in _BEGINNINGS if message.startswith(start)), None)
    return None if found is None else f"it begins with {found}"


def _utf16(message: bytes) -> str | None:
    head = message[:64]
    if len(head) < 4 or len(message) % 2:
        return None
    for zeros, others in ((head[1::2], head[::2]), (head[::2], head[1::2])):
        if not any(zeros) and all(others):
            return "it is text in UTF-16, not in UTF-8"
    return None


def _python(message: bytes) -> str | None:
    if message.lstrip()[:2].replace(b" ", b"")[:2] in (b"{'", b"['"):
        return "it is in single quotes, as Python prints a dict: write JSON (`json.dumps`)"
    for word in (b"NaN", b"Infinity"):
        if message.lstrip()[:1] == b"{" and word in message:
            return f"JSON has no {word.decode()}: write null"
    return None


def _protobuf(message: bytes) -> str | None:
    """A guess: whether all bytes are fields of Protobuf's wire format."""
    if not 2 <= len(message) <= _MOST_SCANNED or message[:1] in b'{["-':
        return None
    fields: dict[int, None] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        skip = _SKIPS.get(kind)
        if skip is None or not 0 < number < _MAX_FIELD:
            return None
        at = skip(message, at)
        if at > len(message):
            return None
        fields[number] = None
    names = list(map(str, fields))
    if len(names) == 1 and message.isascii() and message.decode().isprintable():
        return None  # as likely to be a short text
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"it looks like Protobuf, with the field{'s' * (len(names) > 1)} {listed}"


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, and where it ends: after the message if it is cut off."""
    number = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    return 0, len(message) + 1


def _skip_text(message: bytes, at: int) -> int:
    size, at = _varint(message, at)
    return at + size


_SKIPS: dict[int, Callable[[bytes, int], int]] = {
    0: lambda message, at: _varint(message, at)[1],
    1: lambda _message, at: at + 8,
    2: _skip_text,
    5: lambda _message, at: at + 4,
}
"""Wire type → a function that moves over a value of it."""
