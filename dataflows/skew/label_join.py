"""Determines which labels each event could see: the label rules, implemented independently.

Events and labels are merged in order of publishing, and become the steps of windows over labels: an
event queries its windows, and a label (or the default after a timeout) is added to them::

    in order    event a    event b    label of a    event c    label of b    timeout of event c
    steps       query a    query b    add a         query c    add b         add default of c

Steps that add have a value, steps that query have none. Nothing here is shared with the kernels.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.dataflows.skew.message_reader import ID, LABEL, OFFSET, PARTITION, PUBLISHED
from anabranch.dataflows.skew.row_features import TIME
from anabranch.models.learners.learner import Task
from anabranch.state.labels.label_limits import MAX_EARLY, MAX_RESOLVED, LabelLimits

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

_QUERY = float("nan")
_LABEL = -1
_DAY_MS = 86_400_000
_Finished = tuple[int, float, int]
"""A row that has got its label: the row, the value, and the watermark at that point."""


@dataclass(slots=True)
class LabelSteps:
    """The operations on windows over labels, in order; arrays are ``(steps,)``.

    Attributes:
        row: int64, the event to whose key the step belongs.
        time: int64, event time in epoch ms.
        value: float64 to add; NaN for a query.
        published: int64, publishing time of the message that caused the step, see `PUBLISHED`.
    """

    row: I64
    time: I64
    value: F64
    published: I64

    @property
    def queries(self) -> I64:
        """Indices of the queries: one per event, in order."""
        return np.flatnonzero(np.isnan(self.value))


def inline_label_steps(events: pl.DataFrame, task: Task) -> LabelSteps:
    """The steps for labels that are fields of their events: each query is followed by its label."""
    values = events[LABEL].to_numpy()
    has_label = _is_valid(values, task)
    row = np.repeat(np.arange(len(events)), 1 + has_label)
    value = values[row]
    value[np.cumsum(1 + has_label) - 1 - has_label] = _QUERY
    return LabelSteps(row, events[TIME].to_numpy()[row], value, events[PUBLISHED].to_numpy()[row])


def delayed_label_steps(
    pipeline: Pipeline, events: pl.DataFrame, labels: pl.DataFrame
) -> LabelSteps:
    """The steps for labels from a topic of their own.

    Args:
        pipeline: whose label rules apply.
        events: the events that are predicted, in order of arrival.
        labels: see `Messages.frame`; can be empty.
    """
    label = pipeline.label
    assert isinstance(label, Delayed)
    default = None if label.default is None else float(label.default)
    columns = [PUBLISHED, "rank", PARTITION, OFFSET, ID, TIME]
    merged = events.with_columns(rank=pl.lit(0), number=pl.int_range(pl.len()))
    merged = merged.select(*columns, "number", pl.lit(_QUERY).alias(LABEL))
    if len(labels):
        valid = _is_valid(labels[LABEL].to_numpy(), pipeline.task)
        usable = labels.with_columns(rank=pl.lit(1), number=pl.lit(_LABEL, pl.Int64))
        usable = usable.with_columns(pl.when(pl.Series(valid)).then(LABEL).alias(LABEL))
        merged = pl.concat([merged, usable.select(*columns, "number", LABEL)])
        merged = merged.with_columns(pl.col("number").cast(pl.Int64))
        merged = merged.sort(PUBLISHED, "rank", PARTITION, OFFSET, maintain_order=True)
    join = _LabelJoin(label.rules(), default, events[TIME].to_list())
    for published, name, time, row, value in merged.select(
        PUBLISHED, ID, TIME, "number", LABEL
    ).iter_rows():
        join.process(published, name, time, row, value)
    row, time, value, caused = zip(*join.steps, strict=True) if join.steps else ((), (), (), ())
    return LabelSteps(
        np.array(row, np.int64),
        np.array(time, np.int64),
        np.array(value, np.float64),
        np.array(caused, np.int64),
    )


def _is_valid(values: F64, task: Task) -> NDArray[np.bool_]:
    if task is Task.BINARY:
        return np.isin(values, (0.0, 1.0))
    return np.isfinite(values)


@dataclass(slots=True)
class _LabelJoin:
    """Joins labels to events one message at a time; times are epoch ms."""

    rules: LabelLimits
    default: float | None
    times: list[int]
    steps: list[tuple[int, int, float, int]] = field(default_factory=list)
    _watermark: int = -(2**62)
    _pending: dict[str, int] = field(default_factory=dict)
    _timeouts: list[tuple[int, int, str]] = field(default_factory=list)
    _finished: dict[str, _Finished] = field(default_factory=dict)
    _finished_by_age: deque[tuple[str, _Finished]] = field(default_factory=deque)
    _early: dict[str, tuple[float, int, int]] = field(default_factory=dict)

    @property
    def _retention_ms(self) -> int:
        """How long an id is remembered after its label, or after its timeout."""
        rules = self.rules
        if rules.update_ms is not None:
            return rules.update_ms
        return _DAY_MS if rules.timeout_ms is None else rules.timeout_ms

    def process(self, published: int, name: str, time: int, row: int, value: float | None) -> None:
        """Process an event, or a label if ``row`` is `_LABEL`; its ``value`` is None if invalid."""
        self._watermark = max(self._watermark, time)
        self._apply_timeouts(published)
        self._expire()
        if row != _LABEL:
            self._query(published, name, time, row)
        elif value is not None:
            self._label(published, name, time, value)

    def _query(self, published: int, name: str, time: int, row: int) -> None:
        self.steps.append((row, time, _QUERY, published))
        if name in self._pending:
            return  # the label belongs to the pending one
        early = self._early.pop(name, None)
        if early is not None:
            value, label_time, _ = early
            wait = self.rules.timeout_ms
            if wait is not None and label_time > time + wait and self.rules.update_ms is None:
                self._time_out(published, name, row, time + wait)
                return
            self._finish(name, row, value)
            self.steps.append((row, max(label_time, time), value, published))
            return
        self._pending[name] = row
        if self.rules.timeout_ms is not None:
            heapq.heappush(self._timeouts, (time, row, name))

    def _label(self, published: int, name: str, time: int, value: float) -> None:
        row = self._pending.pop(name, None)
        if row is not None:
            self._finish(name, row, value)
            self.steps.append((row, max(time, self.times[row]), value, published))
        elif name in self._finished:
            self._update(published, name, time, value)
        else:
            self._buffer(name, time, value)

    def _update(self, published: int, name: str, time: int, value: float) -> None:
        """A further label of the same id counts only if it updates the value."""
        row, current, since = self._finished[name]
        if self.rules.update_ms is None or current == value:
            return
        self._finished[name] = (row, value, since)
        self.steps.append((row, time, value, published))

    def _buffer(self, name: str, time: int, value: float) -> None:
        """Buffer a label whose event has not arrived yet."""
        rules = self.rules
        if rules.timeout_ms is not None and time + rules.timeout_ms < self._watermark:
            return
        if rules.early_ms <= 0 or name in self._early:
            return
        if len(self._early) == MAX_EARLY:
            del self._early[next(iter(self._early))]
        self._early[name] = (value, time, self._watermark)

    def _apply_timeouts(self, published: int) -> None:
        wait = self.rules.timeout_ms
        while self._timeouts and wait is not None:
            time, row, name = self._timeouts[0]
            if time + wait >= self._watermark:
                break
            heapq.heappop(self._timeouts)
            if self._pending.get(name) != row:
                continue  # it has got its label
            del self._pending[name]
            self._time_out(published, name, row, time + wait)

    def _time_out(self, published: int, name: str, row: int, due: int) -> None:
        """Finish a row that has waited for too long; the default is learned, if there is one."""
        self._finish(name, row, _QUERY if self.default is None else self.default)
        if self.default is not None:
            self.steps.append((row, due, self.default, published))

    def _finish(self, name: str, row: int, value: float) -> None:
        if self.rules.update_ms is None and len(self._finished_by_age) == MAX_RESOLVED:
            self._expire_oldest()
        entry = self._finished[name] = (row, value, self._watermark)
        self._finished_by_age.append((name, entry))

    def _expire(self) -> None:
        """Expire finished ids and buffered early labels."""
        retention, buffer = self._retention_ms, self.rules.early_ms
        while (
            self._finished_by_age and self._finished_by_age[0][1][2] + retention < self._watermark
        ):
            self._expire_oldest()
        while self._early:
            name = next(iter(self._early))
            if self._early[name][2] + buffer >= self._watermark:
                break
            del self._early[name]

    def _expire_oldest(self) -> None:
        name, entry = self._finished_by_age.popleft()
        current = self._finished.get(name)
        # The id may have arrived again and have a newer entry; an update keeps row and watermark.
        if current is not None and (current[0], current[2]) == (entry[0], entry[2]):
            del self._finished[name]
