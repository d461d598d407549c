"""The kernels of the linear models: scale, predict, learn, one row after another.

The arithmetic and its order are those of River 0.26 (`preprocessing/scale.py`,
`linear_model/base.py`, `optim/losses.py`); only a sum of products may differ in its last bit. Why
loops over features divide by `np.divide`: see `optimizers`.
"""

from __future__ import annotations

import math

import numpy as np

from anabranch.models.learners.linear_state import (
    CLIP,
    INTERCEPT,
    INTERCEPT_LR,
    ITERATIONS,
    LOGISTIC,
    SCALES,
    WEIGHT_NEG,
    WEIGHT_POS,
    WITH_STD,
    LinearState,
    views,
)
from anabranch.models.learners.optimizers import take_step
from anabranch.state.compile import F64, I64, U8, inlined, kernel


@inlined
def _learn_scale(x: F64, state: LinearState) -> None:
    """`StandardScaler.learn_one`: Welford's running mean and population variance."""
    counts, means, variances = state.counts, state.means, state.variances
    with_std = state.head[WITH_STD] != 0.0
    for j in range(x.size):
        counts[j] += 1.0
        old = means[j]
        means[j] = old + np.divide(x[j] - old, counts[j])
        if with_std:
            spread = (x[j] - old) * (x[j] - means[j])
            variances[j] += np.divide(spread - variances[j], counts[j])


@inlined
def _transform(x: F64, state: LinearState) -> None:
    """`StandardScaler.transform_one` into `state.x`; a feature without variance becomes 0."""
    means, variances, z = state.means, state.variances, state.x
    if state.head[SCALES] == 0.0:
        for j in range(x.size):
            z[j] = x[j]
    elif state.head[WITH_STD] == 0.0:
        for j in range(x.size):
            z[j] = x[j] - means[j]
    else:
        for j in range(x.size):
            flat = variances[j] == 0.0
            divisor = 1.0 if flat else math.sqrt(variances[j])
            z[j] = 0.0 if flat else np.divide(x[j] - means[j], divisor)


@inlined
def _raw(state: LinearState) -> float:
    """`GLM._raw_dot_one` of `state.x`."""
    weights, z = state.weights, state.x
    dot: float = 0.0
    for j in range(weights.size):
        dot += weights[j] * z[j]
    raw: float = dot + state.head[INTERCEPT]
    return raw


@inlined
def _sigmoid(raw: float) -> float:
    """`river.utils.math.sigmoid`."""
    if raw < -30.0:
        return 0.0
    if raw > 30.0:
        return 1.0
    return 1.0 / (1.0 + math.exp(-raw))


@inlined
def _loss_gradient(y: float, raw: float, head: F64) -> float:
    """`losses.Log.gradient` or `losses.Squared.gradient`, clipped."""
    gradient: float
    if head[LOGISTIC] != 0.0:
        sign, weight = 1.0, head[WEIGHT_POS]
        if y == 0.0:
            sign, weight = -1.0, head[WEIGHT_NEG]
        margin = raw * sign
        if margin > 18.0:
            gradient = weight * math.exp(-margin) * -sign
        elif margin < -18.0:
            gradient = weight * -sign
        else:
            gradient = weight * -sign / (math.exp(margin) + 1.0)
    else:
        gradient = 2.0 * (raw - y)
    clip: float = head[CLIP]
    return max(min(gradient, clip), -clip)


@inlined
def _fit(y: float, raw: float, state: LinearState) -> None:
    """`GLM._fit`: the intercept, then the optimizer's step."""
    head = state.head
    loss_gradient = _loss_gradient(y, raw, head)
    head[INTERCEPT] -= head[INTERCEPT_LR] * loss_gradient
    take_step(loss_gradient, state)
    head[ITERATIONS] += 1.0


@kernel
def run_linear(
    features: F64,
    op: U8,
    row: I64,
    target: F64,
    vector: F64,
    out: F64,
) -> int:
    """Work through the steps in order; returns how many predictions were written to `out`.

    Shapes: `features (capacity, width)`, `op`, `row`, `target` `(steps,)`,
    `vector (HEAD + BLOCKS * width,)`, `out` at least as long as there are PREDICT steps.
    """
    width = features.shape[1]
    state = views(vector, width)
    logistic, scales = vector[LOGISTIC] != 0.0, vector[SCALES] != 0.0
    predicted = 0
    for i in range(op.size):
        x = features[row[i]]
        learns = op[i] != 0
        if learns and scales:
            _learn_scale(x, state)
        _transform(x, state)
        raw = _raw(state)
        if learns:
            _fit(target[i], raw, state)
        else:
            out[predicted] = _sigmoid(raw) if logistic else raw
            predicted += 1
    return predicted


@kernel
def run_each(features: F64, target: F64, vector: F64, out: F64) -> bool:
    """Predict each row, then learn it; False, with nothing done, when a target can't be learned.

    Shapes: `features (rows, width)`, `target`, `out` `(rows,)`, `vector` as in `run_linear`. The
    same as `run_linear` with two steps for each row, which is the most frequent call.
    """
    logistic, scales = vector[LOGISTIC] != 0.0, vector[SCALES] != 0.0
    for i in range(target.size):
        y = target[i]
        if not (y == 0.0 or y == 1.0 if logistic else math.isfinite(y)):
            return False
    state = views(vector, features.shape[1])
    for i in range(target.size):
        x = features[i]
        _transform(x, state)
        raw = _raw(state)
        out[i] = _sigmoid(raw) if logistic else raw
        if scales:
            _learn_scale(x, state)
            _transform(x, state)
            raw = _raw(state)
        _fit(target[i], raw, state)
    return True
