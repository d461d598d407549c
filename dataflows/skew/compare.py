"""Served features beside recomputed ones: which rows differ, by how much, and which are missing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.dataflows.skew.arrival_order import Arrivals
from anabranch.dataflows.skew.message_reader import ID, OFFSET, PARTITION
from anabranch.dataflows.skew.recompute import Recomputed
from anabranch.dataflows.skew.row_features import TIME
from anabranch.dataflows.skew.served_features import Served
from anabranch.state.errors import InputError

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Example:
    """One row that differs."""

    id: str
    served: float
    recomputed: float


@dataclass(frozen=True, slots=True)
class FeatureSkew:
    """One feature: of ``rows`` compared, ``differing`` are beyond the tolerance.

    ``largest`` is the largest difference of all rows, NaN beside a number being infinite;
    ``examples`` are the worst. ``undecided`` rows differ too, but a label came so close to the
    event that it is not known which was read first; they are not counted otherwise.
    """

    name: str
    rows: int
    differing: int
    largest: float
    examples: list[Example]
    undecided: int = 0

    @property
    def share(self) -> float:
        """Of the rows that differ."""
        return self.differing / self.rows


@dataclass(slots=True)
class SkewReport:
    """What a comparison found.

    Attributes:
        events, malformed, late, repeated, too_large: messages read, and how many of them give no
            prediction, by reason.
        served: rows of the log.
        compared: rows that both sides have.
        warming_up: rows that both have but for which not all earlier events are known.
        not_served: events inside the log's span without a row in it.
        outside: events before the log's first row or behind its last, in their partition.
        unknown: rows of the log that are about no event that should have been served.
        missing: examples of ids that are not served, or unknown.
        features: the worst first.
        not_checked: features that can't be recomputed.
    """

    pipeline: str
    events: int
    malformed: int
    late: int
    repeated: int
    too_large: int
    served: int
    not_served: int
    outside: int
    unknown: int
    compared: int = 0
    warming_up: int = 0
    missing: list[str] = field(default_factory=list)
    features: list[FeatureSkew] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    def worst_share(self) -> float:
        """The largest share of a feature's rows that differ, or of rows that one side lacks."""
        return max([self.missing_share(), *(each.share for each in self.features)])

    def missing_share(self) -> float:
        """Of the rows that either side has, those that the other lacks."""
        missing = self.not_served + self.unknown
        return missing / (self.compared + self.warming_up + missing)


def compare(
    pipeline: str,
    arrivals: Arrivals,
    recomputed: Recomputed,
    served: Served,
    *,
    tolerance: float,
    warm_up_ms: int = 0,
    order_ms: int = 0,
) -> SkewReport:
    """Compare what was served with what should have been, row by row.

    Two values agree when they differ by ``tolerance * (1 + |recomputed|)`` at most, and what
    rounding alone can make of it. Rows less than ``warm_up_ms`` after the first are left out.
    A feature of labels may differ where a label of the key and the event were published less than
    ``order_ms`` apart: those of different topics are read in one order or the other.

    Raises:
        InputError: no row of the log is about an event that was read.
    """
    expected = np.flatnonzero(recomputed.served)
    places = recomputed.places[expected]
    mine, theirs = _matched(arrivals, places, served)
    if not len(mine):
        raise InputError(
            f"no row of {served.source} is about an event of {arrivals.source}: give the log of "
            "the run that read these events"
        )
    warm = places[TIME].to_numpy()[mine] >= arrivals.first_ms + warm_up_ms
    report = _counted(pipeline, arrivals, recomputed, served, places, mine, theirs)
    report.compared, report.warming_up = int(warm.sum()), int((~warm).sum())
    if not report.compared:
        raise InputError(
            f"all rows of {served.source} are about the first events of {arrivals.source}, before "
            "which others may be missing: wait for later ones, or give a shorter --warm-up"
        )
    mine, theirs = mine[warm], theirs[warm]
    rows, ids = expected[mine], places[ID][mine]
    for name, values in recomputed.features.items():
        slack = recomputed.slack[name][rows] if name in recomputed.slack else 0.0
        of_log = served.features[name][theirs]
        near = recomputed.near.get(name)
        open_order = None if near is None else near[rows] < order_ms
        report.features.append(
            _compared(name, of_log, values[rows], slack, tolerance, ids, open_order)
        )
    report.features.sort(key=lambda each: (-each.share, -each.largest))
    return report


def _counted(
    pipeline: str,
    arrivals: Arrivals,
    recomputed: Recomputed,
    served: Served,
    places: pl.DataFrame,
    mine: I64,
    theirs: I64,
) -> SkewReport:
    """What was read, and what of it has no match."""
    not_served, outside = _unmatched(places[PARTITION].to_numpy(), mine)
    unknown = np.setdiff1d(np.arange(len(served)), theirs)
    return SkewReport(
        pipeline=pipeline,
        events=arrivals.read,
        malformed=arrivals.malformed,
        late=recomputed.late,
        repeated=recomputed.repeated,
        too_large=int(np.count_nonzero(~recomputed.served)),
        served=len(served),
        not_served=len(not_served),
        outside=outside,
        unknown=len(unknown),
        missing=_missing_ids(places, not_served, served, unknown),
        not_checked=recomputed.not_checked,
    )


def _compared(
    name: str,
    served: F64,
    recomputed: F64,
    slack: F64 | float,
    tolerance: float,
    ids: pl.Series,
    open_order: NDArray[np.bool_] | None,
) -> FeatureSkew:
    same = (served == recomputed) | (np.isnan(served) & np.isnan(recomputed))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(served - recomputed))
        apart[np.isnan(apart)] = np.inf
        close = apart <= tolerance * (1 + np.abs(recomputed)) + slack
    differs = ~same & (~close | np.isinf(apart))
    undecided = 0
    if open_order is not None:
        undecided = int(np.count_nonzero(differs & open_order))
        apart[open_order] = 0.0
        differs &= ~open_order
    differing = np.flatnonzero(differs)
    worst = differing[np.argsort(-apart[differing], kind="stable")[:EXAMPLES]].tolist()
    examples = [Example(ids[row], float(served[row]), float(recomputed[row])) for row in worst]
    largest = float(apart.max())
    return FeatureSkew(name, len(served), len(differing), largest, examples, undecided)


def _matched(arrivals: Arrivals, places: pl.DataFrame, served: Served) -> tuple[I64, I64]:
    """Rows that belong together: of ``places`` and of ``served``, by arrival.

    They are joined by where the event stood, if the log says so of this very topic and the ids are
    then the same; else by id. Where an id comes several times, the first belongs to the first.
    """
    where = served.where
    if {"topic", "partition", "offset"} <= set(where.columns):
        on = ["partition", "offset"]
        left = places.select(pl.col(PARTITION).alias(on[0]), pl.col(OFFSET).alias(on[1]))
        mine, theirs = _joined(left, where.select(on), on)
        if (where["topic"] == arrivals.topic).all() and _same_ids(places, mine, where, theirs):
            return mine, theirs
    if "id" not in where.columns:
        raise InputError(
            f"the rows of {served.source} don't say which events they are about: they need a "
            "column 'id'"
        )
    turn = pl.int_range(pl.len()).over("id").alias("turn")
    left = places.select(pl.col(ID).alias("id")).with_columns(turn)
    return _joined(left, where.select("id").with_columns(turn), ["id", "turn"])


def _joined(left: pl.DataFrame, right: pl.DataFrame, on: list[str]) -> tuple[I64, I64]:
    """Row numbers of the left and of the right that have the same values, by the left."""
    right = right.with_row_index("theirs").unique(on, keep="first")
    both = left.with_row_index("mine").join(right, on=on).sort("mine")
    return both["mine"].cast(pl.Int64).to_numpy(), both["theirs"].cast(pl.Int64).to_numpy()


def _same_ids(places: pl.DataFrame, mine: I64, where: pl.DataFrame, theirs: I64) -> bool:
    return "id" not in where.columns or places[ID][mine].equals(where["id"][theirs])


def _unmatched(partitions: I64, matched: I64) -> tuple[I64, int]:
    """Rows without a match between the first and the last match of their partition; and others."""
    rows = np.arange(len(partitions))
    missing = np.setdiff1d(rows, matched)
    inside = np.zeros(len(missing), np.bool_)
    for partition in np.unique(partitions[matched]).tolist():
        own = matched[partitions[matched] == partition]
        among = partitions[missing] == partition
        inside |= among & (missing > own.min()) & (missing < own.max())
    return missing[inside], int((~inside).sum())


def _missing_ids(places: pl.DataFrame, not_served: I64, served: Served, unknown: I64) -> list[str]:
    ids = [f"{places[ID][row]} (not served)" for row in not_served[:EXAMPLES].tolist()]
    named = "id" in served.where.columns
    for row in unknown[:EXAMPLES].tolist():
        ids.append(f"{served.where['id'][row] if named else f'row {row}'} (no event)")
    return ids
