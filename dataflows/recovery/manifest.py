"""What a state directory belongs to: written when it is made, compared whenever it is opened.

State is only of use to the declaration that made it: windows of other fields, or a model of other
columns, would go on without an error and be wrong.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import msgspec

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.declaration.schema import Schema
from anabranch.dataflows.messages.inputs import Delayed, Inline
from anabranch.models.learners.description import describe as describe_model
from anabranch.state.errors import StateError
from anabranch.state.store.atomic_files import write_whole

FORMAT = 1
NAME = "identity.json"
_VERSIONS = ("river", "bytewax")


class Identity(msgspec.Struct, kw_only=True):
    """The contents of ``identity.json``.

    ``declaration`` describes the parts of the pipeline on which state depends; ``versions`` are
    those of the libraries that wrote it. ``layout`` counts how often the windows were laid out
    anew, ``by_shard`` says how: one place per shard, or one for all. ``since`` are the ends of the
    output topics when the directory was made, by partition. ``model`` is the version in the
    directory's registry with which learning began; None: with nothing.
    """

    format: int = FORMAT
    pipeline: str
    declaration: dict[str, str]
    versions: dict[str, str]
    shards: int
    partitions: int
    hosts: int
    layout: int
    by_shard: bool
    since: dict[str, list[int]]
    model: str | None = None


def describe(pipeline: Pipeline) -> dict[str, str]:
    """The parts of a pipeline on which state depends, each as text."""
    fields = Schema.of(pipeline.event).fields
    return {
        "event fields": " ".join(f"{f.name}:{f.kind}{'?' * f.optional}" for f in fields.values()),
        "features": "; ".join(map(repr, pipeline.features)),
        "label": _label(pipeline),
        "model": _model(pipeline),
        "times": f"{pipeline.id} {pipeline.time} lateness {pipeline.allowed_lateness} "
        f"duplicates {pipeline.dedup_window}",
    }


def versions() -> dict[str, str]:
    """The versions of the libraries whose objects are stored."""
    return {name: importlib.metadata.version(name) for name in _VERSIONS}


def read_identity(directory: Path) -> Identity | None:
    """What the directory belongs to; None when it is new.

    Raises:
        StateError: the file can't be read, or is of another format.
    """
    path = directory / NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path} can't be read: {error.strerror}") from None
    try:
        head = msgspec.json.decode(text, type=dict[str, object]).get("format")
        if head != FORMAT:
            raise StateError(
                f"{directory} is a state directory of format {head}, and this program reads format "
                f"{FORMAT}: use the version of the program that wrote it, or another --state"
            )
        return msgspec.json.decode(text, type=Identity)
    except msgspec.MsgspecError as error:
        raise StateError(f"{path} is damaged ({error}): restore it from a backup") from None


def write_identity(directory: Path, identity: Identity) -> None:
    """Write it so that either the old or the new one is there, whatever happens.

    Raises:
        StateError: the disk does not take it.
    """
    write_whole(directory / NAME, msgspec.json.format(msgspec.json.encode(identity)))


def check(identity: Identity, pipeline: Pipeline, directory: Path, shards: int) -> None:
    """Raise if the directory is of something else.

    Raises:
        StateError: names what differs.
    """
    if identity.pipeline != pipeline.name:
        raise StateError(
            f"{directory} is the state of pipeline {identity.pipeline!r}, not of "
            f"{pipeline.name!r}: name another directory with --state"
        )
    for name, here in versions().items():
        stored = identity.versions.get(name)
        if stored != here:
            raise StateError(
                f"{directory} was written with {name} {stored}, and {here} is installed: install "
                f"{name}=={stored}, or begin anew with another --state"
            )
    for part, text in describe(pipeline).items():
        stored = identity.declaration.get(part)
        if stored != text:
            before, now = _difference(stored or "", text)
            raise StateError(
                f"the {part} of pipeline {pipeline.name!r} changed since {directory} was made "
                f"({before} there, {now} here): undo that, or begin anew with another --state"
            )
    if identity.shards != shards:
        raise StateError(
            f"{directory} was made for {identity.shards} shards: run with --shards "
            f"{identity.shards}, or begin anew with another --state"
        )


def _model(pipeline: Pipeline) -> str:
    described = describe_model(pipeline.model)
    if pipeline.imbalance is not None:
        described += f", {pipeline.imbalance}"
    if pipeline.model_key is not None:
        described += (
            f", by {pipeline.model_key} after {pipeline.min_labels_per_segment} labels, at most "
            f"{pipeline.max_segments} times"
        )
    if pipeline.candidates is not None:
        described += f", ranks {pipeline.candidates}"
    return described


def _label(pipeline: Pipeline) -> str:
    label = pipeline.label
    if isinstance(label, Delayed):
        late = label.late
        if late == "update":
            late += f" within {label.update_within}"
        return (
            f"{label.field} by {label.id} at {label.time}, wait {label.timeout}, "
            f"otherwise {label.default!r}, late {late}, early {label.early_buffer}"
        )
    return f"inline {label.field}" if isinstance(label, Inline) else "none"


def _difference(stored: str, here: str, around: int = 30) -> tuple[str, str]:
    """The first place where two texts differ, with a little around it."""
    at = next((i for i, (a, b) in enumerate(zip(stored, here, strict=False)) if a != b), None)
    at = min(len(stored), len(here)) if at is None else at
    cut = slice(max(at - around, 0), at + around)
    return f"…{stored[cut]}…", f"…{here[cut]}…"
