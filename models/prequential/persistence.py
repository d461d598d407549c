"""Writes a prequential step to the state directory, and restores it."""

from __future__ import annotations

from typing import Final

import msgspec

from anabranch.models.learners.checkpoint import restored
from anabranch.models.learners.learner import Learner, Task
from anabranch.models.prequential.model_set import ModelSet
from anabranch.models.prequential.replay_buffer import REPLAY_BUFFER_PARTS
from anabranch.models.prequential.step_record import StepRecord, part_of
from anabranch.models.prequential.stored_predictions import STORED_PREDICTIONS
from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta

_PENDING: Final = "pending"
_RECORD: Final = "step"
_SLICES: Final = "slices"
_SEGMENTS: Final = "segments"
_REPLAY_BUFFER: Final = "replay-buffer"
_FAILED_ROWS: Final = "failed-rows"


class Persistence:
    """The changes of a model set since they were last written.

    Args:
        models: those of the step.
    """

    def __init__(self, models: ModelSet) -> None:
        self._models = models
        self._written_record = b""
        self._written_failed_rows = b"{}"

    def changes(self) -> Delta:
        """What changed since the last call of this or of `restore`; everything at the first.

        Raises:
            StateError: a model can't be pickled.
        """
        models = self._models
        delta = Delta(cleared=models.removed_parts)
        pending = models.label_join.changes()
        delta.put(_PENDING, pending)
        for name, checkpoint in models.checkpoints.items():
            delta.put(part_of(name), checkpoint.changes())
            if models.task is Task.MULTICLASS and "state" in pending.rows:
                touched = pending.rows["state"]
                stored = models.stored_predictions[name]
                delta.items[f"{part_of(name)}/{STORED_PREDICTIONS}"] = stored.changes(
                    touched.index, touched.columns["waits"]
                )
        record = _record(models).dump()
        if record != self._written_record:
            delta.blobs[_RECORD] = record
        champion = models.learners[models.champion]
        sliced = models.slices.changes() if models.slices else None
        segments = models.segments.changes(champion) if models.segments is not None else None
        for part, blob in ((_SLICES, sliced), (_SEGMENTS, segments)):
            if blob is not None:
                delta.blobs[part] = blob
        if models.replay_buffer is not None:
            delta.put(_REPLAY_BUFFER, models.replay_buffer.changes())
        failed_rows = msgspec.json.encode(
            {
                name: sorted(each.isolation.rows)
                for name, each in models.checkpoints.items()
                if each.isolation.rows
            }
        )
        if failed_rows != self._written_failed_rows:
            delta.blobs[_FAILED_ROWS] = self._written_failed_rows = failed_rows
        models.removed_parts, self._written_record = set(), record
        return delta

    def restore(self, image: Delta) -> None:
        """Restore into a new step what all `changes` together gave.

        Args:
            image: the merge of all changes. What it holds is unpickled: pass only what this program
                wrote. If empty, the step stays as it is.

        Raises:
            StateError: other models or features were declared, or a model can't be unpickled.
        """
        if _RECORD not in image.blobs:
            return
        models = self._models
        record = StepRecord.load(image.blobs[_RECORD])
        record.check(_record(models))
        self._written_record = image.blobs[_RECORD]
        declared = dict(models.learners)
        changed = record.changed(models.declarations)
        if models.rollouts is not None or record.deployment is not None:
            _take_stored_models(models, record, image, changed)
        _restore_models(models, record, image)
        self._written_failed_rows = image.blobs.get(_FAILED_ROWS, b"{}")
        failed_rows = msgspec.json.decode(self._written_failed_rows, type=dict[str, set[int]])
        for name, rows in failed_rows.items():
            if name in models.checkpoints:
                models.checkpoints[name].isolation.rows = rows
        _restore_measurements(models, record, image)
        models.label_join.restore(image.part(_PENDING))
        if models.replay_buffer is not None:
            models.replay_buffer.restore(image.part(_REPLAY_BUFFER))
        elif image.part(_REPLAY_BUFFER):  # should it be declared again, it starts empty
            models.removed_parts |= {f"{_REPLAY_BUFFER}/{part}" for part in REPLAY_BUFFER_PARTS}
        _restore_groups(models, record, image)
        if record.deployment is not None or models.rollouts is not None:
            _resume_rollouts(models, record, declared, changed)


def _record(models: ModelSet) -> StepRecord:
    return StepRecord(
        models.declarations, models.names, models.task, models.settings.inline, models.champion,
        models.metrics, models.monitors.watches,
        None if models.rollouts is None else models.rollouts.deployment,
        models.rank_quality, models.settings.quarantine,
    )  # fmt: skip


def _take_stored_models(
    models: ModelSet, record: StepRecord, image: Delta, changed: set[str]
) -> None:
    """Replace the declared models by those of the record, in its order."""
    declared = dict(models.learners)
    models.clear()
    for name in record.models:
        learner = None if name in changed else declared.get(name)
        learner = learner or restored(name, image.part(part_of(name)))
        if learner is None:
            raise StateError(
                f"the state names a model {name!r} that it does not hold: it is damaged, restore "
                "it from a backup"
            )
        models.add(name, learner)


def _restore_models(models: ModelSet, record: StepRecord, image: Delta) -> None:
    """Restore the learners and their stored predictions."""
    models.champion = record.champion
    models.checkpoints = {name: models.checkpoints[name] for name in record.models}
    for name, checkpoint in models.checkpoints.items():
        checkpoint.restore(image.part(part_of(name)))
        stored = image.items.get(f"{part_of(name)}/{STORED_PREDICTIONS}")
        if stored is not None:
            models.stored_predictions[name].restore(stored)
    models.learners = {name: each.learner for name, each in models.checkpoints.items()}
    models.declarations = record.models


def _restore_measurements(models: ModelSet, record: StepRecord, image: Delta) -> None:
    """Restore metrics, monitors, rank quality and segments."""
    models.metrics = {
        name: {m: record.metrics[name].get(m, new) for m, new in models.metrics[name].items()}
        for name in record.models
    }
    models.monitors.resume(record.monitors)
    if models.rank_quality is not None:
        models.rank_quality = record.ranking or models.rank_quality
    if models.segments is not None and _SEGMENTS in image.blobs:
        models.segments.restore(image.blobs[_SEGMENTS])


def _restore_groups(models: ModelSet, record: StepRecord, image: Delta) -> None:
    """Put the group columns of pending rows into the order of the present declaration."""
    stored = image.blobs.get(_SLICES)
    columns = models.slices.restore(stored, tuple(record.models))
    if stored is not None and not models.slices:
        models.removed_parts.add(_SLICES)  # should slices be declared again, they start empty
    last = models.pending.groups.shape[1] - 1  # after the slices: quarantine mark, then arms
    if models.settings.quarantine:
        mark = last - (record.deployment is not None)
        columns.append(mark if record.quarantine else -1)
    if models.rollouts is not None:
        columns.append(last if record.deployment is not None else -1)
    models.pending.regroup(columns)


def _resume_rollouts(
    models: ModelSet, record: StepRecord, declared: dict[str, Learner], changed: set[str]
) -> None:
    """Resume rollouts, with the challengers declared or changed since; or end them."""
    if models.rollouts is None:
        for name in [name for name in models.learners if name != models.champion]:
            models.remove(name)
        return
    deployment, stored = models.rollouts.deployment, record.deployment
    if stored is not None:
        stored.declare(deployment.policy)
        stored.burn_in |= deployment.burn_in
        models.rollouts.deployment = stored
        for name in changed:
            stored.forget(name)
            models.remove(name)
    for name, learner in declared.items():
        if name in models.learners or (stored is not None and name in stored.models):
            continue
        models.add(name, learner)
        if stored is not None:
            stored.add(name)
