"""Recomputes features of the event alone, such as fields and one-hot columns, with Polars."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from anabranch.dataflows.declaration.casts import text_of
from anabranch.dataflows.declaration.features import (
    DayOfWeek,
    Hashed,
    HourOfDay,
    NumberField,
    OneHot,
)
from anabranch.dataflows.messages.local_time import LocalTime
from anabranch.dataflows.skew.xxh64 import xxh64

TIME = "event time"
"""The column of event times, epoch ms; the name can't clash with a field, as it has a space."""

_CLOCK = "local time"
_DATETIME = pl.from_epoch(pl.col(_CLOCK), time_unit="ms")


def row_columns(
    feature: Any, frame: pl.DataFrame, local: LocalTime | None = None
) -> list[pl.Series] | None:
    """The float64 columns of a feature; None if its kind can't be recomputed here.

    ``frame`` has the event's fields under their names (text, or float64) and `TIME`; ``local`` is
    the pipeline's time zone.
    """
    if isinstance(feature, HourOfDay | DayOfWeek):
        # Not Polars' time zones: it comes with a database of its own, of another year perhaps.
        times = frame[TIME].to_numpy()
        clock = times if local is None else local.wall_ms(times)
        frame = pl.DataFrame({_CLOCK: clock})
    match feature:
        case NumberField(field, missing):
            column = pl.col(field) if missing is None else pl.col(field).fill_null(missing)
            return _select(frame, [column])
        case HourOfDay(_, cyclic):
            return _select(frame, _hours(cyclic))
        case DayOfWeek():
            return _select(frame, [_DATETIME.dt.weekday() - 1])
        case OneHot(field, values):
            return _select(frame, [_equals(frame, field, value) for value in values])
        case Hashed(field, buckets):
            return _hashed(frame[field], buckets)
    return None


def _select(frame: pl.DataFrame, columns: list[pl.Expr]) -> list[pl.Series]:
    named = [column.cast(pl.Float64).alias(str(i)) for i, column in enumerate(columns)]
    return frame.select(named).get_columns()


def _hours(cyclic: bool) -> list[pl.Expr]:
    clock = _DATETIME.dt
    hours = (
        clock.hour().cast(pl.Float64)
        + clock.minute().cast(pl.Float64) / 60
        + (clock.second().cast(pl.Float64) + clock.millisecond().cast(pl.Float64) / 1000) / 3600
    )
    angle = hours * (math.pi / 12)
    return [angle.sin(), angle.cos()] if cyclic else [hours]


def _equals(frame: pl.DataFrame, field: str, value: object) -> pl.Expr:
    is_text = frame.schema[field] == pl.String
    if isinstance(value, str) and not is_text:
        return pl.col(TIME).is_null()  # never equal
    wanted = text_of(value) if is_text else float(value)  # type: ignore[arg-type]
    return pl.col(field).eq(wanted).fill_null(False)


def _hashed(texts: pl.Series, buckets: int) -> list[pl.Series]:
    """One column per bucket; each distinct text is hashed once."""
    distinct = texts.unique(maintain_order=True)
    bucket = xxh64(distinct.to_list()) % np.uint64(buckets)
    by_text = pl.DataFrame({"text": distinct, "bucket": bucket})
    joined = texts.to_frame("text").join(by_text, on="text", how="left", maintain_order="left")
    return [(joined["bucket"] == each).cast(pl.Float64) for each in range(buckets)]
