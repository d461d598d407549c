"""A trial of a model when a pipeline is built: whether it can predict and learn at all."""

from __future__ import annotations

from typing import Any

import numpy as np
from river import feature_extraction

from anabranch.dataflows.declaration.declaration import Declaration
from anabranch.models.learners.compiled import why_not
from anabranch.models.learners.fault_isolation import FaultIsolation
from anabranch.models.learners.learner import Targets, Task
from anabranch.models.learners.pickling import river_objects
from anabranch.models.learners.river import RiverLearner
from anabranch.state.errors import DeclarationError

_TEXT = (feature_extraction.BagOfWords,)
_TRIED = (1.0, 0.5, 2.0, 0.0, -1.0)
_A_LABEL = {"text": "a", "boolean": True, "number": 1}


def check_by_trial(pipeline: Declaration, model: Any, where: str) -> None:
    """Let a copy of a River model predict and learn some rows; it must be able to for one of them.

    A function of the user may well raise for some numbers, such as a logarithm for 0.

    Raises:
        DeclarationError: it raises at every prediction, or at everything that it learns.
    """
    for each in river_objects(model):
        if isinstance(each, _TEXT):
            raise DeclarationError(
                f"{type(each).__name__} in {where} needs text, and a model gets the features, "
                "which are numbers: encode text as features, with one_hot or hashed"
            )
    columns = pipeline.columns
    if why_not(model, columns) is None:
        return  # a kernel can't fail
    learner = RiverLearner(model.clone(), columns, pipeline.task)
    shapes = np.array([np.ones(len(columns)), np.arange(1, len(columns) + 1)])
    rows = np.concatenate([shapes * value for value in _TRIED])
    steps = np.arange(2 * len(rows))
    op, row = (steps % 2).astype(np.uint8), steps // 2
    targets: Targets = np.ones(len(steps))
    if pipeline.task is Task.MULTICLASS:
        targets = [_A_LABEL.get(pipeline.target_kind or "", 1)] * len(steps)
    isolation = FaultIsolation()
    isolation.run(learner, rows, op, row, targets)
    predicted = len(rows) - sum(failure.predicting for failure in isolation.failures)
    learned = len(rows) - len(isolation.failures)
    if not (predicted and learned):
        raise DeclarationError(
            f"{where} can't take the features ({', '.join(columns)}): "
            f"{isolation.failures[-1].detail}"
        )
