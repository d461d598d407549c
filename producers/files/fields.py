"""Which fields of a file's rows mean what."""

from __future__ import annotations

from dataclasses import dataclass

from anabranch.producers.files.event_time import unit_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFields:
    """The fields that publishing a file has to know.

    Attributes:
        time: the event's time, ISO-8601 or a number of ``time_unit`` (ms, s, us, ns) since 1970.
        id: the event's id, as text. A CSV or Parquet file without it gets its row numbers from 0.
        key: what messages are partitioned by, None for in turn.
        text: further CSV and Parquet columns that are text although they look like numbers.
    """

    time: str = "ts"
    time_unit: str = "ms"
    id: str = "id"
    key: str | None = None
    text: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """Milliseconds per unit of a number in the time field."""
        return unit_ms(self.time_unit)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Every column that must be read as text, each once."""
        names = (self.id, self.key, *self.text)
        return tuple(dict.fromkeys(name for name in names if name is not None))
