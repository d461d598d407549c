"""Joins labels to pending predictions, and orders what models predict and learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Label, Targets, Task
from anabranch.models.learners.targets import as_targets, codes, select, usable
from anabranch.models.prequential import outcome as reasons
from anabranch.models.prequential.batch import EventBatch, LabelBatch
from anabranch.models.prequential.early_labels import EarlyLabels
from anabranch.models.prequential.outcome import BUFFERED_LABEL, CorrectedLabels, ExpiredLabel
from anabranch.state.labels.label_limits import LabelLimits
from anabranch.state.labels.pending_store import (
    AFTER_TIMEOUT,
    CONFIRMS,
    CONTRADICTS,
    DEFAULTED,
    DROPPED,
    DUPLICATE,
    EARLY,
    EXPIRED,
    LATE,
    LEARN,
    NO_EVENT,
    NO_SPACE,
    NO_VALUE,
    TOO_OLD,
    UNKNOWN,
    UPDATED,
    JoinResult,
    PendingStore,
)
from anabranch.state.store.delta import Delta

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

_REASONS = {
    NO_VALUE: reasons.NO_VALUE,
    UNKNOWN: reasons.UNKNOWN_ID,
    DUPLICATE: reasons.DUPLICATE,
    CONTRADICTS: reasons.CONTRADICTS,
    LATE: reasons.LATE,
    TOO_OLD: reasons.TOO_OLD,
}
_EXPIRED = {
    NO_EVENT: reasons.EVENT_MISSING,
    NO_SPACE: reasons.BUFFER_FULL,
    AFTER_TIMEOUT: reasons.LATE,
}
_KINDS = 7
_IS_TRAINED_ON = np.zeros(_KINDS, np.uint8)
_IS_TRAINED_ON[[LEARN, DEFAULTED, UPDATED, EARLY]] = 1
_NONE, _NO_STEPS = np.empty(0), np.empty(0, np.int64)


@dataclass(slots=True)
class JoinedSteps:
    """The steps of a batch, for learners, and what the join found beside them.

    Attributes:
        op, row, target: as `Learner.run` takes them.
        source: `(steps,) int64`: of a prediction, the index of its event; of a label that is
            scored, as in `LearnedLabels.label`.
        time, item: `(steps,) int64`, as in `JoinResult`.
        predict_steps: `(events,) int64`: the steps that predict.
        scored_steps: `(labels,) int64`: the steps that train and whose prediction is scored.
            Corrections train too, and are not scored again.
        correction_steps: the steps that train on a corrected label.
        dropped: rows that timed out, and of which nothing is learned.
        contexts: of labels that were buffered, by pending row: see `LabelBatch.context`.
        rejected_labels, rejected_events, expired_labels, confirmed, buffered: as in `Outcome`.
    """

    op: U8
    row: I64
    target: Targets
    source: I64
    time: I64
    item: I64
    predict_steps: I64
    scored_steps: I64
    correction_steps: I64
    dropped: list[int]
    rejected_labels: list[tuple[int, str]]
    rejected_events: list[int]
    expired_labels: list[ExpiredLabel]
    confirmed: int
    buffered: int
    contexts: dict[int, bytes]

    def corrections(self, tags: NDArray[np.int32]) -> CorrectedLabels | None:
        """The corrected labels, with the pending store's `tags` by row; None: there are none."""
        steps = self.correction_steps
        if not steps.size:
            return None
        return CorrectedLabels(select(self.target, steps), self.time[steps], tags[self.row[steps]])


FillFeatures = Callable[[JoinedSteps], None]
"""Writes the features of events that depend on labels of their own batch."""


class LabelJoin:
    """Pending predictions, early labels, and the rules by which they are joined.

    Args:
        width: features per row.
        task: decides what a label may be.
        rules: see there; `has_default` and `default_code` follow from `default`.
        default: the label to assume at the timeout; None: nothing is assumed.
        groups, lists: as `PendingStore` takes them.

    Attributes:
        pending: the predictions that wait for their label.
        early: the labels that wait for their event.
    """

    def __init__(
        self,
        width: int,
        task: Task,
        rules: LabelLimits,
        default: Label,
        groups: int = 0,
        lists: bool = False,
    ) -> None:
        self._default, self._assumed = default, 0.0
        if default is not None:
            as_target: Targets = [default]
            if task is not Task.MULTICLASS:
                self._assumed = float(default)  # type: ignore[arg-type]
                as_target = np.array([self._assumed])
            rules = replace(rules, has_default=True, default_code=int(codes(as_target)[0]))
        self.pending = PendingStore(width, 0, rules, groups, lists)
        self.early = EarlyLabels()
        self._task = task

    def join(self, events: EventBatch, labels: LabelBatch, order: I64) -> JoinedSteps:
        """Store events, and find the predictions that labels belong to.

        Args:
            events, labels: of the batch.
            order: `(events + labels,) int64`: event i as i, label j as `events + j`.
        """
        has_labels = bool(labels.ids)
        values: Targets = as_targets(labels.values, self._task) if has_labels else _NONE
        joined = self.pending.join(
            events.ids, events.times, events.features, labels.ids, labels.times, order,
            usable(values, self._task) if has_labels else None, events.tags,
            codes(values) if has_labels else None,
        )  # fmt: skip
        buffered = 0
        if has_labels and self.pending.rules.early_ms > 0:
            buffered = self._buffer(joined, values, labels)
        return self._steps(joined, values, buffered)

    def changes(self) -> Delta:
        """What changed since the last call; everything at the first."""
        delta = self.pending.changes()
        delta.put("values", self.early.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Restore what gave `image`. Values are unpickled: pass only what this program wrote."""
        self.pending.restore(image)
        self.early.restore(image.part("values"))

    def _buffer(self, joined: JoinResult, values: Targets, labels: LabelBatch) -> int:
        """Buffer the labels whose events have not arrived; returns how many there are."""
        buffered = (joined.early_numbers >= 0).nonzero()[0].tolist()
        for label in buffered:
            context = labels.context(label) if labels.context else b""
            self.early.put(int(joined.early_numbers[label]), values[label], context)
        return len(buffered)

    def _steps(self, joined: JoinResult, values: Targets, buffered: int) -> JoinedSteps:
        counts = np.bincount(joined.kind, minlength=_KINDS).tolist()
        op = _IS_TRAINED_ON[joined.kind]
        target = self._targets(joined, op.nonzero()[0], values, counts)
        expired: list[ExpiredLabel] = []
        contexts: dict[int, bytes] = {}
        dropped: list[int] = []
        kind, row, source, time, item = (
            joined.kind,
            joined.row,
            joined.source,
            joined.time,
            joined.item,
        )
        if counts[EARLY] or counts[EXPIRED]:
            expired, contexts = self._unbuffer(joined, target)
            source = np.where(kind == EARLY, BUFFERED_LABEL, source)
        if counts[DROPPED] or counts[EXPIRED]:
            dropped = row[kind == DROPPED].tolist()
            kept = ((kind != DROPPED) & (kind != EXPIRED)).nonzero()[0]
            kind, row, source, time, item = (a[kept] for a in (kind, row, source, time, item))
            op, target = op[kept], select(target, kept)
        scored, corrections = op, _NO_STEPS
        if counts[UPDATED]:
            scored = op.astype(np.bool_) & (kind != UPDATED)
            corrections = (kind == UPDATED).nonzero()[0]
        rejected, confirmed = _rejected(joined.rejected_labels)
        return JoinedSteps(
            op, row, target, source, time, item,
            predict_steps=(op == 0).nonzero()[0],
            scored_steps=scored.nonzero()[0],
            correction_steps=corrections,
            dropped=dropped,
            rejected_labels=rejected,
            rejected_events=joined.rejected_events.nonzero()[0].tolist(),
            expired_labels=expired,
            confirmed=confirmed,
            buffered=buffered,
            contexts=contexts,
        )  # fmt: skip

    def _targets(
        self, joined: JoinResult, trained: I64, values: Targets, counts: list[int]
    ) -> Targets:
        """The target of each step; those of buffered labels are filled in by `_unbuffer`."""
        source = joined.source[trained]  # -1 for a default label: it is appended to the values
        if counts[EARLY]:
            source[joined.kind[trained] == EARLY] = -1
        if self._task is not Task.MULTICLASS:
            assert isinstance(values, np.ndarray)
            target = np.zeros(joined.kind.size)
            if counts[DEFAULTED] or counts[EARLY]:
                values = np.append(values, self._assumed)
            target[trained] = values[source]
            return target
        with_default = [*values, self._default]
        targets: list[Label] = [None] * joined.kind.size
        for step, label in zip(trained.tolist(), source.tolist(), strict=True):
            targets[step] = with_default[label]
        return targets

    def _unbuffer(
        self, joined: JoinResult, target: Any
    ) -> tuple[list[ExpiredLabel], dict[int, bytes]]:
        """Take labels out of the buffer: write the targets of those that met their event.

        Returns the others, which expired; and the contexts of those that met it, by row.
        """
        kind, expired, contexts = joined.kind, [], {}
        for step in ((kind == EARLY) | (kind == EXPIRED)).nonzero()[0].tolist():
            value, context = self.early.pop(int(joined.source[step]))
            if kind[step] == EARLY:
                target[step] = value
                contexts[int(joined.row[step])] = context
            else:
                reason = _EXPIRED[int(joined.row[step])]
                expired.append(ExpiredLabel(context, int(joined.item[step]), reason))
        return expired, contexts


def _rejected(codes: U8) -> tuple[list[tuple[int, str]], int]:
    """Labels that were not learned, with the reason; and the number that confirm a default."""
    rejected = codes.nonzero()[0]
    if not rejected.size:
        return [], 0
    pairs = list(zip(rejected.tolist(), codes[rejected].tolist(), strict=True))
    with_reason = [(label, _REASONS[code]) for label, code in pairs if code != CONFIRMS]
    return with_reason, len(pairs) - len(with_reason)
