"""The features of a pipeline, recomputed from its declaration for every event that entered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.dataflows.declaration.features import (
    EntityFeature,
    Feature,
    KeyedFeature,
    LabelWindow,
)
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.dataflows.skew.arrival_order import Arrivals
from anabranch.dataflows.skew.label_rules import LabelSteps, inline_steps, joined_steps
from anabranch.dataflows.skew.late_and_duplicate import admitted
from anabranch.dataflows.skew.message_reader import ID, LABEL, LARGEST, OFFSET, PARTITION
from anabranch.dataflows.skew.progress import Watch, unwatched
from anabranch.dataflows.skew.row_features import TIME, row_columns
from anabranch.dataflows.skew.timeline import Timeline
from anabranch.dataflows.skew.window_stats import decayed, distinct, since_last, windows
from anabranch.state.durations import parse_duration_ms
from anabranch.state.windows.specs import DecayedSpec, DistinctSpec, SinceLastSpec, WindowSpec

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
        not_checked: features of kinds that are not recomputed here, or of labels that are not
            known.
        near: feature of labels → ``(n,) int64``, by how many ms the nearest label of the same key
            was published before or after the event: so close together, they may have been read in
            the other order.
        served: ``(n,) bool``: False where a feature is too large for any model, so that the
            pipeline gives a dead letter and no prediction.
        late, repeated: how many events did not enter.
    """

    places: pl.DataFrame
    features: dict[str, F64] = field(default_factory=dict)
    slack: dict[str, F64] = field(default_factory=dict)
    not_checked: list[str] = field(default_factory=list)
    served: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    near: dict[str, I64] = field(default_factory=dict)
    late: int = 0
    repeated: int = 0

    def take(self, feature: Feature, columns: Columns | None) -> None:
        """The columns of a feature; None where it can't be recomputed."""
        if columns is None:
            self.not_checked += feature.columns()
            return
        for name, (values, slack) in zip(feature.columns(), columns, strict=True):
            self.features[name] = values
            if slack is not None:
                self.slack[name] = slack


def recompute(pipeline: Pipeline, arrivals: Arrivals, watch: Watch = unwatched) -> Recomputed:
    """All features of the declaration, for every event that entered."""
    entering = admitted(pipeline, arrivals)
    frame = entering.frame
    found = Recomputed(
        frame.select(ID, PARTITION, OFFSET, TIME), late=entering.late, repeated=entering.repeated
    )
    entities: dict[str, _Entity] = {}
    total = len(pipeline.features)
    of_labels = [each for each in pipeline.features if isinstance(each, LabelWindow)]
    for done, feature in enumerate(pipeline.features):
        watch("recomputing features", done, total)
        if isinstance(feature, LabelWindow):
            continue  # only what is predicted gets labels: see below
        columns = _columns(pipeline, feature, frame, entities)
        found.take(feature, columns)
    found.served = np.ones(len(frame), np.bool_)
    for values in found.features.values():
        found.served &= np.abs(values) <= LARGEST  # NaN compares as false
    if of_labels:
        _add_windows_of_labels(pipeline, of_labels, frame, arrivals, found)
    watch("recomputing features", total, total)
    return found


def longest_look_back_ms(pipeline: Pipeline) -> int:
    """How far back the features of an event reach, in ms: of labels, to the events they judge."""
    keyed = [feature for feature in pipeline.features if isinstance(feature, KeyedFeature)]
    label = pipeline.label
    timeout_ms = parse_duration_ms(label.timeout) if isinstance(label, Delayed) else 0
    return max(
        (
            each.spec.retention_ms + (timeout_ms if isinstance(each, LabelWindow) else 0)
            for each in keyed
        ),
        default=0,
    )


def _columns(
    pipeline: Pipeline, feature: Feature, frame: pl.DataFrame, entities: dict[str, _Entity]
) -> Columns | None:
    if not isinstance(feature, EntityFeature):
        found = row_columns(feature, frame)
        return None if found is None else [(column.to_numpy(), None) for column in found]
    if feature.entity not in frame.columns or feature.value not in (None, *frame.columns):
        return None  # made of something else than the event
    entity = entities.get(feature.entity)
    if entity is None:
        lateness_ms = parse_duration_ms(pipeline.allowed_lateness)
        entity = entities[feature.entity] = _Entity(frame, feature.entity, lateness_ms)
    return entity.columns(feature)


def _add_windows_of_labels(
    pipeline: Pipeline,
    features: list[LabelWindow],
    frame: pl.DataFrame,
    arrivals: Arrivals,
    found: Recomputed,
) -> None:
    """The windows over labels, for the events that are predicted; of the others, 0."""
    events = frame.filter(pl.Series(found.served))
    if LABEL in events.columns:
        steps = inline_steps(events, pipeline.task)
    elif arrivals.labels is not None:
        steps = joined_steps(pipeline, events, arrivals.labels.frame)
    else:
        for feature in features:
            found.take(feature, None)
        return
    # Labels may come in any order of their times; all of them can be ahead of one that comes.
    reach = int((np.maximum.accumulate(steps.time) - steps.time).max(initial=0))
    entities: dict[str, tuple[_Entity, I64]] = {}
    for feature in features:
        if feature.entity not in entities:
            keys = events[feature.entity].gather(steps.row)
            rows = pl.DataFrame({feature.entity: keys, TIME: steps.time, LABEL: steps.value})
            entity = _Entity(rows, feature.entity, reach)
            entities[feature.entity] = entity, _nearest_ms(steps, _codes(keys))
        entity, near = entities[feature.entity]
        columns = entity.columns(EntityFeature(feature.entity, feature.spec, LABEL, False, ""))
        assert columns is not None
        found.take(
            feature,
            [
                (
                    _spread(np.clip(values[steps.asks], -LARGEST, LARGEST), found.served),
                    None if slack is None else _spread(slack[steps.asks], found.served),
                )
                for values, slack in columns
            ],
        )
        if arrivals.labels is not None:
            found.near |= dict.fromkeys(feature.columns(), _spread(near, found.served))


def _nearest_ms(steps: LabelSteps, keys: I64) -> I64:
    """For each step that asks: how far away in publishing time the key's nearest label is."""
    far = np.int64(2**62)
    enters = ~np.isnan(steps.value)
    order = np.lexsort((steps.came, keys))
    nearest = np.full(len(keys), far)
    for backwards in (False, True):
        turn = order[::-1] if backwards else order
        places = np.where(enters[turn], np.arange(len(turn)), -1)
        last = np.maximum.accumulate(places) if len(turn) else places
        known = (last >= 0) & (keys[turn] == keys[turn[last]])
        apart = np.abs(steps.came[turn] - steps.came[turn[last]])
        nearest[turn] = np.minimum(nearest[turn], np.where(known, apart, far))
    return nearest[steps.asks]


def _spread(values: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[Any]:
    """Those of the rows ``where``; 0 in the others."""
    found = np.zeros(len(where), values.dtype)
    found[where] = values
    return found


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
