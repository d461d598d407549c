"""Starting a new state from a trained model of the registry: ``anabranch run --model``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.recovery.manifest import read_manifest
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.models.learners.description import describe
from anabranch.models.registry.compatibility import check_columns
from anabranch.models.registry.registry import Registry
from anabranch.models.registry.version import Version, parse_reference
from anabranch.state.errors import InputError


@dataclass(frozen=True, slots=True)
class WarmStart:
    """A version that fits a pipeline, found and checked before the state is created."""

    registry: Registry
    version: Version


def find_warm_start(
    pipeline: Pipeline, state: Path, source: Path, reference: str
) -> WarmStart | None:
    """The version that a state starts from; None if it has started from it. Nothing is changed.

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
            f"--model {reference} names no version, and a restart must not pick another one: write "
            f"{reference}@VERSION (`anabranch models list` shows them)"
        )
    registry = Registry.of(source)
    if _has_started_from(state, registry, reference):
        return None
    version = registry.find(reference)
    _check_fits(pipeline, registry, version)
    return WarmStart(registry, version)


def _has_started_from(state: Path, registry: Registry, reference: str) -> bool:
    """Whether a state started from this very version, which its source may have removed since."""
    manifest = read_manifest(state)
    if manifest is None or manifest.model is None:
        return False
    own = Registry.of(state)
    if own.path == registry.path:
        return manifest.model == reference
    return own.find(manifest.model).source == f"{reference} of {registry.path}"


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
            "declare that model, or name another one with --model"
        )
    check_columns(version.columns, pipeline.columns, what)
    learner = registry.learner(version, pipeline.columns, pipeline.task)
    if type(learner) is not type(pipeline.base_learner()):
        raise InputError(
            f"{what} can't be continued by the kernel that pipeline {pipeline.name!r} runs: train "
            "it with learn_one alone"
        )


def warm_start(state: StateDirectory, wanted: WarmStart, say: Callable[[str], None]) -> None:
    """Let a new state start from a model, which is copied into its registry and stays there.

    Raises:
        InputError: the state has started from something else.
        StateError: it can't be written.
    """
    version, own = wanted.version, Registry.of(state.path)
    if state.generation():
        model = state.manifest.model
        start = f"from {model}" if model else "from an untrained model"
        raise InputError(
            f"{state.path} has started {start} and is at generation {state.generation():,}, and "
            f"--model {version.reference} is for a new state: leave it out, or name a new "
            "directory with --state"
        )
    here = version if own.path == wanted.registry.path else own.copy(wanted.registry, version)
    own.pin(here)
    state.set_initial_model(here.reference)
    rows = "an unknown number of" if version.rows is None else f"{version.rows:,}"
    say(f"starting from {here.reference}, which has learned {rows} labels")
