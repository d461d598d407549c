"""Compares served features with recomputed ones: rows that differ or are missing, by feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.dataflows.skew.arrival_order import ArrivedEvents, History
from anabranch.dataflows.skew.message_reader import ID, OFFSET, PARTITION
from anabranch.dataflows.skew.recompute import Recomputed
from anabranch.dataflows.skew.row_features import TIME
from anabranch.dataflows.skew.served_features import ServedFeatures
from anabranch.state.errors import InputError

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
EXAMPLES = 3
_EQUAL = 1e-9
_FEW = 0.05


@dataclass(frozen=True, slots=True)
class Example:
    """A row whose values differ."""

    id: str
    served: float
    recomputed: float


@dataclass(frozen=True, slots=True)
class FeatureSkew:
    """The comparison of one feature.

    Attributes:
        name: the feature.
        rows: rows compared.
        differing: rows that differ by more than the tolerance.
        largest: the largest difference; infinite if one value is NaN and the other is not.
        examples: the rows with the largest differences.
        undecided: rows that differ, but where a label was published so close to the event that it
            is unknown which was read first; not counted as differing.
    """

    name: str
    rows: int
    differing: int
    largest: float
    examples: list[Example]
    undecided: int = 0

    @property
    def share(self) -> float:
        """The share of rows that differ."""
        return self.differing / self.rows if self.rows else 0.0


@dataclass(slots=True)
class SkewReport:
    """The result of a comparison.

    Attributes:
        events: messages read; of these ``malformed``, ``late``, ``duplicates`` and ``too_large``
            get no prediction.
        served: served rows read.
        compared: rows compared.
        warming_up: rows not compared, as earlier events may be missing.
        not_served: events without a served row, although later and earlier ones have one.
        outside: events before the first or after the last served row of their partition.
        unknown: served rows that belong to no event that should be served.
        missing: examples of ids that are not served, or unknown.
        features: the comparison by feature, the worst first.
        not_checked: features that can't be recomputed.
        incomplete: feature → rows that were not compared, as its windows reach behind the first
            event that was read, and earlier ones are missing.
        history: the events before those of the topic that were read too.
    """

    pipeline: str
    events: int
    malformed: int
    late: int
    duplicates: int
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
    incomplete: dict[str, int] = field(default_factory=dict)
    history: History | None = None

    def worst_share(self) -> float:
        """The largest share of differing rows of any feature, or the share of missing rows."""
        return max([self.missing_share(), *(each.share for each in self.features)])

    def missing_share(self) -> float:
        """The share of rows that only one side has."""
        missing = self.not_served + self.unknown
        return missing / (self.compared + self.warming_up + missing)


def compare(
    pipeline: str,
    arrived: ArrivedEvents,
    recomputed: Recomputed,
    served: ServedFeatures,
    *,
    tolerance: float,
    warm_up_ms: int = 0,
    look_back_ms: Mapping[str, int] | None = None,
    order_tolerance_ms: int = 0,
) -> SkewReport:
    """Compare served features with recomputed ones, row by row.

    Args:
        pipeline: name of the pipeline, for the report.
        arrived: the events that were read.
        recomputed: their features.
        served: the served features.
        tolerance: two values match if they differ by at most ``tolerance * (1 + |recomputed|)``,
            plus what rounding alone may cause.
        warm_up_ms: leave out rows less than this after the first event, in event time.
        look_back_ms: by feature, leave out rows less than this after the first event.
        order_tolerance_ms: windows over labels may differ where the event and a label of its key
            were published less than this apart: messages of two topics are read in either order.

    Raises:
        InputError: no served row belongs to an event that was read.
    """
    own = recomputed.events[OFFSET].to_numpy() >= 0  # the others are of the history before
    expected = np.flatnonzero(recomputed.served & own)
    events = recomputed.events[expected]
    event_rows, served_rows = _match(arrived, events, served)
    if not len(event_rows):
        raise InputError(
            f"no row of {served.source} belongs to an event of {arrived.source}: name the "
            "predictions of the run that read these events"
        )
    since_first = events[TIME].to_numpy()[event_rows] - arrived.first_ms
    warm = since_first >= warm_up_ms
    report = _report(pipeline, arrived, recomputed, served, events, event_rows, served_rows)
    report.compared, report.warming_up = int(warm.sum()), int((~warm).sum())
    if not report.compared:
        raise InputError(
            f"all rows of {served.source} belong to the first events of {arrived.source}, before "
            "which others may be missing: wait for later events, or give a shorter --warm-up"
        )
    for name, values in recomputed.features.items():
        look_back = 0 if look_back_ms is None else look_back_ms.get(name, 0)
        used = warm & (since_first >= look_back)
        if not used.all() and used.sum() < warm.sum():
            report.incomplete[name] = int(warm.sum() - used.sum())
        if not used.any():
            continue
        rows = expected[event_rows[used]]
        distance_ms = recomputed.label_distance_ms.get(name)
        feature = _compare_feature(
            name,
            served.features[name][served_rows[used]],
            values[rows],
            tolerance=tolerance,
            rounding=recomputed.rounding[name][rows] if name in recomputed.rounding else 0.0,
            undecided=None if distance_ms is None else distance_ms[rows] < order_tolerance_ms,
            ids=events[ID][event_rows[used]],
        )
        report.features.append(feature)
    if report.incomplete and not any(each.name in report.incomplete for each in report.features):
        raise InputError(
            f"the windows of all rows of {served.source} reach behind the first event of "
            f"{arrived.source}, and the pipeline knew earlier ones: give those with --warmup-from, "
            "wait for later events, or compare anyway with --warm-up 0s"
        )
    report.features.sort(key=lambda each: (-each.share, -each.largest))
    return report


def _report(
    pipeline: str,
    arrived: ArrivedEvents,
    recomputed: Recomputed,
    served: ServedFeatures,
    events: pl.DataFrame,
    event_rows: I64,
    served_rows: I64,
) -> SkewReport:
    """A report with the numbers of messages and of rows that don't match."""
    not_served, outside = _unmatched(events[PARTITION].to_numpy(), event_rows)
    unknown = np.setdiff1d(np.arange(len(served)), served_rows)
    return SkewReport(
        pipeline=pipeline,
        events=arrived.read,
        malformed=arrived.malformed,
        late=recomputed.late,
        duplicates=recomputed.duplicates,
        too_large=int(
            np.count_nonzero(~recomputed.served & (recomputed.events[OFFSET].to_numpy() >= 0))
        ),
        served=len(served),
        not_served=len(not_served),
        outside=outside,
        unknown=len(unknown),
        missing=_missing_ids(events, not_served, served, unknown),
        not_checked=recomputed.not_checked,
        history=arrived.history,
    )


def earlier_events_are_missing(
    arrived: ArrivedEvents,
    recomputed: Recomputed,
    served: ServedFeatures,
    windows: Mapping[str, Sequence[str]],
) -> bool:
    """Whether served windows hold events that were not read: the pipeline knew earlier ones.

    Values that differ show it by where they are. An event that is missing leaves the windows of its
    key after a while, so the rows of a key differ up to some time and agree from then on; and where
    it is in one window, it is in all longer ones. Skew of other kinds does not look like that.
    ``windows`` are the features over events, by entity.
    """
    own = recomputed.events[OFFSET].to_numpy() >= 0
    expected = np.flatnonzero(recomputed.served & own)
    event_rows, served_rows = _match(arrived, recomputed.events[expected], served)
    rows = expected[event_rows]
    times = recomputed.events[TIME].to_numpy()[rows]
    found = False
    for entity, keys in recomputed.keys.items():
        differ = {
            name: ~np.isclose(
                served.features[name][served_rows], values[rows], _EQUAL, _EQUAL, equal_nan=True
            )
            for name, values in recomputed.features.items()
            if name in windows[entity]
        }
        if not any(each.any() for each in differ.values()):
            continue
        most = max(differ.values(), key=np.count_nonzero)
        outside = sum(np.count_nonzero(each & ~most) for each in differ.values())
        if outside > _FEW * sum(map(np.count_nonzero, differ.values())):
            return False
        order = np.lexsort((times, keys[rows]))
        changes = [_changes(each[order], keys[rows][order]) for each in differ.values()]
        begins, ends = (sum(each) for each in zip(*changes, strict=True))
        if not ends or begins > _FEW * (begins + ends):
            return False
        found = True
    return found


def _changes(differs: NDArray[np.bool_], keys: I64) -> tuple[int, int]:
    """How often rows begin to differ, and how often they end to, within the rows of a key."""
    same_key = keys[1:] == keys[:-1]
    begins = np.count_nonzero(~differs[:-1] & differs[1:] & same_key)
    return int(begins), int(np.count_nonzero(differs[:-1] & ~differs[1:] & same_key))


def _compare_feature(
    name: str,
    served: F64,
    recomputed: F64,
    *,
    tolerance: float,
    rounding: F64 | float,
    undecided: NDArray[np.bool_] | None,
    ids: pl.Series,
) -> FeatureSkew:
    """Compare one feature; all arrays are ``(rows,)``."""
    same = (served == recomputed) | (np.isnan(served) & np.isnan(recomputed))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(served - recomputed))
        difference[np.isnan(difference)] = np.inf
        close = difference <= tolerance * (1 + np.abs(recomputed)) + rounding
    differs = ~same & (~close | np.isinf(difference))
    undecided_rows = 0
    if undecided is not None:
        undecided_rows = int(np.count_nonzero(differs & undecided))
        difference[undecided] = 0.0
        differs &= ~undecided
    differing = np.flatnonzero(differs)
    worst = differing[np.argsort(-difference[differing], kind="stable")[:EXAMPLES]].tolist()
    examples = [Example(ids[row], float(served[row]), float(recomputed[row])) for row in worst]
    largest = float(difference.max())
    return FeatureSkew(name, len(served), len(differing), largest, examples, undecided_rows)


def _match(arrived: ArrivedEvents, events: pl.DataFrame, served: ServedFeatures) -> tuple[I64, I64]:
    """Match rows of ``events`` and of ``served``; both as row numbers, in order of arrival.

    They are joined by partition and offset if the served rows refer to this topic and the ids
    agree; otherwise by id, occurrence by occurrence where an id is not unique.
    """
    keys = served.keys
    if {"topic", "partition", "offset"} <= set(keys.columns):
        on = ["partition", "offset"]
        left = events.select(pl.col(PARTITION).alias(on[0]), pl.col(OFFSET).alias(on[1]))
        event_rows, served_rows = _joined(left, keys.select(on), on)
        same_topic = (keys["topic"] == arrived.topic).all()
        if same_topic and _same_ids(events, event_rows, keys, served_rows):
            return event_rows, served_rows
    if "id" not in keys.columns:
        raise InputError(
            f"the rows of {served.source} don't say to which events they belong: they need a "
            "column 'id'"
        )
    occurrence = pl.int_range(pl.len()).over("id").alias("occurrence")
    left = events.select(pl.col(ID).alias("id")).with_columns(occurrence)
    return _joined(left, keys.select("id").with_columns(occurrence), ["id", "occurrence"])


def _joined(left: pl.DataFrame, right: pl.DataFrame, on: list[str]) -> tuple[I64, I64]:
    """Row numbers of left and right rows with equal values, in the order of the left."""
    right = right.with_row_index("right").unique(on, keep="first")
    both = left.with_row_index("left").join(right, on=on).sort("left")
    return both["left"].cast(pl.Int64).to_numpy(), both["right"].cast(pl.Int64).to_numpy()


def _same_ids(events: pl.DataFrame, event_rows: I64, keys: pl.DataFrame, served_rows: I64) -> bool:
    return "id" not in keys.columns or events[ID][event_rows].equals(keys["id"][served_rows])


def _unmatched(partitions: I64, matched: I64) -> tuple[I64, int]:
    """Unmatched rows between the first and last match of their partition; number of the others."""
    rows = np.arange(len(partitions))
    missing = np.setdiff1d(rows, matched)
    inside = np.zeros(len(missing), np.bool_)
    for partition in np.unique(partitions[matched]).tolist():
        own = matched[partitions[matched] == partition]
        among = partitions[missing] == partition
        inside |= among & (missing > own.min()) & (missing < own.max())
    return missing[inside], int((~inside).sum())


def _missing_ids(
    events: pl.DataFrame, not_served: I64, served: ServedFeatures, unknown: I64
) -> list[str]:
    """Examples of missing rows, for people."""
    ids = [f"{events[ID][row]} (not served)" for row in not_served[:EXAMPLES].tolist()]
    has_id = "id" in served.keys.columns
    for row in unknown[:EXAMPLES].tolist():
        ids.append(f"{served.keys['id'][row] if has_id else f'row {row}'} (no event)")
    return ids
