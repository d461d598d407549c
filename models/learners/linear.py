"""Linear River pipelines that run as a kernel: recognised, taken over, and given back."""

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

from anabranch.models.learners import linear_kernels as k
from anabranch.models.learners.learner import Learner, ModelError, Predictions, Targets, Task
from anabranch.models.learners.river import RiverLearner, check_fits

_log = logging.getLogger("anabranch.models")

_OPTIMIZERS: dict[type, int] = {
    optim.SGD: k.SGD,
    optim.Adam: k.ADAM,
    optim.AdaGrad: k.ADAGRAD,
}
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
    """`(block, mapping name → number)` of everything that is remembered per feature."""
    optimizer = linear.optimizer
    memories = [(k.WEIGHTS, linear._weights.to_dict())]
    if scaler is not None:
        memories += [(k.COUNTS, scaler.counts), (k.MEANS, scaler.means), (k.VARS, scaler.vars)]
    if type(optimizer) is optim.AdaGrad:
        memories.append((k.SECOND, optimizer.g2))
    if type(optimizer) is optim.Adam and optimizer.m is not None:
        memories += [(k.FIRST, optimizer.m.to_dict()), (k.SECOND, optimizer.v.to_dict())]
    return memories


def _why_not_linear(linear: Any) -> str | None:
    optimizer = linear.optimizer
    if type(optimizer) not in _OPTIMIZERS:
        return f"the optimizer {type(optimizer).__name__} is none of SGD, Adam, AdaGrad"
    for what, rate in (("optimizer", optimizer.lr), ("intercept", linear.intercept_lr)):
        if type(rate) is not optim.schedulers.Constant:
            return f"the learning rate of the {what} is scheduled by {type(rate).__name__}"
    if type(linear.loss) is not _LOSSES[type(linear)]:
        return f"the loss {type(linear.loss).__name__} is not the default one"
    if linear.l1 != 0:
        return "l1 is not supported"
    if type(linear.initializer) is not optim.initializers.Zeros:
        return f"weights start by {type(linear.initializer).__name__}, not Zeros"
    if type(optimizer) is optim.Adam and not isinstance(optimizer.m, VectorDict | None):
        return "Adam's memory was made by learn_many"
    if getattr(optimizer, "eps", 1.0) <= 0.0:
        return f"{type(optimizer).__name__} has an eps of 0"
    return None


def why_not(model: Any, names: Iterable[str] | None = None) -> str | None:
    """Why `model` can't run compiled, as the end of a sentence; None if it can.

    Args:
        model: a River object.
        names: the feature columns; a trained model that knows others can't be taken over.

    >>> from river import tree
    >>> why_not(preprocessing.StandardScaler() | linear_model.LogisticRegression())
    >>> why_not(tree.HoeffdingTreeClassifier())
    'HoeffdingTreeClassifier is no linear model with an optional StandardScaler before it'
    >>> why_not(linear_model.LinearRegression(l1=0.1))
    'l1 is not supported'
    """
    scaler, linear = _split(model)
    if type(linear) not in _LOSSES:
        shape = str(model) if isinstance(model, compose.Pipeline) else type(model).__name__
        return f"{shape} is no linear model with an optional StandardScaler before it"
    if scaler is not None and scaler.window_size is not None:
        return "the StandardScaler has a window"
    reason = _why_not_linear(linear)
    if reason is None and names is not None:
        known = {name for _, memory in _memories(scaler, linear) for name in memory}
        unknown = sorted(map(str, known - set(names)))
        if unknown:
            return f"it has learned features that are not given: {', '.join(unknown[:5])}"
    return reason


class CompiledLinear:
    """`StandardScaler | LogisticRegression` or `LinearRegression`, run by `kernels.run_linear`.

    Made by `compiled`. Equal to River to 1e-12; a row costs about a hundredth.

    Args:
        model: the River object; copied, its state included.
        names: the feature columns.
    """

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._width = len(self.names)
        self.version = 0
        self._river = copy.deepcopy(model)
        _, linear = _split(model)
        logistic = type(linear) is linear_model.LogisticRegression
        self.task = Task.BINARY if logistic else Task.REGRESSION
        self._state = self._take_over()

    def _take_over(self) -> NDArray[np.float64]:
        """The state vector of `kernels` for the River object as it stands."""
        width = len(self.names)
        scaler, linear = _split(self._river)
        optimizer, loss = linear.optimizer, linear.loss
        state = np.zeros(k.HEAD + k.BLOCKS * width)
        head = {
            k.INTERCEPT: linear.intercept,
            k.ITERATIONS: optimizer.n_iterations,
            k.SCALES: scaler is not None,
            k.WITH_STD: scaler is not None and scaler.with_std,
            k.LOGISTIC: self.task is Task.BINARY,
            k.OPTIMIZER: _OPTIMIZERS[type(optimizer)],
            k.LR: optimizer.lr.learning_rate,
            k.L2: linear.l2,
            k.INTERCEPT_LR: linear.intercept_lr.learning_rate,
            k.CLIP: linear.clip_gradient,
            k.BETA_1: getattr(optimizer, "beta_1", 0.0),
            k.BETA_2: getattr(optimizer, "beta_2", 0.0),
            k.EPS: getattr(optimizer, "eps", 0.0),
            k.WEIGHT_POS: getattr(loss, "weight_pos", 1.0),
            k.WEIGHT_NEG: getattr(loss, "weight_neg", 1.0),
        }
        for field, value in head.items():
            state[field] = value
        for block, memory in _memories(scaler, linear):
            at = k.HEAD + block * width
            state[at : at + width] = [memory.get(name, 0.0) for name in self.names]
        return state

    def run(
        self,
        features: NDArray[np.float64],
        op: NDArray[np.uint8],
        row: NDArray[np.int64],
        target: Targets,
    ) -> Predictions:
        """See `Learner.run`; a row of the wrong width is refused, nothing else can fail."""
        features = self._checked(features)
        out = np.empty(op.size)
        predicted = k.run_linear(features, op, row, target, self._state, out)  # type: ignore[arg-type]
        self.version += op.size - predicted
        return Predictions(out[:predicted])

    def run_each(
        self, features: NDArray[np.float64], target: NDArray[np.float64]
    ) -> Predictions | None:
        """Predict each row and learn it before the next, as `run` would in so many steps.

        Args:
            features: `(rows, features) float64`.
            target: `(rows,) float64`.

        Returns:
            One prediction per row; None, with nothing done, when a target can't be learned.
        """
        features = self._checked(features)
        out = np.empty(len(target))
        if not k.run_each(features, target, self._state, out):
            return None
        self.version += len(target)
        return Predictions(out)

    def weigh(self, positive: float, negative: float) -> None:
        """Let rows of each class count so much, on top of the weights that the log loss has.

        For a logistic regression. It is no part of the River object that `to_river` gives.
        """
        self._state[k.WEIGHT_POS] *= positive
        self._state[k.WEIGHT_NEG] *= negative

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledLinear:
        """A copy that goes on by itself; what was declared is never changed, and shared."""
        other = copy.copy(self)
        other._state = self._state.copy()
        return other

    def _checked(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        width = features.shape[1]
        if width != self._width:
            raise ModelError(
                f"rows have {width} features, the model has {self._width}: "
                "give the columns that it was declared with"
            )
        return features if features.flags.c_contiguous else np.ascontiguousarray(features)

    def to_river(self) -> Any:
        """An equal River object, which continues identically; its own copy."""
        model = copy.deepcopy(self._river)
        if self.version == 0:
            return model
        scaler, linear = _split(model)
        optimizer = linear.optimizer
        linear.intercept = float(self._state[k.INTERCEPT])
        optimizer.n_iterations = int(self._state[k.ITERATIONS])
        linear._weights = VectorDict(self._block(k.WEIGHTS))
        if type(optimizer) is optim.Adam:
            optimizer.m = VectorDict(self._block(k.FIRST))
            optimizer.v = VectorDict(self._block(k.SECOND))
        elif type(optimizer) is optim.AdaGrad:
            optimizer.g2 = defaultdict[Any, float](float, self._block(k.SECOND))
        if scaler is not None:
            counts = self._block(k.COUNTS)
            scaler.counts = Counter({name: int(n) for name, n in counts.items()})
            scaler.means = defaultdict(float, self._block(k.MEANS))
            if scaler.with_std:
                scaler.vars = defaultdict(float, self._block(k.VARS))
        return model

    def _block(self, block: int) -> Mapping[str, float]:
        at = k.HEAD + block * len(self.names)
        return dict(zip(self.names, self._state[at : at + len(self.names)].tolist(), strict=True))


def compiled(model: Any, names: Iterable[str]) -> CompiledLinear | None:
    """The model as a kernel, or None when it isn't one that a kernel exists for.

    Recognised: an optional `StandardScaler`, then `LogisticRegression` or `LinearRegression` with
    SGD, Adam or AdaGrad at a constant rate; l2, `intercept_lr`, `intercept_init`, `clip_gradient`
    and the weights of the log loss included. `why_not` tells what is in the way.

    A trained model is taken over with its state; the River object itself is left alone.

    >>> learner = compiled(linear_model.LinearRegression(), ("a", "b"))
    >>> steps = np.array([1, 0], np.uint8), np.array([0, 0]), np.array([1.0, 0.0])
    >>> learner.run(np.array([[1.0, 2.0]]), *steps).values
    array([0.12])
    >>> learner.to_river().weights
    {'a': 0.02, 'b': 0.04}
    """
    names = tuple(names)
    return None if why_not(model, names) else CompiledLinear(model, names)


def learner_for(model: Any, names: Iterable[str], task: Task) -> Learner:
    """The fastest learner for a River model: compiled if there is a kernel, else River itself.

    What runs as River is said once, in the log, with the reason.

    Raises:
        DeclarationError: the model is of the wrong kind for the task.
    """
    check_fits(model, task)
    names = tuple(names)
    reason = why_not(model, names)
    learner = None if reason else CompiledLinear(model, names)
    if learner is not None and learner.task is task:
        return learner
    _log.info("%s runs as River, not compiled: %s", model, reason or "no kernel for this task")
    return RiverLearner(model, names, task)
