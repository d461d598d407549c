"""Fresh models that drift starts in the middle of a batch, as if they had been added just there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import LOSS, Alarm
from anabranch.models.learners.learner import LEARN, NO_LABEL, Predictions, Targets, Task
from anabranch.models.learners.targets import select
from anabranch.models.prequential.champion_monitor import ChampionWatch
from anabranch.models.prequential.replay_buffer import LabelledRows
from anabranch.models.rollout.challenger import OnDrift
from anabranch.models.rollout.served import Answered
from anabranch.models.rollout.serving import Worked

if TYPE_CHECKING:
    from anabranch.models.prequential.prequential import Prequential

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]
Found = list[tuple[int, int, Alarm]] | None
"""See `ChampionWatch.found`; None where it was not looked at."""


class Births:
    """What drift starts, and the labelled rows that a start is warmed with.

    Args:
        what: to start.
        width: features per row.
        task: of the models.
    """

    def __init__(self, what: OnDrift, width: int, task: Task) -> None:
        self.what = what
        self.rows = LabelledRows(what.declared.warmup_rows, width, task is not Task.MULTICLASS)

    @classmethod
    def of(cls, what: OnDrift | None, width: int, task: Task) -> Births | None:
        """Those that are declared; None where nothing is."""
        return None if what is None else cls(what, width, task)


@dataclass(slots=True)
class Lessons:
    """What every model was told in a batch.

    Attributes:
        features: `(rows, features) float64`.
        op, row, target: as `Learner.run` takes them.
        numbers: `(len(op),) int64`: the step that each is, as `Worked` counts them.
        dropped: rows whose wait is over; None where labels come with the events.
        calm: `(labels,) bool`, of those that are scored: which are learned too; None: all.
        calls: drift that was found elsewhere, by step: see `Outside`.
    """

    features: F64
    op: NDArray[np.uint8]
    row: I64
    target: Targets
    numbers: I64
    dropped: list[int] | None
    calm: Mask | None = None
    calls: list[tuple[int, Alarm]] = field(default_factory=list)


class BirthWatch:
    """Watches the champion's loss in one batch, and starts fresh models behind its steps.

    Args:
        step: whose models they are, and which may have `births`.
        worked: what all models made of the batch; a fresh one's answers are added.
        lessons: the same for the fresh one to go through; None where none can be started.

    Attributes:
        found: as `ChampionWatch.found`.
    """

    def __init__(self, step: Prequential, worked: Worked, lessons: Lessons | None) -> None:
        self._step, self._births = step, step.births
        self._worked, self._lessons = worked, lessons
        self._watch = ChampionWatch(
            step.monitors, step.task, worked.scored, worked.target, worked.taught,
            worked.taught_times,
        )  # fmt: skip
        self.found = self._watch.found
        declared = None if step.births is None else step.births.what.declared
        self.grace = 0 if declared is None else declared.burn_in
        self._after = () if declared is None else declared.triggers
        calls = [] if lessons is None else lessons.calls
        heard = [call for call in calls if call[1].kind in self._after]
        self._calls = sorted(heard, key=lambda call: call[0])

    def look(self, champion: str, until: int, may_bear: bool) -> tuple[int, Alarm] | None:
        """See `DriftWatch`."""
        bears = may_bear and self._births is not None
        calls = self._calls
        while calls and not bears and calls[0][0] <= until:
            calls.pop(0)  # one is tried already
        call = calls[0] if calls and calls[0][0] <= until else None
        if call is not None:  # behind it, who leads may be another
            until = call[0]
        found = self._watch.look(champion, until, bears and LOSS in self._after)
        if found is None and call is not None:
            return calls.pop(0)
        return found

    def bear(self, name: str, step: int) -> int:
        """See `DriftWatch`; its answers are NaN for what came before."""
        births, worked, lessons = self._births, self._worked, self._lessons
        assert births is not None
        assert lessons is not None
        learner = births.what.make()
        self._step.add(name, learner)
        known = worked.taught <= step
        if lessons.calm is not None:
            known &= lessons.calm
        features = lessons.features[worked.taught_rows[known]]
        features, target = births.rows.last(features, select(worked.target, _places(known)))
        rows = np.arange(len(features))
        learner.run(features, np.full(len(rows), LEARN, np.uint8), rows, target)
        later = lessons.numbers > step
        learned_before = int(np.count_nonzero((lessons.op == LEARN) & ~later))
        worked.before[name] = learner.version - learned_before
        self._go_through(lessons, name, _places(later), step)
        return len(rows)

    def _go_through(self, lessons: Lessons, name: str, later: I64, step: int) -> None:
        """Predict and learn what is left of the batch."""
        worked, keeper = self._worked, self._step
        began = time.perf_counter()
        answers = keeper._kept[name].run(
            lessons.features, lessons.op[later], lessons.row[later], select(lessons.target, later)
        )
        worked.failed[name] = lessons.numbers[later[list(keeper.learners[name].failures)]]
        asked, taught = worked.asked > step, worked.taught > step
        if lessons.dropped is None:  # each label is of an event of the batch, by its index
            whole = _spread(answers, asked)
            scored = whole.take(worked.taught_rows)
        else:
            model = list(keeper.learners).index(name)
            waiting = keeper._answers[name]
            waiting.keep(model, worked.asked_rows[asked], answers)
            recalled = waiting.recall(model, worked.taught_rows[taught], answers)
            waiting.forget(lessons.dropped)
            whole, scored = _spread(answers, asked), _spread(recalled, taught)
        worked.answers[name], worked.scored[name] = whole, scored
        worked.seconds[name] = time.perf_counter() - began


def serve_batch(
    step: Prequential, worked: Worked, lessons: Lessons | None, turn: I64
) -> tuple[Answered, Predictions, Found]:
    """What goes out of a batch, see `Rollouts.serve`; and what was found of the champion's loss."""
    assert step.rollouts is not None
    drift = BirthWatch(step, worked, lessons)
    out, led = step.rollouts.serve(worked, turn, drift)
    return out, led, drift.found


def _places(mask: Mask) -> I64:
    return np.flatnonzero(mask)


def _spread(answers: Predictions, where: Mask) -> Predictions:
    """The same at the rows ``where``; the others have none."""
    if isinstance(answers.values, list):
        values: list[Any] = [{}] * where.size
        labels: list[Any] = [None] * where.size
        for at, value, label in zip(
            _places(where).tolist(), answers.values, answers.labels, strict=True
        ):
            values[at], labels[at] = value, label
        return Predictions(values, labels)
    numbers = np.full(where.size, np.nan)
    numbers[where] = answers.values
    if answers.labels is None:
        return Predictions(numbers, None)
    codes = np.full(where.size, NO_LABEL, np.uint8)
    codes[where] = answers.labels
    return Predictions(numbers, codes)
