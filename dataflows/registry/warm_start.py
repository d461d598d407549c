"""How a new state begins with a model that has learned already: ``anabranch run --model``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.recovery.manifest import read_identity
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.models.learners.description import describe
from anabranch.models.registry.compatibility import check_columns
from anabranch.models.registry.registry import Registry
from anabranch.models.registry.version import Version, parse_reference
from anabranch.state.errors import InputError


@dataclass(frozen=True, slots=True)
class Beginning:
    """A version that fits a pipeline, found and checked before the state is made."""

    registry: Registry
    version: Version


def find_beginning(
    pipeline: Pipeline, state: Path, source: Path, reference: str
) -> Beginning | None:
    """The version that a state would begin with; None if it has. Nothing is changed.

    Args:
        pipeline: what it has to fit.
        state: the directory of the new state.
        source: the state directory whose registry has the model; may be the same.
        reference: ``NAME@VERSION``.

    Raises:
        InputError: there is no such version, or it does not fit.
        StateError: another River wrote it, or it is damaged.
    """
    if parse_reference(reference)[1] is None:
        raise InputError(
            f"--model {reference} names no version, and another start must not find another "
            f"model: write {reference}@VERSION (`anabranch models list` shows them)"
        )
    registry = Registry.of(source)
    if _has_begun(state, registry, reference):
        return None
    version = registry.find(reference)
    _check_fits(pipeline, registry, version)
    return Beginning(registry, version)


def _has_begun(state: Path, registry: Registry, reference: str) -> bool:
    """Whether a state began with this very version, which its source may have removed since."""
    identity = read_identity(state)
    if identity is None or identity.model is None:
        return False
    own = Registry.of(state)
    if own.path == registry.path:
        return identity.model == reference
    return own.find(identity.model).source == f"{reference} of {registry.path}"


def _check_fits(pipeline: Pipeline, registry: Registry, version: Version) -> None:
    what = f"model {version.reference}"
    if version.task != pipeline.task.value:
        raise InputError(
            f"{what} is for a {version.task} task, and pipeline {pipeline.name!r} has a "
            f"{pipeline.task.value} one: name another model with --model"
        )
    declared = describe(pipeline.model)
    if version.declaration != declared:
        raise InputError(
            f"{what} is {version.declaration}, and pipeline {pipeline.name!r} declares {declared}: "
            "declare what it is, or name another model with --model"
        )
    check_columns(version.columns, pipeline.columns, what)
    learner = registry.learner(version, pipeline.columns, pipeline.task)
    if type(learner) is not type(pipeline.base_learner()):
        raise InputError(
            f"{what} can't go on as the kernel that pipeline {pipeline.name!r} runs: train it with "
            "learn_one alone"
        )


def begin_with(state: StateDirectory, wanted: Beginning, say: Callable[[str], None]) -> None:
    """Let a new state begin with a model.

    The model is copied into the registry of the state, and stays there.

    Raises:
        InputError: the state has begun already, with something else.
        StateError: the disk does not take it.
    """
    version, own = wanted.version, Registry.of(state.path)
    if state.generation():
        begun = f"with {state.identity.model}" if state.identity.model else "without a model"
        raise InputError(
            f"{state.path} has begun {begun} and come to generation {state.generation():,}, and "
            f"--model {version.reference} is for a new state: leave it out, or name a new "
            "directory with --state"
        )
    here = version if own.path == wanted.registry.path else own.copy(wanted.registry, version)
    own.pin(here)
    state.begin_with(here.reference)
    rows = "an unknown number of" if version.rows is None else f"{version.rows:,}"
    say(f"begins with {here.reference}, which has learned {rows} labels")
