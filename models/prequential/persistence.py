"""How a prequential step is written down, and taken up again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anabranch.models.learners.checkpoint import restored
from anabranch.models.learners.learner import Learner, Task
from anabranch.models.prequential.step_record import StepRecord, part_of
from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta

if TYPE_CHECKING:
    from anabranch.models.prequential.prequential import Prequential

ANSWERS: Final = "answers"
_SLICES: Final = "slices"
_SEGMENTS: Final = "segments"
_WARM: Final = "warm"


def step_changes(step: Prequential) -> Delta:
    """See `Prequential.changes`."""
    delta = Delta(cleared=step._cleared)
    pending = step._join.changes()
    delta.put("pending", pending)
    for name, kept in step._kept.items():
        delta.put(part_of(name), kept.changes())
        if step.task is Task.MULTICLASS and "state" in pending.rows:
            touched = pending.rows["state"]
            answers = step._answers[name].changes(touched.index, touched.columns["waits"])
            delta.items[f"{part_of(name)}/{ANSWERS}"] = answers
    told = _record(step).dump()
    if told != step._told:
        delta.blobs["step"] = told
    sliced = step.slices.changes() if step.slices else None
    leads = step.learners[step.champion]
    segments = step.segments.changes(leads) if step.segments is not None else None
    for part, blob in ((_SLICES, sliced), (_SEGMENTS, segments)):
        if blob is not None:
            delta.blobs[part] = blob
    if step.births is not None:
        delta.put(_WARM, step.births.rows.changes())
    step._cleared, step._told = set(), told
    return delta


def restore_step(step: Prequential, image: Delta) -> None:
    """See `Prequential.restore`."""
    if "step" not in image.blobs:
        return
    record = StepRecord.load(image.blobs["step"])
    record.check(_record(step))
    step._told = image.blobs["step"]
    fresh = dict(step.learners)
    changed = record.changed(step._declared)
    if step.rollouts is not None or record.deployment is not None:
        _shape(step, record, image, changed)
    step.champion = record.champion
    step._kept = {name: step._kept[name] for name in record.models}
    for name, kept in step._kept.items():
        kept.restore(image.part(part_of(name)))
        answers = image.items.get(f"{part_of(name)}/{ANSWERS}")
        if answers is not None:
            step._answers[name].restore(answers)
        if step.rollouts is not None:
            kept.learner.isolate_faults()
    step.learners = {name: kept.learner for name, kept in step._kept.items()}
    step._declared = record.models
    step.metrics = {
        name: {m: record.metrics[name].get(m, fresh) for m, fresh in step.metrics[name].items()}
        for name in record.models
    }
    step.monitors.go_on(record.watches)
    if step.ranking is not None:
        step.ranking = record.ranking or step.ranking
    if step.segments is not None and _SEGMENTS in image.blobs:
        step.segments.restore(image.blobs[_SEGMENTS])
    step._join.restore(image.part("pending"))
    if step.births is not None:
        step.births.rows.restore(image.part(_WARM))
    elif image.part(_WARM):  # should it be declared again, it begins anew
        step._cleared |= {f"{_WARM}/{part}" for part in ("rows", "labels", "count")}
    _regroup(step, record, image)
    if record.deployment is not None or step.rollouts is not None:
        _go_on(step, record, fresh, changed)


def _record(step: Prequential) -> StepRecord:
    return StepRecord(
        step._declared, step.names, step.task, step.inline, step.champion, step.metrics,
        step.monitors.watches, None if step.rollouts is None else step.rollouts.deployment,
        step.ranking, step.quarantine,
    )  # fmt: skip


def _shape(step: Prequential, record: StepRecord, image: Delta, changed: set[str]) -> None:
    """Give the step the models of the record, in its order, in place of those declared."""
    fresh = step.learners
    for name in list(fresh):
        step._forget(name)
    step._cleared.clear()
    for name in record.models:
        learner = None if name in changed else fresh.get(name)
        learner = learner or restored(name, image.part(part_of(name)))
        if learner is None:
            raise StateError(f"model {name!r} is named in the state, and not there: it is damaged")
        step.add(name, learner)


def _regroup(step: Prequential, record: StepRecord, image: Delta) -> None:
    """Bring what rows are grouped by into the order of what is declared now."""
    stored = image.blobs.get(_SLICES)
    places = step.slices.restore(stored, tuple(record.models))
    if stored is not None and not step.slices:
        step._cleared.add(_SLICES)  # should they be declared again, they begin anew
    last = step.pending.groups.shape[1] - 1  # behind the slices: suspect, and the arms
    if step.quarantine:
        suspect = last - (record.deployment is not None)
        places.append(suspect if record.quarantine else -1)
    if step.rollouts is not None:
        places.append(last if record.deployment is not None else -1)
    step.pending.regroup(places)


def _go_on(
    step: Prequential, record: StepRecord, fresh: dict[str, Learner], changed: set[str]
) -> None:
    """Let rollouts go on, with challengers that were declared since, or otherwise; or end them."""
    if step.rollouts is None:
        for name in [name for name in step.learners if name != step.champion]:
            step.remove(name)
        return
    declared, stored = step.rollouts.deployment, record.deployment
    if stored is not None:
        stored.declare(declared.policy)
        stored.grace |= declared.grace
        step.rollouts.deployment = stored
        for name in changed:
            stored.forget(name)
            step.remove(name)
    for name, learner in fresh.items():
        if name in step.learners or (stored is not None and name in stored.known):
            continue
        step.add(name, learner)
        if stored is not None:
            stored.add(name)
