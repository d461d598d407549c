"""The keys and headers of several slices, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from anabranch.dataflows.bus.headers import Headers, MessageHeaders
from anabranch.dataflows.bus.protocol import Slice


def concat_keys(slices: Sequence[Slice]) -> list[bytes | None]:
    """The keys of all messages, in order."""
    return list(chain.from_iterable(piece.keys for piece in slices))


def concat_headers(slices: Sequence[Slice]) -> Headers | None:
    """The headers of all messages, in order; None if none has any."""
    if all(piece.headers is None for piece in slices):
        return None
    headers: list[MessageHeaders] = []
    for piece in slices:
        headers += [None] * len(piece.values) if piece.headers is None else piece.headers
    return headers
