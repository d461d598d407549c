"""Drops late and duplicate events by the rules of the pipeline, without its code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.skew.arrival_order import ArrivedEvents
from anabranch.dataflows.skew.message_reader import ID, OFFSET
from anabranch.dataflows.skew.row_features import TIME
from anabranch.state.durations import parse_duration_ms


@dataclass(frozen=True, slots=True)
class AcceptedEvents:
    """The events that pass, in order of arrival, and how many were dropped by reason.

    Those of the history before the topic are not counted.
    """

    frame: pl.DataFrame
    late: int
    duplicates: int


def accepted_events(pipeline: Pipeline, arrivals: ArrivedEvents) -> AcceptedEvents:
    """Drop late events, and events whose id was seen before.

    An event is late if its time is more than the allowed lateness behind the watermark, the
    greatest time so far of an event that is no duplicate. An id is remembered, on whichever
    partition it came, until the end of the deduplication window that follows the one in which it
    arrived; these are tumbling windows of the greatest time so far. The ids of late events are
    remembered too.
    """
    frame = arrivals.frame
    times = frame[TIME].to_numpy()
    period = np.maximum.accumulate(times) // max(parse_duration_ms(pipeline.dedup_window), 1)
    duplicate = np.zeros(len(frame), np.bool_)
    duplicate[_duplicates(frame, period.tolist())] = True
    watermark = np.maximum.accumulate(np.where(duplicate, np.iinfo(np.int64).min // 2, times))
    late = times < watermark - parse_duration_ms(pipeline.allowed_lateness)
    passes = ~late & ~duplicate
    own = frame[OFFSET].to_numpy() >= 0
    if not passes.all():
        frame = frame.filter(pl.Series(passes))
    return AcceptedEvents(frame, int((late & own).sum()), int((duplicate & ~late & own).sum()))


def _duplicates(frame: pl.DataFrame, period: list[int]) -> list[int]:
    """Rows whose id has arrived before and is still remembered."""
    repeats = frame.select(
        pl.int_range(pl.len()).alias("row"),
        ID,
        pl.col(ID).is_duplicated().alias("repeats"),
    ).filter("repeats")
    seen: dict[str, int] = {}
    duplicates = []
    for row, name, _ in repeats.iter_rows():
        last = seen.get(name)
        if last is not None and period[row] <= last + 1:
            duplicates.append(row)
        else:
            seen[name] = period[row]
    return duplicates
