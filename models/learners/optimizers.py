"""The optimizers of the compiled linear models.

An optimizer is a kernel that moves the weights, a branch of `take_step`, and an entry of
`OPTIMIZERS`, which says what its River object is made of. To add one, add these three here; the
kernel of the model and its conversion from and to River follow.

The arithmetic and its order are those of River 0.26 (`optim/{sgd,adam,ada_grad}.py`).

Loops over features divide by `np.divide`: Numba's `/` must raise on zero as Python's does, and that
branch would keep the compiler from working on four features at once (twice as slow). No divisor
here can be zero, other than by an `eps` of 0.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from river import optim
from river.utils import VectorDict

from anabranch.models.learners.linear_state import (
    ITERATIONS,
    L2,
    LR,
    OPTIMIZER,
    PARAMETERS,
    LinearState,
)
from anabranch.state.compile import inlined

SGD, ADAM, ADAGRAD = 0, 1, 2


def _floats(memory: Mapping[Any, float]) -> defaultdict[Any, float]:
    return defaultdict(float, memory)


@dataclass(frozen=True, slots=True)
class CompiledOptimizer:
    """What a River optimizer with a kernel consists of, besides its learning rate.

    Attributes:
        code: the number by which `take_step` knows it.
        parameters: attributes that hold a number, in the order in which the kernel reads them from
            the head at `PARAMETERS`; `linear_state.MAX_PARAMETERS` at most.
        memories: attributes that hold a number per feature, which the kernel finds in `first` and
            `second`; each with what makes River's own type of a mapping.
    """

    code: int
    parameters: tuple[str, ...] = ()
    memories: Mapping[str, Callable[[Mapping[str, float]], Any]] = field(default_factory=dict)

    def problem(self, optimizer: Any) -> str | None:
        """Why this object can't run compiled, as the end of a sentence; None if it can."""
        name = type(optimizer).__name__
        for attribute, create in self.memories.items():
            memory = getattr(optimizer, attribute)
            if memory is not None and type(memory) is not type(create({})):
                return f"{name}'s memory was made by learn_many"
        if getattr(optimizer, "eps", 1.0) <= 0.0:
            return f"{name} has an eps of 0"
        return None

    def read(self, optimizer: Any) -> Iterator[tuple[int, Any]]:
        """`(0 or 1, feature → number)` of each memory; nothing of an optimizer never used."""
        for index, attribute in enumerate(self.memories):
            memory = getattr(optimizer, attribute)
            if memory is not None:
                yield index, memory.to_dict() if isinstance(memory, VectorDict) else memory

    def write(self, optimizer: Any, memories: Sequence[Mapping[str, float]]) -> None:
        """Set the memories of a River object."""
        for (attribute, create), memory in zip(self.memories.items(), memories, strict=False):
            setattr(optimizer, attribute, create(memory))


OPTIMIZERS: dict[type, CompiledOptimizer] = {
    optim.SGD: CompiledOptimizer(SGD),
    optim.Adam: CompiledOptimizer(
        ADAM, ("beta_1", "beta_2", "eps"), {"m": VectorDict, "v": VectorDict}
    ),
    optim.AdaGrad: CompiledOptimizer(ADAGRAD, ("eps",), {"g2": _floats}),
}
"""By the River class, which has to match exactly."""


@inlined
def take_step(loss_gradient: float, state: LinearState) -> None:
    """Move the weights by one step of the optimizer; the row is `state.x`."""
    optimizer = state.head[OPTIMIZER]
    if optimizer == ADAM:
        _adam(loss_gradient, state)
    elif optimizer == ADAGRAD:
        _adagrad(loss_gradient, state)
    else:
        _sgd(loss_gradient, state)


@inlined
def _sgd(loss_gradient: float, state: LinearState) -> None:
    head, weights, x = state.head, state.weights, state.x
    lr, l2 = head[LR], head[L2]
    for j in range(weights.size):
        weights[j] -= lr * (x[j] * loss_gradient + l2 * weights[j])


@inlined
def _adam(loss_gradient: float, state: LinearState) -> None:
    head, weights, m, v, x = state.head, state.weights, state.first, state.second, state.x
    lr, l2 = head[LR], head[L2]
    beta_1, beta_2, eps = head[PARAMETERS], head[PARAMETERS + 1], head[PARAMETERS + 2]
    step = lr * math.sqrt(1.0 - beta_2 ** (head[ITERATIONS] + 1.0))
    step /= 1.0 - beta_1 ** (head[ITERATIONS] + 1.0)
    for j in range(weights.size):
        g = x[j] * loss_gradient + l2 * weights[j]
        m[j] = beta_1 * m[j] + (1.0 - beta_1) * g
        v[j] = beta_2 * v[j] + (1.0 - beta_2) * (g * g)
        weights[j] -= np.divide(step * m[j], math.sqrt(v[j]) + eps)


@inlined
def _adagrad(loss_gradient: float, state: LinearState) -> None:
    head, weights, g2, x = state.head, state.weights, state.first, state.x
    lr, l2, eps = head[LR], head[L2], head[PARAMETERS]
    for j in range(weights.size):
        g = x[j] * loss_gradient + l2 * weights[j]
        g2[j] += g * g
        weights[j] -= np.divide(lr, math.sqrt(g2[j] + eps)) * g
