"""Rescaling: repartitions the windows of a state directory for another number of workers.

A single worker has one state partition with the windows of all keys; several have one per shard.
Nothing is changed in place: the new layout is written beside the old one, and becomes valid when
the manifest names it. A run that was killed before that resumes from the old one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.recovery.manifest import Manifest, write_manifest
from anabranch.dataflows.recovery.resume_point import read_resume_point
from anabranch.dataflows.recovery.state_partition import (
    MODELS,
    WINDOWS,
    StatePartition,
    windows_partition,
)
from anabranch.dataflows.recovery.tokens import Token
from anabranch.dataflows.sharding.entity_windows import EntityWindows
from anabranch.state.keys.hashing import hash64
from anabranch.state.store.delta import Delta
from anabranch.state.windows.repartition import repartition

Windows = dict[str, EntityWindows]
"""By entity."""


def rescale(path: Path, recovery: Path, pipeline: Pipeline, manifest: Manifest) -> Manifest:
    """Repartition the windows into the other layout; returns the manifest that names it.

    Raises:
        StateError: the state is damaged or incomplete, or can't be written.
    """
    tokens = read_resume_point(recovery).tokens(manifest.layout)
    old, new = (path / f"layout-{manifest.layout + more}" for more in (0, 1))
    shutil.rmtree(new, ignore_errors=True)
    # One may have been written by the last rescaling, and not have been committed to since.
    names = {each.name for each in old.glob("*")}
    names |= {name for name in tokens if name.startswith(WINDOWS)}
    sources = [_load(old / name, tokens.get(name), pipeline) for name in sorted(names)]
    for shard in [None] if manifest.by_shard else range(manifest.shards):
        image = _repartition(sources, pipeline, shard, manifest.shards)
        target = StatePartition(new / windows_partition(shard))
        target.initialize(image)
        target.close()
    if MODELS in tokens:
        _adopt(path / MODELS, tokens[MODELS])
    changed = msgspec.structs.replace(
        manifest, layout=manifest.layout + 1, by_shard=not manifest.by_shard
    )
    write_manifest(path, changed)
    shutil.rmtree(old, ignore_errors=True)
    return changed


def _adopt(directory: Path, token: Token) -> None:
    """Keep the state at the token for a step whose id, and so whose token, is new."""
    partition = StatePartition(directory)
    partition.open(token)
    partition.adopt()
    partition.close()


def _load(directory: Path, token: Token | None, pipeline: Pipeline) -> Windows:
    partition = StatePartition(directory)
    try:
        image = partition.open(token)
    finally:
        partition.close()
    windows = {entity: EntityWindows(pipeline, entity, False) for entity in pipeline.entities}
    for entity, each in windows.items():
        each.restore(image.part(entity))
    return windows


def _repartition(
    sources: list[Windows], pipeline: Pipeline, shard: int | None, shards: int
) -> Delta:
    """The windows of a shard, or of all keys."""
    image = Delta()
    for entity in pipeline.entities:
        groups = range(len(sources[0][entity].groups)) if sources else range(0)
        for group in groups:
            states = [windows[entity].groups[group][1] for windows in sources]
            parts = [(state, _keys(list(state.slots_by_key()), shard, shards)) for state in states]
            image.put(f"{entity}/{group}", repartition(parts))
    return image


def _keys(keys: list[str], shard: int | None, shards: int) -> list[str]:
    if shard is None or not keys:
        return keys
    shard_of_key = hash64(keys) % np.uint64(shards)
    return [keys[row] for row in np.flatnonzero(shard_of_key == shard).tolist()]
