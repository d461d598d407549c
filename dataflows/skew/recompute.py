"""Recomputes the features of a pipeline from its declaration, for every accepted event."""

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
from anabranch.dataflows.skew.arrival_order import ArrivedEvents
from anabranch.dataflows.skew.label_join import LabelSteps, delayed_label_steps, inline_label_steps
from anabranch.dataflows.skew.late_and_duplicate import accepted_events
from anabranch.dataflows.skew.message_reader import ID, LABEL, MAX_NUMBER, OFFSET, PARTITION
from anabranch.dataflows.skew.progress import OnProgress, ignore_progress
from anabranch.dataflows.skew.row_features import TIME, row_columns
from anabranch.dataflows.skew.timeline import Timeline
from anabranch.dataflows.skew.window_stats import decayed, distinct, since_last, windows
from anabranch.state.durations import parse_duration_ms
from anabranch.state.windows.specs import (
    DecayedSpec,
    DistinctSpec,
    SinceLastSpec,
    Spec,
    WindowSpec,
)
from anabranch.state.windows.statistics import STATISTICS

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

Columns = list[tuple[F64, F64 | None]]
"""Values in order of arrival, ``(n,)``, and how much each may differ because of rounding."""


@dataclass(slots=True)
class Recomputed:
    """Recomputed features: a row for each accepted event, in order of arrival.

    Attributes:
        events: `ID`, `PARTITION`, `OFFSET` and `TIME` of each row.
        features: name → ``(n,) float64``.
        rounding: name → ``(n,) float64``, the difference that rounding alone may cause.
        not_checked: features that can't be recomputed, or whose labels are unknown.
        served: ``(n,) bool``: False if a feature is too large for any model, so that the pipeline
            gives a dead letter and no prediction.
        label_distance_ms: window over labels → ``(n,) int64``, time between the publishing of the
            event and of the nearest label of its key. If it is short, they may have been read in
            the other order.
        keys: entity → ``(n,) int64``, a code for the key of each row.
        late, duplicates: numbers of events dropped.
    """

    events: pl.DataFrame
    features: dict[str, F64] = field(default_factory=dict)
    rounding: dict[str, F64] = field(default_factory=dict)
    not_checked: list[str] = field(default_factory=list)
    served: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    label_distance_ms: dict[str, I64] = field(default_factory=dict)
    keys: dict[str, I64] = field(default_factory=dict)
    late: int = 0
    duplicates: int = 0

    def add(self, feature: Feature, columns: Columns | None) -> None:
        """Add the columns of a feature; None if it can't be recomputed."""
        if columns is None:
            self.not_checked += feature.columns()
            return
        for name, (values, rounding) in zip(feature.columns(), columns, strict=True):
            self.features[name] = values
            if rounding is not None:
                self.rounding[name] = rounding


def recompute(
    pipeline: Pipeline, arrived: ArrivedEvents, on_progress: OnProgress = ignore_progress
) -> Recomputed:
    """Recompute all features of a pipeline, for every event that it accepts."""
    accepted = accepted_events(pipeline, arrived)
    frame = accepted.frame
    result = Recomputed(
        frame.select(ID, PARTITION, OFFSET, TIME),
        late=accepted.late,
        duplicates=accepted.duplicates,
    )
    entities: dict[str, _Entity] = {}
    result.keys = {entity: _codes(frame[entity]) for entity in pipeline.entities}
    total = len(pipeline.features)
    over_labels = [each for each in pipeline.features if isinstance(each, LabelWindow)]
    for done, feature in enumerate(pipeline.features):
        on_progress("recomputing features", done, total)
        if not isinstance(feature, LabelWindow):
            result.add(feature, _columns(pipeline, feature, frame, entities))
    result.served = np.ones(len(frame), np.bool_)
    for values in result.features.values():
        result.served &= np.abs(values) <= MAX_NUMBER  # False for NaN
    if over_labels:  # last, as only events that are predicted get labels
        _add_label_windows(pipeline, over_labels, frame, arrived, result)
    on_progress("recomputing features", total, total)
    return result


def window_columns(pipeline: Pipeline) -> dict[str, list[str]]:
    """Entity → its features over events."""
    return {
        entity: [name for feature, _ in features for name in feature.columns()]
        for entity, features in pipeline.entities.items()
    }


def look_back_ms(pipeline: Pipeline) -> dict[str, int]:
    """Feature → how far back in event time it depends on earlier events, in ms."""
    label = pipeline.label
    timeout_ms = parse_duration_ms(label.timeout) if isinstance(label, Delayed) else 0
    found: dict[str, int] = {}
    for feature in pipeline.features:
        names = feature.columns()
        if not isinstance(feature, KeyedFeature):
            found |= dict.fromkeys(names, 0)
            continue
        spec = feature.spec
        memories = spec.memories_ms()
        if isinstance(spec, DecayedSpec):  # exact only where all is forgotten
            memories = [spec.retention_ms] * len(names)
        elif isinstance(spec, WindowSpec):
            memories = [memory + spec.resolution_ms for memory in memories]
        more = timeout_ms if isinstance(feature, LabelWindow) else 0
        found |= {name: memory + more for name, memory in zip(names, memories, strict=True)}
    return found


def longest_look_back_ms(pipeline: Pipeline) -> int:
    """How far back in event time features depend on earlier events, in ms."""
    return max(look_back_ms(pipeline).values(), default=0)


def _columns(
    pipeline: Pipeline, feature: Feature, frame: pl.DataFrame, entities: dict[str, _Entity]
) -> Columns | None:
    if not isinstance(feature, EntityFeature):
        columns = row_columns(feature, frame, pipeline.local_time)
        return None if columns is None else [(column.to_numpy(), None) for column in columns]
    if feature.entity not in frame.columns or feature.value not in (None, *frame.columns):
        return None  # not a feature of the event's fields
    entity = entities.get(feature.entity)
    if entity is None:
        lateness_ms = parse_duration_ms(pipeline.allowed_lateness)
        entity = entities[feature.entity] = _Entity(frame, feature.entity, lateness_ms)
    return entity.columns(feature)


def _add_label_windows(
    pipeline: Pipeline,
    features: list[LabelWindow],
    frame: pl.DataFrame,
    arrived: ArrivedEvents,
    result: Recomputed,
) -> None:
    """Add the windows over labels, for the events that are predicted; 0 for the others."""
    events = frame.filter(pl.Series(result.served))
    if LABEL in events.columns:
        steps = inline_label_steps(events, pipeline.task)
    elif arrived.labels is not None:
        steps = delayed_label_steps(pipeline, events, arrived.labels.frame)
    else:
        for feature in features:
            result.add(feature, None)
        return
    # Labels may arrive in any order of their times.
    max_lateness = int((np.maximum.accumulate(steps.time) - steps.time).max(initial=0))
    entities: dict[str, tuple[_Entity, I64]] = {}
    for feature in features:
        if feature.entity not in entities:
            keys = events[feature.entity].gather(steps.row)
            rows = pl.DataFrame({feature.entity: keys, TIME: steps.time, LABEL: steps.value})
            entity = _Entity(rows, feature.entity, max_lateness)
            entities[feature.entity] = entity, _label_distance_ms(steps, _codes(keys))
        entity, distance_ms = entities[feature.entity]
        columns = entity.columns(EntityFeature(feature.entity, feature.spec, LABEL, False, ""))
        assert columns is not None
        result.add(feature, [_of_queries(column, steps, result.served) for column in columns])
        if arrived.labels is not None:
            expanded = _expand(distance_ms, result.served)
            result.label_distance_ms |= dict.fromkeys(feature.columns(), expanded)


def _of_queries(
    column: tuple[F64, F64 | None], steps: LabelSteps, served: NDArray[np.bool_]
) -> tuple[F64, F64 | None]:
    """The values of a column at the queries, 0 for events that are not served."""
    values, rounding = column
    clipped = np.clip(values[steps.queries], -MAX_NUMBER, MAX_NUMBER)
    return (
        _expand(clipped, served),
        None if rounding is None else _expand(rounding[steps.queries], served),
    )


def _label_distance_ms(steps: LabelSteps, keys: I64) -> I64:
    """For each query, the time between its publishing and that of the key's nearest label."""
    far = np.int64(2**62)
    has_label = ~np.isnan(steps.value)
    order = np.lexsort((steps.published, keys))
    nearest = np.full(len(keys), far)
    for backwards in (False, True):
        direction = order[::-1] if backwards else order
        labels = np.where(has_label[direction], np.arange(len(direction)), -1)
        last = np.maximum.accumulate(labels) if len(direction) else labels
        exists = (last >= 0) & (keys[direction] == keys[direction[last]])
        apart = np.abs(steps.published[direction] - steps.published[direction[last]])
        nearest[direction] = np.minimum(nearest[direction], np.where(exists, apart, far))
    return nearest[steps.queries]


def _expand(values: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[Any]:
    """An array with ``values`` at the rows ``where``, and 0 elsewhere."""
    expanded = np.zeros(len(where), values.dtype)
    expanded[where] = values
    return expanded


class _Entity:
    """The keys of one entity, with a timeline per resolution."""

    def __init__(self, frame: pl.DataFrame, name: str, max_lateness_ms: int) -> None:
        self._frame = frame
        self._keys: I64 = _codes(frame[name])
        self._no_key = self._keys < 0
        self._times: I64 = frame[TIME].to_numpy()
        self._max_lateness_ms = max_lateness_ms
        self._timelines: dict[int, Timeline] = {}

    def columns(self, feature: EntityFeature) -> Columns | None:
        """The columns of a feature; None if its kind can't be recomputed."""
        spec, value = feature.spec, feature.value
        match spec:
            case WindowSpec():
                line = self._timeline(spec.resolution_ms or 1)
                widths = [-(-width // (spec.resolution_ms or 1)) for width in spec.widths_ms]
                values = None if value is None else self._numbers(value)
                by_position, rounding = windows(line, values, widths, spec.stats, self._times)
            case DecayedSpec() if value is not None:
                line = self._timeline(1)
                by_position, rounding = decayed(
                    line, self._numbers(value), spec.half_life_ms, spec.stats
                )
            case SinceLastSpec():
                line, rounding = self._timeline(1), [None]
                by_position = [since_last(line, spec.within_ms)]
            case DistinctSpec() if value is not None:
                line, rounding = self._timeline(1), [None] * len(spec.widths_ms)
                codes = _codes(self._frame[value])
                by_position = [distinct(line, codes, width) for width in spec.widths_ms]
            case _:
                return None
        columns = [
            (by_place[line.position], None if free is None else free[line.position])
            for by_place, free in zip(by_position, rounding, strict=True)
        ]
        if self._no_key.any():
            for (values_of, _), empty in zip(columns, _of_empty_window(spec), strict=True):
                values_of[self._no_key] = empty
        return columns

    def _timeline(self, resolution_ms: int) -> Timeline:
        """The timeline by panes of ``resolution_ms``; 1: by time."""
        timeline = self._timelines.get(resolution_ms)
        if timeline is None:
            times = self._times // resolution_ms
            max_lateness = self._max_lateness_ms // resolution_ms + 1
            timeline = Timeline(self._keys, times, max_lateness)
            self._timelines[resolution_ms] = timeline
        return timeline

    def _numbers(self, name: str) -> F64:
        """A number column, NaN for null."""
        return self._frame[name].to_numpy()


def _of_empty_window(spec: Spec) -> list[float]:
    """What a spec's features are for an event that has no entity."""
    match spec:
        case WindowSpec():
            return [STATISTICS[stat].empty for _ in spec.widths_ms for stat in spec.stats]
        case SinceLastSpec():
            return [spec.within_ms / 1000]
    return [0.0] * len(spec.columns())


def _codes(texts: pl.Series) -> I64:
    """A code per distinct text, -1 for null: ``(n,) int64``."""
    codes: I64 = texts.rank("dense").cast(pl.Int64).fill_null(-1).to_numpy()
    return codes
