"""Importing River models from local files: reading, checking against a pipeline, describing."""

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
class ImportedModel:
    """A River model that fits a pipeline.

    Attributes:
        model: the River object.
        version: what the registry keeps of it; without a number yet.
        remarks: what its user should know, a clause each.
    """

    model: Any
    version: Version
    remarks: list[str]


def read_import(path: Path, river: str | None, pipeline: Pipeline) -> RiverFile:
    """Read a file, and check all that can be checked before unpickling it.

    Raises:
        InputError: it can't be read, or is not for this pipeline.
        StateError: another River wrote it, or it is damaged.
    """
    file = read_river_file(path, river)
    about = file.about
    if about is not None:
        if about.task != pipeline.task.value:
            raise InputError(
                f"{path} is for a {about.task} task, and pipeline {pipeline.name!r} has a "
                f"{pipeline.task.value} one: import it for another pipeline"
            )
        check_columns(about.columns, pipeline.columns, str(path))
    return file


def check_import(file: RiverFile, pipeline: Pipeline, name: str | None, note: str) -> ImportedModel:
    """Unpickle a file and check that the model fits. This runs code that is in the file.

    Raises:
        InputError: it can't be unpickled, is no River model, or does not fit.
    """
    what, columns, origin = str(file.path), pipeline.columns, file.about
    model = file.unpickle()
    check_model(model, pipeline.task, what)
    trained_columns = origin.columns if origin is not None else known_features(model)
    untrained = check_columns(trained_columns, columns, what)
    check_by_trial(model, pipeline.task, columns, what)
    declared = describe_model(pipeline.model)
    same = (origin is not None and origin.declaration == declared) or same_declaration(
        model, pipeline.model, pipeline.task, columns
    )
    kind = estimator_name(model)
    version = Version(
        name=name or (origin.name if origin is not None else kind),
        made="import",
        made_ms=time.time_ns() // 1_000_000,
        source=f"{file.path} (sha256 {file.sha256[:12]})",
        pipeline=pipeline.name,
        task=pipeline.task.value,
        model=kind,
        declaration=declared if same else describe_model(model),
        parameters=parameters_by_path(model),
        columns=columns,
        features=describe(pipeline)["features"],
        rows=None if origin is None else origin.rows,
        trained_on=[] if origin is None else origin.trained_on,
        metrics={} if origin is None else origin.metrics,
        weights=finite(weights(model)),
        versions=library_versions(),
        parent=None if origin is None else f"{origin.reference} of pipeline {origin.pipeline}",
        note=note,
    )
    return ImportedModel(model, version, _remarks(version, untrained, origin, same))


def _remarks(
    version: Version, untrained: list[str], origin: Version | None, same: bool
) -> list[str]:
    remarks = []
    if untrained:
        remarks.append(f"it has never seen {', '.join(untrained)}: it starts to learn them now")
    if origin is not None and origin.features != version.features:
        remarks.append(
            "the features it was trained on were declared in another way: see "
            "`anabranch models show --json`"
        )
    if not same:
        remarks.append(
            f"pipeline {version.pipeline!r} declares another model, so `run --model` would refuse "
            "it"
        )
    return remarks
