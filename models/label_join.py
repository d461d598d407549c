"""Joins labels to the predictions that wait for them, and says what is to be done, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models import outcome as reasons
from models.held_labels import HeldLabels
from models.learner import Label, Targets, Task
from models.outcome import HELD_LABEL, GivenUp
from models.targets import as_targets, codes, usable
from state.delta import Delta
from state.label_rules import LabelRules
from state.pending import (
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
    PREDICT,
    TOO_OLD,
    UNKNOWN,
    PendingStore,
    Walk,
)

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
_TEACHES = np.zeros(7, np.uint8)
_TEACHES[[LEARN, ASSUMED, CORRECTED, EARLY]] = 1


@dataclass(slots=True)
class Joined:
    """The steps of a batch, for learners; and what was found beside them.

    Attributes:
        op, row, target: as `Learner.run` takes them.
        source: `(steps,) int64`: the event asked; of what is scored, what `Learned.label` says.
        time, item: `(steps,) int64`, as in `Walk`.
        asked: the steps that predict; `taught`: those whose prediction is scored as they teach.
            What corrects teaches too, and is not scored again.
        dropped: rows whose wait is over, and of which nothing is learned.
        refused_labels, refused_events, given_up, corrected, confirmed, held: as in `Outcome`.
    """

    op: U8
    row: I64
    target: Targets
    source: I64
    time: I64
    item: I64
    asked: I64
    taught: I64
    dropped: list[int]
    refused_labels: list[tuple[int, str]]
    refused_events: list[int]
    given_up: list[GivenUp]
    corrected: int
    confirmed: int
    held: int


class LabelJoin:
    """Predictions that wait, labels that are held, and the rules by which they meet.

    Args:
        width: features per row.
        task: decides what a label may be.
        rules: see there; `assumes` and `assumed_code` follow from `otherwise`.
        otherwise: the label to assume when a wait is over; None: nothing is assumed.
    """

    def __init__(self, width: int, task: Task, rules: LabelRules, otherwise: Label) -> None:
        if otherwise is not None:
            known: Targets = [otherwise]
            if task is not Task.MULTICLASS:
                known = np.array([float(otherwise)])  # type: ignore[arg-type]
            rules = replace(rules, assumes=True, assumed_code=int(codes(known)[0]))
        self.pending = PendingStore(width, 0, rules)
        self.held = HeldLabels()
        self._task = task
        self._otherwise = otherwise

    def join(
        self,
        ids: list[str],
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
        values = as_targets(label_values, self._task)
        walk = self.pending.walk(
            ids, times, features, label_ids, label_times, order, usable(values, self._task), tags,
            codes(values),
        )  # fmt: skip
        holding = (walk.held >= 0).nonzero()[0]
        for label in holding.tolist():
            kept = note(label) if note else b""
            self.held.keep(int(walk.held[label]), values[label], kept)
        target, given_up = self._targets(walk, values)
        return self._joined(walk, target, given_up, holding.size)

    def changes(self) -> Delta:
        """What changed since the last call; at first, everything."""
        delta = self.pending.changes()
        delta.put("values", self.held.changes())
        return delta

    def restore(self, image: Delta) -> None:
        """Take up what gave `image`. Values are unpickled: give only what this program wrote."""
        self.pending.restore(image)
        self.held.restore(image.part("values"))

    def _joined(self, walk: Walk, target: Targets, given_up: list[GivenUp], holding: int) -> Joined:
        kind, row, source, time, item = walk.kind, walk.row, walk.source, walk.time, walk.item
        dropped = row[kind == DROPPED].tolist()
        if dropped or given_up:
            done = ((kind != DROPPED) & (kind != GIVEN_UP)).nonzero()[0]
            kind, row, source, time, item = (a[done] for a in (kind, row, source, time, item))
            target = target[done] if isinstance(target, np.ndarray) else [target[i] for i in done]
        held = kind == EARLY
        if held.any():
            source[held] = HELD_LABEL
        op = _TEACHES[kind]
        refused = walk.refused_labels.nonzero()[0].tolist()
        why = walk.refused_labels.tolist()
        return Joined(
            op, row, target, source, time, item,
            asked=(kind == PREDICT).nonzero()[0],
            taught=((op == 1) & (kind != CORRECTED)).nonzero()[0],
            dropped=dropped,
            refused_labels=[(j, _REASONS[why[j]]) for j in refused if why[j] != CONFIRMS],
            refused_events=walk.refused_events.nonzero()[0].tolist(),
            given_up=given_up,
            corrected=int((kind == CORRECTED).sum()),
            confirmed=sum(why[j] == CONFIRMS for j in refused),
            held=holding,
        )  # fmt: skip

    def _targets(self, walk: Walk, values: Targets) -> tuple[Targets, list[GivenUp]]:
        """The target of each step, and the labels that were held in vain."""
        kind, source = walk.kind, walk.source
        of_label = ((kind == LEARN) | (kind == CORRECTED)).nonzero()[0]
        assumed = (kind == ASSUMED).nonzero()[0]
        of_held = ((kind == EARLY) | (kind == GIVEN_UP)).nonzero()[0]
        target: Targets
        if isinstance(values, np.ndarray):
            target = np.zeros(kind.size)
            target[of_label] = values[source[of_label]]
            if assumed.size:
                target[assumed] = float(self._otherwise)  # type: ignore[arg-type]
            known: NDArray[np.float64] | list[Label] = target
        else:
            known = [None] * kind.size
            for step, label in zip(of_label.tolist(), source[of_label].tolist(), strict=True):
                known[step] = values[label]
            for step in assumed.tolist():
                known[step] = self._otherwise
            target = known
        given_up: list[GivenUp] = []
        for step in of_held.tolist():
            value, note = self.held.take(int(source[step]))
            if kind[step] == EARLY:
                known[step] = value  # type: ignore[call-overload]
            else:
                why = reasons.TOO_MANY if walk.row[step] else reasons.NEVER_CAME
                given_up.append(GivenUp(note, int(walk.item[step]), why))
        return target, given_up
