"""Another number of workers: the windows of all keys in one place, or a place per shard.

Nothing is changed in place. The new layout is written beside the old one, and becomes the valid one
when the identity file names it; a run that was killed before that goes on from the old one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.recovery.manifest import Identity, write_identity
from anabranch.dataflows.recovery.resume_point import ResumePoint, read_resume_point
from anabranch.dataflows.recovery.state_partition import Place, Token, windows_of
from anabranch.dataflows.sharding.entity_windows import EntityWindows
from anabranch.dataflows.steps.window_step import MODELS
from anabranch.state.keys.hashing import hash64
from anabranch.state.store.delta import Delta
from anabranch.state.windows.repartition import repartition

TOGETHER, BY_SHARD, MODELS_STEP = "windows_and_models", "windows", "models"
"""Ids of the stateful steps, without the number of the layout."""

Windows = dict[str, EntityWindows]
"""By entity."""


def lay_out_anew(path: Path, recovery: Path, pipeline: Pipeline, identity: Identity) -> Identity:
    """Bring the windows into the other layout; returns the identity that names it.

    Raises:
        StateError: the state is damaged or incomplete, or the disk does not take it.
    """
    point = read_resume_point(recovery)
    old, new = (path / f"layout-{identity.layout + more}" for more in (0, 1))
    shutil.rmtree(new, ignore_errors=True)
    windows, models = _tokens(point, identity)
    # A place may have come with the last layout, and not have been committed to since.
    places = {each.name for each in old.glob("*")} | set(windows)
    sources = [_load(old / place, windows.get(place), pipeline) for place in sorted(places)]
    for shard in [None] if identity.by_shard else range(identity.shards):
        image = _image(sources, pipeline, shard, identity.shards)
        place = Place(new / windows_of(shard))
        place.begin_with(image)
        place.close()
    if models is not None:
        place = Place(path / models.place)
        place.open(models)
        place.adopt()
        place.close()
    changed = msgspec.structs.replace(
        identity, layout=identity.layout + 1, by_shard=not identity.by_shard
    )
    write_identity(path, changed)
    shutil.rmtree(old, ignore_errors=True)
    return changed


def _tokens(point: ResumePoint, identity: Identity) -> tuple[dict[str, Token], Token | None]:
    """The tokens of all windows by place, and of the models, in the layout that there is."""
    if identity.by_shard:
        windows = point.of_step(f"{BY_SHARD}_{identity.layout}").values()
        models = point.of_step(f"{MODELS_STEP}_{identity.layout}").get(MODELS)
        return {token.place: token for token in windows if token is not None}, models
    both = point.of_step(f"{TOGETHER}_{identity.layout}").get(MODELS)
    return ({}, None) if both is None else ({both[0].place: both[0]}, both[1])


def _load(directory: Path, token: Token | None, pipeline: Pipeline) -> Windows:
    place = Place(directory)
    try:
        image = place.open(token)
    finally:
        place.close()
    windows = {entity: EntityWindows(pipeline, entity, False) for entity in pipeline.entities}
    for entity, each in windows.items():
        each.restore(image.part(entity))
    return windows


def _image(sources: list[Windows], pipeline: Pipeline, shard: int | None, shards: int) -> Delta:
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
    at = hash64(keys) % np.uint64(shards)
    return [keys[row] for row in np.flatnonzero(at == shard).tolist()]
