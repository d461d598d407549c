"""Casts: what a value of another type becomes, for fields that are declared as `Cast`.

| declared | takes, beside its own type |
|---|---|
| ``float`` | integers; the text of a decimal: ``"12.50"``, ``"1e3"`` |
| ``int`` | a number or the text of one, if it is whole: ``"7"``, ``7.0`` |
| ``bool`` | 0 and 1, as number or text; the texts true, false, t, f, yes, no, y, n in any case |
| ``str`` | a number as it is written, without a fraction of zero (7.0 is ``"7"``); true and false |
| ``Decimal`` | a number, or the text of one |
| ``datetime``, ``date`` | ISO-8601 text; epoch milliseconds, as number or text |
| an enum, ``Literal`` | a value whose text is that of a member: ``"2"`` for 2 |

For a field that may be null, the empty text is null, unless the field is text. Anything else can't
be cast, and neither can what is not a finite number.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import re
import types
import uuid
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from anabranch.dataflows.messages.event_time import parse_time_ms

Caster = Callable[[Any], Any]
"""Raises ValueError where a value can't be cast."""

_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_DIGITS = re.compile(r"[+-]?\d{1,4000}", re.ASCII)
_TRUTHS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0"), False),
}
_SHOWN = 60


@cache
def cast_to(annotation: Any) -> Caster:
    """The function that casts to a type; of a union, to the first member that it can be cast to."""
    if hasattr(annotation, "__metadata__"):
        return cast_to(annotation.__origin__)
    if get_origin(annotation) in (Union, types.UnionType):
        return _cast_to_union(get_args(annotation))
    if get_origin(annotation) is Literal:
        return _cast_to_one_of(get_args(annotation), "one of the declared values")
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _cast_to_one_of([each.value for each in annotation], f"a {annotation.__name__}")
    if annotation in _CASTS:
        return _CASTS[annotation]

    def convert(value: Any) -> Any:
        try:
            return msgspec.convert(value, annotation, strict=False)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None

    return convert


def _cast_to_union(members: Sequence[Any]) -> Caster:
    rest = [member for member in members if member is not type(None)]
    casts = [cast_to(member) for member in rest]
    nullable = len(rest) < len(members)
    empty_is_null = nullable and str not in rest

    def cast(value: Any) -> Any:
        if nullable and (value is None or (empty_is_null and value == "")):
            return None
        for each in casts[:-1]:
            try:
                return each(value)
            except (ValueError, ArithmeticError):
                continue
        return casts[-1](value)

    return cast


def _cast_to_one_of(values: Sequence[Any], what: str) -> Caster:
    by_text = {text_of(value): value for value in values}

    def cast(value: Any) -> Any:
        if isinstance(value, str | int | float | decimal.Decimal):
            text = _to_text(value)
            if text in by_text:
                return by_text[text]
        listed = ", ".join(by_text)
        raise ValueError(f"{shown(value)} is not {what} ({listed[:200]})")

    return cast


def shown(value: Any) -> str:
    """A value as errors quote it, shortened."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def text_of(value: Any) -> str:
    """A scalar of any declared type as the text by which state and outputs know it.

    >>> text_of(10), text_of("10"), text_of(True), text_of(1.0)
    ('10', '10', 'true', '1')
    """
    if type(value) is str:
        return value
    if isinstance(value, enum.Enum):
        return text_of(value.value)
    return _to_text(value)


def join_texts(parts: Sequence[str]) -> str:
    r"""Several texts as one; different texts never give the same.

    >>> join_texts(["1001", "2"]), join_texts(["a/b", "c"]), join_texts(["a", "b/c"])
    ('1001/2', 'a\\/b/c', 'a/b\\/c')
    """
    return "/".join(part.replace("\\", "\\\\").replace("/", "\\/") for part in parts)


def _to_float(value: Any) -> float:
    if isinstance(value, str):
        number = float(value) if _DECIMAL.fullmatch(value.strip()) else math.nan
    elif isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool):
        number = float(value)
    else:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{shown(value)} is not a number")
    return number


def _to_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _DIGITS.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        number = decimal.Decimal(value.strip())
    elif isinstance(value, float) and math.isfinite(value):
        number = decimal.Decimal(value)
    elif isinstance(value, decimal.Decimal) and value.is_finite():
        number = value
    else:
        raise ValueError(f"{shown(value)} is not a whole number")
    if number.adjusted() > 400:
        raise ValueError(f"{shown(value)} is too large")
    if number != number.to_integral_value():
        raise ValueError(f"{shown(value)} is not a whole number")
    return int(number)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float | decimal.Decimal) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        truth = _TRUTHS.get(value.strip().lower())
        if truth is not None:
            return truth
    raise ValueError(f"{shown(value)} is neither true nor false")


def _to_text(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 1e16 else repr(value)
    if isinstance(value, decimal.Decimal) and value.is_finite():
        whole = value == value.to_integral_value() and value.adjusted() < 100
        return str(int(value)) if whole else str(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise ValueError(f"{shown(value)} has no text")


def _to_decimal(value: Any) -> decimal.Decimal:
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        return decimal.Decimal(value.strip())
    if isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool):
        number = (
            decimal.Decimal(repr(value)) if isinstance(value, float) else decimal.Decimal(value)
        )
        if number.is_finite():
            return number
    raise ValueError(f"{shown(value)} is not a number")


def _to_datetime(value: Any) -> datetime.datetime:
    ms = parse_time_ms(value, 1.0)
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=ms)


def _to_date(value: Any) -> datetime.date:
    if type(value) is datetime.date:
        return value
    return _to_datetime(value).date()


def _to_uuid(value: Any) -> uuid.UUID:
    if isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"{shown(value)} is not a UUID") from None


_CASTS: dict[Any, Caster] = {
    float: _to_float,
    int: _to_int,
    bool: _to_bool,
    str: _to_text,
    decimal.Decimal: _to_decimal,
    datetime.datetime: _to_datetime,
    datetime.date: _to_date,
    uuid.UUID: _to_uuid,
}
