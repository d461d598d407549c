"""Checks and reductions of whole columns in one pass; NumPy's own cost 2 µs a call."""

from __future__ import annotations

from anabranch.state.compile import F64, I64, kernel


@kernel
def extent(values: I64) -> tuple[int, int]:
    """Minimum and maximum of ``(n,) int64``, n ≥ 1.

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
def extents(values: I64, others: I64) -> tuple[int, int, int]:
    """Minimum and maximum of ``(n,) int64``, and the minimum of ``others``; n ≥ 1 of both.

    >>> import numpy as np
    >>> extents(np.array([3, 1, 2]), np.array([9, 8, 7]))
    (1, 3, 7)
    """
    least, greatest = extent(values)
    least_other = others[0]
    for other in others:
        least_other = min(least_other, other)
    return least, greatest, least_other


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


LARGEST = 1e100
"""No model accepts a number beyond this: its square, and sums of squares, are still finite."""


@kernel
def all_usable(values: F64) -> bool:
    """Whether no value of ``(rows, columns) float64`` is NaN or beyond ±`LARGEST`.

    >>> import numpy as np
    >>> all_usable(np.array([[1.0, np.nan]])), all_usable(np.array([[1e101]]))
    (False, False)
    """
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            if not -LARGEST <= values[row, column] <= LARGEST:
                return False
    return True


def larger(size: int) -> int:
    """The size to which a pool of `size` rows grows: in small steps, as it is enlarged in place.

    >>> larger(0), larger(1600)
    (64, 1700)
    """
    return size + max(64, size // 16)
