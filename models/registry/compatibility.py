"""Whether a River object from elsewhere fits the task and the features of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from river import base
from river.utils import VectorDict

from anabranch.models.learners.description import describe
from anabranch.models.learners.learner import LEARN, PREDICT, Label, Predictions, Task
from anabranch.models.learners.linear import learner_for
from anabranch.models.learners.pickling import dump_model, load_model, why_not_picklable
from anabranch.models.learners.river import RiverLearner, check_task
from anabranch.state.errors import AnabranchError, DeclarationError, InputError

# Where River's own classes keep something by feature: scalers, linear models, optimizers, trees.
_BY_FEATURE = {
    "counts", "means", "vars", "min", "max", "abs_max", "weights", "_weights", "w", "g2",
    "splitters", "limits",
}  # fmt: skip


def check_model(model: Any, task: Task, what: str) -> None:
    """Refuse what is no River model of this task, or can't be kept on disk.

    Raises:
        InputError: ``what`` (a file) holds such a thing.
    """
    if not isinstance(model, base.Estimator):
        raise InputError(
            f"{what} holds {type(model).__name__!r} and no River model: pickle the model itself"
        )
    try:
        check_task(model, task)
    except DeclarationError as error:
        raise InputError(f"{what} does not fit: {error}") from None
    reason = why_not_picklable(model)
    if reason is not None:
        raise InputError(f"{what} can't be kept in a registry: {reason}")


def check_columns(known: Sequence[str], columns: Sequence[str], what: str) -> list[str]:
    """The columns that a model has never seen; they start from nothing.

    Args:
        known: the features that the model has learned.
        columns: those of the pipeline.
        what: the model, for the error.

    Raises:
        InputError: it has learned others, or none of these.
    """
    unknown = sorted(set(known) - set(columns))
    if unknown:
        shown = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        raise InputError(
            f"{what} has learned features that the pipeline does not have: {shown}; declare them, "
            f"or train it on {', '.join(columns[:5])}{', …' if len(columns) > 5 else ''}"
        )
    return [name for name in columns if name not in set(known)] if known else []


def check_by_trial(model: Any, task: Task, columns: Sequence[str], what: str) -> None:
    """Let a copy predict and learn a row of zeros.

    Raises:
        InputError: it fails, or its answers are not ones of the task.
    """
    copy = load_model(what, dump_model(what, model))
    try:
        learner = learner_for(copy, columns, task)
        row, at = np.zeros((1, len(columns))), np.zeros(1, np.int64)
        ask = np.array([PREDICT], np.uint8)
        if task is Task.MULTICLASS:
            answers = learner.run(row, ask, at, [None])
            labels: list[Label] = [label for label in answers.values[0] if label is not None]
            if labels:
                learner.run(row, np.array([LEARN], np.uint8), at, labels[:1])
            return
        if isinstance(learner, RiverLearner) and task is Task.BINARY:
            _check_binary(learner, columns, what)
        steps = np.array([PREDICT, LEARN, PREDICT], np.uint8), np.zeros(3, np.int64), np.zeros(3)
        _check_numbers(learner.run(row, *steps), what)
    except InputError:
        raise
    except Exception as error:  # of a model that may be anybody's
        raise InputError(
            f"{what} does not work with the features of the pipeline: {error!r}"
        ) from None


def _check_binary(learner: RiverLearner, columns: Sequence[str], what: str) -> None:
    """River's classes of a binary task are True and False."""
    try:
        answers = learner.model.predict_proba_one(dict.fromkeys(columns, 0.0))
    except NotImplementedError:
        answers = {learner.model.predict_one(dict.fromkeys(columns, 0.0)): 1.0}
    others = [label for label in answers if label not in (True, False, None)]
    if others:
        raise InputError(
            f"{what} has learned the classes {', '.join(map(repr, others[:5]))}, and the label of "
            "the pipeline is true or false: train it with those"
        )


def _check_numbers(answers: Predictions, what: str) -> None:
    values = np.asarray(answers.values, np.float64)
    if np.isinf(values).any() or np.isnan(values[1:]).any():
        raise InputError(f"{what} answers with NaN or infinity: what it has learned is of no use")


def known_features(model: Any) -> list[str]:
    """Features that River's own classes in ``model`` have something learned about, sorted.

    Of other classes nothing is known, so it may be too few.

    >>> from river import linear_model, preprocessing
    >>> model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    >>> model.learn_one({"b": 1.0, "a": 2.0}, True)
    >>> known_features(model)
    ['a', 'b']
    """
    found: set[str] = set()
    waiting, seen = [model], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif type(value).__module__.startswith("river."):
            for name, part in _attributes(value):
                waiting.append(part)
                if name in _BY_FEATURE and isinstance(part, Mapping | VectorDict):
                    found |= {key for key in _keys(part) if isinstance(key, str)}
                elif name == "feature" and isinstance(part, str):  # of a branch of a tree
                    found.add(part)
    return sorted(found)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if isinstance(name, str) and (part := getattr(value, name, None)) is not None:
                yield name, part


def _keys(part: Any) -> list[Any]:
    return list(part.to_dict() if isinstance(part, VectorDict) else part)


def same_declaration(model: Any, declared: Any, task: Task, columns: Sequence[str]) -> bool:
    """Whether a trained model is one that was declared so.

    Some River models write what they find into their parameters with the first row (a forest: how
    many features a tree looks at); so the declared one may have learned a row of zeros.
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
