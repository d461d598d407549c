"""Models to register, with their description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.description import describe, parameters_by_path
from anabranch.models.learners.learner import LEARN, PREDICT, Learner, Predictions, Task
from anabranch.models.learners.pickling import library_versions
from anabranch.models.learners.river import estimator_name
from anabranch.models.registry.version import Version, finite
from anabranch.models.registry.weights import weights

COLUMNS = ("a", "b", "c")
ROWS = 400
FEATURES = np.random.default_rng(0).normal(size=(ROWS, len(COLUMNS)))
_SIGNS = (FEATURES[:, 0] + FEATURES[:, 1] * FEATURES[:, 2] > 0) ^ (np.arange(ROWS) > 250)
TARGETS: dict[Task, NDArray[np.float64]] = {
    Task.BINARY: _SIGNS.astype(np.float64),
    Task.REGRESSION: FEATURES[:, 0] - 2 * FEATURES[:, 2],
    Task.ANOMALY: np.zeros(ROWS),
}


def about(model: Any, name: str = "m", task: Task = Task.BINARY, **more: Any) -> Version:
    """The description of ``model`` for the registry."""
    told: dict[str, Any] = {
        "name": name,
        "made": "snapshot",
        "made_ms": 1_700_000_000_000,
        "source": "state",
        "pipeline": "trades",
        "task": task.value,
        "model": estimator_name(model),
        "declaration": describe(model),
        "parameters": parameters_by_path(model),
        "columns": list(COLUMNS),
        "features": "as they are",
        "weights": finite(weights(model)),
        "versions": library_versions(),
    }
    return Version(**(told | more))


def learned(model: Any, task: Task, rows: slice = slice(0, ROWS // 2)) -> Learner:
    """A learner trained prequentially on these rows."""
    learner = learner_for(model, COLUMNS, task)
    go_on(learner, rows)
    return learner


def go_on(learner: Learner, rows: slice = slice(ROWS // 2, ROWS)) -> Predictions:
    """Predict and then learn each row."""
    part = FEATURES[rows]
    steps = np.tile(np.array([PREDICT, LEARN], np.uint8), len(part))
    row = np.repeat(np.arange(len(part)), 2)
    return learner.run(part, steps, row, np.repeat(TARGETS[learner.task][rows], 2))


def river_of(learner: Learner) -> Any:
    """Its River object."""
    return learner.to_river()


def references(versions: Sequence[Version]) -> list[str]:
    return [each.reference for each in versions]
