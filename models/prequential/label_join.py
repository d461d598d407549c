"""Joins labels to the predictions that wait for them, and says what is to be done, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Label, Targets, Task
from anabranch.models.learners.targets import as_targets, codes, select, usable
from anabranch.models.prequential import outcome as reasons
from anabranch.models.prequential.early_labels import HeldLabels
from anabranch.models.prequential.outcome import HELD_LABEL, Corrected, GivenUp
from anabranch.state.labels.label_rules import LabelRules
from anabranch.state.labels.pending_store import (
    ASSUMED,
    CONFIRMS,
    CONTRADICTS,
    CORRECTED,
    DROPPED,
    DUPLICATE,
    EARLY,
    GIVEN_UP,
    LATE,
    LEARN,
    NO_VALUE,
    TOO_OLD,
    UNKNOWN,
    PendingStore,
    Walk,
)
from anabranch.state.store.delta import Delta

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

Note = Callable[[int], bytes]
"""What to keep beside a label that is held, by its index; handed back if it is given up."""

_REASONS = {
    NO_VALUE: reasons.NO_VALUE,
    UNKNOWN: reasons.UNKNOWN_ID,
    DUPLICATE: reasons.DUPLICATE,
    CONTRADICTS: reasons.CONTRADICTS,
    LATE: reasons.LATE,
    TOO_OLD: reasons.TOO_OLD,
}
_KINDS = 7
_TEACHES = np.zeros(_KINDS, np.uint8)
_TEACHES[[LEARN, ASSUMED, CORRECTED, EARLY]] = 1
_NONE, _NO_STEPS = np.empty(0), np.empty(0, np.int64)


@dataclass(slots=True)
class Joined:
    """The steps of a batch, for learners; and what was found beside them.

    Attributes:
        op, row, target: as `Learner.run` takes them.
        source: `(steps,) int64`: the event asked; of what is scored, what `Learned.label` says.
        time, item: `(steps,) int64`, as in `Walk`.
        asked: the steps that predict; `taught`: those whose prediction is scored as they teach.
            What corrects teaches too, and is not scored again.
        corrected: the steps that correct.
        dropped: rows whose wait is over, and of which nothing is learned.
        refused_labels, refused_events, given_up, confirmed, held: as in `Outcome`.
    """

    op: U8
    row: I64
    target: Targets
    source: I64
    time: I64
    item: I64
    asked: I64
    taught: I64
    corrected: I64
    dropped: list[int]
    refused_labels: list[tuple[int, str]]
    refused_events: list[int]
    given_up: list[GivenUp]
    confirmed: int
    held: int

    def corrections(self, tags: NDArray[np.int32]) -> Corrected | None:
        """The labels that corrected, with the store's `tags` by row; None where there is none."""
        steps = self.corrected
        if not steps.size:
            return None
        return Corrected(select(self.target, steps), self.time[steps], tags[self.row[steps]])


Fill = Callable[[Joined], None]
"""Adds to the features of events what only the steps of their batch tell."""


class LabelJoin:
    """Predictions that wait, labels that are held, and the rules by which they meet.

    Args:
        width: features per row.
        task: decides what a label may be.
        rules: see there; `assumes` and `assumed_code` follow from `otherwise`.
        otherwise: the label to assume when a wait is over; None: nothing is assumed.
        groups, lists: as `PendingStore` takes them.
    """

    def __init__(
        self,
        width: int,
        task: Task,
        rules: LabelRules,
        otherwise: Label,
        groups: int = 0,
        lists: bool = False,
    ) -> None:
        self._otherwise, self._assumed = otherwise, 0.0
        if otherwise is not None:
            known: Targets = [otherwise]
            if task is not Task.MULTICLASS:
                self._assumed = float(otherwise)  # type: ignore[arg-type]
                known = np.array([self._assumed])
            rules = replace(rules, assumes=True, assumed_code=int(codes(known)[0]))
        self.pending = PendingStore(width, 0, rules, groups, lists)
        self.held = HeldLabels()
        self._task = task

    def join(
        self,
        ids: Sequence[str],
        times: I64,
        features: F64,
        label_ids: list[str],
        label_values: Targets,
        label_times: I64,
        order: I64,
        tags: NDArray[np.int32] | None,
        note: Note | None,
    ) -> Joined:
        """Store events and find what labels judge; arguments as `Prequential.run` has them."""
        values: Targets = as_targets(label_values, self._task) if label_ids else _NONE
        walk = self.pending.walk(
            ids, times, features, label_ids, label_times, order,
            usable(values, self._task) if label_ids else None, tags,
            codes(values) if label_ids else None,
        )  # fmt: skip
        holding = 0
        if label_ids and self.pending.rules.hold_ms > 0:
            holding = self._hold(walk, values, note)
        return self._joined(walk, values, holding)

    def changes(self) -> Delta:
        """What changed since the last call; at first, everything."""
        delta = self.pending.changes()
        delta.put("values", self.held.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Take up what gave `image`. Values are unpickled: give only what this program wrote."""
        self.pending.restore(image)
        self.held.restore(image.part("values"))

    def _hold(self, walk: Walk, values: Targets, note: Note | None) -> int:
        """Keep the values of labels that are held from now on; how many there are."""
        holding = (walk.held >= 0).nonzero()[0].tolist()
        for label in holding:
            self.held.keep(int(walk.held[label]), values[label], note(label) if note else b"")
        return len(holding)

    def _joined(self, walk: Walk, values: Targets, holding: int) -> Joined:
        counts = np.bincount(walk.kind, minlength=_KINDS).tolist()
        op = _TEACHES[walk.kind]
        target = self._targets(walk, op.nonzero()[0], values, counts)
        given_up: list[GivenUp] = []
        dropped: list[int] = []
        kind, row, source, time, item = walk.kind, walk.row, walk.source, walk.time, walk.item
        if counts[EARLY] or counts[GIVEN_UP]:
            given_up = self._release(walk, target)
            source = np.where(kind == EARLY, HELD_LABEL, source)
        if counts[DROPPED] or counts[GIVEN_UP]:
            dropped = row[kind == DROPPED].tolist()
            done = ((kind != DROPPED) & (kind != GIVEN_UP)).nonzero()[0]
            kind, row, source, time, item = (a[done] for a in (kind, row, source, time, item))
            op, target = op[done], select(target, done)
        taught, corrected = op, _NO_STEPS
        if counts[CORRECTED]:
            taught = op.astype(np.bool_) & (kind != CORRECTED)
            corrected = (kind == CORRECTED).nonzero()[0]
        refused, confirmed = _refused(walk.refused_labels)
        return Joined(
            op, row, target, source, time, item,
            asked=(op == 0).nonzero()[0],
            taught=taught.nonzero()[0],
            corrected=corrected,
            dropped=dropped,
            refused_labels=refused,
            refused_events=walk.refused_events.nonzero()[0].tolist(),
            given_up=given_up,
            confirmed=confirmed,
            held=holding,
        )  # fmt: skip

    def _targets(self, walk: Walk, taught: I64, values: Targets, counts: list[int]) -> Targets:
        """The target of each step; those of labels that were held are still to come."""
        source = walk.source[taught]  # -1 where one is assumed, which is found at the end
        if counts[EARLY]:
            source[walk.kind[taught] == EARLY] = -1
        if self._task is not Task.MULTICLASS:
            assert isinstance(values, np.ndarray)
            target = np.zeros(walk.kind.size)
            if counts[ASSUMED] or counts[EARLY]:
                values = np.append(values, self._assumed)
            target[taught] = values[source]
            return target
        known = [*values, self._otherwise]
        targets: list[Label] = [None] * walk.kind.size
        for step, label in zip(taught.tolist(), source.tolist(), strict=True):
            targets[step] = known[label]
        return targets

    def _release(self, walk: Walk, target: Any) -> list[GivenUp]:
        """Let go labels that were held: some teach, the others were held in vain."""
        kind, given_up = walk.kind, []
        for step in ((kind == EARLY) | (kind == GIVEN_UP)).nonzero()[0].tolist():
            value, note = self.held.take(int(walk.source[step]))
            if kind[step] == EARLY:
                target[step] = value
            else:
                why = reasons.TOO_MANY if walk.row[step] else reasons.NEVER_CAME
                given_up.append(GivenUp(note, int(walk.item[step]), why))
        return given_up


def _refused(why: U8) -> tuple[list[tuple[int, str]], int]:
    """Labels that teach nothing, with the reason; and how many more say what was assumed."""
    found = why.nonzero()[0]
    if not found.size:
        return [], 0
    pairs = list(zip(found.tolist(), why[found].tolist(), strict=True))
    refused = [(label, _REASONS[code]) for label, code in pairs if code != CONFIRMS]
    return refused, len(pairs) - len(refused)
