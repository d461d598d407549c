"""From what is known of a window to its statistics."""

from __future__ import annotations

import math

from anabranch.state.compile import F64, I64, inlined
from anabranch.state.windows.double_double import UNSCALE, dd_variance
from anabranch.state.windows.event_log import COLUMN
from anabranch.state.windows.running_sums import PLAN, SIGN, STATISTICS, WIDTHS

# Statistics as a kernel knows them; the two extremes by their place.
S_COUNT, S_SUM, S_MEAN, S_STD, S_VAR, S_FIRST, S_LAST, S_EXTREME = range(8)
CODES = ("count", "sum", "mean", "std", "var", "first", "last")


@inlined
def emit(
    row: int, w: int, out: F64, meta: I64, n: int, s1h: float, s1l: float, s2h: float, s2l: float,
    huge: int, best: float, other: float, first: float, last: float,
) -> None:  # fmt: skip
    """Write the statistics of width `w` to the output."""
    stats = PLAN + 2 * meta[WIDTHS]
    column = meta[COLUMN] + meta[PLAN + meta[WIDTHS] + w] * meta[STATISTICS]
    for i in range(meta[STATISTICS]):
        stat = meta[stats + i]
        value = 0.0
        if n > 0:
            if stat == S_COUNT:
                value = float(n)
            elif stat == S_SUM:
                value = s1h * UNSCALE
            elif stat == S_MEAN:
                value = s1h / n * UNSCALE
            elif stat in (S_STD, S_VAR):
                if huge > 0:
                    value = math.inf if n > 1 else 0.0
                else:
                    value = dd_variance(n, s1h, s1l, s2h, s2l)
                if stat == S_STD:
                    value = math.sqrt(value)
            elif stat == S_FIRST:
                value = first
            elif stat == S_LAST:
                value = last
            elif stat == S_EXTREME:
                value = meta[SIGN] * best
            else:
                value = meta[SIGN + 1] * other
        out[row, column + i] = value
