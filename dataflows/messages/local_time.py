"""Times of day in a time zone, for whole columns of event times."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

_QUARTER_MS = 900_000  # offsets change at full quarters of an hour, since 1972 at least
_YEARS_MS = -62_000_000_000_000, 253_000_000_000_000  # inside those that datetime has
_MOST_OFFSETS = 1 << 18


class LocalTime:
    """Local times of a time zone, after the IANA database of this machine.

    Args:
        name: of the zone, such as ``"Europe/Paris"``.

    Attributes:
        zone: the zone, for texts without an offset.

    >>> paris = LocalTime("Europe/Paris")
    >>> (paris.wall_ms(np.array([1_736_121_600_000])) - 1_736_121_600_000) / 3_600_000
    array([1.])

    Raises:
        ValueError: there is no such zone.
    """

    def __init__(self, name: str) -> None:
        try:
            self.zone = ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
            raise ValueError(f"there is no time zone {name!r}") from None
        self._offsets: dict[int, int] = {}  # quarter of an hour since 1970 -> ms

    def wall_ms(self, times: I64) -> I64:
        """What clocks show at these times: epoch ms plus the offset then, ``(n,) int64``."""
        if not len(times):
            return times
        quarters = times // _QUARTER_MS
        first = int(quarters[0])
        if (quarters == first).all():
            return times + self._offset_ms(first)
        distinct, rows = np.unique(quarters, return_inverse=True)
        offsets = np.array([self._offset_ms(each) for each in distinct.tolist()], np.int64)
        return times + offsets[rows]

    def _offset_ms(self, quarter: int) -> int:
        found = self._offsets.get(quarter)
        if found is not None:
            return found
        if len(self._offsets) >= _MOST_OFFSETS:
            self._offsets.clear()
        at_ms = min(max(quarter * _QUARTER_MS, _YEARS_MS[0]), _YEARS_MS[1])
        offset = self.zone.utcoffset(
            datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(self.zone)
        )
        found = 0 if offset is None else round(offset.total_seconds() * 1000)
        self._offsets[quarter] = found
        return found
