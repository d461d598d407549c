"""The champion of a state directory as it was last committed, read beside the run that uses it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from anabranch.dataflows.recovery.inspection import tokens_by_place
from anabranch.dataflows.recovery.manifest import Identity, read_identity
from anabranch.dataflows.recovery.resume_point import ResumePoint, read_resume_point
from anabranch.dataflows.recovery.state_directory import BEGAN
from anabranch.dataflows.recovery.state_partition import DATABASE, Token, read_id
from anabranch.models.drift.declarations import DISTRIBUTIONS
from anabranch.models.drift.distribution_shift import stored_reference
from anabranch.models.learners.checkpoint import restored
from anabranch.models.learners.description import parameters_by_path
from anabranch.models.learners.pickling import library_versions
from anabranch.models.learners.river import estimator_name
from anabranch.models.learners.segmented import SEGMENT
from anabranch.models.prequential.step_record import StepRecord, part_of
from anabranch.models.registry.registry import Registry
from anabranch.models.registry.version import Span, Version, finite
from anabranch.models.registry.weights import weights
from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta, encode
from anabranch.state.store.lock import holder
from anabranch.state.store.store import look

_MODELS = "models"
_LOOKS, _NAP_S = 20, 0.05


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A River object, and what is told of it. It has no number yet.

    ``distributions`` are those that were watched beside it, for `Registry.add`.
    """

    model: Any
    about: Version
    distributions: bytes | None = None


def take_snapshot(path: Path, name: str | None = None, note: str = "") -> Snapshot:
    """The champion of the state directory ``path``, and its lineage; nothing is changed.

    It is that of the generation from which a run would go on. On one of several hosts it is the
    last that was written here. ``name`` is by default that of the champion.

    Raises:
        StateError: there is no state, it has learned nothing, or can't be read.
    """
    identity = read_identity(path)
    if identity is None:
        raise StateError(f"{path} is no state directory: name one that `anabranch run` has made")
    point, token, image = _read(path, identity)
    if "step" not in image.blobs:
        raise _nothing(path)
    record = StepRecord.load(image.blobs["step"])
    learner = restored(record.champion, image.part(part_of(record.champion)))
    if learner is None:
        raise _nothing(path)
    model = learner.to_river()
    about = Version(
        name=name or record.champion,
        made="snapshot",
        made_ms=time.time_ns() // 1_000_000,
        source=str(path),
        pipeline=identity.pipeline,
        task=record.task.value,
        model=estimator_name(model),
        declaration=record.models[record.champion],
        parameters=parameters_by_path(model),
        columns=[name for name in record.columns if name != SEGMENT],
        features=identity.declaration.get("features", ""),
        rows=learner.version,
        trained_on=_spans(path, point),
        metrics=finite({m: each.value for m, each in record.metrics[record.champion].items()}),
        weights=finite(weights(model)),
        versions=library_versions(),
        state=token.id,
        generation=token.generation,
        note=note,
    )
    parent, watched = _parent(path, identity, about), image.part(DISTRIBUTIONS)
    about = msgspec.structs.replace(about, parent=parent, distributions=stored_reference(watched))
    kept = msgspec.msgpack.encode(encode(watched)) if about.distributions else None
    return Snapshot(model, about, kept)


def nothing_new(registry: Registry, about: Version) -> Version | None:
    """The newest version of the name, if the same state had learned just as much by then."""
    same = [each for each in registry.list(about.name) if each.made == "snapshot"][-1:]
    for newest in same:
        if (newest.state, newest.rows, newest.declaration) == (
            about.state,
            about.rows,
            about.declaration,
        ):
            return newest
    return None


def _read(path: Path, identity: Identity) -> tuple[ResumePoint, Token, Delta]:
    """Where a run would go on, and the models there. A run may go on meanwhile: then look again."""
    for left in reversed(range(_LOOKS)):
        going_on = holder(path) is not None
        try:
            point = read_resume_point(path / "recovery")
            token = tokens_by_place(point, identity).get(_MODELS)
            if token is None and identity.hosts > 1:
                token = _newest(path / _MODELS)
            if token is not None:
                _check_whole(path, point, identity)
                return point, token, look(path / _MODELS / DATABASE).image(token.generation)
        except StateError:
            if not (left and going_on):
                raise
        if not going_on:
            break
        time.sleep(_NAP_S)
    raise _nothing(path)


def _newest(place: Path) -> Token | None:
    """The last generation that is written, whether or not the cluster goes on from it."""
    if not (place / DATABASE).exists():
        raise StateError(f"{place} is not there: take the snapshot on the host that has the models")
    generation = look(place / DATABASE).generation
    return Token(_MODELS, read_id(place) or "", generation) if generation else None


def _check_whole(path: Path, point: ResumePoint, identity: Identity) -> None:
    """Raise unless all partitions are in it: the engine may have removed what it just replaced."""
    known = len(point.partitions())
    if identity.hosts == 1 and known != identity.partitions:
        raise StateError(
            f"the recovery store of {path} knows {known} of {identity.partitions} input "
            "partitions: restore it from a backup"
        )


def _spans(path: Path, point: ResumePoint) -> list[Span]:
    found = []
    for number, part in point.partitions():
        began = _began(path / f"intake-{number}" / BEGAN)
        for topic, end in sorted(part.offsets.items()):
            found.append(Span(topic, number, began.get(topic), end))
    return sorted(found, key=lambda span: (span.topic, span.partition))


def _began(path: Path) -> dict[str, int | None]:
    """Where reading began; empty for a state that did not note it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, int | None])
    except (OSError, msgspec.MsgspecError):
        return {}


def _parent(path: Path, identity: Identity, about: Version) -> str | None:
    """The last version of the same state before this one, or the one that it began with."""
    earlier = [
        each
        for each in Registry.of(path).list()
        if each.state == about.state
        and each.made == "snapshot"
        and (each.generation or 0) < (about.generation or 0)
    ]
    if not earlier:
        return identity.model
    return max(earlier, key=lambda each: (each.generation or 0, each.version)).reference


def _nothing(path: Path) -> StateError:
    return StateError(
        f"{path} has not kept a model yet: run the pipeline on it until the first epoch ends"
    )
