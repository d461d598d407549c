"""Fills the fields that are not in a message's payload: its key, headers, and coordinates."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import msgspec

from anabranch.dataflows.batch.batch import RawRows
from anabranch.dataflows.batch.dead_letters import Fault
from anabranch.dataflows.bus.headers import header_of
from anabranch.dataflows.declaration.casts import cast_to
from anabranch.dataflows.declaration.shape import Shape, ShapeField
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason


class PlacedFields:
    """The fields of a message type whose values come from around the payload.

    Args:
        message: the message type.
        time: its field with the event time, which may be a time in any spelling.

    Attributes:
        names: their names; empty for most types, for which nothing has to be done.
    """

    def __init__(self, message: type[msgspec.Struct], time: str = "") -> None:
        fields = [each for each in Shape.of(message).fields if each.origin != "payload"]
        self.names = tuple(each.name for each in fields)
        self._fields = [(each, _value_maker(each, each.name == time)) for each in fields]

    def __bool__(self) -> bool:
        return bool(self._fields)

    def optional(self, message: type[msgspec.Struct]) -> type[msgspec.Struct]:
        """The message type with these fields None, as payloads do not have them."""
        if not self._fields:
            return message
        replaced = [
            (each.name, Any, msgspec.field(default=None, name=each.place))
            for each, _ in self._fields
        ]
        return msgspec.defstruct(message.__name__, replaced, bases=(message,), kw_only=True)

    def columns(self, rows: RawRows) -> dict[str, list[Any]] | None:
        """Name → the values of the messages; None if one of them has none that is valid."""
        columns = {}
        for each, make in self._fields:
            try:
                columns[each.name] = [make(text) for text in _texts(each, rows)]
            except (ValueError, msgspec.ValidationError):
                return None
        return columns

    def fill(
        self, rows: RawRows, structs: Sequence[Any], faults: MutableMapping[int, Fault | None]
    ) -> None:
        """Set the fields of the structs; adds a fault for each message that has no valid value.

        Rows with a fault already have no struct.
        """
        for each, make in self._fields:
            for row, text in enumerate(_texts(each, rows)):
                if row in faults:
                    continue
                try:
                    msgspec.structs.force_setattr(structs[row], each.name, make(text))
                except (ValueError, msgspec.ValidationError) as error:
                    faults[row] = DeadLetterReason.TYPE_MISMATCH, f"{error} - at {_where(each)}"


def _where(field: ShapeField) -> str:
    return "the message's key" if field.origin == "key" else f"header {field.header!r}"


def _texts(field: ShapeField, rows: RawRows) -> Sequence[bytes | str | None]:
    count = len(rows)
    if field.origin == "key":
        return [None] * count if rows.keys is None else rows.keys
    if field.origin == "header":
        if rows.headers is None:
            return [None] * count
        return [header_of(each, field.header) for each in rows.headers]
    places = zip(
        rows.topics_of_rows(), rows.partitions.tolist(), rows.offsets.tolist(), strict=True
    )
    return [f"{topic}/{partition}/{offset}" for topic, partition, offset in places]


def _value_maker(field: ShapeField, is_time: bool) -> Callable[[bytes | str | None], Any]:
    """A function that makes the field's value of the bytes, or raises a ValueError."""
    annotation, default = str if is_time else field.annotation, field.default
    cast = cast_to(annotation) if field.cast else None

    def make(content: bytes | str | None) -> Any:
        if content is None:
            if not field.required:
                return default
            if field.nullable:
                return None
            raise ValueError("Expected a text in UTF-8, got none")
        if isinstance(content, bytes):
            try:
                content = content.decode()
            except UnicodeDecodeError:
                raise ValueError("Expected a text in UTF-8, got other bytes") from None
        if annotation is str:
            return content
        if cast is not None:
            return cast(content)
        return msgspec.convert(content, annotation, strict=False)

    return make
