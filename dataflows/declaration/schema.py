"""The schema of a message type: the kind of each field, read from its annotations."""

from __future__ import annotations

import decimal
import enum
import types
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from anabranch.dataflows.declaration.casts import text_of
from anabranch.dataflows.declaration.shape import without_cast
from anabranch.dataflows.messages.inputs import field_types
from anabranch.state.errors import DeclarationError

JOINED = "+"
"""Is between the names of the fields of which an entity is a combination."""

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
        is_key: whether it can be an id or a key: its values are known by their text.
        is_cast: whether values of other types are cast.
        is_decimal: whether it is a decimal, which may be no finite number.
        value_of: makes the value that steps use of one that was decoded; None: it is used as it is.
    """

    name: str
    kind: Kind
    optional: bool
    integer: bool = False
    is_list: bool = False
    is_key: bool = False
    is_cast: bool = False
    is_decimal: bool = False
    value_of: Callable[[Any], Any] | None = None


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
        field = self._find(name, where)
        if field.kind not in kinds:
            raise DeclarationError(
                f"field {name!r} in {where} must be a {' or '.join(kinds)}, but "
                f"{self.type_name}.{name} is {_A[field.kind]}{self._cast_hint(field, kinds)}"
            )
        return field

    def require_present(self, name: str, kinds: tuple[Kind, ...], where: str) -> Field:
        """As `require`, and the field must not allow null."""
        return self._present(self.require(name, kinds, where), where)

    def require_key(self, name: str, where: str, *, nullable: bool = False) -> Field:
        """The field ``name``, which must be an id or key: text, a whole number, a boolean, an enum.

        Raises:
            DeclarationError: it is none, or allows null although not ``nullable``.
        """
        if JOINED in name:
            return self._joined(name, where)
        field = self._find(name, where)
        if not field.is_key:
            raise DeclarationError(
                f"field {name!r} in {where} must be a text, an integer, a boolean, a UUID or an "
                f"enum, but {self.type_name}.{name} is {_A[field.kind]}"
            )
        if field.is_list:
            self.require(name, ("text",), where)
        return field if nullable else self._present(field, where)

    def with_joined(self, names: Iterable[str]) -> Schema:
        """The schema with combinations of fields as fields, too."""
        joined = {name: self._joined(name, "") for name in names}
        return Schema(self.type_name, {**self.fields, **joined}) if joined else self

    def _joined(self, name: str, where: str) -> Field:
        """A combination of fields as a field; raises what `require_key` does."""
        parts = [self.require_key(each, where, nullable=True) for each in name.split(JOINED)]
        for part in parts:
            if part.is_list:
                raise DeclarationError(
                    f"field {part.name!r} in {where} is a list, and can't be combined with others"
                )
        return Field(name, "text", any(part.optional for part in parts), is_key=True)

    def _find(self, name: str, where: str) -> Field:
        field = self.fields.get(name)
        if field is None:
            hint = ""
            if isinstance(name, str) and "." in name and name.partition(".")[0] in self.fields:
                own = name.rpartition(".")[2]
                hint = f"; for what is in an object declare {own}: float = path({name!r})"
            raise DeclarationError(
                f"unknown field {name!r} in {where}: {self.type_name} has "
                f"{', '.join(self.fields)}{hint}"
            )
        return field

    def _present(self, field: Field, where: str) -> Field:
        if field.optional:
            raise DeclarationError(
                f"field {field.name!r} in {where} may be null: declare "
                f"{self.type_name}.{field.name} without None"
            )
        return field

    def _cast_hint(self, field: Field, kinds: tuple[Kind, ...]) -> str:
        if field.is_cast or "number" not in kinds or field.kind not in ("text", "other"):
            return ""
        return f"; if its text is that of a number, declare it as {field.name}: Cast[float]"


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
    annotation, is_cast = without_cast(annotation)
    annotation = (
        getattr(annotation, "__origin__", annotation) if _is_annotated(annotation) else (annotation)
    )
    is_union = get_origin(annotation) in (Union, types.UnionType)
    members = get_args(annotation) if is_union else (annotation,)
    rest = [_bare(member) for member in members if member is not type(None)]
    kinds = {_kind(member) for member in rest}
    return Field(
        name,
        kinds.pop() if len(kinds) == 1 else "other",
        len(rest) < len(members),
        any(map(_is_integer, rest)),
        is_key=bool(rest) and all(map(_is_key, rest)),
        is_cast=is_cast,
        is_decimal=decimal.Decimal in rest,
        value_of=_value_of(rest),
    )


def _is_annotated(annotation: Any) -> bool:
    return hasattr(annotation, "__metadata__")


def _bare(annotation: Any) -> Any:
    return annotation.__origin__ if _is_annotated(annotation) else annotation


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum)


def _is_integer(annotation: Any) -> bool:
    return _kind(annotation) == "number" and annotation not in (float, decimal.Decimal)


def _is_key(annotation: Any) -> bool:
    return _kind(annotation) in ("text", "boolean") or _is_integer(annotation)


def _kind(annotation: Any) -> Kind:
    values: Sequence[Any] | None = None
    if get_origin(annotation) is Literal:
        values = get_args(annotation)
    elif _is_enum(annotation):
        values = [each.value for each in annotation]
    if values is not None:
        kinds = {_kind(type(value)) for value in values}
        return kinds.pop() if len(kinds) == 1 else "other"
    if annotation is bool:
        return "boolean"
    if annotation in (int, float, decimal.Decimal):
        return "number"
    return "text" if annotation in (str, uuid.UUID) else "other"


def _value_of(members: list[Any]) -> Callable[[Any], Any] | None:
    if any(map(_is_enum, members)):
        return _enum_value
    if decimal.Decimal in members:
        return _decimal_value
    return text_of if uuid.UUID in members else None


def _enum_value(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _decimal_value(value: Any) -> Any:
    return float(value) if isinstance(value, decimal.Decimal) else value
