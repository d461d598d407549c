"""Any River model as a learner: it is given dicts of floats, one row at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import base

from anabranch.models.learners.learner import (
    NO_LABEL,
    PREDICT,
    Label,
    ModelError,
    Predictions,
    Targets,
    Task,
)
from anabranch.state.errors import DeclarationError

_log = logging.getLogger("anabranch.models")

_KINDS: dict[Task, tuple[type, ...]] = {
    Task.BINARY: (base.Classifier,),
    Task.MULTICLASS: (base.Classifier,),
    Task.REGRESSION: (base.Regressor,),
    Task.ANOMALY: (base.AnomalyDetector, base.AnomalyFilter),
}
_WANTED = {
    Task.BINARY: "a classifier",
    Task.MULTICLASS: "a classifier that handles more than two classes",
    Task.REGRESSION: "a regressor",
    Task.ANOMALY: "an anomaly detector that scores without the label",
}


def _final(model: Any) -> Any:
    """The estimator that answers: the last step of a pipeline."""
    while hasattr(model, "steps"):
        model = model._last_step
    return model


def check_fits(model: Any, task: Task) -> None:
    """Refuse a River model that can't do `task`.

    Raises:
        DeclarationError: it is a class instead of an object, or of the wrong kind.

    >>> from river import linear_model
    >>> check_fits(linear_model.LinearRegression(), Task.BINARY)
    Traceback (most recent call last):
    ...
    state.errors.DeclarationError: LinearRegression can't do a binary task: give a classifier
    """
    name = type(_final(model)).__name__ if not isinstance(model, type) else model.__name__
    if isinstance(model, type):
        raise DeclarationError(f"{name} is a class: give an object, {name}()")
    fits = isinstance(model, _KINDS[task])
    if fits and task is Task.MULTICLASS:
        fits = bool(model._multiclass)
    if not fits:
        raise DeclarationError(f"{name} can't do a {task.value} task: give {_WANTED[task]}")


def _gives_probabilities(model: Any) -> bool:
    """Whether a classifier, or the one inside its wrappers, has its own `predict_proba_one`."""
    model = _final(model)
    if type(model).predict_proba_one is base.Classifier.predict_proba_one:
        return False
    inner = model._wrapped_model if isinstance(model, base.Wrapper) else None
    return not isinstance(inner, base.Classifier) or _gives_probabilities(inner)


class RiverLearner:
    """A River model, or a pipeline that ends in one, as a `Learner`.

    Features are floats and nothing else: a transformer over strings (`OneHotEncoder`, `TFIDF`) has
    nothing to work on here. Encode such fields as features instead.

    * BINARY: River is taught `True` and `False`. A classifier without probabilities
      (`VotingClassifier`) serves 1.0 or 0.0.
    * MULTICLASS: `predict_proba_one`; without probabilities, `{label: 1.0}`.
    * The predicted label is River's `predict_one`: asked for where a model overrides it, else the
      first most probable one, which is the same.
    * ANOMALY: `score_one`; an `AnomalyFilter` serves its verdict, 1.0 or 0.0, as
      `evaluate.progressive_val_score` does.

    The model is taken over, not copied.

    Args:
        model: the River object.
        names: the columns of the feature rows; what River sees as keys.
        task: what it is asked.

    Attributes:
        class_weights: `w` of `learn_one`, by label, 1 where there is none; None: it is not given.
        forgiving: what the model raises ends nothing: the row has no answer, or is not learned.
        failures: the steps at which it raised in the last `run`, when forgiving.

    Raises:
        DeclarationError: the model is of the wrong kind for the task.

    >>> from river import linear_model
    >>> learner = RiverLearner(linear_model.LogisticRegression(), ("a",), Task.BINARY)
    >>> steps = np.array([0, 1, 0], np.uint8), np.array([0, 0, 0]), np.array([0.0, 1.0, 0.0])
    >>> learner.run(np.array([[2.0]]), *steps).values.round(4)
    array([0.5   , 0.5062])
    """

    class_weights: Mapping[Label, float] | None = None
    forgiving = False
    failures: Sequence[int] = ()

    def __init__(self, model: Any, names: Iterable[str], task: Task) -> None:
        check_fits(model, task)
        self.model = model
        self.names = tuple(names)
        self.task = task
        self.version = 0
        self._supervised = bool(model._supervised)
        self._probabilities = False
        self._own_label = False
        self._told = False
        if task in (Task.BINARY, Task.MULTICLASS):
            self._probabilities = _gives_probabilities(model)
            # Stated by the class, so a derived label can't disagree with the model's.
            own = type(_final(model)).predict_one is not base.Classifier.predict_one
            self._own_label = own or not self._probabilities

    def run(
        self,
        features: NDArray[np.float64],
        op: NDArray[np.uint8],
        row: NDArray[np.int64],
        target: Targets,
    ) -> Predictions:
        """See `Learner.run`."""
        answers: list[Any] = []
        predict, learn = self._predictor(), self._teacher()
        names, step, rows = self.names, 0, features[row].tolist()
        targets = target.tolist() if isinstance(target, np.ndarray) else target
        if self.task is Task.BINARY:
            # By the row's own value, because a NaN (at a PREDICT step) has no bool to speak of.
            targets = [y == 1.0 for y in targets]
        if self.forgiving:
            return self._run_forgiving(op, rows, targets, predict, learn)
        try:
            for step, (operation, x) in enumerate(zip(op.tolist(), rows, strict=True)):
                # A dict of its own for each step: some models keep what they are given.
                if operation == PREDICT:
                    answers.append(predict(dict(zip(names, x, strict=True))))
                else:
                    learn(dict(zip(names, x, strict=True)), targets[step])
                    self.version += 1
        except Exception as error:
            doing = "predicting" if op[step] == PREDICT else "learning"
            raise ModelError(
                f"{type(_final(self.model)).__name__} failed at step {step} of {op.size} while "
                f"{doing}, after {self.version} rows learned: {type(error).__name__}: {error}; "
                "check the features and targets that it was given"
            ) from error
        return self._gather(answers)

    def _run_forgiving(
        self,
        op: NDArray[np.uint8],
        rows: list[list[float]],
        targets: Sequence[Any],
        predict: Callable[[dict[str, float]], Any],
        learn: Callable[[dict[str, float], Any], Any],
    ) -> Predictions:
        """As `run`; a step that fails is noted, and the next one goes on. River is deterministic:
        what a failing step has left half done is the same whenever it is done again."""
        answers: list[Any] = []
        nothing: Any = ({}, None) if self.task in (Task.BINARY, Task.MULTICLASS) else None
        failures: list[int] = []
        for step, (operation, x) in enumerate(zip(op.tolist(), rows, strict=True)):
            try:
                if operation == PREDICT:
                    answers.append(predict(dict(zip(self.names, x, strict=True))))
                else:
                    self.version += 1
                    learn(dict(zip(self.names, x, strict=True)), targets[step])
            except Exception as error:
                if operation == PREDICT:
                    answers.append(nothing)
                if not self._told:
                    self._told = True
                    _log.warning("%s raised %s: %s", type(_final(self.model)).__name__,
                                 type(error).__name__, error)  # fmt: skip
                failures.append(step)
        self.failures = failures
        return self._gather(answers)

    def _predictor(self) -> Callable[[dict[str, float]], Any]:
        """Features to the raw answer that `_gather` understands."""
        model = self.model
        if self.task is Task.REGRESSION:
            return model.predict_one  # type: ignore[no-any-return]
        if self.task is Task.ANOMALY:
            if isinstance(model, base.AnomalyFilter):
                return lambda x: model.classify(model.score_one(x))
            return model.score_one  # type: ignore[no-any-return]
        if not self._probabilities:
            return lambda x: _certain(model.predict_one(x))
        if self._own_label:
            return lambda x: (model.predict_proba_one(x), model.predict_one(x))
        return lambda x: _most_probable(model.predict_proba_one(x))

    def _teacher(self) -> Callable[[dict[str, float], Any], Any]:
        learn_one, weights = self.model.learn_one, self.class_weights
        if weights is not None:
            return lambda x, y: learn_one(x, y, w=weights.get(y, 1.0))
        if self._supervised:
            return learn_one  # type: ignore[no-any-return]
        return lambda x, _: learn_one(x)

    def _gather(self, answers: list[Any]) -> Predictions:
        if self.task is Task.MULTICLASS:
            return Predictions([p for p, _ in answers], [label for _, label in answers])
        if self.task is Task.BINARY:
            values = [p.get(True, 0.0) if p else math.nan for p, _ in answers]
            labels = [NO_LABEL if label is None else int(bool(label)) for _, label in answers]
            return Predictions(np.array(values, np.float64), np.array(labels, np.uint8))
        values = [math.nan if answer is None else answer for answer in answers]
        return Predictions(np.array(values, np.float64))


def _most_probable(probabilities: dict[Label, float]) -> tuple[dict[Label, float], Label]:
    """As `base.Classifier.predict_one`: of equals, the class that comes first."""
    if not probabilities:
        return probabilities, None
    return probabilities, max(probabilities, key=probabilities.__getitem__)


def _certain(label: Label) -> tuple[dict[Label, float], Label]:
    return ({}, None) if label is None else ({label: 1.0}, label)
