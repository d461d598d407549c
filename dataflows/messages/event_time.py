"""Parses event times, in messages and in files: epoch numbers and ISO-8601 text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime

import numpy as np
from numpy.typing import NDArray

from anabranch.state.arrays import extent

LAST_MS = 253_402_300_799_999  # the end of the year 9999
FIRST_MS = -62_135_596_800_000  # the beginning of the year 1
TIME_UNITS_MS = {"ms": 1.0, "s": 1000.0, "us": 1e-3, "ns": 1e-6}
"""Milliseconds in each unit that a number may have."""


def parse_time_ms(value: object, scale: float) -> int:
    """Epoch ms of one time.

    Args:
        value: a number in units of ``scale`` ms, ISO-8601 text, or a date or datetime; text and
            datetimes without an offset are UTC.
        scale: milliseconds per unit of a number; see `TIME_UNITS_MS`.

    >>> parse_time_ms(1700000000, 1000.0), parse_time_ms("2025-01-06T00:00:00Z", 1.0)
    (1700000000000, 1736121600000)
    >>> parse_time_ms(date(2025, 1, 6), 1.0)
    1736121600000

    Raises:
        ValueError: it is not a time, or outside the years 1 to 9999.
    """
    if isinstance(value, str):
        time_ms = _datetime_ms(datetime.fromisoformat(value))
    elif isinstance(value, date):
        time_ms = _datetime_ms(
            value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
        )
    elif not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a time")
    else:
        # Rounded, as 1.001 s times 1000 is slightly less than 1001 ms.
        time_ms = round(value * scale) if math.isfinite(value) else LAST_MS + 1
    if not FIRST_MS <= time_ms <= LAST_MS:
        raise ValueError(f"{value!r} is outside the years 1 to 9999")
    return time_ms


def _datetime_ms(moment: datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def parse_times_ms(
    values: Sequence[object], scale: float
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Several times, ``(n,) int64`` epoch ms, and row → what is wrong with its value."""
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
            times[row] = parse_time_ms(value, scale)
        except (ValueError, OverflowError) as error:
            bad[row] = str(error)
    return times, bad
