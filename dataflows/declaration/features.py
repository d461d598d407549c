"""The features that a pipeline may declare.

Row features (`field`, `hour_of_day`, `day_of_week`, `one_hot`, `hashed`) are computed from the
event alone. Window features (`window`, `since_last`, `count_distinct`, `decayed`) are computed from
an entity's earlier events, whose state is in `state.windows.entity_state`. A window of `target()`
is computed from the labels of an entity's events as they arrive; its state is in
`models.prequential.label_windows`. Each feature names its columns; the model, the predictions and
the monitors use those names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.declaration.casts import text_of
from anabranch.dataflows.declaration.schema import JOINED, Schema
from anabranch.state.durations import parse_duration_ms
from anabranch.state.errors import DeclarationError
from anabranch.state.keys.hashing import hash64
from anabranch.state.keys.text_dictionary import CodedTexts
from anabranch.state.renamed import renamed
from anabranch.state.windows.specs import DecayedSpec, DistinctSpec, SinceLastSpec, Spec, WindowSpec

Columns = Mapping[str, Any]
"""Field name → one value per row: a list, or a column of `dataflows.batch.typed_rows`."""

TARGET = "target"
"""The name of the label in the columns of label windows."""

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
_THURSDAY = 3  # 1970-01-01 was a Thursday; Monday is 0


class RowFeature(Protocol):
    """A feature that is computed from the event alone."""

    @property
    def field(self) -> str:
        """The event's field that it reads."""

    def columns(self) -> list[str]:
        """The names of its columns."""

    def check(self, schema: Schema) -> None:
        """Raise DeclarationError if the event type lacks a field that this needs."""

    def fill(self, out: NDArray[np.float64], times: NDArray[np.int64], columns: Columns) -> None:
        """Compute the feature for a batch.

        Args:
            out: `(rows, columns) float64`, overwritten.
            times: `(rows,) int64` event times, epoch ms; with a time zone, plus its offset then.
            columns: the batch's values by field.
        """


@dataclass(frozen=True, slots=True)
class NumberField:
    """See `field`."""

    field: str
    fill_null: float | None = None

    def columns(self) -> list[str]:
        return [self.field]

    def check(self, schema: Schema) -> None:
        declared = schema.require(self.field, ("number", "boolean"), f"field({self.field!r})")
        if declared.optional and self.fill_null is None:
            raise DeclarationError(
                f"field({self.field!r}) may be null in {schema.type_name}: give the value to use "
                f"instead, for example field({self.field!r}, fill_null=0.0)"
            )

    def fill(self, out: NDArray[np.float64], times: NDArray[np.int64], columns: Columns) -> None:
        values = columns[self.field]
        if self.fill_null is not None and hasattr(values, "floats"):
            values = values.floats()  # null is NaN
        if self.fill_null is not None and isinstance(values, np.ndarray):
            values = np.where(np.isnan(values), self.fill_null, values)
        elif self.fill_null is not None:
            values = [self.fill_null if value is None else value for value in values]
        out[:, 0] = values


@dataclass(frozen=True, slots=True)
class HourOfDay:
    """See `hour_of_day`."""

    field: str
    cyclic: bool = False

    def columns(self) -> list[str]:
        return ["hour_sin", "hour_cos"] if self.cyclic else ["hour_of_day"]

    def check(self, schema: Schema) -> None:
        if self.field not in schema.fields:
            schema.require(self.field, ("number",), "hour_of_day")

    def fill(self, out: NDArray[np.float64], times: NDArray[np.int64], columns: Columns) -> None:
        hours = (times % DAY_MS) / HOUR_MS
        if self.cyclic:
            out[:, 0] = np.sin(hours * (2 * np.pi / 24))
            out[:, 1] = np.cos(hours * (2 * np.pi / 24))
        else:
            out[:, 0] = hours


@dataclass(frozen=True, slots=True)
class DayOfWeek:
    """See `day_of_week`."""

    field: str

    def columns(self) -> list[str]:
        return ["day_of_week"]

    def check(self, schema: Schema) -> None:
        if self.field not in schema.fields:
            schema.require(self.field, ("number",), "day_of_week")

    def fill(self, out: NDArray[np.float64], times: NDArray[np.int64], columns: Columns) -> None:
        out[:, 0] = (times // DAY_MS + _THURSDAY) % 7


_VALUES: dict[str, tuple[type, ...]] = {"text": (str,), "number": (int, float), "boolean": (bool,)}


@dataclass(frozen=True, slots=True)
class OneHot:
    """See `one_hot`."""

    field: str
    values: tuple[str | float | bool, ...]

    def columns(self) -> list[str]:
        return [f"{self.field}={value}" for value in self.values]

    def check(self, schema: Schema) -> None:
        where = f"one_hot({self.field!r})"
        kind = schema.require(self.field, ("text", "number", "boolean"), where).kind
        for value in self.values:
            if not isinstance(value, _VALUES[kind]) or (kind == "number" and value is bool(value)):
                raise DeclarationError(
                    f"{value!r} in {where} is never a value of {schema.type_name}.{self.field}, "
                    f"which is {kind}: give values of that type"
                )
        if not self.values or len(set(self.values)) != len(self.values):
            raise DeclarationError(f"one_hot({self.field!r}) needs values, none of them twice")

    def fill(self, out: NDArray[np.float64], times: NDArray[np.int64], columns: Columns) -> None:
        column_of: dict[Any, int] = {}
        for column, value in enumerate(self.values):
            column_of[value] = column
            column_of[text_of(value)] = column  # of a number or boolean that is also a key
        values = columns[self.field]
        if isinstance(values, CodedTexts):
            unique, inverse = values.distinct()
            codes = np.array([column_of.get(value, -1) for value in unique])[inverse]
        else:
            codes = np.array([column_of.get(value, -1) for value in values])
        out[:] = codes[:, None] == np.arange(len(self.values))


@dataclass(frozen=True, slots=True)
class Hashed:
    """See `hashed`."""

    field: str
    buckets: int

    def columns(self) -> list[str]:
        return [f"{self.field}#{bucket}" for bucket in range(self.buckets)]

    def check(self, schema: Schema) -> None:
        schema.require_key(self.field, f"hashed({self.field!r})")
        if self.buckets < 2:
            raise DeclarationError(f"hashed({self.field!r}) needs at least 2 buckets")

    def fill(self, out: NDArray[np.float64], times: NDArray[np.int64], columns: Columns) -> None:
        codes = hash64(columns[self.field]) % np.uint64(self.buckets)
        out[:] = codes[:, None] == np.arange(self.buckets, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class EntityFeature:
    """A feature that is computed from an entity's earlier events.

    Attributes:
        entity: the field that names the entity, or several with a plus between them.
        spec: what is computed, and over which windows.
        value: the field whose values enter; None where events are only counted or timed.
        text_value: whether that is a text field.
        label: what errors call the feature, such as ``window(card)``.
    """

    entity: str
    spec: Spec
    value: str | None
    text_value: bool
    label: str

    def columns(self) -> list[str]:
        """The names of its columns, which begin with the entity's field."""
        return _column_names(self.entity, self.spec)

    def check(self, schema: Schema) -> None:
        """Raise DeclarationError if the event type lacks a field that this needs."""
        schema.require_key(self.entity, self.label, nullable=True)
        if isinstance(self.value, Target):
            raise DeclarationError(f"{self.label} can't use target(): only window can")
        if self.value is not None and self.text_value:
            schema.require_key(self.value, self.label, nullable=True)
        elif self.value is not None:
            schema.require(self.value, ("number", "boolean"), self.label)


@dataclass(frozen=True, slots=True)
class Target:
    """See `target`."""


@dataclass(frozen=True, slots=True)
class LabelWindow:
    """A window over the labels of an entity's events; attributes as in `EntityFeature`."""

    entity: str
    spec: WindowSpec
    label: str

    @property
    def value(self) -> None:
        """None: no field of the event enters it."""

    def columns(self) -> list[str]:
        """The names of its columns, which begin with the entity's field."""
        return _column_names(self.entity, self.spec)

    def check(self, schema: Schema) -> None:
        """Raise DeclarationError if the event type lacks a field that this needs."""
        schema.require_key(self.entity, self.label, nullable=True)


KeyedFeature = EntityFeature | LabelWindow
Entity = str | Sequence[str]
"""The field that names an entity, or several, of which each combination is one."""
Feature = RowFeature | KeyedFeature


@renamed(missing="fill_null")
def field(name: str, *, fill_null: float | None = None) -> NumberField:
    """A number, or a boolean as 0 and 1, of the event.

    A field that may be null needs ``fill_null``, the value to use instead.
    """
    return NumberField(name, fill_null)


def hour_of_day(time: str = "ts", *, cyclic: bool = False) -> HourOfDay:
    """Hour of the event's time, from 0 to 24 with fraction; ``cyclic``: sine and cosine.

    In UTC, or in the pipeline's ``timezone``.
    """
    return HourOfDay(time, cyclic)


def day_of_week(time: str = "ts") -> DayOfWeek:
    """Day of the week of the event's time, in UTC or the pipeline's ``timezone``: Monday is 0."""
    return DayOfWeek(time)


def one_hot(name: str, values: Sequence[str | float | bool]) -> OneHot:
    """One column per value, 1.0 where the field equals it; for any other value all are 0.0.

    The values are of the field's own type: a number is never equal to a text. Of an enum they are
    its members, or their values.
    """
    return OneHot(
        name, tuple(value.value if isinstance(value, Enum) else value for value in values)
    )


def hashed(name: str, *, buckets: int = 16) -> Hashed:
    """The hashing trick: one column per bucket, 1.0 where the text hashes to it.

    The hash is the same on every machine. A number, boolean or enum is hashed as its text.
    """
    return Hashed(name, buckets)


def target() -> Target:
    """The label as the value of a `window`: how often it was fraud at this merchant."""
    return Target()


@overload
def window(
    entity: Entity,
    value: str | None = None,
    *,
    over: Sequence[str] | str,
    stats: Sequence[str] | str = ("count", "mean"),
    resolution: str | None = None,
) -> EntityFeature: ...


@overload
def window(
    entity: Entity,
    value: Target,
    *,
    over: Sequence[str] | str,
    stats: Sequence[str] | str = ("count", "mean"),
    resolution: str | None = None,
) -> LabelWindow: ...


def window(
    entity: Entity,
    value: str | Target | None = None,
    *,
    over: Sequence[str] | str,
    stats: Sequence[str] | str = ("count", "mean"),
    resolution: str | None = None,
) -> EntityFeature | LabelWindow:
    """Statistics of ``value`` over the events of the same entity in the last ``over``.

    With `target()` as ``value`` they are statistics of the labels of the entity's events, each at
    the time at which it arrived: those that arrived in the last ``over`` before the event. The
    event's own label is never among them.

    Args:
        entity: the field that names the entity: a text, an integer, a boolean, a UUID or an enum;
            or a tuple of fields, of which each combination is an entity.
            An event in which it is null has no entity: its features are those of an empty window,
            and it enters none.
        value: a number or boolean field, or `target()`; None: events are counted. A null value
            does not enter the window, but its event still gets its features.
        over: widths of the windows, such as ``"10m"``.
        stats: of count, sum, mean, std, var, min, max, first and last.
        resolution: merge events into panes of this length, which bounds the memory of long windows.

    Raises:
        DeclarationError: a duration or a statistic is unknown, or there are none.
    """
    entity = _entity_name(entity, "window")
    label = f"window({entity})"
    stats = (stats,) if isinstance(stats, str) else tuple(stats)
    if value is None and stats != ("count",):
        if stats != ("count", "mean"):
            raise DeclarationError(
                f"{label} without a value can only count: give stats='count', or a value"
            )
        stats = ("count",)
    widths = _widths_ms(over, label)
    pane_ms = parse_duration_ms(resolution) if resolution else 0
    if isinstance(value, Target):
        return LabelWindow(entity, WindowSpec(TARGET, widths, stats, pane_ms), label)
    return EntityFeature(
        entity, WindowSpec(value or "", widths, stats, pane_ms), value, False, label
    )


def since_last(entity: Entity, *, within: str = "1d") -> EntityFeature:
    """Seconds since the entity's previous event, at most ``within``, also when there was none."""
    entity = _entity_name(entity, "since_last")
    spec = SinceLastSpec(parse_duration_ms(within))
    return EntityFeature(entity, spec, None, False, f"since_last({entity})")


def count_distinct(entity: Entity, value: str, *, over: Sequence[str] | str) -> EntityFeature:
    """How many different values of ``value`` the entity had in the last ``over``.

    It is a text, a number without fraction, a boolean or an enum; null is none.
    """
    entity = _entity_name(entity, "count_distinct")
    label = f"count_distinct({entity})"
    return EntityFeature(entity, DistinctSpec(value, _widths_ms(over, label)), value, True, label)


def decayed(
    entity: Entity, value: str, *, half_life: str, stats: Sequence[str] = ("mean", "count")
) -> EntityFeature:
    """Exponentially decayed statistics: an event's weight halves every ``half_life``."""
    entity = _entity_name(entity, "decayed")
    spec = DecayedSpec(value, parse_duration_ms(half_life), tuple(stats))
    return EntityFeature(entity, spec, value, False, f"decayed({entity})")


def _entity_name(entity: Any, what: str) -> str:
    """The name of an entity: its field, or those of its fields with a plus between them."""
    if isinstance(entity, str):
        return entity
    names = tuple(entity) if isinstance(entity, Sequence) else ()
    if len(names) < 2 or len(set(names)) < len(names) or not all(map(_is_field_name, names)):
        raise DeclarationError(
            f"{what}({entity!r}, …) must name a field, or two or more different ones in a tuple, "
            "such as ('card', 'merchant')"
        )
    return JOINED.join(names)


def _is_field_name(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier()


def _column_names(entity: str, spec: Spec) -> list[str]:
    prefix = entity.replace(JOINED, "_")
    return [f"{prefix}_{name}" for name in spec.columns()]


def _widths_ms(over: Sequence[str] | str, label: str) -> tuple[int, ...]:
    widths = (over,) if isinstance(over, str) else tuple(over)
    if not widths:
        raise DeclarationError(f"{label} needs at least one width, for example over='10m'")
    return tuple(parse_duration_ms(width) for width in widths)
