"""Label values as the models take them: checked, coded and selected."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anabranch.models.learners.learner import Targets, Task
from anabranch.state.arrays import all_binary
from anabranch.state.keys.hashing import hash64

_FLOAT64 = np.dtype(np.float64)  # to make a dtype from a type is slow


def as_targets(values: Targets, task: Task) -> Targets:
    """`(rows,) float64`; for MULTICLASS, the sequence itself."""
    return values if task is Task.MULTICLASS else np.asarray(values, _FLOAT64)


def every_usable(values: Targets, task: Task) -> bool:
    """Whether all values can be learned."""
    if task is Task.BINARY and isinstance(values, np.ndarray):
        return all_binary(values)
    return bool(usable(values, task).all())


def usable(values: Targets, task: Task) -> NDArray[np.uint8]:
    """`(labels,) uint8`: 1 where a value can be learned."""
    if not isinstance(values, np.ndarray):
        return np.array([value is not None and value == value for value in values], np.uint8)
    mask = (values == 0.0) | (values == 1.0) if task is Task.BINARY else np.isfinite(values)
    return mask.view(np.uint8)


def codes(values: Targets) -> NDArray[np.int64]:
    """`(labels,) int64`: equal for equal values, and the same in every process."""
    if isinstance(values, np.ndarray):
        return (values + 0.0).view(np.int64)  # -0.0 becomes 0.0
    return hash64([repr(value) for value in values]).view(np.int64)


def select(values: Targets, rows: NDArray[np.int64]) -> Targets:
    """The values at `rows`, in that order."""
    if isinstance(values, np.ndarray):
        return values[rows]
    return [values[row] for row in rows.tolist()]
