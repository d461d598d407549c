"""A batch whose labels come later, worked through by all models of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.detectors import Alarm
from anabranch.models.learners.learner import LEARN, Predictions, Targets
from anabranch.models.learners.targets import select
from anabranch.models.metrics.ranking import EVENT, LIST, final_ranks, numbered
from anabranch.models.metrics.sliced_metrics import Fields
from anabranch.models.prequential.drift_retraining import Found, Lessons, serve_batch
from anabranch.models.prequential.external_drift import Outside
from anabranch.models.prequential.label_join import Joined
from anabranch.models.prequential.monitors import AlarmsAt
from anabranch.models.prequential.outcome import Learned, Outcome
from anabranch.models.rollout.observations import RANK_BITS
from anabranch.models.rollout.served import ServedPredictions
from anabranch.models.rollout.serving import BatchPredictions, Timings
from anabranch.models.rollout.traffic import key_hashes

if TYPE_CHECKING:
    from anabranch.models.prequential.prequential import Prequential

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(slots=True)
class _Steps:
    """What models are told: all that was laid out, but for lessons of events that are suspect.

    ``numbers`` are the steps that are left, None: all; ``calm`` says which of `Joined.taught` are.
    """

    op: U8
    row: I64
    target: Targets
    numbers: I64 | None = None
    calm: Mask | None = None


def run_delayed(
    step: Prequential,
    joined: Joined,
    events: int,
    order: I64,
    fields: Fields,
    keys: Sequence[str],
    outside: Outside,
) -> Outcome:
    """Predict and learn the steps that were laid out; see `Prequential.run`."""
    pending, row, time = step.pending, joined.row, joined.time
    asked, taught = joined.asked, joined.taught
    # Events are predicted in `order`, but the caller counts them by index.
    turn = np.empty(events, np.int64)
    turn[joined.source[asked]] = np.arange(asked.size)
    steps = _steps(step, joined, row[asked][turn], outside)
    before = {name: learner.version for name, learner in step.learners.items()}
    served: dict[str, Predictions] = {}
    scored: dict[str, Predictions] = {}
    answered: dict[str, Predictions] = {}
    spent = None if step.rollouts is None else Timings()
    for model, (name, kept) in enumerate(step._kept.items()):
        answers = kept.run(pending.features, steps.op, steps.row, steps.target)
        answered[name] = answers
        if spent is not None:
            spent.record(name, kept.learner, steps.numbers)
        waiting = step._answers[name]
        waiting.keep(model, row[asked], answers)
        scored[name] = waiting.recall(model, row[taught], answers)
        served[name] = answers.take(turn)
        waiting.forget(joined.dropped)
    left = row[taught]
    learned = Learned(
        joined.source[taught], select(joined.target, taught), scored,
        pending.times[left], time[taught], pending.tags[left], joined.item[taught],
    )  # fmt: skip
    groups = None
    if step.slices:
        rows, own = row[asked][turn], slice(len(step.slices))
        pending.groups[rows, own] = step.slices.groups_of(fields, pending.features, rows, order)
        groups = pending.groups[left, own]
    learned_before = _lessons(joined, steps)[asked]
    of_features: AlarmsAt = []
    if step.monitors:
        of_features = step.monitors.look_at_features(
            pending.features, row[asked], time[asked], asked
        )
    calls = [(int(asked[turn[event]]), alarm) for event, alarm in outside.calls]
    if outside.labels is not None and step.births is not None:
        calls += [(int(taught[place]), alarm) for place, alarm in outside.labels(learned)]
    out: ServedPredictions | None = None
    found: Found = None
    led = scored[step.champion]
    if step.rollouts is not None and spent is not None and joined.op.size:
        hashes = key_hashes(keys)[joined.source[asked]]
        batch = BatchPredictions(
            joined.op.size, joined.item, asked, time[asked], row[asked], hashes, taught,
            time[taught], left, pending.groups[:, -1], answered, scored, learned.target,
            before, learned_before, spent.failed_steps, spent.seconds,
            *_grouped(step, fields, joined.source[asked]),
        )  # fmt: skip
        numbers = np.arange(joined.op.size) if steps.numbers is None else steps.numbers
        lessons = Lessons(
            pending.features, steps.op, steps.row, steps.target, numbers, joined.dropped,
            steps.calm, [*calls, *((at, alarm) for at, _, alarm in of_features)],
        )  # fmt: skip
        out, led, found = serve_batch(step, batch, lessons, turn)
        for name in answered.keys() - served.keys():  # begun in the middle
            served[name] = answered[name].take(turn)
    step.score(learned, groups, pending.features[left] if step.births else None, steps.calm)
    alarms: list[Alarm] = []
    if step.monitors:
        alarms = step.monitors.look(learned, led, taught, of_features, groups, step.slices, found)
    ranks = None
    if step.ranking is not None:
        answers = served[step.champion] if out is None else out.predictions
        drafted = None if out is None else out.ranks
        ranks = final_ranks(np.asarray(fields[EVENT]), answers.values, drafted)
        _place(step, ranks, row[asked][turn], learned, left)
    step.settle()
    suspect = 0 if steps.calm is None else int(np.count_nonzero(~steps.calm))
    return Outcome(
        served, learned, alarms, joined.refused_labels, joined.refused_events,
        len(joined.dropped), before, learned_before[turn], joined.given_up,
        joined.corrections(pending.tags), joined.confirmed, joined.held, out,
        ranks, suspect,
    )  # fmt: skip


def _steps(step: Prequential, joined: Joined, rows: I64, outside: Outside) -> _Steps:
    """Without what is not to be learned; ``rows`` are those of the events, which are marked."""
    op, row, target = joined.op, joined.row, joined.target
    if not step.quarantine:
        return _Steps(op, row, target)
    marks = step.pending.groups[:, len(step.slices)]
    marks[rows] = 0 if outside.suspect is None else outside.suspect
    left_out = (op == LEARN) & (marks[row] == 1)
    if not left_out.any():
        return _Steps(op, row, target)
    kept = np.flatnonzero(~left_out)
    calm = ~left_out[joined.taught]
    return _Steps(op[kept], row[kept], select(target, kept), kept, calm)


def _lessons(joined: Joined, steps: _Steps) -> I64:
    """`(steps,) int64`: lessons up to each step."""
    if steps.numbers is None:
        return joined.op.cumsum(dtype=np.int64)
    learned = np.zeros(joined.op.size, np.int64)
    learned[steps.numbers] = steps.op
    return learned.cumsum()


def _grouped(step: Prequential, fields: Fields, asked: I64) -> tuple[Any, ...]:
    """The last four fields of `BatchPredictions`; ``asked`` are events by step."""
    if step.ranking is None:
        return ()
    lists, pending = np.asarray(fields[LIST])[asked], step.pending
    return numbered(np.asarray(fields[EVENT])[asked]), pending.tags, lists, pending.lists


def _place(step: Prequential, ranks: I64, rows: I64, learned: Learned, left: I64) -> None:
    """Keep where candidates stand, and count where those had stood that were chosen."""
    assert step.ranking is not None
    tags = step.pending.tags
    tags[rows] = tags[rows] >> RANK_BITS << RANK_BITS | ranks
    learned.tags = tags[left]
    chosen = np.asarray(learned.target) == 1.0
    step.ranking.update(learned.tags[chosen] & (1 << RANK_BITS) - 1)
