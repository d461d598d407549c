"""A batch whose targets come with the events, worked through by all models of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import Alarm
from anabranch.models.learners.learner import LEARN, Targets, Task
from anabranch.models.learners.targets import as_targets, select
from anabranch.models.metrics.sliced_metrics import Fields
from anabranch.models.prequential.drift_retraining import Found, Lessons, serve_batch
from anabranch.models.prequential.external_drift import Outside
from anabranch.models.prequential.inline_steps import Steps, inline_steps, run_each
from anabranch.models.prequential.monitors import AlarmsAt
from anabranch.models.prequential.outcome import Learned, Outcome
from anabranch.models.rollout.served import ServedPredictions
from anabranch.models.rollout.serving import BatchPredictions, Timings
from anabranch.models.rollout.traffic import key_hashes

if TYPE_CHECKING:
    from anabranch.models.prequential.prequential import Prequential

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def run_inline(
    step: Prequential,
    features: F64,
    times: I64,
    values: Targets,
    tags: NDArray[np.int32],
    fields: Fields,
    keys: Sequence[str],
    rows: I64,
    outside: Outside,
) -> Outcome:
    """See `Prequential.run_inline`; ``rows`` are the numbers of the events."""
    events = len(times)
    values = as_targets(values, step.task)
    before = {name: learner.version for name, learner in step.learners.items()}
    learned_before: I64 | range = range(events)
    refused: list[tuple[int, str]] = []
    taught = rows
    spent = None if step.rollouts is None else Timings()
    suspect = outside.suspect
    served = run_each(step._kept, features, values, spent) if suspect is None else None
    if served is None:
        (op, row, target), taught, refused = _calm_steps(values, step.task, suspect)
        served = {}
        for name, kept in step._kept.items():
            served[name] = kept.run(features, op, row, target)
            if spent is not None:
                spent.record(name, kept.learner, 2 * row + op)
    if len(taught) == events:
        learned = Learned(taught, values, served, times, times, tags)
    else:
        scored = {name: answers.take(taught) for name, answers in served.items()}
        known, when = select(values, taught), times[taught]
        learned = Learned(taught, known, scored, when, when, tags[taught])
        learned_before = np.searchsorted(taught, np.arange(events))
    calm: NDArray[np.bool_] | None = None
    if suspect is not None:
        calm = ~suspect[taught]
        learned_before = np.searchsorted(taught[calm], np.arange(events))
    groups = None
    if step.slices:
        groups = step.slices.groups_of(fields, features, rows)[taught]
    out: ServedPredictions | None = None
    found: Found = None
    led = learned.predictions[step.champion]
    of_features: AlarmsAt = []
    if step.monitors:
        of_features = step.monitors.look_at_features(features, rows, times, 2 * rows)
    if step.rollouts is not None and spent is not None and events:
        arms = np.empty(events, np.uint8)
        batch = BatchPredictions(
            2 * events, rows.repeat(2), 2 * rows, times, rows, key_hashes(keys), 2 * taught + 1,
            times[taught], taught, arms, served, learned.predictions, learned.target,
            before, np.asarray(learned_before), spent.failed_steps, spent.seconds,
        )  # fmt: skip
        lessons = None
        if step.births is not None:
            (op, row, target), _, _ = _calm_steps(values, step.task, suspect)
            calls = [(2 * event, alarm) for event, alarm in outside.calls]
            calls += [(at, alarm) for at, _, alarm in of_features]
            if outside.labels is not None:
                calls += [(2 * int(taught[at]) + 1, a) for at, a in outside.labels(learned)]
            lessons = Lessons(features, op, row, target, 2 * row + op, None, calm, calls)
        out, led, found = serve_batch(step, batch, lessons, rows)
    step.score(learned, groups, features[taught] if step.births else None, calm)
    alarms: list[Alarm] = []
    if step.monitors:
        alarms = step.monitors.look(
            learned, led, 2 * taught + 1, of_features, groups, step.slices, found
        )  # fmt: skip
    step.settle()
    outcome = Outcome(served, learned, alarms, refused, [], 0, before, learned_before)
    outcome.answered = out
    if calm is not None:
        outcome.suspect = int(np.count_nonzero(~calm))
    return outcome


def _calm_steps(
    values: Targets, task: Task, suspect: NDArray[np.bool_] | None
) -> tuple[Steps, I64, list[tuple[int, str]]]:
    """`inline_steps` without lessons of what is suspect; those are scored all the same."""
    (op, row, target), taught, refused = inline_steps(values, task)
    if suspect is None:
        return (op, row, target), taught, refused
    kept = np.flatnonzero((op != LEARN) | ~suspect[row])
    return (op[kept], row[kept], select(target, kept)), taught, refused
