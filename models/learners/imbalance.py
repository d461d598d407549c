"""What a pipeline may declare for classes of which one is rare, and how its learner comes by it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anabranch.models.learners.learner import Label, Learner, Task
from anabranch.models.learners.linear import CompiledLinear
from anabranch.models.learners.resampling import Sampled
from anabranch.models.learners.river import RiverLearner
from anabranch.models.registry.weights import final
from anabranch.state.errors import DeclarationError


@dataclass(frozen=True, slots=True)
class Sampling:
    """See `undersample` and `oversample`."""

    desired: Mapping[Label, float]
    seed: int
    over: bool
    correct: bool

    @property
    def classes(self) -> Mapping[Label, float]:
        """What is declared, by class."""
        return self.desired

    def apply(self, learner: Learner) -> Learner:
        """The learner behind what draws its rows."""
        return Sampled(learner, self.desired, self.seed, self.over, self.correct)

    def __str__(self) -> str:
        name = "oversample" if self.over else "undersample"
        return f"{name}({_sorted(self.desired)}, seed={self.seed}, correct={self.correct})"


@dataclass(frozen=True, slots=True)
class ClassWeights:
    """See `class_weights`."""

    weights: Mapping[Label, float]

    @property
    def classes(self) -> Mapping[Label, float]:
        """What is declared, by class."""
        return self.weights

    def apply(self, learner: Learner) -> Learner:
        """The same learner, which weighs what it learns from now on."""
        if isinstance(learner, CompiledLinear):
            learner.weigh(self.weights.get(True, 1.0), self.weights.get(False, 1.0))
        elif isinstance(learner, RiverLearner):
            learner.class_weights = dict(self.weights)
        return learner

    def __str__(self) -> str:
        return f"class_weights({_sorted(self.weights)})"


Imbalance = Sampling | ClassWeights


def undersample(desired: Mapping[Any, float], *, seed: int = 1, correct: bool = True) -> Sampling:
    """Learn only some rows of the frequent classes, so that those learned have the desired shares.

    The rows are those that `river.imblearn.RandomUnderSampler` would draw with this seed. Scores
    are corrected for it, unless `correct` is False: see `models.learners.resampling.Sampled`.

    Args:
        desired: share by class, of the label's own values; they sum up to 1.
        seed: of the random numbers.
        correct: serve probabilities of the stream, not of what was learned.

    Raises:
        DeclarationError: the shares are none.

    >>> print(undersample({True: 0.5, False: 0.5}, seed=7))
    undersample({False: 0.5, True: 0.5}, seed=7, correct=True)
    """
    return _sampling("undersample", desired, seed, correct)


def oversample(desired: Mapping[Any, float], *, seed: int = 1, correct: bool = True) -> Sampling:
    """Learn rows of the rare classes several times, as `river.imblearn.RandomOverSampler` would.

    Arguments and errors are those of `undersample`. The rarer a class, the more often each of its
    rows is learned at once: it suits models that a row changes little.
    """
    return _sampling("oversample", desired, seed, correct)


def class_weights(weights: Mapping[Any, float]) -> ClassWeights:
    """Let each row count as much as its class weighs; 1 where nothing is said.

    `LogisticRegression` multiplies its loss by it, as `river.optim.losses.Log(weight_pos=…)`;
    River's other models are given it as `learn_one(x, y, w=…)`. Scores are not corrected.

    Args:
        weights: by class, of the label's own values.

    Raises:
        DeclarationError: a weight is none.

    >>> print(class_weights({True: 10.0}))
    class_weights({True: 10.0})
    """
    if not isinstance(weights, Mapping) or not weights:
        raise DeclarationError(
            "class_weights needs a weight by class, for example class_weights({True: 10.0})"
        )
    for label, weight in weights.items():
        if not _is_positive(weight):
            raise DeclarationError(
                f"class_weights of {label!r} is {weight!r}: give a number above 0"
            )
    return ClassWeights(dict(weights))


def with_imbalance(learner: Learner, imbalance: Imbalance | None) -> Learner:
    """The learner as it was declared; itself if nothing was."""
    return learner if imbalance is None else imbalance.apply(learner)


def check_imbalance(imbalance: Any, model: Any, task: Task, label: type, where: str) -> None:
    """Refuse what the model, or the label, can't do.

    Args:
        imbalance: what was declared.
        model: a River object.
        task: what it is asked.
        label: of what type the label's values are: bool, str or float.
        where: it was declared, for the message.

    Raises:
        DeclarationError: in a sentence.
    """
    if not isinstance(imbalance, Sampling | ClassWeights):
        raise DeclarationError(
            f"imbalance={imbalance!r} of {where} is none: use undersample(…), oversample(…) or "
            "class_weights(…)"
        )
    if task not in (Task.BINARY, Task.MULTICLASS):
        raise DeclarationError(
            f"imbalance= of {where} is for classifiers, and {type(final(model)).__name__} is asked "
            f"for {'a number' if task is Task.REGRESSION else 'anomalies'}: leave it out"
        )
    for each in imbalance.classes:
        if isinstance(each, bool) != (label is bool) or isinstance(each, str) != (label is str):
            kind = {bool: "True or False", str: "text", float: "a number"}[label]
            raise DeclarationError(f"{each!r} in imbalance= of {where} is no label: it is {kind}")
    if isinstance(imbalance, ClassWeights):
        if not _takes_weights(model):
            raise DeclarationError(
                f"class_weights of {where}: {type(final(model)).__name__} takes no weights in "
                "learn_one: use undersample(…)"
            )
    elif len(imbalance.desired) < 2:
        raise DeclarationError(
            f"imbalance= of {where} says how much there should be of one class only: give the "
            "share of the others too"
        )


def _sampling(name: str, desired: Any, seed: Any, correct: bool) -> Sampling:
    if not isinstance(desired, Mapping) or not all(map(_is_positive, desired.values())):
        raise DeclarationError(
            f"{name} needs the desired share of each class, above 0, for example "
            f"{name}({{True: 0.5, False: 0.5}})"
        )
    if not math.isclose(sum(desired.values()), 1.0, abs_tol=1e-6):
        raise DeclarationError(
            f"the shares desired by {name} sum up to {sum(desired.values()):g}: let it be 1"
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
    return "w" in inspect.signature(final(model).learn_one).parameters


def _sorted(classes: Mapping[Label, float]) -> dict[Label, float]:
    """In an order that does not depend on how it was written."""
    return dict(sorted(classes.items(), key=repr))
