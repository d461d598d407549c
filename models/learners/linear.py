"""Linear River pipelines that run compiled: recognised, converted, and converted back."""

from __future__ import annotations

import copy
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import compose, linear_model, optim, preprocessing
from river.utils import VectorDict

from anabranch.models.learners import linear_state as s
from anabranch.models.learners.description import describe
from anabranch.models.learners.learner import (
    Label,
    Learner,
    ModelError,
    Predictions,
    Targets,
    Task,
)
from anabranch.models.learners.linear_kernels import run_each, run_linear
from anabranch.models.learners.optimizers import OPTIMIZERS

_log = logging.getLogger("anabranch.models")

_LOSSES: dict[type, type] = {
    linear_model.LogisticRegression: optim.losses.Log,
    linear_model.LinearRegression: optim.losses.Squared,
}


def _split(model: Any) -> tuple[Any, Any]:
    """`(scaler or None, linear model)`; `(None, model)` when it has another shape."""
    if type(model) is compose.Pipeline:
        steps = list(model.steps.values())
        if len(steps) == 1:
            return None, steps[0]
        if len(steps) == 2 and type(steps[0]) is preprocessing.StandardScaler:
            return steps[0], steps[1]
    return None, model


def _memories(scaler: Any, linear: Any) -> list[tuple[int, Any]]:
    """`(block, feature → number)` of everything that is remembered per feature."""
    optimizer = linear.optimizer
    memories = [(s.WEIGHTS, linear._weights.to_dict())]
    if scaler is not None:
        memories += [(s.COUNTS, scaler.counts), (s.MEANS, scaler.means), (s.VARS, scaler.vars)]
    for index, memory in OPTIMIZERS[type(optimizer)].read(optimizer):
        memories.append((s.MEMORY + index, memory))
    return memories


def _why_not_linear(linear: Any) -> str | None:
    optimizer = linear.optimizer
    if type(optimizer) not in OPTIMIZERS:
        names = ", ".join(each.__name__ for each in OPTIMIZERS)
        return f"the optimizer {type(optimizer).__name__} is not one of {names}"
    for what, rate in (("optimizer", optimizer.lr), ("intercept", linear.intercept_lr)):
        if type(rate) is not optim.schedulers.Constant:
            return f"the learning rate of the {what} is scheduled by {type(rate).__name__}"
    if type(linear.loss) is not _LOSSES[type(linear)]:
        return f"the loss {type(linear.loss).__name__} is not the default one"
    if linear.l1 != 0:
        return "l1 is not supported"
    if type(linear.initializer) is not optim.initializers.Zeros:
        return f"weights start by {type(linear.initializer).__name__}, not Zeros"
    return OPTIMIZERS[type(optimizer)].problem(optimizer)


class CompiledLinear(Learner):
    """`StandardScaler | LogisticRegression` or `LinearRegression`, run by `linear_kernels`.

    Created by `compiled`. Equal to River to 1e-12; a row costs about a hundredth.

    Args:
        model: the River object; copied, its state included.
        names: the feature columns.
    """

    @staticmethod
    def why_not(model: Any, names: Iterable[str] | None = None) -> str | None:
        """See `compiled.why_not`."""
        scaler, linear = _split(model)
        if type(linear) not in _LOSSES:
            shape = str(model) if isinstance(model, compose.Pipeline) else type(model).__name__
            return f"{shape} is not a linear model with an optional StandardScaler before it"
        if scaler is not None and scaler.window_size is not None:
            return "the StandardScaler has a window"
        reason = _why_not_linear(linear)
        if reason is None and names is not None:
            remembered = {name for _, memory in _memories(scaler, linear) for name in memory}
            unknown = sorted(map(str, remembered - set(names)))
            if unknown:
                listed = ", ".join(unknown[:5])
                return f"it has learned features that are not among the columns: {listed}"
        return reason

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._width = len(self.names)
        self.version = 0
        self._river = copy.deepcopy(model)
        _, linear = _split(model)
        logistic = type(linear) is linear_model.LogisticRegression
        self.task = Task.BINARY if logistic else Task.REGRESSION
        self._state = self._from_river()

    def _from_river(self) -> NDArray[np.float64]:
        """The state vector (see `linear_state`) of the River object."""
        width = len(self.names)
        scaler, linear = _split(self._river)
        optimizer, loss = linear.optimizer, linear.loss
        compiled = OPTIMIZERS[type(optimizer)]
        state = np.zeros(s.HEAD + s.BLOCKS * width)
        head = {
            s.INTERCEPT: linear.intercept,
            s.ITERATIONS: optimizer.n_iterations,
            s.SCALES: scaler is not None,
            s.WITH_STD: scaler is not None and scaler.with_std,
            s.LOGISTIC: self.task is Task.BINARY,
            s.OPTIMIZER: compiled.code,
            s.LR: optimizer.lr.learning_rate,
            s.L2: linear.l2,
            s.INTERCEPT_LR: linear.intercept_lr.learning_rate,
            s.CLIP: linear.clip_gradient,
            s.WEIGHT_POS: getattr(loss, "weight_pos", 1.0),
            s.WEIGHT_NEG: getattr(loss, "weight_neg", 1.0),
        }
        for index, name in enumerate(compiled.parameters):
            head[s.PARAMETERS + index] = getattr(optimizer, name)
        for field, value in head.items():
            state[field] = value
        for block, memory in _memories(scaler, linear):
            at = s.HEAD + block * width
            state[at : at + width] = [memory.get(name, 0.0) for name in self.names]
        return state

    def run(
        self,
        features: NDArray[np.float64],
        op: NDArray[np.uint8],
        row: NDArray[np.int64],
        target: Targets,
    ) -> Predictions:
        """See `Learner.run`; only rows of the wrong width are refused, nothing else can fail."""
        features = self._checked(features)
        out = np.empty(op.size)
        predicted = run_linear(features, op, row, target, self._state, out)  # type: ignore[arg-type]
        self.version += op.size - predicted
        return Predictions(out[:predicted])

    def run_each(
        self, features: NDArray[np.float64], target: NDArray[np.float64]
    ) -> Predictions | None:
        """See `Learner.run_each`."""
        features = self._checked(features)
        out = np.empty(len(target))
        if not run_each(features, target, self._state, out):
            return None
        self.version += len(target)
        return Predictions(out)

    def describe(self) -> str:
        """See `Learner.describe`."""
        return describe(self.to_river())

    def weigh_classes(self, weights: Mapping[Label, float]) -> None:
        """See `Learner.weigh_classes`; they multiply the weights that the log loss already has.

        They are not part of the River object that `to_river` returns.
        """
        if self.task is not Task.BINARY:
            raise ModelError(f"{self.describe()} takes no class weights: it predicts a number")
        self._state[s.WEIGHT_POS] *= weights.get(True, 1.0)
        self._state[s.WEIGHT_NEG] *= weights.get(False, 1.0)

    @property
    def unchanged_by_predicting(self) -> bool:
        """See `Learner.unchanged_by_predicting`."""
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledLinear:
        """An independent copy; the River object in it never changes, so it is shared."""
        other = copy.copy(self)
        other._state = self._state.copy()
        return other

    def _checked(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        width = features.shape[1]
        if width != self._width:
            raise ModelError(
                f"rows have {width} features, the model has {self._width}: "
                "pass the columns that it was declared with"
            )
        return features if features.flags.c_contiguous else np.ascontiguousarray(features)

    def to_river(self) -> Any:
        """An equal River object, which continues identically; a copy."""
        model = copy.deepcopy(self._river)
        if self.version == 0:
            return model
        scaler, linear = _split(model)
        optimizer = linear.optimizer
        linear.intercept = float(self._state[s.INTERCEPT])
        optimizer.n_iterations = int(self._state[s.ITERATIONS])
        linear._weights = VectorDict(self._block(s.WEIGHTS))
        first, second = self._block(s.MEMORY), self._block(s.MEMORY + 1)
        OPTIMIZERS[type(optimizer)].write(optimizer, [first, second])
        if scaler is not None:
            counts = self._block(s.COUNTS)
            scaler.counts = Counter({name: int(n) for name, n in counts.items()})
            scaler.means = defaultdict(float, self._block(s.MEANS))
            if scaler.with_std:
                scaler.vars = defaultdict(float, self._block(s.VARS))
        return model

    def _block(self, block: int) -> Mapping[str, float]:
        at = s.HEAD + block * len(self.names)
        return dict(zip(self.names, self._state[at : at + len(self.names)].tolist(), strict=True))
