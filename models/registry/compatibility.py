"""Checks of a River model from elsewhere against the task and the features of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from river import base
from river.utils import VectorDict

from anabranch.models.learners.compiled import learner_for
from anabranch.models.learners.description import describe
from anabranch.models.learners.learner import LEARN, PREDICT, Label, Predictions, StepFailed, Task
from anabranch.models.learners.pickling import dumps, loads, why_not_picklable
from anabranch.models.learners.river import RiverLearner, check_task
from anabranch.state.errors import AnabranchError, DeclarationError, InputError

# Attributes of River's own classes that hold something by feature: scalers, linear models,
# optimizers, trees.
_BY_FEATURE = {
    "counts", "means", "vars", "min", "max", "abs_max", "weights", "_weights", "w", "g2",
    "splitters", "limits",
}  # fmt: skip


def check_model(model: Any, task: Task, what: str) -> None:
    """Refuse an object that is not a River model of this task, or can't be kept on disk.

    Args:
        model: any object.
        task: of the pipeline.
        what: where the object is from (a file), for the message.

    Raises:
        InputError: it can't be used.
    """
    if not isinstance(model, base.Estimator):
        raise InputError(
            f"{what} holds {type(model).__name__!r}, not a River model: pickle the model itself"
        )
    try:
        check_task(model, task)
    except DeclarationError as error:
        raise InputError(f"{what} is not suitable: {error}") from None
    reason = why_not_picklable(model)
    if reason is not None:
        raise InputError(f"{what} can't be kept in a registry: {reason}")


def check_columns(learned: Sequence[str], columns: Sequence[str], what: str) -> list[str]:
    """The columns of a pipeline that a model has never seen, which it will learn from scratch.

    Args:
        learned: the features that the model has learned; empty: not known.
        columns: those of the pipeline.
        what: the model, for the message.

    Raises:
        InputError: it has learned features that the pipeline does not have.
    """
    unknown = sorted(set(learned) - set(columns))
    if unknown:
        shown = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        raise InputError(
            f"{what} has learned features that the pipeline does not have: {shown}; declare them, "
            f"or train it on {', '.join(columns[:5])}{', …' if len(columns) > 5 else ''}"
        )
    return [name for name in columns if name not in set(learned)] if learned else []


def check_by_trial(model: Any, task: Task, columns: Sequence[str], what: str) -> None:
    """Let a copy of the model predict and learn a row of zeros, or of ones if it can't take those.

    Raises:
        InputError: it fails on both, or its predictions are not of the task's type.
    """
    problem = ""
    for value in (0.0, 1.0):
        try:
            return _try_out(loads(what, dumps(what, model)), task, columns, what, value)
        except InputError:
            raise
        except Exception as error:  # the model may be of any class
            problem = problem or (error.detail if isinstance(error, StepFailed) else repr(error))
    raise InputError(f"{what} does not work with the features of the pipeline: {problem}")


def _try_out(model: Any, task: Task, columns: Sequence[str], what: str, value: float) -> None:
    learner = learner_for(model, columns, task)
    row, at = np.full((1, len(columns)), value), np.zeros(1, np.int64)
    if task is Task.MULTICLASS:
        predictions = learner.run(row, np.array([PREDICT], np.uint8), at, [None])
        labels: list[Label] = [label for label in predictions.values[0] if label is not None]
        if labels:
            learner.run(row, np.array([LEARN], np.uint8), at, labels[:1])
        return
    if task is Task.BINARY:
        _check_classes(learner.to_river(), columns, what, value)
    steps = np.array([PREDICT, LEARN, PREDICT], np.uint8), np.zeros(3, np.int64), np.zeros(3)
    _check_numbers(learner.run(row, *steps), what)


def _check_classes(model: Any, columns: Sequence[str], what: str, value: float) -> None:
    """Refuse a binary model that has learned other classes than True and False."""
    x = dict.fromkeys(columns, value)
    try:
        classes = model.predict_proba_one(x)
    except NotImplementedError:
        classes = {model.predict_one(x): 1.0}
    others = [label for label in classes if label not in (True, False, None)]
    if others:
        raise InputError(
            f"{what} has learned the classes {', '.join(map(repr, others[:5]))}, and the label of "
            "the pipeline is true or false: train it with those"
        )


def _check_numbers(predictions: Predictions, what: str) -> None:
    values = np.asarray(predictions.values, np.float64)
    if np.isinf(values).any() or np.isnan(values[1:]).any():
        raise InputError(f"{what} predicts NaN or infinity: train it again")


def known_features(model: Any) -> list[str]:
    """The features that River's own classes in ``model`` have learned something about, sorted.

    What other classes have learned can't be seen, so some may be missing.

    >>> from river import linear_model, preprocessing
    >>> model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    >>> model.learn_one({"b": 1.0, "a": 2.0}, True)
    >>> known_features(model)
    ['a', 'b']
    """
    features: set[str] = set()
    to_visit, visited = [model], set()
    while to_visit:
        value = to_visit.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, Mapping):
            to_visit += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            to_visit += value
        elif type(value).__module__.startswith("river."):
            for name, part in _attributes(value):
                to_visit.append(part)
                if name in _BY_FEATURE and isinstance(part, Mapping | VectorDict):
                    features |= {key for key in _keys(part) if isinstance(key, str)}
                elif name == "feature" and isinstance(part, str):  # of a branch of a tree
                    features.add(part)
    return sorted(features)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if isinstance(name, str) and (part := getattr(value, name, None)) is not None:
                yield name, part


def _keys(part: Any) -> list[Any]:
    return list(part.to_dict() if isinstance(part, VectorDict) else part)


def same_declaration(model: Any, declared: Any, task: Task, columns: Sequence[str]) -> bool:
    """Whether a trained model was declared in the same way as `declared`.

    Some River models set parameters at the first row (a forest: the number of features of a tree),
    so the declared model is also compared after it has learned a row of zeros.
    """
    text = describe(model)
    if text == describe(declared):
        return True
    try:
        copy = RiverLearner(declared.clone(), columns, task)
        row, at = np.zeros((1, len(columns))), np.zeros(1, np.int64)
        target = [False] if task is Task.MULTICLASS else np.zeros(1)
        copy.run(row, np.array([LEARN], np.uint8), at, target)
    except AnabranchError:
        return False
    return describe(copy.model) == text
