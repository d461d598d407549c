"""Chooses how a River model runs: compiled where there is a kernel for it, else as River itself."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from anabranch.models.learners.learner import Learner, Task
from anabranch.models.learners.linear import CompiledLinear
from anabranch.models.learners.river import RiverLearner, check_task

_log = logging.getLogger("anabranch.models")

COMPILED = (CompiledLinear,)
"""The learners with kernels, one for each family of models.

A new one is a file, an entry here, and a number in `models.pickled_classes`.
"""


def why_not(model: Any, names: Iterable[str] | None = None) -> str | None:
    """Why `model` can't run compiled, as the end of a sentence; None if it can.

    Args:
        model: a River object.
        names: the feature columns; a model that has learned others can't run on these.

    >>> from river import linear_model, preprocessing, tree
    >>> why_not(preprocessing.StandardScaler() | linear_model.LogisticRegression())
    >>> why_not(tree.HoeffdingTreeClassifier())
    'HoeffdingTreeClassifier is not a linear model with an optional StandardScaler before it'
    >>> why_not(linear_model.LinearRegression(l1=0.1))
    'l1 is not supported'
    """
    reasons = [each.why_not(model, names) for each in COMPILED]
    return None if None in reasons else "; ".join(filter(None, reasons))


def compiled(model: Any, names: Iterable[str]) -> Learner | None:
    """The model as a compiled learner, or None when there is no kernel for it.

    Recognised: an optional `StandardScaler`, then `LogisticRegression` or `LinearRegression` with
    one of `OPTIMIZERS` at a constant rate; l2, `intercept_lr`, `intercept_init`, `clip_gradient`
    and the weights of the log loss included. `why_not` names the reason against.

    A trained model is converted with its state; the River object itself is not touched.

    >>> import numpy as np
    >>> from river import linear_model
    >>> learner = compiled(linear_model.LinearRegression(), ("a", "b"))
    >>> steps = np.array([1, 0], np.uint8), np.array([0, 0]), np.array([1.0, 0.0])
    >>> learner.run(np.array([[1.0, 2.0]]), *steps).values
    array([0.12])
    >>> learner.to_river().weights
    {'a': 0.02, 'b': 0.04}
    """
    names = tuple(names)
    for kind in COMPILED:
        if kind.why_not(model, names) is None:
            return kind(model, names)
    return None


def learner_for(model: Any, names: Iterable[str], task: Task) -> Learner:
    """The fastest learner for a River model: compiled if there is a kernel, else River itself.

    A model that runs as River is logged, with the reason.

    Raises:
        DeclarationError: the model is of the wrong kind for the task.
    """
    check_task(model, task)
    names = tuple(names)
    reason = why_not(model, names)
    learner = compiled(model, names)
    if learner is not None and learner.task is task:
        return learner
    _log.info("%s runs as River, not compiled: %s", model, reason or "no kernel for this task")
    return RiverLearner(model, names, task)
