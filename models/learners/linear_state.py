"""The state of a compiled linear model: one float64 vector, seen by kernels as named arrays.

All that a model has learned, and the parameters that it was declared with, stand in one vector: a
head of `HEAD` numbers, then `BLOCKS` blocks of one number per feature. One array is handed to a
kernel instead of ten, because a call of one row would otherwise spend its time on unpacking
arguments; inside, `views` gives each block its name.
"""

from __future__ import annotations

from typing import NamedTuple

from anabranch.state.compile import F64, inlined

# The head. A field holds what River calls by the same name.
INTERCEPT, ITERATIONS = 0, 1
SCALES, WITH_STD, LOGISTIC, OPTIMIZER = 2, 3, 4, 5
LR, L2, INTERCEPT_LR, CLIP = 6, 7, 8, 9
WEIGHT_POS, WEIGHT_NEG = 10, 11
PARAMETERS, MAX_PARAMETERS = 12, 4  # of the optimizer, other than its learning rate
HEAD = PARAMETERS + MAX_PARAMETERS

# The blocks, in their order.
COUNTS, MEANS, VARS, WEIGHTS, MEMORY, INPUT = 0, 1, 2, 3, 4, 6
MAX_MEMORIES = INPUT - MEMORY
BLOCKS = 7


class LinearState(NamedTuple):
    """Views of a state vector.

    Attributes:
        head: `(HEAD,)`: intercept, settings, and the optimizer's parameters from `PARAMETERS` on.
        counts, means, variances: `(features,)`, of the scaler.
        weights: `(features,)`.
        first, second: `(features,)`, what the optimizer remembers of each feature.
        x: `(features,)`, scratch: the row as the linear model sees it.
    """

    head: F64
    counts: F64
    means: F64
    variances: F64
    weights: F64
    first: F64
    second: F64
    x: F64


@inlined
def views(state: F64, width: int) -> LinearState:
    """Views of `(HEAD + BLOCKS * width,) float64`."""
    return LinearState(
        state[:HEAD],
        state[HEAD + COUNTS * width : HEAD + (COUNTS + 1) * width],
        state[HEAD + MEANS * width : HEAD + (MEANS + 1) * width],
        state[HEAD + VARS * width : HEAD + (VARS + 1) * width],
        state[HEAD + WEIGHTS * width : HEAD + (WEIGHTS + 1) * width],
        state[HEAD + MEMORY * width : HEAD + (MEMORY + 1) * width],
        state[HEAD + (MEMORY + 1) * width : HEAD + (MEMORY + 2) * width],
        state[HEAD + INPUT * width : HEAD + (INPUT + 1) * width],
    )
