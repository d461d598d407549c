"""Which fields of a file's rows hold the time, the id and the key, and what the others hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import Literal

from anabranch.dataflows.declaration.shape import Path
from anabranch.dataflows.messages.event_time import parse_time_ms
from anabranch.dataflows.messages.similar_names import id_columns, similar_name
from anabranch.dataflows.messages.time_units import TIME_UNITS_MS, UNIT_HINT
from anabranch.state.errors import InputError

ColumnKind = Literal["text", "integer", "number", "boolean", "time", "other"]
"""What a column holds, by the declaration of its field."""

NOT_IN_PAYLOAD = "$"
"""Begins the place of a field that is not in the message's payload: its key, or a header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFields:
    """The fields that reading a file needs to know, under the names that they have in its rows.

    Attributes:
        time: the event's time, ISO-8601 or a number of ``time_unit`` (ms, s, us, ns) since 1970.
        zone: of times without an offset.
        id: the event's id, as text. A CSV or Parquet file of events in which no column could be it
            gets its row numbers from 0.
        key: what messages are partitioned by; None for round-robin.
        text: further CSV and Parquet columns that are text although they look like numbers.
        kinds: what further columns hold; a CSV is read, and a table converted, accordingly.
        paths: where in messages the declared columns are, if that is not the key of their name.
        message: the name of the message type, for error messages.

    Raises:
        InputError: the unit is none of ms, s, us, ns.
    """

    time: str = "ts"
    time_unit: str = "ms"
    zone: tzinfo = UTC
    id: str = "id"
    key: str | None = None
    text: tuple[str, ...] = ()
    kinds: Mapping[str, ColumnKind] = field(default_factory=dict)
    paths: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    message: str = "the event"

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

    def kind_of(self, column: str) -> ColumnKind | None:
        """What a column holds; None if that is not declared."""
        if column == self.time:
            return "time"
        if column in self.kinds:
            return self.kinds[column]
        return "text" if column in (self.id, self.key, *self.text) else None

    def paths_of(self, name: str) -> tuple[Path, ...]:
        """Where in messages a column is; of a name with several paths, one text joins them."""
        return self.paths.get(name) or (Path((name,)),)

    @property
    def nested(self) -> dict[str, tuple[str, ...]]:
        """Column → the keys that lead to its place, of those that are deeper than the top."""
        found = {}
        for path in (each for paths in self.paths.values() for each in paths):
            keys = tuple(step for step in path.steps if isinstance(step, str))
            if 1 < len(keys) == len(path.steps):
                found[str(path)] = keys
        return found

    def check_id(self, source: str, columns: Collection[str], *, may_be_numbered: bool) -> None:
        """Raise if there is no column for the id, unless the rows may be numbered instead.

        That they may not be if another column could hold the ids.

        Raises:
            InputError: names that column, and how to say that it holds them.
        """
        if self.id in columns or self.id.startswith(NOT_IN_PAYLOAD) or self.id in self.paths:
            return  # where it is nested, it may be missing in some rows
        likely = id_columns(self.id, columns, {*self.kinds, self.time, self.key or self.time})
        if likely:
            others = f" (or {', '.join(map(repr, likely[1:4]))})" if len(likely) > 1 else ""
            raise InputError(
                f"{source} has no column {self.id!r} for the id of {self.message}, but "
                f"{likely[0]!r}{others}: if it holds the ids, declare "
                f"`{self.id}: str = msgspec.field(name={likely[0]!r})` in {self.message}, or "
                "rename the column"
            )
        if not may_be_numbered:
            raise InputError(
                f"{source} has no column {self.id!r}, which names the event that each label is "
                f"for: it has {', '.join(columns)}"
            )

    def missing(self, source: str, name: str, meaning: str, columns: Collection[str]) -> InputError:
        """The error for a file without the column ``name``, which holds the ``meaning``."""
        similar = similar_name(name, [each for each in columns if each not in self.kinds])
        hint = "" if similar is None else f" ({similar!r} is there)"
        return InputError(
            f"no column {name!r} in {source}{hint}: it has {', '.join(columns)}; name the one "
            f"that holds the {meaning}"
        )
