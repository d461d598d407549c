"""The schema of a message type: the kind of each field, read from its annotations."""

from __future__ import annotations

import types
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from anabranch.dataflows.messages.inputs import field_types
from anabranch.state.errors import DeclarationError

Kind = Literal["number", "boolean", "text", "other"]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message.

    Attributes:
        name: its name.
        kind: the kind of its values.
        optional: whether null is allowed.
        integer: whether integers are.
        is_list: whether it is a list of such values, one for each candidate of a ranking.
    """

    name: str
    kind: Kind
    optional: bool
    integer: bool = False
    is_list: bool = False


@dataclass(frozen=True, slots=True)
class Schema:
    """The fields of a message type by name."""

    type_name: str
    fields: dict[str, Field]

    @classmethod
    def of(cls, message: type[msgspec.Struct], lists: bool = False) -> Schema:
        """The schema of ``message``; with ``lists``, a list has the kind of its entries."""
        read = _list_or_field if lists else _field
        fields = {name: read(name, kind) for name, kind in field_types(message).items()}
        return cls(message.__name__, fields)

    def require(self, name: str, kinds: tuple[Kind, ...], where: str) -> Field:
        """The field ``name``, which must exist and be of one of ``kinds``.

        Args:
            where: what needs the field, for the error.

        Raises:
            DeclarationError: it does not; names the field, ``where`` and the fields that exist.
        """
        field = self.fields.get(name)
        if field is None:
            raise DeclarationError(
                f"unknown field {name!r} in {where}: {self.type_name} has {', '.join(self.fields)}"
            )
        if field.kind not in kinds:
            raise DeclarationError(
                f"field {name!r} in {where} must be a {' or '.join(kinds)}, but "
                f"{self.type_name}.{name} is {_A[field.kind]}"
            )
        return field

    def require_present(self, name: str, kinds: tuple[Kind, ...], where: str) -> Field:
        """As `require`, and the field must not allow null."""
        field = self.require(name, kinds, where)
        if field.optional:
            raise DeclarationError(
                f"field {name!r} in {where} may be null: declare {self.type_name}.{name} "
                "without None"
            )
        return field


_A = {
    "number": "a number",
    "boolean": "a boolean",
    "text": "text",
    "other": "neither a number nor text",
}


def _list_or_field(name: str, annotation: Any) -> Field:
    bare = annotation.__origin__ if hasattr(annotation, "__metadata__") else annotation
    if get_origin(bare) is not list:
        return _field(name, annotation)
    return replace(_field(name, get_args(bare)[0]), is_list=True)


def _field(name: str, annotation: Any) -> Field:
    args = get_args(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [arg for arg in args if arg is not type(None)]
        kinds = {_kind(arg) for arg in rest}
        kind: Kind = kinds.pop() if len(kinds) == 1 else "other"
        return Field(name, kind, len(rest) < len(args), any(map(_is_integer, rest)))
    return Field(name, _kind(annotation), False, _is_integer(annotation))


def _is_integer(annotation: Any) -> bool:
    return (
        _kind(annotation) == "number" and getattr(annotation, "__origin__", annotation) is not float
    )


def _kind(annotation: Any) -> Kind:
    if get_origin(annotation) is Literal:
        kinds = {_kind(type(value)) for value in get_args(annotation)}
        return kinds.pop() if len(kinds) == 1 else "other"
    annotation = getattr(annotation, "__origin__", annotation)  # Annotated[float, Meta(...)]
    if annotation is bool:
        return "boolean"
    if annotation in (int, float):
        return "number"
    return "text" if annotation is str else "other"
