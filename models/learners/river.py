"""Any River model as a learner: called with dicts of floats, one row at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import base, dummy, forest, neighbors

from anabranch.models.learners.description import describe
from anabranch.models.learners.error_place import describe_error
from anabranch.models.learners.learner import (
    NO_LABEL,
    PREDICT,
    Label,
    Learner,
    Predictions,
    StepFailed,
    Targets,
    Task,
)
from anabranch.models.learners.pickling import river_objects, unchanged_by_predicting
from anabranch.state.errors import DeclarationError

_KINDS: dict[Task, tuple[type, ...]] = {
    Task.BINARY: (base.Classifier,),
    Task.MULTICLASS: (base.Classifier,),
    Task.REGRESSION: (base.Regressor,),
    Task.ANOMALY: (base.AnomalyDetector, base.AnomalyFilter),
}
_KIND_TEXTS = {
    Task.BINARY: "a classifier",
    Task.MULTICLASS: "a classifier that handles more than two classes",
    Task.REGRESSION: "a regressor",
    Task.ANOMALY: "an anomaly detector that scores without the label",
}


def final_estimator(model: Any) -> Any:
    """The estimator that predicts: the last step of a River pipeline, or the model itself."""
    while hasattr(model, "steps"):
        model = model._last_step
    return model


def estimator_name(model: Any) -> str:
    """The class name of the estimator that predicts.

    >>> from river import linear_model, preprocessing
    >>> estimator_name(preprocessing.StandardScaler() | linear_model.LinearRegression())
    'LinearRegression'
    """
    return type(final_estimator(model)).__name__


def check_task(model: Any, task: Task) -> None:
    """Refuse a River model that can't do `task`.

    Raises:
        DeclarationError: it is a class instead of an object, or of the wrong kind.

    >>> from river import linear_model
    >>> check_task(linear_model.LinearRegression(), Task.BINARY)
    Traceback (most recent call last):
    ...
    anabranch.state.errors.DeclarationError: LinearRegression can't do a binary task: give a \
classifier
    """
    if isinstance(model, type):
        raise DeclarationError(f"{model.__name__} is a class: give an object, {model.__name__}()")
    suitable = isinstance(model, _KINDS[task])
    if suitable and task is Task.MULTICLASS:
        suitable = bool(model._multiclass)
    if not suitable:
        raise DeclarationError(
            f"{estimator_name(model)} can't do a {task.value} task: give {_KIND_TEXTS[task]}"
        )


def _gives_probabilities(model: Any) -> bool:
    """Whether a classifier, or the one inside its wrappers, has its own `predict_proba_one`."""
    model = final_estimator(model)
    if type(model).predict_proba_one is base.Classifier.predict_proba_one:
        return False
    inner = model._wrapped_model if isinstance(model, base.Wrapper) else None
    return not isinstance(inner, base.Classifier) or _gives_probabilities(inner)


class RiverLearner(Learner):
    """A River model, or a pipeline that ends in one, as a `Learner`.

    Features are floats and nothing else: a transformer of strings (`OneHotEncoder`, `TFIDF`) has
    nothing to work on here. Encode such fields as features instead.

    * BINARY: River learns `True` and `False`. A classifier without probabilities
      (`VotingClassifier`) predicts 1.0 or 0.0.
    * MULTICLASS: `predict_proba_one`; without probabilities, `{label: 1.0}`.
    * The predicted label is River's `predict_one`: called where a model overrides it, else the
      first most probable one, which is the same.
    * Between equally probable classes the first in order of text decides for models that keep their
      classes in a set (KNN, AMF), whose order is another in each process.
    * ANOMALY: `score_one`; an `AnomalyFilter` predicts its verdict, 1.0 or 0.0, as
      `evaluate.progressive_val_score` does.

    Args:
        model: the River object; not copied, and trained in place.
        names: the columns of the feature rows; the keys of the dicts that River sees.
        task: the kind of prediction.

    Attributes:
        model: the River object.
        class_weights: `w` of `learn_one`, by label, 1 where there is none; None: it is not passed.

    Raises:
        DeclarationError: the model is of the wrong kind for the task.

    >>> from river import linear_model
    >>> learner = RiverLearner(linear_model.LogisticRegression(), ("a",), Task.BINARY)
    >>> steps = np.array([0, 1, 0], np.uint8), np.array([0, 0, 0]), np.array([0.0, 1.0, 0.0])
    >>> learner.run(np.array([[2.0]]), *steps).values.round(4)
    array([0.5   , 0.5062])
    """

    class_weights: Mapping[Label, float] | None = None

    def __init__(self, model: Any, names: Iterable[str], task: Task) -> None:
        check_task(model, task)
        self.model = model
        self.names = tuple(names)
        self.task = task
        self.version = 0
        self._supervised = bool(model._supervised)
        self._probabilities = False
        self._own_label = False
        if task in (Task.BINARY, Task.MULTICLASS):
            self._probabilities = _gives_probabilities(model)
            # By the class, not by the values: a derived label can't disagree with the model's.
            own = type(final_estimator(model)).predict_one is not base.Classifier.predict_one
            self._own_label = own or not self._probabilities

    def run(
        self,
        features: NDArray[np.float64],
        op: NDArray[np.uint8],
        row: NDArray[np.int64],
        target: Targets,
    ) -> Predictions:
        """See `Learner.run`."""
        rows = features[row].tolist()
        targets = target.tolist() if isinstance(target, np.ndarray) else target
        if self.task is Task.BINARY:
            # Compared, not cast: the target of a PREDICT step may be NaN, and bool(NaN) is True.
            targets = [y == 1.0 for y in targets]
        raw: list[Any] = []
        predict, learn = self._predict_function(), self._learn_function()
        names, step = self.names, 0
        try:
            for step, (operation, x) in enumerate(zip(op.tolist(), rows, strict=True)):
                # A new dict for each step: some models keep what they are given.
                if operation == PREDICT:
                    raw.append(predict(dict(zip(names, x, strict=True))))
                else:
                    self.version += 1
                    learn(dict(zip(names, x, strict=True)), targets[step])
        except MemoryError:
            raise
        except Exception as error:
            doing = "predicting" if op[step] == PREDICT else "learning"
            detail = f"{estimator_name(self.model)} failed while {doing}: {describe_error(error)}"
            raise StepFailed(step, self._gather(raw), detail) from error
        return self._gather(raw)

    def describe(self) -> str:
        """See `Learner.describe`."""
        return describe(self.model)

    def to_river(self) -> Any:
        """See `Learner.to_river`; the model itself, not a copy."""
        return self.model

    def weigh_classes(self, weights: Mapping[Label, float]) -> None:
        """See `Learner.weigh_classes`."""
        self.class_weights = dict(weights)

    @property
    def can_fail(self) -> bool:
        """See `Learner.can_fail`."""
        return True

    @property
    def unchanged_by_predicting(self) -> bool:
        """See `Learner.unchanged_by_predicting`."""
        return unchanged_by_predicting(self.model)

    def _predict_function(self) -> Callable[[dict[str, float]], Any]:
        """From features to the raw prediction that `_gather` takes."""
        model = self.model
        if self.task is Task.REGRESSION:
            return lambda x: _number(model.predict_one(x))
        if self.task is Task.ANOMALY:
            if isinstance(model, base.AnomalyFilter):
                classify = final_estimator(model).classify  # a pipeline has only the methods of all
                return lambda x: _number(classify(model.score_one(x)))
            return lambda x: _number(model.score_one(x))
        if not self._probabilities:
            return lambda x: _certain(model.predict_one(x))
        if self._own_label:
            return lambda x: (model.predict_proba_one(x), model.predict_one(x))
        if self.task is Task.MULTICLASS and _follows_set_order(model):
            return _in_order_of_classes(model)
        return lambda x: _most_probable(model.predict_proba_one(x))

    def _learn_function(self) -> Callable[[dict[str, float], Any], Any]:
        learn_one, weights = self.model.learn_one, self.class_weights
        if weights is not None:
            return lambda x, y: learn_one(x, y, w=weights.get(y, 1.0))
        if self._supervised:
            return learn_one  # type: ignore[no-any-return]
        return lambda x, _: learn_one(x)

    def _gather(self, raw: list[Any]) -> Predictions:
        if self.task is Task.MULTICLASS:
            return Predictions([p for p, _ in raw], [label for _, label in raw])
        if self.task is Task.BINARY:
            values = [p.get(True, 0.0) if p else math.nan for p, _ in raw]
            labels = [NO_LABEL if label is None else int(bool(label)) for _, label in raw]
            return Predictions(np.array(values, np.float64), np.array(labels, np.uint8))
        return Predictions(np.array(raw, np.float64))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _most_probable(probabilities: dict[Label, float]) -> tuple[dict[Label, float], Label]:
    """As `base.Classifier.predict_one`: among equally probable classes the first."""
    if not probabilities:
        return probabilities, None
    return probabilities, max(probabilities, key=probabilities.__getitem__)


# Their classes are in a set, whose order follows Python's hash seed where they are texts. It
# decides between equally probable classes, and in KNN the order in which votes are summed.
_SET_ORDERED = (dummy.NoChangeClassifier, forest.AMFClassifier, neighbors.KNNClassifier)


def _follows_set_order(model: Any) -> bool:
    return any(isinstance(each, _SET_ORDERED) for each in river_objects(model))


def _in_order_of_classes(model: Any) -> Callable[[dict[str, float]], Any]:
    """Predict with the classes in order, so that every process predicts the same."""
    final, predict = final_estimator(model), model.predict_proba_one
    swapped = isinstance(final, neighbors.KNNClassifier)

    def predict_in_order(x: dict[str, float]) -> Any:
        if not swapped:
            return _most_probable(_sorted(predict(x)))
        classes = final.classes
        final.classes = sorted(classes, key=repr)  # which it only iterates over
        try:
            return _most_probable(_sorted(predict(x)))
        finally:
            final.classes = classes

    return predict_in_order


def _sorted(probabilities: dict[Label, float]) -> dict[Label, float]:
    return {label: probabilities[label] for label in sorted(probabilities, key=repr)}


def _certain(label: Label) -> tuple[dict[Label, float], Label]:
    return ({}, None) if label is None else ({label: 1.0}, label)
