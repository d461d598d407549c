"""Headers of messages, and the one that every output has: where its event is.

A message has a list of headers, which may repeat a name, or none. The headers of several messages
are a sequence of such lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

SOURCE = "anabranch-source"
"""The header of an output that names its event: ``topic/partition/offset``."""

Header = tuple[str, bytes | None]
MessageHeaders = list[Header] | None
Headers = Sequence[MessageHeaders]

_encode = msgspec.msgpack.Encoder().encode
_decode_lists = msgspec.msgpack.Decoder(list[list[Header] | None]).decode


class _Sources(msgspec.Struct, array_like=True):
    """`SourceHeaders`, as they are stored."""

    topic: str
    partition: int
    offsets: bytes


_decode_sources = msgspec.msgpack.Decoder(_Sources).decode
_SOURCES, _LISTS = b"S", b"L"


class SourceHeaders(Sequence[MessageHeaders]):
    """The headers of outputs, made when they are asked for: the `SOURCE` of each.

    Args:
        topic, partition: where all events were read.
        offsets: of each event, ``(n,) int64``.

    >>> SourceHeaders("orders", 3, np.array([7, 9]))[1]
    [('anabranch-source', b'orders/3/9')]
    """

    __slots__ = ("offsets", "partition", "topic")

    def __init__(self, topic: str, partition: int, offsets: NDArray[np.int64]) -> None:
        self.topic, self.partition, self.offsets = topic, partition, offsets

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, rows: int) -> MessageHeaders: ...

    @overload
    def __getitem__(self, rows: slice) -> SourceHeaders: ...

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return SourceHeaders(self.topic, self.partition, self.offsets[rows])
        return [(SOURCE, source_text(self.topic, self.partition, int(self.offsets[rows])))]

    def __iter__(self) -> Iterator[MessageHeaders]:
        prefix = f"{self.topic}/{self.partition}/"
        for offset in self.offsets.tolist():
            yield [(SOURCE, f"{prefix}{offset}".encode())]

    def take(self, rows: NDArray[np.int64]) -> SourceHeaders:
        """Those of these messages."""
        return SourceHeaders(self.topic, self.partition, self.offsets[rows])


def source_text(topic: str, partition: int, offset: int) -> bytes:
    """The value of the header `SOURCE`."""
    return f"{topic}/{partition}/{offset}".encode()


def take_headers(headers: Headers | None, rows: NDArray[np.int64]) -> Headers | None:
    """The headers of these messages, in this order; None if there are none at all."""
    if headers is None:
        return None
    if isinstance(headers, SourceHeaders):
        return headers.take(rows)
    return [headers[row] for row in rows.tolist()]


def encode_headers(headers: Headers) -> bytes:
    """Headers as bytes, for `decode_headers`."""
    if isinstance(headers, SourceHeaders):
        packed = np.ascontiguousarray(headers.offsets, "<i8").tobytes()
        return _SOURCES + _encode(_Sources(headers.topic, headers.partition, packed))
    return _LISTS + _encode(list(headers))


def decode_headers(encoded: bytes) -> Headers:
    """What `encode_headers` made.

    Raises:
        msgspec.DecodeError: it is something else.

    >>> headers = [[("trace", b"7"), ("trace", None)], None]
    >>> decode_headers(encode_headers(headers)) == headers
    True
    """
    if encoded[:1] == _SOURCES:
        stored = _decode_sources(encoded[1:])
        offsets = np.frombuffer(stored.offsets, "<i8").astype(np.int64, copy=False)
        return SourceHeaders(stored.topic, stored.partition, offsets)
    if encoded[:1] == _LISTS:
        return _decode_lists(encoded[1:])
    raise msgspec.DecodeError("headers of an unknown kind")


def header_of(headers: MessageHeaders, name: str) -> bytes | None:
    """The last header of this name, as Kafka's own clients take it; None without one."""
    for key, value in reversed(headers or ()):
        if key == name:
            return value
    return None
