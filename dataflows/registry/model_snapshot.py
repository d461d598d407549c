"""Snapshots: the champion of a state directory as last committed, read beside the running run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from anabranch.dataflows.recovery.inspection import not_a_state_directory
from anabranch.dataflows.recovery.manifest import Manifest, read_manifest
from anabranch.dataflows.recovery.resume_point import ResumePoint, read_resume_point
from anabranch.dataflows.recovery.start_offsets import START_OFFSETS, read_start_offsets
from anabranch.dataflows.recovery.state_partition import DATABASE, INPUT, MODELS, read_id
from anabranch.dataflows.recovery.tokens import Token
from anabranch.models.drift.declarations import DISTRIBUTIONS
from anabranch.models.drift.distribution_shift import stored_reference
from anabranch.models.learners.checkpoint import restored
from anabranch.models.learners.description import parameters_by_path
from anabranch.models.learners.pickling import library_versions
from anabranch.models.learners.river import estimator_name
from anabranch.models.learners.segmented import SEGMENT
from anabranch.models.metrics.metrics import reported
from anabranch.models.prequential.step_record import StepRecord, part_of
from anabranch.models.registry.registry import Registry
from anabranch.models.registry.version import Span, Version, finite
from anabranch.models.registry.weights import weights
from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta, encode
from anabranch.state.store.lock import holder
from anabranch.state.store.read_only import ReadOnlyStore

_ATTEMPTS, _PAUSE_S = 20, 0.05


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model out of a state directory.

    Attributes:
        model: the River object.
        version: what the registry keeps of it; without a number yet.
        distributions: the references of what was monitored beside it, for `Registry.add`.
    """

    model: Any
    version: Version
    distributions: bytes | None = None


def take_snapshot(path: Path, name: str | None = None, note: str = "") -> Snapshot:
    """The champion of the state directory ``path``, and its lineage; nothing is changed.

    It is that of the generation from which a run would resume; on one of several hosts, the last
    that was written here. ``name`` is by default that of the champion.

    Raises:
        StateError: there is no state, it has learned nothing, or can't be read.
    """
    manifest = read_manifest(path)
    if manifest is None:
        raise not_a_state_directory(path)
    point, token, image = _read(path, manifest)
    if "step" not in image.blobs:
        raise _nothing(path)
    record = StepRecord.load(image.blobs["step"])
    learner = restored(record.champion, image.part(part_of(record.champion)))
    if learner is None:
        raise _nothing(path)
    model = learner.to_river()
    version = Version(
        name=name or record.champion,
        made="snapshot",
        made_ms=time.time_ns() // 1_000_000,
        source=str(path),
        pipeline=manifest.pipeline,
        task=record.task.value,
        model=estimator_name(model),
        declaration=record.models[record.champion],
        parameters=parameters_by_path(model),
        columns=[name for name in record.columns if name != SEGMENT],
        features=manifest.declaration.get("features", ""),
        rows=learner.version,
        trained_on=_spans(path, point),
        metrics=finite({m: reported(each) for m, each in record.metrics[record.champion].items()}),
        weights=finite(weights(model)),
        versions=library_versions(),
        state=token.id,
        generation=token.generation,
        note=note,
    )
    parent, monitored = _parent(path, manifest, version), image.part(DISTRIBUTIONS)
    version = msgspec.structs.replace(
        version, parent=parent, distributions=stored_reference(monitored)
    )
    stored = msgspec.msgpack.encode(encode(monitored)) if version.distributions else None
    return Snapshot(model, version, stored)


def latest_equal(registry: Registry, version: Version) -> Version | None:
    """The newest version of the name, if the same state had learned just as much by then."""
    snapshots = [each for each in registry.list(version.name) if each.made == "snapshot"]
    for newest in snapshots[-1:]:
        if (newest.state, newest.rows, newest.declaration) == (
            version.state,
            version.rows,
            version.declaration,
        ):
            return newest
    return None


def _read(path: Path, manifest: Manifest) -> tuple[ResumePoint, Token, Delta]:
    """The point from which a run would resume, and the models there.

    A run may commit while it is read: then it is read again.
    """
    for attempts_left in reversed(range(_ATTEMPTS)):
        in_use = holder(path) is not None
        try:
            point = read_resume_point(path / "recovery")
            token = point.tokens(manifest.layout).get(MODELS)
            if token is None and manifest.hosts > 1:
                token = _newest(path / MODELS)
            if token is not None:
                _check_complete(path, point, manifest)
                return point, token, ReadOnlyStore(path / MODELS / DATABASE).image(token.generation)
        except StateError:
            if not (attempts_left and in_use):
                raise
        if not in_use:
            break
        time.sleep(_PAUSE_S)
    raise _nothing(path)


def _newest(models: Path) -> Token | None:
    """The last generation that is written, whether or not the cluster resumes from it."""
    if not (models / DATABASE).exists():
        raise StateError(f"{models} is missing: take the snapshot on the host that has the models")
    generation = ReadOnlyStore(models / DATABASE).generation
    return Token(MODELS, read_id(models) or "", generation) if generation else None


def _check_complete(path: Path, point: ResumePoint, manifest: Manifest) -> None:
    """Raise unless all partitions are in it: the engine may have removed what it just replaced."""
    recorded = len(point.partitions())
    if manifest.hosts == 1 and recorded != manifest.partitions:
        raise StateError(
            f"the recovery store of {path} has {recorded} of {manifest.partitions} input "
            "partitions: restore it from a backup"
        )


def _spans(path: Path, point: ResumePoint) -> list[Span]:
    spans = []
    for number, partition in point.partitions():
        starts = read_start_offsets(path / f"{INPUT}-{number}" / START_OFFSETS)
        for topic, end in sorted(partition.offsets.items()):
            spans.append(Span(topic, number, starts.get(topic), end))
    return sorted(spans, key=lambda span: (span.topic, span.partition))


def _parent(path: Path, manifest: Manifest, version: Version) -> str | None:
    """The last version of the same state before this one, or the one that it started from."""
    earlier = [
        each
        for each in Registry.of(path).list()
        if each.state == version.state
        and each.made == "snapshot"
        and (each.generation or 0) < (version.generation or 0)
    ]
    if not earlier:
        return manifest.model
    return max(earlier, key=lambda each: (each.generation or 0, each.version)).reference


def _nothing(path: Path) -> StateError:
    return StateError(
        f"{path} holds no model yet: run the pipeline on it until the first epoch is committed"
    )
