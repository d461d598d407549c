"""`imbalance=` of a pipeline: resampling and class weights for classes of which one is rare."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anabranch.models.learners.learner import Label, Learner, Task
from anabranch.models.learners.resampling import ResampledLearner
from anabranch.models.learners.river import estimator_name, final_estimator
from anabranch.state.errors import DeclarationError


@dataclass(frozen=True, slots=True)
class Sampling:
    """The declaration that `undersample` and `oversample` return; see there."""

    desired: Mapping[Label, float]
    seed: int
    over: bool
    correct: bool

    @property
    def classes(self) -> Mapping[Label, float]:
        """The declared number of each class."""
        return self.desired

    def apply(self, learner: Learner) -> Learner:
        """The learner, wrapped so that its rows are resampled."""
        return ResampledLearner(learner, self.desired, self.seed, self.over, self.correct)

    def __str__(self) -> str:
        name = "oversample" if self.over else "undersample"
        return f"{name}({_sorted(self.desired)}, seed={self.seed}, correct={self.correct})"


@dataclass(frozen=True, slots=True)
class ClassWeights:
    """The declaration that `class_weights` returns; see there."""

    weights: Mapping[Label, float]

    @property
    def classes(self) -> Mapping[Label, float]:
        """The declared number of each class."""
        return self.weights

    def apply(self, learner: Learner) -> Learner:
        """The same learner, which weighs the rows it learns from now on."""
        learner.weigh_classes(self.weights)
        return learner

    def __str__(self) -> str:
        return f"class_weights({_sorted(self.weights)})"


Imbalance = Sampling | ClassWeights


def undersample(desired: Mapping[Any, float], *, seed: int = 1, correct: bool = True) -> Sampling:
    """Learn only some rows of the frequent classes, so that the classes reach the desired shares.

    The rows are those that `river.imblearn.RandomUnderSampler` would draw with this seed. Scores
    are corrected for it unless `correct` is False: see
    `models.learners.resampling.ResampledLearner`.

    Args:
        desired: share by class, keyed by the label's own values; shares sum to 1.
        seed: of the random numbers.
        correct: serve probabilities for the class shares of the stream, not of the rows learned.

    Raises:
        DeclarationError: the shares are not positive numbers, or do not sum to 1.

    >>> print(undersample({True: 0.5, False: 0.5}, seed=7))
    undersample({False: 0.5, True: 0.5}, seed=7, correct=True)
    """
    return _sampling("undersample", desired, seed, correct)


def oversample(desired: Mapping[Any, float], *, seed: int = 1, correct: bool = True) -> Sampling:
    """Learn rows of the rare classes several times, as `river.imblearn.RandomOverSampler` would.

    Arguments and errors are those of `undersample`. The rarer a class, the more often each of its
    rows is learned in a row: it suits models that a single row changes little.
    """
    return _sampling("oversample", desired, seed, correct)


def class_weights(weights: Mapping[Any, float]) -> ClassWeights:
    """Let each row count as much as its class weighs; 1 for a class that is not named.

    `LogisticRegression` multiplies its loss by the weight, as
    `river.optim.losses.Log(weight_pos=…)` does; River's other models get it as
    `learn_one(x, y, w=…)`. Scores are not corrected.

    Args:
        weights: by class, keyed by the label's own values.

    Raises:
        DeclarationError: a weight is not a number above 0.

    >>> print(class_weights({True: 10.0}))
    class_weights({True: 10.0})
    """
    if not isinstance(weights, Mapping) or not weights:
        raise DeclarationError(
            "class_weights needs a weight for each class, for example class_weights({True: 10.0})"
        )
    for label, weight in weights.items():
        if not _is_positive(weight):
            raise DeclarationError(
                f"class_weights of {label!r} is {weight!r}: give a number above 0"
            )
    return ClassWeights(dict(weights))


def with_imbalance(learner: Learner, imbalance: Imbalance | None) -> Learner:
    """The learner with what `imbalance=` declares; unchanged for None."""
    return learner if imbalance is None else imbalance.apply(learner)


def check_imbalance(imbalance: Any, model: Any, task: Task, label: type, where: str) -> None:
    """Refuse what the model or the label can't do.

    Args:
        imbalance: what was declared.
        model: a River object.
        task: the kind of prediction.
        label: the type of the label's values: bool, str or float.
        where: where it was declared, for the message.

    Raises:
        DeclarationError: the first problem, as one sentence.
    """
    if not isinstance(imbalance, Sampling | ClassWeights):
        raise DeclarationError(
            f"imbalance={imbalance!r} of {where} is not supported: use undersample(…), "
            "oversample(…) or class_weights(…)"
        )
    name = estimator_name(model)
    if task not in (Task.BINARY, Task.MULTICLASS):
        predicts = "a number" if task is Task.REGRESSION else "anomalies"
        raise DeclarationError(
            f"imbalance= of {where} is for classifiers, and {name} predicts {predicts}: leave it "
            "out"
        )
    for each in imbalance.classes:
        if isinstance(each, bool) != (label is bool) or isinstance(each, str) != (label is str):
            kind = {bool: "True or False", str: "text", float: "a number"}[label]
            raise DeclarationError(
                f"{each!r} in imbalance= of {where} is not a value of the label, which is {kind}"
            )
    if isinstance(imbalance, ClassWeights):
        if not _takes_weights(model):
            raise DeclarationError(
                f"class_weights of {where}: {name} takes no weights in learn_one: use "
                "undersample(…)"
            )
    elif len(imbalance.desired) < 2:
        raise DeclarationError(
            f"imbalance= of {where} gives the share of one class only: give the share of the "
            "others too"
        )


def _sampling(name: str, desired: Any, seed: Any, correct: bool) -> Sampling:
    if not isinstance(desired, Mapping) or not all(map(_is_positive, desired.values())):
        raise DeclarationError(
            f"{name} needs the desired share of each class, above 0, for example "
            f"{name}({{True: 0.5, False: 0.5}})"
        )
    if not math.isclose(sum(desired.values()), 1.0, abs_tol=1e-6):
        raise DeclarationError(
            f"the desired shares of {name} sum to {sum(desired.values()):g}: make them sum to 1"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DeclarationError(
            f"seed={seed!r} of {name} must be an integer, so that a replay draws the same rows"
        )
    return Sampling(dict(desired), seed, name == "oversample", correct)


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _takes_weights(model: Any) -> bool:
    return "w" in inspect.signature(final_estimator(model).learn_one).parameters


def _sorted(classes: Mapping[Label, float]) -> dict[Label, float]:
    """The same classes in one canonical order."""
    return dict(sorted(classes.items(), key=repr))
