"""Which labels an event could know: the rules for labels, worked out anew, one message at a time.

Events and labels are merged as a backlog is, and each in turn asks, waits, or is judged::

    in order    event a    event b    label of a    event c    label of b    event a's wait is over
    steps       ask a      ask b      enter a       ask c      enter b

Windows over labels are then windows over these steps: those that enter have a value, and those that
ask have none. Nothing here is shared with the kernels of the flow.
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
from anabranch.dataflows.skew.message_reader import ID, LABEL, OFFSET, PARTITION, RISING
from anabranch.dataflows.skew.row_features import TIME
from anabranch.models.learners.learner import Task
from anabranch.state.labels.label_rules import MAX_EARLY, MAX_RESOLVED, LabelRules

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

_ASKS = float("nan")
_LABEL = -1
_DAY_MS = 86_400_000
_Settled = tuple[int, float, int]
"""The row that was judged, by what, and at which watermark."""


@dataclass(slots=True)
class LabelSteps:
    """What happens to the windows over labels, in order; arrays are `(steps,)`.

    Attributes:
        row: int64, the event whose key it is about.
        time: int64 epoch ms.
        value: float64, NaN where an event asks.
        came: int64, the publishing time of the message by which it happened, see `RISING`.
    """

    row: I64
    time: I64
    value: F64
    came: I64

    @property
    def asks(self) -> I64:
        """The steps that ask: one per event, in their order."""
        return np.flatnonzero(np.isnan(self.value))


def inline_steps(events: pl.DataFrame, task: Task) -> LabelSteps:
    """Steps where each event has its own `LABEL`, which enters right after it has asked."""
    values = events[LABEL].to_numpy()
    enters = _can_be_learned(values, task)
    row = np.repeat(np.arange(len(events)), 1 + enters)
    value = values[row]
    value[np.cumsum(1 + enters) - 1 - enters] = _ASKS
    return LabelSteps(row, events[TIME].to_numpy()[row], value, events[RISING].to_numpy()[row])


def joined_steps(pipeline: Pipeline, events: pl.DataFrame, labels: pl.DataFrame) -> LabelSteps:
    """Steps where labels come on their own.

    Args:
        pipeline: its rules.
        events: those that are predicted, in order of arrival.
        labels: as `Messages.frame`; it may be empty.
    """
    label = pipeline.label
    assert isinstance(label, Delayed)
    assumed = None if label.default is None else float(label.default)
    places = [RISING, "rank", PARTITION, OFFSET, ID, TIME]
    merged = events.with_columns(rank=pl.lit(0), number=pl.int_range(pl.len()))
    merged = merged.select(*places, "number", pl.lit(_ASKS).alias(LABEL))
    if len(labels):
        learnable = _can_be_learned(labels[LABEL].to_numpy(), pipeline.task)
        known = labels.with_columns(rank=pl.lit(1), number=pl.lit(_LABEL, pl.Int64))
        known = known.with_columns(pl.when(pl.Series(learnable)).then(LABEL).alias(LABEL))
        merged = pl.concat([merged, known.select(*places, "number", LABEL)])
        merged = merged.with_columns(pl.col("number").cast(pl.Int64))
        merged = merged.sort(RISING, "rank", PARTITION, OFFSET, maintain_order=True)
    walk = _Walk(label.rules(), assumed, events[TIME].to_list())
    for moment, name, time, row, value in merged.select(
        RISING, ID, TIME, "number", LABEL
    ).iter_rows():
        walk.take(moment, name, time, row, value)
    row, time, value, came = zip(*walk.steps, strict=True) if walk.steps else ((), (), (), ())
    return LabelSteps(
        np.array(row, np.int64),
        np.array(time, np.int64),
        np.array(value, np.float64),
        np.array(came, np.int64),
    )


def _can_be_learned(values: F64, task: Task) -> NDArray[np.bool_]:
    if task is Task.BINARY:
        return np.isin(values, (0.0, 1.0))
    return np.isfinite(values)


@dataclass(slots=True)
class _Walk:
    """Predictions that wait, labels that do, and what came of each; times in epoch ms."""

    rules: LabelRules
    assumed: float | None
    times: list[int]
    steps: list[tuple[int, int, float, int]] = field(default_factory=list)
    _watermark: int = -(2**62)
    _waiting: dict[str, int] = field(default_factory=dict)
    _by_time: list[tuple[int, int, str]] = field(default_factory=list)
    _settled: dict[str, _Settled] = field(default_factory=dict)
    _by_age: deque[tuple[str, _Settled]] = field(default_factory=deque)
    _early: dict[str, tuple[float, int, int]] = field(default_factory=dict)

    @property
    def _keep_ms(self) -> int:
        """How long an id is remembered after its label, or after its wait."""
        rules = self.rules
        if rules.update_ms is not None:
            return rules.update_ms
        return _DAY_MS if rules.timeout_ms is None else rules.timeout_ms

    def take(self, came: int, name: str, time: int, row: int, value: float | None) -> None:
        """An event (its ``row``), or a label (`_LABEL`), whose value None can't be learned."""
        self._watermark = max(self._watermark, time)
        self._end_waits(came)
        self._forget()
        if row != _LABEL:
            self._ask(came, name, time, row)
        elif value is not None:
            self._judge(came, name, time, value)

    def _ask(self, came: int, name: str, time: int, row: int) -> None:
        self.steps.append((row, time, _ASKS, came))
        if name in self._waiting:
            return  # the one that waits is judged
        held = self._early.pop(name, None)
        if held is not None:
            value, said, _ = held
            self._settle(name, row, value)
            self.steps.append((row, max(said, time), value, came))
            return
        self._waiting[name] = row
        if self.rules.timeout_ms is not None:
            heapq.heappush(self._by_time, (time, row, name))

    def _judge(self, came: int, name: str, time: int, value: float) -> None:
        row = self._waiting.pop(name, None)
        if row is not None:
            self._settle(name, row, value)
            self.steps.append((row, max(time, self.times[row]), value, came))
        elif name in self._settled:
            self._judge_again(came, name, time, value)
        else:
            self._hold(name, time, value)

    def _judge_again(self, came: int, name: str, time: int, value: float) -> None:
        """Another label for the same id teaches only where it corrects."""
        row, known, since = self._settled[name]
        if self.rules.update_ms is None or known == value:
            return
        self._settled[name] = (row, value, since)
        self.steps.append((row, time, value, came))

    def _hold(self, name: str, time: int, value: float) -> None:
        """A label whose event has not come yet."""
        rules = self.rules
        if rules.timeout_ms is not None and time + rules.timeout_ms < self._watermark:
            return
        if rules.early_ms <= 0 or name in self._early:
            return
        if len(self._early) == MAX_EARLY:
            del self._early[next(iter(self._early))]
        self._early[name] = (value, time, self._watermark)

    def _end_waits(self, came: int) -> None:
        wait = self.rules.timeout_ms
        while self._by_time and wait is not None:
            time, row, name = self._by_time[0]
            if time + wait >= self._watermark:
                break
            heapq.heappop(self._by_time)
            if self._waiting.get(name) != row:
                continue  # it has its label
            del self._waiting[name]
            value = _ASKS if self.assumed is None else self.assumed
            self._settle(name, row, value)
            if self.assumed is not None:
                self.steps.append((row, time + wait, self.assumed, came))

    def _settle(self, name: str, row: int, value: float) -> None:
        if self.rules.update_ms is None and len(self._by_age) == MAX_RESOLVED:
            self._forget_oldest()
        found = self._settled[name] = (row, value, self._watermark)
        self._by_age.append((name, found))

    def _forget(self) -> None:
        """What is behind its time: ids that have their label, and labels that were held."""
        keep, hold = self._keep_ms, self.rules.early_ms
        while self._by_age and self._by_age[0][1][2] + keep < self._watermark:
            self._forget_oldest()
        while self._early:
            name = next(iter(self._early))
            if self._early[name][2] + hold >= self._watermark:
                break
            del self._early[name]

    def _forget_oldest(self) -> None:
        name, settled = self._by_age.popleft()
        current = self._settled.get(name)
        # An id that came again was settled again; one that was corrected is the same still.
        if current is not None and (current[0], current[2]) == (settled[0], settled[2]):
            del self._settled[name]
