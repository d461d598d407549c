"""Reads a few fields of JSON messages by their places, such as ``id`` or ``after.customer.id``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from anabranch.dataflows.declaration.casts import join_texts, text_of
from anabranch.dataflows.declaration.shape import Path, Step

_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class JsonFields:
    """Reads the values at ``places``, each a path or several, which give one text.

    >>> read = JsonFields([(Path.parse("id"),), (Path.parse("after.amount"),)]).read
    >>> read(b'{"id": 7, "after": {"amount": 2.5}}'), read(b'{"id": 7}'), read(b"7")
    ([7, 2.5], [7, None], None)
    """

    def __init__(self, places: Sequence[Sequence[Path]]) -> None:
        self._places = places
        heads = dict.fromkeys(path.steps[0] for paths in places for path in paths)
        self._of = {head: f"f{number}" for number, head in enumerate(heads)}
        row = msgspec.defstruct(
            "Row",
            [(name, Any, None) for name in self._of.values()],
            rename={name: str(head) for head, name in self._of.items()},
        )
        self._decode = msgspec.json.Decoder(row).decode

    def read(self, message: bytes) -> list[Any] | None:
        """The values, None where there is none; None in all if it is no JSON object."""
        try:
            row = self._decode(message)
        except _ERRORS:
            return None
        return [self._value(row, paths) for paths in self._places]

    def _value(self, row: Any, paths: Sequence[Path]) -> Any:
        values = [value_at(getattr(row, self._of[path.steps[0]]), path.steps[1:]) for path in paths]
        if len(values) == 1:
            return values[0]
        return None if None in values else join_texts([text_of(value) for value in values])


def value_at(value: Any, steps: Sequence[Step]) -> Any:
    """The value that keys and indices lead to; None if there is none."""
    for step in steps:
        if isinstance(step, int):
            there = isinstance(value, list) and -len(value) <= step < len(value)
            value = value[step] if there else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value


def key_bytes(value: Any) -> bytes | None:
    """A value as the key of a message; None has none.

    >>> key_bytes("a"), key_bytes(7), key_bytes(7.0), key_bytes(True)
    (b'a', b'7', b'7', b'true')
    """
    if value is None:
        return None
    text = str(value) if isinstance(value, dict | list) else text_of(value)
    return text.encode("utf-8", "surrogatepass")
