"""Which events may enter: the rules of the pipeline for late and repeated ones, worked out anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.skew.arrival_order import Arrivals
from anabranch.dataflows.skew.message_reader import ID, PARTITION
from anabranch.dataflows.skew.row_features import TIME
from anabranch.state.durations import parse_duration_ms


@dataclass(frozen=True, slots=True)
class Admitted:
    """The events that enter, in order of arrival, and how many did not."""

    frame: pl.DataFrame
    late: int
    repeated: int


def admitted(pipeline: Pipeline, arrivals: Arrivals) -> Admitted:
    """Leave out what is later than the lateness, and ids that were there before.

    An event is late when its time is more than ``lateness`` behind the greatest so far. An id is
    remembered, within its partition, until the end of the period of ``duplicates`` that follows
    the one in which it came; periods are those of the greatest time so far. Late events are
    remembered too.
    """
    frame = arrivals.frame
    times = frame[TIME].to_numpy()
    newest = np.maximum.accumulate(times)
    late = times < newest - parse_duration_ms(pipeline.allowed_lateness)
    period = newest // max(parse_duration_ms(pipeline.dedup_window), 1)
    repeated = np.zeros(len(frame), np.bool_)
    repeated[_repeats(frame, period.tolist())] = True
    enters = ~late & ~repeated
    if not enters.all():
        frame = frame.filter(pl.Series(enters))
    return Admitted(frame, int(late.sum()), int((repeated & ~late).sum()))


def _repeats(frame: pl.DataFrame, period: list[int]) -> list[int]:
    """Rows whose id came before and is still remembered."""
    often = frame.select(
        pl.int_range(pl.len()).alias("row"),
        PARTITION,
        ID,
        pl.struct(PARTITION, ID).is_duplicated().alias("often"),
    ).filter("often")
    came: dict[tuple[int, str], int] = {}
    found = []
    for row, partition, name, _ in often.iter_rows():
        before = came.get((partition, name))
        if before is not None and period[row] <= before + 1:
            found.append(row)
        else:
            came[partition, name] = period[row]
    return found
