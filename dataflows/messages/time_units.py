"""The units that a number in a time field may have."""

from __future__ import annotations

TIME_UNITS_MS = {"ms": 1.0, "s": 1000.0, "us": 1e-3, "ns": 1e-6}
"""Milliseconds in each unit that a number may have."""

UNIT_HINT = "; it would be a time of today in "
"""Precedes the unit in what is wrong with a number that would be a time of today in that unit."""

_TODAY_MS = 631_152_000_000, 4_102_444_800_000  # 1990 to 2099: where a user's times are


def fitting_unit(earliest: float, latest: float, scale: float) -> str | None:
    """The unit in which numbers from ``earliest`` to ``latest`` are times of today.

    None if they are that in units of ``scale`` ms already, or in no unit.

    >>> fitting_unit(1736121600, 1736125200, 1.0)
    's'
    """
    for unit, ms in sorted(TIME_UNITS_MS.items(), key=lambda item: item[1] != scale):
        if _TODAY_MS[0] <= earliest * ms and latest * ms < _TODAY_MS[1]:
            return None if ms == scale else unit
    return None
