"""Which messages of a topic a pipeline takes: ``where=`` and ``label_where=``.

::

    Pipeline(…, where={"type": "purchase"})                 # a field of the message, or of the row
    Pipeline(…, where={"type": ["purchase", "refund"]})     # one of several values
    Pipeline(…, where={"$.source.table": "payments"})       # beside the row: from the top
    Pipeline(…, where=lambda row: row["amount"] > 0)        # a function of the row, a dict
    Pipeline(…, label_where=became("status", "chargeback")) # a change of a row, by Debezium

Other messages are counted and skipped; they are no dead letters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anabranch.dataflows.declaration.formats import Debezium
from anabranch.dataflows.declaration.shape import Path
from anabranch.state.errors import DeclarationError

_TOP = "$."
_ABSENT: Any = object()


class Condition:
    """What a message must be like; made by `condition_of`."""

    def matches(self, row: Any, top: Any) -> bool:
        """Whether a message is taken.

        Args:
            row: its fields: a dict.
            top: the whole of it, the envelope included.
        """
        raise NotImplementedError


class FieldsAre(Condition):
    """Fields have certain values: all of them, each one of those given; None is null or absent."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        for place in fields:
            if place.startswith("$") and not place.startswith(_TOP):
                raise DeclarationError(
                    f"the condition on {place!r} is on what is around the payload: messages are "
                    "chosen by the fields of their payload, or its envelope ($.op)"
                )
        self.fields = [
            (Path.parse(place), place.startswith(_TOP), _values(place, value))
            for place, value in fields.items()
        ]

    def matches(self, row: Any, top: Any) -> bool:
        return all(
            _is_among(value_at(top if from_top else row, path), values)
            for path, from_top, values in self.fields
        )


class Became(Condition):
    """A row has a value that it did not have before; made by `became`."""

    def __init__(self, place: str, value: Any) -> None:
        self.path, self.values = Path.parse(place), _values(place, value)

    def matches(self, row: Any, top: Any) -> bool:
        if not _is_among(value_at(row, self.path), self.values):
            return False
        before = top.get("before") if isinstance(top, Mapping) else None
        if row is before:  # a delete
            return False
        return not _is_among(value_at(before, self.path), self.values)


class Satisfies(Condition):
    """A function of the row says so."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def matches(self, row: Any, top: Any) -> bool:
        return bool(self.function(row))


def became(place: str, value: Any) -> Condition:
    """The field at ``place`` has become ``value`` (or one of a list) by a change of its row.

    Of `Debezium` messages: rows that are created with it, or updated from another value. An update
    without the row as it was before (a table whose replica identity is not FULL) counts as one.
    """
    return Became(place, value)


def condition_of(given: object, parameter: str, pipeline: str, format: object) -> Condition | None:
    """What was given as ``where=`` or ``label_where=``.

    Raises:
        DeclarationError: it is no condition, or makes no sense with the format.
    """
    where = f"{parameter}= of pipeline {pipeline!r}"
    if given is None:
        return None
    if isinstance(given, Mapping):
        if not given or not all(isinstance(place, str) for place in given):
            raise DeclarationError(f"{where} needs fields and values, such as {{'type': 'order'}}")
        return FieldsAre(given)
    if isinstance(given, Became) and not isinstance(format, Debezium):
        raise DeclarationError(
            f"{where} is became(…), which compares a row with what it was before: declare the "
            "format as Debezium(…)"
        )
    if isinstance(given, Condition):
        return given
    if callable(given):
        return Satisfies(given)
    raise DeclarationError(
        f"{where} is {given!r}: give fields and their values, such as {{'type': 'order'}}, "
        "became(field, value), or a function of the message's fields"
    )


def value_at(decoded: Any, path: Path) -> Any:
    """The value at a path of a decoded message; None if it is absent."""
    value = decoded
    for step in path.steps:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _values(place: str, value: Any) -> tuple[Any, ...]:
    several = isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes)
    values = tuple(value) if several else (value,)
    for each in values:
        if each is not None and not isinstance(each, bool | int | float | str):
            raise DeclarationError(
                f"the condition on {place!r} compares with {each!r}: give texts, numbers, true or "
                "false, None, or a list of them"
            )
    return values


def _is_among(value: Any, values: Sequence[Any]) -> bool:
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in values
    )
