"""The features of a pipeline, recomputed from its declaration for every event that entered."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dataflows.features import EntityFeature, Feature, LabelWindow
from dataflows.pipeline import Pipeline
from dataflows.skew.admitted import admitted
from dataflows.skew.arrivals import ID, LARGEST, OFFSET, PARTITION, Arrivals
from dataflows.skew.row_features import TIME, row_columns
from dataflows.skew.timeline import Timeline
from dataflows.skew.watch import Watch, unwatched
from dataflows.skew.window_stats import decayed, distinct, since_last, windows
from state.aggregates import DecayedSpec, DistinctSpec, SinceLastSpec, WindowSpec
from state.durations import parse_duration_ms

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

Columns = list[tuple[F64, F64 | None]]
"""Values by arrival, ``(n,)``, and by how much each may differ for rounding alone."""


@dataclass(slots=True)
class Recomputed:
    """Features by other means: a row for each event that entered, in order of arrival.

    Attributes:
        places: `ID`, `PARTITION`, `OFFSET` and `TIME` of each row.
        features: name → ``(n,) float64``.
        slack: name → ``(n,) float64``, what rounding alone may make of a difference.
        not_checked: features of kinds that are not recomputed here.
        served: ``(n,) bool``: False where a feature is too large for any model, so that the
            pipeline gives a dead letter and no prediction.
        late, repeated: how many events did not enter.
    """

    places: pl.DataFrame
    features: dict[str, F64] = field(default_factory=dict)
    slack: dict[str, F64] = field(default_factory=dict)
    not_checked: list[str] = field(default_factory=list)
    served: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    late: int = 0
    repeated: int = 0


def recompute(pipeline: Pipeline, arrivals: Arrivals, watch: Watch = unwatched) -> Recomputed:
    """All features of the declaration, for every event that entered."""
    entering = admitted(pipeline, arrivals)
    frame = entering.frame
    found = Recomputed(
        frame.select(ID, PARTITION, OFFSET, TIME), late=entering.late, repeated=entering.repeated
    )
    entities: dict[str, _Entity] = {}
    total = len(pipeline.features)
    for done, feature in enumerate(pipeline.features):
        watch("recomputing features", done, total)
        columns = _columns(pipeline, feature, frame, entities)
        if columns is None:
            found.not_checked += feature.columns()
            continue
        for name, (values, slack) in zip(feature.columns(), columns, strict=True):
            found.features[name] = values
            if slack is not None:
                found.slack[name] = slack
    watch("recomputing features", total, total)
    found.served = np.ones(len(frame), np.bool_)
    for values in found.features.values():
        found.served &= np.abs(values) <= LARGEST  # NaN compares as false
    return found


def longest_look_back_ms(pipeline: Pipeline) -> int:
    """How far back the features of an event reach, in ms."""
    specs = [feature.spec for feature in pipeline.features if isinstance(feature, EntityFeature)]
    return max((spec.retention_ms for spec in specs), default=0)


def _columns(
    pipeline: Pipeline, feature: Feature, frame: pl.DataFrame, entities: dict[str, _Entity]
) -> Columns | None:
    if isinstance(feature, LabelWindow):
        return None  # made of labels, not of events
    if not isinstance(feature, EntityFeature):
        found = row_columns(feature, frame)
        return None if found is None else [(column.to_numpy(), None) for column in found]
    if feature.entity not in frame.columns or feature.value not in (None, *frame.columns):
        return None  # made of something else than the event
    entity = entities.get(feature.entity)
    if entity is None:
        lateness_ms = parse_duration_ms(pipeline.lateness)
        entity = entities[feature.entity] = _Entity(frame, feature.entity, lateness_ms)
    return entity.columns(feature)


class _Entity:
    """The keys of one entity, and their timelines by resolution."""

    def __init__(self, frame: pl.DataFrame, name: str, lateness_ms: int) -> None:
        self._frame = frame
        self._keys: I64 = _codes(frame[name])
        self._times: I64 = frame[TIME].to_numpy()
        self._lateness_ms = lateness_ms
        self._timelines: dict[int, Timeline] = {}

    def columns(self, feature: EntityFeature) -> Columns | None:
        """The columns of one of its features."""
        spec, value = feature.spec, feature.value
        match spec:
            case WindowSpec():
                line = self._timeline(spec.resolution_ms or 1)
                widths = [-(-width // (spec.resolution_ms or 1)) for width in spec.widths_ms]
                values = None if value is None else self._numbers(value)
                found, slack = windows(line, values, widths, spec.stats, self._times)
            case DecayedSpec() if value is not None:
                line = self._timeline(1)
                found, slack = decayed(line, self._numbers(value), spec.half_life_ms, spec.stats)
            case SinceLastSpec():
                line, slack = self._timeline(1), [None]
                found = [since_last(line, spec.within_ms)]
            case DistinctSpec() if value is not None:
                line, slack = self._timeline(1), [None] * len(spec.widths_ms)
                codes = _codes(self._frame[value])
                found = [distinct(line, codes, width) for width in spec.widths_ms]
            case _:
                return None
        return [
            (by_place[line.place], None if free is None else free[line.place])
            for by_place, free in zip(found, slack, strict=True)
        ]

    def _timeline(self, resolution_ms: int) -> Timeline:
        """By time, or by panes of so many ms."""
        found = self._timelines.get(resolution_ms)
        if found is None:
            times = self._times // resolution_ms
            reach = self._lateness_ms // resolution_ms + 1
            found = self._timelines[resolution_ms] = Timeline(self._keys, times, reach)
        return found

    def _numbers(self, name: str) -> F64:
        """Null is NaN."""
        return self._frame[name].to_numpy()


def _codes(texts: pl.Series) -> I64:
    """A number per different text, -1 for null: ``(n,) int64``."""
    codes: I64 = texts.rank("dense").cast(pl.Int64).fill_null(-1).to_numpy()
    return codes
