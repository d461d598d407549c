"""Label values as the models take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.columns import NumberColumn
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.models.learners.learner import Task

_FLOAT64 = np.dtype(np.float64)  # a dtype made of a type is dear


class TargetReader:
    """Label values as the models take them: floats, or the labels themselves for multi-class."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._task = pipeline.task

    def read(self, values: Sequence[Any] | NDArray[Any], unlabelled: int | None) -> Any:
        """``unlabelled`` is how many rows there are when there may be no labels at all."""
        if self._task is Task.MULTICLASS:
            return values.tolist() if isinstance(values, np.ndarray) else list(values)
        if type(values) is NumberColumn:
            return values.floats()
        if not len(values) and unlabelled:
            return np.full(unlabelled, np.nan)
        return np.array(values, _FLOAT64)
