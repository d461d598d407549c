"""Reads an event's time as people write it: a number since 1970, or ISO-8601."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from anabranch.state.errors import InputError

_UNITS_MS = {"ms": 1.0, "s": 1000.0, "us": 1e-3, "ns": 1e-6}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999


def unit_ms(unit: str) -> float:
    """Milliseconds in one ``unit`` of a numeric time.

    Raises:
        InputError: the unit is none of ms, s, us, ns.
    """
    if unit not in _UNITS_MS:
        raise InputError(f"time unit {unit!r} is none of {', '.join(_UNITS_MS)}")
    return _UNITS_MS[unit]


def time_ms(value: Any, scale: float) -> int | None:
    """Epoch ms of ``value``, None when it is no time; a time without an offset is UTC.

    ``scale`` is milliseconds per unit of a number (`unit_ms`).

    >>> time_ms("2025-01-06T00:00:01Z", 1.0), time_ms(5, 1000.0), time_ms("soon", 1.0)
    (1736121601000, 5000, None)
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        found = value * scale
        return round(found) if _FIRST_MS <= found <= _LAST_MS else None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        return None
    moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1000 + round(since.microseconds / 1000)
