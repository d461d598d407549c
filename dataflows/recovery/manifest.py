"""The manifest of a state directory: which pipeline it belongs to, and how it is partitioned.

It is written when the directory is created and compared whenever it is opened. State is only valid
for the declaration that produced it: windows of other fields, or a model of other columns, would
continue without an error and be wrong.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import msgspec

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.inputs import Delayed, Inline
from anabranch.dataflows.recovery.sealed_json import damaged, seal, unseal
from anabranch.models.learners.description import describe as describe_model
from anabranch.state.errors import StateError
from anabranch.state.store.atomic_files import atomic_write

FORMAT = 2
"""Counts the incompatible changes of what is in a state directory."""

NAME = "manifest.json"
FORMAT_1 = "identity.json"
"""What the manifest was called in format 1, whose contents this version can't read."""

_VERSIONS = ("river", "bytewax")


class Manifest(msgspec.Struct, kw_only=True):
    """The contents of ``manifest.json``.

    Attributes:
        pipeline: its name.
        declaration: the parts of the pipeline on which state depends, each as text.
        versions: of the libraries whose objects are stored.
        shards, partitions, hosts: how many there are; partitions of the input topic with most.
        layout: how often windows were repartitioned, from 1.
        by_shard: whether windows have a state partition per shard, or one for all keys.
        output_ends: the ends of the output topics when the directory was created, by partition.
        created_partitions: how many partitions there were when the directory was created; those
            added since are read from their first message on. 0: as many as now.
        model: the version in the directory's registry that learning started from; None: untrained.
        topic_ids: of inputs and outputs (`Bus.topic_ids`), where the bus has them.
        not_before: the ends of the outputs when the user last accepted new topics in place of
            inputs: nothing up to there is of those.
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
    output_ends: dict[str, list[int]]
    model: str | None = None
    created_partitions: int = 0
    topic_ids: dict[str, str] = {}
    not_before: dict[str, list[int]] = {}

    @property
    def first_partitions(self) -> int:
        """How many partitions there were when the directory was created."""
        return self.created_partitions or self.partitions


def is_state_directory(directory: Path) -> bool:
    """Whether there is a manifest, of whichever format."""
    return any((directory / name).exists() for name in (NAME, FORMAT_1))


def describe(pipeline: Pipeline) -> dict[str, str]:
    """The parts of a pipeline on which state depends, each as text."""
    zone = "" if pipeline.timezone == "UTC" else f" timezone {pipeline.timezone}"
    return {
        "event fields": " ".join(f"{name}:{kind}" for name, kind in _read_fields(pipeline).items()),
        "features": "; ".join(map(repr, pipeline.features)),
        "label": _label(pipeline),
        "model": _model(pipeline),
        "times": f"{pipeline.id} {pipeline.time} allowed_lateness {pipeline.allowed_lateness} "
        f"dedup_window {pipeline.dedup_window}{zone}",
    }


def versions() -> dict[str, str]:
    """The versions of the libraries whose objects are stored."""
    return {name: importlib.metadata.version(name) for name in _VERSIONS}


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a directory; None when it has none.

    Raises:
        StateError: it can't be read, or is of another format.
    """
    path = directory / NAME
    content = _read(path)
    if content is None:
        old = _read(directory / FORMAT_1)
        if old is not None:
            raise _unreadable_format(directory, old)
        return None
    fields = unseal(content, path)
    if fields.get("format") != FORMAT:
        raise _unreadable_format(directory, content)
    try:
        return msgspec.convert(fields, Manifest)
    except msgspec.ValidationError as error:
        raise damaged(path, str(error)) from None


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path} can't be read: {error.strerror}") from None


def _unreadable_format(directory: Path, content: bytes) -> StateError:
    """Says how to get the same state in this version's format: by a replay of the history."""
    try:
        fields = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        fields = {}
    events = f"{fields.get('pipeline', 'PIPELINE')}.events"
    return StateError(
        f"{directory} is a state directory of format {fields.get('format')}, and this version of "
        f"anabranch reads format {FORMAT}: replay the history into a new one with `anabranch "
        f"replay PIPELINE --from {events} --to rows.parquet --state NEW`, then run with --state NEW"
    )


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write it atomically: whatever happens, either the old or the new one is there.

    Raises:
        StateError: it can't be written.
    """
    atomic_write(directory / NAME, seal(msgspec.to_builtins(manifest)))


def check(manifest: Manifest, pipeline: Pipeline, directory: Path, shards: int) -> None:
    """Raise if the directory belongs to another pipeline, declaration or library version.

    Raises:
        StateError: names what differs.
    """
    if manifest.pipeline != pipeline.name:
        raise StateError(
            f"{directory} is the state of pipeline {manifest.pipeline!r}, not of "
            f"{pipeline.name!r}: name another directory with --state"
        )
    for name, installed in versions().items():
        stored = manifest.versions.get(name)
        if stored != installed:
            raise StateError(
                f"{directory} was written with {name} {stored}, and {installed} is installed: "
                f"install {name}=={stored}, or start from scratch with another --state"
            )
    for part, text in describe(pipeline).items():
        stored = manifest.declaration.get(part) or ""
        same = _same_fields(stored, pipeline) if part == "event fields" else stored == text
        if not same:
            before, now = _difference(stored, text)
            raise StateError(
                f"the {part} of pipeline {pipeline.name!r} changed since {directory} was created "
                f"({before} there, {now} here): undo that, or start from scratch with another "
                "--state"
            )
    if manifest.shards != shards:
        raise StateError(
            f"{directory} was created for {manifest.shards} shards: run with --shards "
            f"{manifest.shards}, or start from scratch with another --state"
        )


def _read_fields(pipeline: Pipeline) -> dict[str, str]:
    """The event's fields on whose values state depends: name → the kind of what is read.

    Keys are read as texts, whatever their type, and only of a value in windows it matters whether
    it may be null: then it has windows of its own. Where a field is in messages is no part of it.
    """
    fields = pipeline.schema.fields
    in_windows = _values_in_windows(pipeline)
    names = [pipeline.id, *pipeline.used_fields]
    names += [pipeline.model_key] if pipeline.model_key is not None else []
    names += [pipeline.label.field] if isinstance(pipeline.label, Inline) else []
    kinds = {}
    for name in sorted(set(names)):
        kind = "text" if name in pipeline.text_fields else fields[name].kind
        kinds[name] = kind + "?" * (fields[name].optional and name in in_windows)
    return kinds


def _same_fields(stored: str, pipeline: Pipeline) -> bool:
    """Whether the fields that are read have the kinds that they had, if they were declared then.

    A state of an earlier version names all fields, with a question mark wherever null is allowed.
    """
    before = dict(each.rpartition(":")[::2] for each in stored.split())
    in_windows = _values_in_windows(pipeline)
    for name, kind in _read_fields(pipeline).items():
        was = before.get(name, kind)
        if kind != (was if name in in_windows else was.removesuffix("?")):
            return False
    return True


def _values_in_windows(pipeline: Pipeline) -> set[str]:
    return {
        feature.value
        for features in pipeline.entities.values()
        for feature, _ in features
        if feature.value is not None
    }


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
            f"{label.field} by {label.id} at {label.time}, timeout {label.timeout}, "
            f"default {label.default!r}, late {late}, early_buffer {label.early_buffer}"
        )
    return f"inline {label.field}" if isinstance(label, Inline) else "none"


def _difference(stored: str, current: str, around: int = 30) -> tuple[str, str]:
    """Both texts where they first differ, with a little around it."""
    pairs = zip(stored, current, strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    at = min(len(stored), len(current)) if first is None else first
    cut = slice(max(at - around, 0), at + around)
    return f"…{stored[cut]}…", f"…{current[cut]}…"
