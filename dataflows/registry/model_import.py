"""River models from local files: read, checked against a pipeline, and told of."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.recovery.manifest import describe
from anabranch.models.learners.description import describe as describe_model
from anabranch.models.learners.description import parameters_by_path
from anabranch.models.learners.pickling import library_versions
from anabranch.models.learners.river import estimator_name
from anabranch.models.registry.compatibility import (
    check_by_trial,
    check_columns,
    check_model,
    known_features,
    same_declaration,
)
from anabranch.models.registry.river_file import RiverFile, read_river_file
from anabranch.models.registry.version import Version, finite
from anabranch.models.registry.weights import weights
from anabranch.state.errors import InputError


@dataclass(frozen=True, slots=True)
class Imported:
    """A River model that fits, what is told of it, and what its user should know."""

    model: Any
    about: Version
    remarks: list[str]


def read_import(path: Path, river: str | None, pipeline: Pipeline) -> RiverFile:
    """Read a file, and check all that can be checked before unpickling it.

    Raises:
        InputError: it can't be read, or is not for this pipeline.
        StateError: another River wrote it, or it is damaged.
    """
    found = read_river_file(path, river)
    about = found.about
    if about is not None:
        if about.task != pipeline.task.value:
            raise InputError(
                f"{path} is for a {about.task} task, and pipeline {pipeline.name!r} has a "
                f"{pipeline.task.value} one: import it for another pipeline"
            )
        check_columns(about.columns, pipeline.columns, str(path))
    return found


def check_import(
    found: RiverFile, pipeline: Pipeline, name: str | None, note: str, river: str | None
) -> Imported:
    """Unpickle a file and check that the model fits. It runs the code that is in it.

    Raises:
        InputError: it can't be unpickled, is no River model, or does not fit.
    """
    what, columns, told = str(found.path), pipeline.columns, found.about
    model = found.unpickle()
    check_model(model, pipeline.task, what)
    known = told.columns if told is not None else known_features(model)
    fresh = check_columns(known, columns, what)
    check_by_trial(model, pipeline.task, columns, what)
    features = describe(pipeline)["features"]
    declared = describe_model(pipeline.model)
    same = (told is not None and told.declaration == declared) or same_declaration(
        model, pipeline.model, pipeline.task, columns
    )
    kind = estimator_name(model)
    about = Version(
        name=name or (told.name if told is not None else kind),
        made="import",
        made_ms=time.time_ns() // 1_000_000,
        source=f"{found.path} (sha256 {found.sha256[:12]})",
        pipeline=pipeline.name,
        task=pipeline.task.value,
        model=kind,
        declaration=declared if same else describe_model(model),
        parameters=parameters_by_path(model),
        columns=columns,
        features=features,
        rows=None if told is None else told.rows,
        trained_on=[] if told is None else told.trained_on,
        metrics={} if told is None else told.metrics,
        weights=finite(weights(model)),
        versions=library_versions(),
        parent=None if told is None else f"{told.reference} of pipeline {told.pipeline}",
        note=note,
    )
    return Imported(model, about, list(_remarks(fresh, told, features, same, pipeline)))


def _remarks(
    fresh: list[str], told: Version | None, features: str, same: bool, pipeline: Pipeline
) -> list[str]:
    said = []
    if fresh:
        said.append(f"it has never seen {', '.join(fresh)}: it will learn them from nothing")
    if told is not None and told.features != features:
        said.append(
            "the features it was trained on were declared in another way: see "
            "`anabranch models show --json`"
        )
    if not same:
        said.append(
            f"pipeline {pipeline.name!r} declares another model, so `run --model` would not take it"
        )
    return said
