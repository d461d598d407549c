"""Makes structs of what binary formats decode to: dicts with values that JSON does not have.

A time becomes what its field is declared as: a number in the pipeline's ``time_unit``, or ISO-8601
text; a decimal a float or its text; a UUID its text. A float that is no number (NaN) is null where
the field may be null.
"""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

import msgspec

from anabranch.dataflows.codec.protocol import Message
from anabranch.dataflows.declaration.shape import Shape, members_of

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_SPECIAL = (
    float,
    datetime.datetime,
    datetime.date,
    datetime.time,
    decimal.Decimal,
    uuid.UUID,
    list,
)
_MICROSECOND = datetime.timedelta(microseconds=1)

Places = Mapping[str, Any]
"""Place → value of what is not in the payload, see `Shape.from_mapping`."""


def struct_maker(
    message: type[Message], unit_ms: float = 1.0
) -> Callable[[dict[str, Any]], Message]:
    """A function that makes ``message`` of a decoded dict; raises `msgspec.ValidationError`.

    Paths and casts are followed. ``unit_ms`` is the pipeline's time unit, in milliseconds.
    """
    if not issubclass(message, msgspec.Struct):
        return lambda decoded: decoded  # type: ignore[return-value]
    shape = Shape.of(message)
    places = [
        (each.path.steps[:-1], each.path.steps[-1], each.annotation, each.path.location)
        for each in shape.fields
        if each.path is not None
    ]

    def make(decoded: dict[str, Any]) -> Message:
        if isinstance(decoded, dict):
            for above, last, annotation, location in places:
                holder: Any = decoded
                try:
                    for step in above:
                        holder = holder[step]
                    value = holder[last]
                except (LookupError, TypeError):
                    continue
                if isinstance(value, _SPECIAL):
                    holder[last] = native(value, annotation, unit_ms, location)
        made: Message = shape.from_mapping(decoded)
        return made

    return make


def native(value: Any, annotation: Any, unit_ms: float, location: str) -> Any:
    """A value as one that JSON could have, of the declared type where there are several.

    Raises:
        msgspec.ValidationError: it is a float that is not a number, and no null is allowed.
    """
    members, nullable = members_of(annotation)
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        if nullable and math.isnan(value):
            return None
        raise msgspec.ValidationError(f"Expected a finite number, got {value} - at `{location}`")
    if isinstance(value, list):
        lists = [each for each in members if get_origin(each) is list]
        inner = get_args(lists[0])[0] if lists else Any
        return [
            native(each, inner, unit_ms, location) if isinstance(each, _SPECIAL) else each
            for each in value
        ]
    if type(value) in members:
        return value
    if isinstance(value, datetime.datetime):
        return _native_time(value, members, unit_ms)
    if isinstance(value, datetime.date):
        if int in members or float in members:
            midnight = datetime.datetime.combine(value, datetime.time(), datetime.UTC)
            return _native_time(midnight, members, unit_ms)
        return value.isoformat()
    if isinstance(value, datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        if float in members:
            return float(value)
        whole = int in members and value == value.to_integral_value()
        return int(value) if whole else format(value, "f")
    return str(value)  # a UUID


def _native_time(value: datetime.datetime, members: list[Any], unit_ms: float) -> Any:
    """A time as a number in the unit if the field takes one, else as text.

    A time without a zone stays text where a field takes that, as the pipeline has a zone for it.
    """
    if value.tzinfo is None:
        if str in members:
            return value.isoformat()
        value = value.replace(tzinfo=datetime.UTC)
    if int not in members and float not in members:
        return value.isoformat()
    microseconds = (value - _EPOCH) // _MICROSECOND
    per_unit = unit_ms * 1000
    if per_unit < 1:
        return microseconds * round(1 / per_unit)
    if microseconds % int(per_unit) == 0 or float not in members:
        return microseconds // int(per_unit)
    return microseconds / per_unit
