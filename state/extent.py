"""Questions about a whole column in one pass; NumPy's own reductions cost 2 µs a call."""

from __future__ import annotations

from state.compile import F64, I64, kernel


@kernel
def extent(values: I64) -> tuple[int, int]:
    """The least and the greatest of ``(n,) int64``, n ≥ 1.

    >>> import numpy as np
    >>> extent(np.array([3, 1, 2]))
    (1, 3)
    """
    least = greatest = values[0]
    for value in values:
        if value < least:
            least = value
        if value > greatest:
            greatest = value
    return least, greatest


@kernel
def all_binary(values: F64) -> bool:
    """Whether every one of ``(n,) float64`` is 0 or 1.

    >>> import numpy as np
    >>> all_binary(np.array([0.0, 1.0])), all_binary(np.array([0.0, np.nan]))
    (True, False)
    """
    for value in values:  # noqa: SIM110 - a kernel has no generators
        if value != 0.0 and value != 1.0:
            return False
    return True


@kernel
def all_finite(values: F64) -> bool:
    """Whether no value of ``(rows, columns) float64`` is NaN or infinite.

    >>> import numpy as np
    >>> all_finite(np.array([[1.0, np.inf]]))
    False
    """
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            # A finite number minus itself is zero, NaN and infinity give NaN.
            if values[row, column] - values[row, column] != 0.0:
                return False
    return True
