"""Parses event times, in messages and in files: epoch numbers, as text too, and ISO-8601 text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.messages.time_units import UNIT_HINT, fitting_unit
from anabranch.state.arrays import extent

LAST_MS = 253_402_300_799_999  # the end of the year 9999
FIRST_MS = -62_135_596_800_000  # the beginning of the year 1
_NUMBER = re.compile(r"\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\s*")
_UNUSUAL = re.compile(
    r"([0-9W-]+)[T ]([0-9:]+(?:[.,][0-9]*)?)(\s?(?:Z|UTC|GMT|[+-][0-9:]+))?", re.IGNORECASE
)


def parse_time_ms(value: object, scale: float, zone: tzinfo = UTC) -> int:
    """Epoch ms of one time.

    Args:
        value: a number in units of ``scale`` ms, such a number as text, ISO-8601 text, or a date or
            datetime.
        scale: milliseconds per unit of a number; see `TIME_UNITS_MS`.
        zone: of text and datetimes without an offset. Of an hour that comes twice, as clocks are
            set back, it is the first; one that is left out is counted on from the hour before it.

    >>> parse_time_ms(1700000000, 1000.0), parse_time_ms("2025-01-06T00:00:00Z", 1.0)
    (1700000000000, 1736121600000)
    >>> parse_time_ms("1736121600000", 1.0), parse_time_ms("1736121600.5", 1000.0)
    (1736121600000, 1736121600500)
    >>> parse_time_ms(date(2025, 1, 6), 1.0)
    1736121600000

    Raises:
        ValueError: it is not a time, or outside the years 1 to 9999.
    """
    if isinstance(value, str):
        if _NUMBER.fullmatch(value):
            # As many 64-bit integers are written in JSON; fromisoformat would read a year in it.
            return _number_ms(_number(value), scale)
        time_ms = _datetime_ms(_parse_iso(value), zone)
    elif isinstance(value, date):
        time_ms = _datetime_ms(
            value if isinstance(value, datetime) else datetime(value.year, value.month, value.day),
            zone,
        )
    elif not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a time")
    else:
        return _number_ms(value, scale)
    if not FIRST_MS <= time_ms <= LAST_MS:
        raise ValueError(f"{value!r} is outside the years 1 to 9999")
    return time_ms


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)  # has decimals, or thousands of digits


def _number_ms(value: float, scale: float) -> int:
    # Rounded, as 1.001 s times 1000 is slightly less than 1001 ms.
    try:
        time_ms = round(value * scale) if math.isfinite(value) else LAST_MS + 1
    except OverflowError:  # an integer beyond the range of floats
        time_ms = LAST_MS + 1
    if FIRST_MS <= time_ms <= LAST_MS:
        return time_ms
    unit = None if time_ms == LAST_MS + 1 else fitting_unit(value, value, scale)
    hint = "" if unit is None else f"{UNIT_HINT}{unit}, see time_unit"
    shown = repr(value) if isinstance(value, float) or abs(value) < 10**40 else "a huge number"
    raise ValueError(f"{shown} is outside the years 1 to 9999{hint}")


def _parse_iso(text: str) -> datetime:
    """A date or a time of ISO-8601 or RFC 3339, with whichever letters and names of UTC it allows.

    24:00:00 is the midnight that ends its day, and second 60 the beginning of the next minute.
    """
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        found = _UNUSUAL.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"Invalid isoformat string: {text[:100]!r}") from None
    day, clock, offset = found.groups()
    offset = "+00:00" if offset and offset.strip().upper() in ("Z", "UTC", "GMT") else offset or ""
    extra = timedelta()
    if re.fullmatch(r"24(:?00){1,2}([.,]0*)?", clock):
        clock, extra = "00" + clock[2:], timedelta(days=1)
    elif clock[5:8] == ":60":
        clock, extra = clock[:5] + ":59", timedelta(seconds=1)
    try:
        return datetime.fromisoformat(f"{day}T{clock}{offset.strip()}") + extra
    except OverflowError:
        raise ValueError(f"{text!r} is outside the years 1 to 9999") from None


def _datetime_ms(moment: datetime, zone: tzinfo) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone, fold=0)
    try:
        return round(moment.timestamp() * 1000)
    except OverflowError:  # the first and the last day that there are, in another zone
        raise ValueError(f"{moment} is outside the years 1 to 9999") from None


def parse_times_ms(
    values: Sequence[object], scale: float, zone: tzinfo = UTC
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Several times, ``(n,) int64`` epoch ms, and row → what is wrong with its value.

    See `parse_time_ms`.
    """
    bad: dict[int, str] = {}
    if scale == 1.0 and set(map(type, values)) == {int}:
        try:
            times = np.array(values, np.int64)
        except OverflowError:
            pass
        else:
            earliest, latest = extent(times) if len(times) else (0, 0)
            if earliest >= FIRST_MS and latest <= LAST_MS:
                return times, bad
    times = np.zeros(len(values), np.int64)
    for row, value in enumerate(values):
        try:
            times[row] = parse_time_ms(value, scale, zone)
        except (ValueError, OverflowError) as error:
            bad[row] = str(error)
    return times, bad
