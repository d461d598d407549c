"""Which fields of a file's rows hold the time, the id and the key."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, tzinfo

from anabranch.dataflows.messages.event_time import parse_time_ms
from anabranch.dataflows.messages.time_units import TIME_UNITS_MS, UNIT_HINT
from anabranch.state.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFields:
    """The fields that publishing a file needs to know.

    Attributes:
        time: the event's time, ISO-8601 or a number of ``time_unit`` (ms, s, us, ns) since 1970.
        zone: of times without an offset.
        id: the event's id, as text. A CSV or Parquet file without it gets its row numbers from 0.
        key: what messages are partitioned by; None for round-robin.
        text: further CSV and Parquet columns that are text although they look like numbers.

    Raises:
        InputError: the unit is none of ms, s, us, ns.
    """

    time: str = "ts"
    time_unit: str = "ms"
    zone: tzinfo = UTC
    id: str = "id"
    key: str | None = None
    text: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.time_unit not in TIME_UNITS_MS:
            raise InputError(f"time unit {self.time_unit!r} is none of {', '.join(TIME_UNITS_MS)}")

    @property
    def scale(self) -> float:
        """Milliseconds per unit of a number in the time field."""
        return TIME_UNITS_MS[self.time_unit]

    def time_ms(self, value: object) -> int | None:
        """Epoch ms of a value of the time field; None if it is not a time."""
        try:
            return parse_time_ms(value, self.scale, self.zone)
        except (ValueError, OverflowError):
            return None

    def unit_hint(self, value: object) -> str:
        """`; it would be a time of today in` another unit, if so; else empty."""
        try:
            parse_time_ms(value, self.scale)
        except ValueError as error:
            _, hint, unit = str(error).partition(UNIT_HINT)
            return hint + unit
        return ""

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that must be read as text, each once."""
        names = (self.id, self.key, *self.text)
        return tuple(dict.fromkeys(name for name in names if name is not None))
