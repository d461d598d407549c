"""The arrays of sliding windows, as kernels take them, and their layout.

A hot key has a hot record, in which each width has cells for the sums over its window::

    hoti[hot]            edge │ start, events, huge │ start, events, huge │ …          per width
    hotf[hot, width]     total, squares, peak │ extremes │ sum, rest, peak │ …         per term

`meta` begins with the cells of the log and of the hot records; then the cells named here, and from
`PLAN` on, what the spec declares::

    widths, ascending │ their places in the output │ statistics │ first term of each │ terms
"""

from __future__ import annotations

from typing import NamedTuple

from anabranch.state.compile import F64, I64
from anabranch.state.windows.event_log import LogArrays
from anabranch.state.windows.hot_keys import HOTS_META

# Cells of `meta`: pane width or 0; how many widths and statistics; whether sums, and whether
# first and last values are needed; from SIGN on 1 for a maximum, -1 for a minimum.
RESOLUTION, WIDTHS, STATISTICS, SUMS, ENDS, SIGN = range(HOTS_META, HOTS_META + 6)
PLAN = HOTS_META + 7

# Cells of `hoti[hot]`: after the edge, per width start position (or -1), events, huge values.
FIRST = 1
PER_WIDTH, START, EVENTS, HUGES = 3, 0, 1, 2
# Cells of `hotf[hot, width]`: sums with their low parts, the largest sum of squares that the window
# had; then one per extreme; then per term its sum, the low part, and the largest that it was.
S1H, S1L, S2H, S2L, PEAK, BEST = 0, 1, 2, 3, 4, 5
PER_TERM = 3


class WindowArrays(NamedTuple):
    """All that the kernels of one `WindowSpec` work on."""

    log: LogArrays
    tree: F64
    """`(chunks, extremes)`: Fenwick trees of extremes, see `range_extremes`."""
    hotf: F64
    """`(hot records, widths, cells)`: running sums."""
    hoti: I64
    """`(hot records, cells)`: running counts and positions."""
    terms: F64
    """`(2, terms)`: scratch space for the sums of terms, and their low parts."""
    term_indices: tuple[int, ...]
    """0, 1, … for each term. The compiler knows its length, so that kernels of windows without
    terms have no code for them: it would be a quarter of theirs, and slow down small batches."""
