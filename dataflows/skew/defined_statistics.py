"""Window statistics without a recomputation of their own: by their definition, row by row.

The common statistics are recomputed for all rows at once in `window_stats`. Any other one in
`state.windows.statistics` has a plain definition, which is evaluated here on the values of each
window: slower, in time proportional to the windows' sizes, and as independent of the flow.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from anabranch.state.windows.statistics import STATISTICS

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def by_definition(
    stats: Iterable[str], values: F64, turns: I64, runs: Iterable[tuple[I64, I64, I64]], rows: int
) -> dict[str, F64]:
    """Statistics of each row's window, ``(rows,) float64`` by name.

    Args:
        stats: names in `STATISTICS`.
        values: ``(n,) float64`` of all rows that have one.
        turns: ``(n,) int64``: the order of the values by event time and arrival.
        runs: of the windows, each as three arrays: the row, its last value, the number of values.
        rows: how many rows there are.
    """
    parts: list[list[I64]] = [[] for _ in range(rows)]
    for owner, last, count in runs:
        triples = zip(owner.tolist(), last.tolist(), count.tolist(), strict=True)
        for row, end, size in triples:
            parts[row].append(np.arange(end - size + 1, end + 1))
    computed = {stat: np.full(rows, STATISTICS[stat].empty) for stat in stats}
    for row, pieces in enumerate(parts):
        members = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        if len(members):
            window = values[members[np.argsort(turns[members])]]
            for stat, column in computed.items():
                column[row] = STATISTICS[stat].definition(window)
    return computed
