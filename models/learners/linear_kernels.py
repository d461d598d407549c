"""The kernel of the linear models: scale, predict, learn, one row after another.

All that a model knows is one float64 vector, `state`: a head of `HEAD` numbers, then `BLOCKS`
blocks of one number per feature. One array instead of ten, because a call of one row would
otherwise spend its time on unpacking arguments.

The arithmetic and its order are those of River 0.26 (`preprocessing/scale.py`,
`linear_model/base.py`, `optim/{sgd,adam,ada_grad}.py`, `optim/losses.py`); only a sum of products
may differ in its last bit.

Loops over features divide by `np.divide`: Numba's `/` must raise on zero as Python's does, and that
branch would keep the compiler from working on four features at once (twice as slow). No divisor
here can be zero, other than by an `eps` of 0.
"""

from __future__ import annotations

import math

import numpy as np

from anabranch.state.compile import F64, I64, U8, kernel

# The head. What a field holds is what River calls by the same name.
INTERCEPT, ITERATIONS = 0, 1
SCALES, WITH_STD, LOGISTIC, OPTIMIZER = 2, 3, 4, 5
LR, L2, INTERCEPT_LR, CLIP = 6, 7, 8, 9
BETA_1, BETA_2, EPS = 10, 11, 12
WEIGHT_POS, WEIGHT_NEG = 13, 14
HEAD = 16

# The blocks, in their order. FIRST and SECOND are Adam's m and v; AdaGrad's g2 is SECOND.
# INPUT is scratch: the row as the linear model sees it.
COUNTS, MEANS, VARS, WEIGHTS, FIRST, SECOND, INPUT = 0, 1, 2, 3, 4, 5, 6
BLOCKS = 7

SGD, ADAM, ADAGRAD = 0, 1, 2


@kernel
def _learn_scale(x: F64, state: F64, width: int) -> None:
    """`StandardScaler.learn_one`: Welford's running mean and population variance."""
    counts = state[HEAD + COUNTS * width : HEAD + (COUNTS + 1) * width]
    means = state[HEAD + MEANS * width : HEAD + (MEANS + 1) * width]
    variances = state[HEAD + VARS * width : HEAD + (VARS + 1) * width]
    with_std = state[WITH_STD] != 0.0
    for j in range(width):
        counts[j] += 1.0
        old = means[j]
        means[j] = old + np.divide(x[j] - old, counts[j])
        if with_std:
            spread = (x[j] - old) * (x[j] - means[j])
            variances[j] += np.divide(spread - variances[j], counts[j])


@kernel
def _transform(x: F64, state: F64, width: int) -> None:
    """`StandardScaler.transform_one` into INPUT; a feature without variance becomes 0."""
    means = state[HEAD + MEANS * width : HEAD + (MEANS + 1) * width]
    variances = state[HEAD + VARS * width : HEAD + (VARS + 1) * width]
    z = state[HEAD + INPUT * width : HEAD + (INPUT + 1) * width]
    if state[SCALES] == 0.0:
        for j in range(width):
            z[j] = x[j]
    elif state[WITH_STD] == 0.0:
        for j in range(width):
            z[j] = x[j] - means[j]
    else:
        for j in range(width):
            flat = variances[j] == 0.0
            divisor = 1.0 if flat else math.sqrt(variances[j])
            z[j] = 0.0 if flat else np.divide(x[j] - means[j], divisor)


@kernel
def _raw(state: F64, width: int) -> float:
    """`GLM._raw_dot_one` of INPUT."""
    weights = state[HEAD + WEIGHTS * width : HEAD + (WEIGHTS + 1) * width]
    z = state[HEAD + INPUT * width : HEAD + (INPUT + 1) * width]
    dot: float = 0.0
    for j in range(width):
        dot += weights[j] * z[j]
    raw: float = dot + state[INTERCEPT]
    return raw


@kernel
def _sigmoid(raw: float) -> float:
    """`river.utils.math.sigmoid`."""
    if raw < -30.0:
        return 0.0
    if raw > 30.0:
        return 1.0
    return 1.0 / (1.0 + math.exp(-raw))


@kernel
def _loss_gradient(y: float, raw: float, state: F64) -> float:
    """`losses.Log.gradient` or `losses.Squared.gradient`, clipped."""
    gradient: float
    if state[LOGISTIC] != 0.0:
        sign, weight = 1.0, state[WEIGHT_POS]
        if y == 0.0:
            sign, weight = -1.0, state[WEIGHT_NEG]
        margin = raw * sign
        if margin > 18.0:
            gradient = weight * math.exp(-margin) * -sign
        elif margin < -18.0:
            gradient = weight * -sign
        else:
            gradient = weight * -sign / (math.exp(margin) + 1.0)
    else:
        gradient = 2.0 * (raw - y)
    clip: float = state[CLIP]
    return max(min(gradient, clip), -clip)


@kernel
def _descend(loss_gradient: float, state: F64, width: int) -> None:
    """`GLM._fit` after the gradient: the intercept, then the optimizer's step."""
    weights = state[HEAD + WEIGHTS * width : HEAD + (WEIGHTS + 1) * width]
    first = state[HEAD + FIRST * width : HEAD + (FIRST + 1) * width]
    second = state[HEAD + SECOND * width : HEAD + (SECOND + 1) * width]
    z = state[HEAD + INPUT * width : HEAD + (INPUT + 1) * width]
    lr, l2, eps = state[LR], state[L2], state[EPS]
    state[INTERCEPT] -= state[INTERCEPT_LR] * loss_gradient
    if state[OPTIMIZER] == ADAM:
        beta_1, beta_2 = state[BETA_1], state[BETA_2]
        step = lr * math.sqrt(1.0 - beta_2 ** (state[ITERATIONS] + 1.0))
        step /= 1.0 - beta_1 ** (state[ITERATIONS] + 1.0)
        for j in range(width):
            g = z[j] * loss_gradient + l2 * weights[j]
            first[j] = beta_1 * first[j] + (1.0 - beta_1) * g
            second[j] = beta_2 * second[j] + (1.0 - beta_2) * (g * g)
            weights[j] -= np.divide(step * first[j], math.sqrt(second[j]) + eps)
    elif state[OPTIMIZER] == ADAGRAD:
        for j in range(width):
            g = z[j] * loss_gradient + l2 * weights[j]
            second[j] += g * g
            weights[j] -= np.divide(lr, math.sqrt(second[j] + eps)) * g
    else:
        for j in range(width):
            weights[j] -= lr * (z[j] * loss_gradient + l2 * weights[j])
    state[ITERATIONS] += 1.0


@kernel
def run_linear(
    features: F64,
    op: U8,
    row: I64,
    target: F64,
    state: F64,
    out: F64,
) -> int:
    """Work through the steps in order; returns how many predictions were written to `out`.

    Shapes: `features (capacity, width)`, `op`, `row`, `target` `(steps,)`,
    `state (HEAD + BLOCKS * width,)`, `out` at least as long as there are PREDICT steps.
    """
    width = features.shape[1]
    predicted = 0
    for i in range(op.size):
        x = features[row[i]]
        learns = op[i] != 0
        if learns and state[SCALES] != 0.0:
            _learn_scale(x, state, width)
        _transform(x, state, width)
        raw = _raw(state, width)
        if learns:
            _descend(_loss_gradient(target[i], raw, state), state, width)
        else:
            out[predicted] = _sigmoid(raw) if state[LOGISTIC] != 0.0 else raw
            predicted += 1
    return predicted


@kernel
def run_each(features: F64, target: F64, state: F64, out: F64) -> bool:
    """Predict each row, then learn it; False, with nothing done, when a target can't be learned.

    Shapes: `features (rows, width)`, `target`, `out` `(rows,)`, `state` as in `run_linear`, of
    which this is the usual case.
    """
    logistic, scales = state[LOGISTIC] != 0.0, state[SCALES] != 0.0
    for i in range(target.size):
        y = target[i]
        if not (y == 0.0 or y == 1.0 if logistic else math.isfinite(y)):
            return False
    width = features.shape[1]
    for i in range(target.size):
        x = features[i]
        _transform(x, state, width)
        raw = _raw(state, width)
        out[i] = _sigmoid(raw) if logistic else raw
        if scales:
            _learn_scale(x, state, width)
            _transform(x, state, width)
            raw = _raw(state, width)
        _descend(_loss_gradient(target[i], raw, state), state, width)
    return True
