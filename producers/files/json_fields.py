"""Reads a few fields of JSON messages by their places, such as ``id`` or ``after.customer.id``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class JsonFields:
    """Reads the values at ``places``, of which each is a field, or fields of objects in it.

    >>> read = JsonFields(["id", "after.amount"]).read
    >>> read(b'{"id": 7, "after": {"amount": 2.5}}'), read(b'{"id": 7}'), read(b"7")
    ([7, 2.5], [7, None], None)
    """

    def __init__(self, places: Sequence[str]) -> None:
        self._paths = [place.split(".") for place in places]
        heads = list(dict.fromkeys(path[0] for path in self._paths))
        self._of = {head: f"f{number}" for number, head in enumerate(heads)}
        row = msgspec.defstruct(
            "Row",
            [(name, Any, None) for name in self._of.values()],
            rename={name: head for head, name in self._of.items()},
        )
        self._decode = msgspec.json.Decoder(row).decode

    def read(self, message: bytes) -> list[Any] | None:
        """The values, None where there is none; None in all if it is no JSON object."""
        try:
            row = self._decode(message)
        except _ERRORS:
            return None
        return [
            _inner(getattr(row, self._of[head]), rest) if rest else getattr(row, self._of[head])
            for head, *rest in self._paths
        ]


def _inner(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def key_bytes(value: Any) -> bytes | None:
    """A value as the key of a message; None has none.

    >>> key_bytes("a"), key_bytes(7), key_bytes(7.0), key_bytes(True)
    (b'a', b'7', b'7', b'true')
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).encode("utf-8", "surrogatepass")
