"""Fields of a message that are not in its payload: its key, a header, or where it is."""

from __future__ import annotations

from typing import Any

import msgspec

from anabranch.dataflows.declaration.shape import Shape
from anabranch.state.errors import DeclarationError


def message_key(default: Any = msgspec.NODEFAULT) -> Any:
    """Declare that a field is the message's key.

    ::

        class Order(Event):
            customer: str = message_key()

    Keys are text in UTF-8; a field of another type is made of it (``"17"`` of an int). A message
    without a key is a dead letter, unless there is a default, or the field may be null.
    """
    return msgspec.field(default=default, name="$key")


def header(name: str, default: Any = msgspec.NODEFAULT) -> Any:
    """Declare that a field is a header of the message, the last one of this name.

    ::

        class Order(Event):
            source: str | None = header("ce_source")

    Headers are text in UTF-8, as keys are; see `message_key`. They are read only if some field is
    one.

    Raises:
        DeclarationError: the name is not a text.
    """
    if not isinstance(name, str) or not name:
        raise DeclarationError(f"header({name!r}) needs the name of a header")
    return msgspec.field(default=default, name=f"$header.{name}")


def coordinates() -> Any:
    """Declare that a field is the message's coordinates: ``topic/partition/offset``.

    They are an id for messages that have none::

        class Click(Event):
            id: str = coordinates()
    """
    return msgspec.field(name="$coordinates")


def reads_headers(message: type[msgspec.Struct]) -> bool:
    """Whether a field of the type is a header."""
    return any(each.origin == "header" for each in Shape.of(message).fields)
