"""Recomputes keyed features: windows, distinct counts, time since the last event, decayed sums.

Every function takes a `Timeline` and returns ``(n,) float64`` by position. A row whose value is
null adds nothing to windows, but has features of its own; `NonNullRows` maps between the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.skew.defined_statistics import by_definition
from anabranch.dataflows.skew.sparse_table import (
    SCALE,
    Combine,
    Measure,
    add,
    decay_leaves,
    fade,
    fold,
    greatest,
    least,
    moment_leaves,
    pool,
    sum_leaves,
)
from anabranch.dataflows.skew.timeline import Pieces, Timeline

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

UNRESOLVED = 1e-28
"""A variance below this fraction of the mean square is 0, as in `state.windows.double_double`."""

RESET_AFTER = 50
"""Half-lives without an event after which a decayed sum is reset to 0, as declared there."""

NEGLIGIBLE_AFTER = 400
"""Half-lives after which the weight of an event, 4e-121, is negligible."""


class NonNullRows:
    """The rows of a timeline with a value, and aggregates of windows over them.

    Args:
        timeline: of all rows.
        values: ``(n,) float64``, in order of arrival, NaN for null; None: every row counts.
    """

    def __init__(self, timeline: Timeline, values: F64 | None) -> None:
        rows = len(timeline.order)
        present = np.ones(rows, np.bool_)
        if values is not None:
            values = values[timeline.order]
            present = ~np.isnan(values)
            values = values[present]
        self.timeline = timeline
        self.positions: I64 = np.flatnonzero(present)
        self.values: F64 = np.zeros(rows) if values is None else values
        self._before: I64 = np.concatenate([[0], np.cumsum(present)])

    def run(self, first: I64, last: I64) -> tuple[I64, I64]:
        """Runs of positions, as the index of the last non-null row and the number of such rows."""
        end = self._before[last + 1]
        return end - 1, np.maximum(end - self._before[np.minimum(first, last + 1)], 0)

    def count(self, pieces: Pieces) -> I64:
        """The number of non-null rows in each window."""
        _, count = self.run(pieces.first, np.arange(len(pieces.first)))
        np.add.at(count, pieces.owner, self.run(pieces.cut_first, pieces.cut_last)[1])
        return count

    def fold(self, pieces: Pieces, leaves: Measure, combine: Combine) -> Measure:
        """The combined measure of each window; zeros where it is empty."""
        last, count = self.run(pieces.first, np.arange(len(pieces.first)))
        result = fold(leaves, last, count, combine)
        cut_last, cut_count = self.run(pieces.cut_first, pieces.cut_last)
        parts = fold(leaves, cut_last, cut_count, combine)
        for some in _from_the_right(pieces.owner):
            some = some[cut_count[some] > 0]
            owner = pieces.owner[some]
            left = tuple(column[some] for column in parts)
            right = tuple(column[owner] for column in result)
            with np.errstate(all="ignore"):
                both = combine(left, right)
            alone = count[owner] == 0
            for column, only, joined in zip(result, left, both, strict=True):
                column[owner] = np.where(alone, only, joined)
            count[owner] += cut_count[some]
        return result


def windows(
    timeline: Timeline, values: F64 | None, widths: Sequence[int], stats: Sequence[str], times: I64
) -> tuple[list[F64], list[F64 | None]]:
    """Statistics of sliding windows, by width and statistic, and the rounding to tolerate in each.

    Args:
        timeline: by time, or by pane.
        values: see `NonNullRows`.
        widths: in units of the timeline.
        stats: see `state.windows.specs.WindowSpec`.
        times: ``(n,) int64`` event times in order of arrival, for first and last within a pane.
    """
    rows_with_value = NonNullRows(timeline, values)
    columns: list[F64] = []
    rounding: list[F64 | None] = []
    for width in widths:
        pieces = timeline.pieces(timeline.starts(width))
        of_width, of_width_rounding = _statistics(rows_with_value, pieces, set(stats), times)
        of_width |= _by_definition(rows_with_value, pieces, set(stats) - set(of_width), times)
        columns += [of_width[stat] for stat in stats]
        rounding += [of_width_rounding.get(stat) for stat in stats]
    return columns, rounding


def _statistics(
    rows_with_value: NonNullRows, pieces: Pieces, stats: set[str], times: I64
) -> tuple[dict[str, F64], dict[str, F64]]:
    values, count = rows_with_value.values, rows_with_value.count(pieces)
    result: dict[str, F64] = {}
    rounding: dict[str, F64] = {}
    some = np.maximum(count, 1)
    result["count"] = count.astype(np.float64)
    if stats & {"sum", "mean"}:
        total, rest = rows_with_value.fold(pieces, sum_leaves(values), add)
        result["sum"] = (total + rest) / SCALE
        result["mean"] = (total + rest) / some / SCALE
    if stats & {"std", "var"}:
        _, mean, rest, squares = rows_with_value.fold(pieces, moment_leaves(values), pool)
        with np.errstate(all="ignore"):
            all_squares = squares + some * np.square(mean + rest)
            resolved = ~(squares <= UNRESOLVED * all_squares)
            result["var"] = np.where(
                resolved & (count > 1), squares / np.maximum(count - 1, 1), 0.0
            )
            result["std"] = np.sqrt(result["var"])
            rounding["var"] = UNRESOLVED * all_squares
            rounding["std"] = np.sqrt(UNRESOLVED * all_squares)
    for stat, combine in (("max", greatest), ("min", least)):
        if stat in stats:
            result[stat] = rows_with_value.fold(pieces, (values,), combine)[0]
    if stats & {"first", "last"}:
        rank = _ranks(rows_with_value, times)
        for stat, combine in (("last", greatest), ("first", least)):
            at = rows_with_value.fold(pieces, (rank,), combine)[0]
            by_rank_of_time = np.zeros(len(values) + 1)
            by_rank_of_time[rank] = values
            result[stat] = np.where(count > 0, by_rank_of_time[at], 0.0)
    return result, rounding


def _by_definition(
    rows_with_value: NonNullRows, pieces: Pieces, stats: set[str], times: I64
) -> dict[str, F64]:
    """Statistics that are computed from the values of each window, by their definition."""
    if not stats:
        return {}
    rows = np.arange(len(pieces.first))
    runs = [
        (rows, *rows_with_value.run(pieces.first, rows)),
        (pieces.owner, *rows_with_value.run(pieces.cut_first, pieces.cut_last)),
    ]
    ranks = _ranks(rows_with_value, times)
    return by_definition(stats, rows_with_value.values, ranks, runs, len(rows))


def _ranks(rows_with_value: NonNullRows, times: I64) -> I64:
    """The rank of each non-null row by key, event time and arrival."""
    timeline = rows_with_value.timeline
    rows = timeline.order[rows_with_value.positions]
    rank = np.empty(len(rows), np.int64)
    rank[np.lexsort((rows, times[rows], timeline.begin[rows_with_value.positions]))] = np.arange(
        len(rows)
    )
    return rank


def since_last(timeline: Timeline, within_ms: int) -> F64:
    """Seconds since the key's previous event, at most ``within_ms``."""
    previous = timeline.previous()
    since = np.where(previous >= 0, timeline.times - timeline.times[previous], within_ms)
    return np.minimum(since, within_ms) / 1000.0


def distinct(timeline: Timeline, codes: I64, width: int) -> F64:
    """The number of distinct codes in each window; ``codes`` are by arrival, below 0 for null.

    An occurrence of a code counts from its position to before the next one of the code, or until it
    leaves the window: one step up and one step down. Rows that miss out-of-order events are counted
    one by one.
    """
    rows = len(timeline.order)
    codes = codes[timeline.order]
    positions = np.flatnonzero(codes >= 0)
    end = timeline.stops(width)[positions]
    by_code = np.lexsort((positions, codes[positions], timeline.begin[positions]))
    left, right = by_code[:-1], by_code[1:]
    same = (codes[positions[left]] == codes[positions[right]]) & (
        timeline.begin[positions[left]] == timeline.begin[positions[right]]
    )
    end[left[same]] = np.minimum(end[left[same]], positions[right[same]])
    steps = -np.bincount(end, minlength=rows + 1)
    steps[positions] += 1
    counts = np.cumsum(steps[:-1])
    pieces = timeline.pieces(timeline.starts(width))
    runs: dict[int, list[I64]] = {}
    for owner, first, last in zip(
        pieces.owner.tolist(), pieces.cut_first.tolist(), pieces.cut_last.tolist(), strict=True
    ):
        runs.setdefault(owner, []).append(codes[first : last + 1])
    for owner, parts in runs.items():
        seen = np.unique(np.concatenate([*parts, codes[pieces.first[owner] : owner + 1]]))
        counts[owner] = np.count_nonzero(seen >= 0)
    return counts.astype(np.float64)


def decayed(
    timeline: Timeline, values: F64, half_life_ms: int, stats: Sequence[str]
) -> tuple[list[F64], list[F64 | None]]:
    """Statistics with weights that halve every ``half_life_ms``, and the rounding to tolerate."""
    rows_with_value = NonNullRows(timeline, values)
    pieces = timeline.pieces(timeline.starts(NEGLIGIBLE_AFTER * half_life_ms))
    pieces = _since_reset(rows_with_value, pieces, RESET_AFTER * half_life_ms)
    times = timeline.times[rows_with_value.positions]
    leaves = decay_leaves(times, rows_with_value.values)
    latest, weight, total, magnitude = rows_with_value.fold(pieces, leaves, fade(half_life_ms))
    factor = np.where(weight > 0, np.exp2((latest - timeline.times) / half_life_ms), 0.0)
    with np.errstate(all="ignore"):
        mean = np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), 0.0) / SCALE
        spread = np.where(weight > 0, magnitude / np.where(weight > 0, weight, 1.0), 0.0) / SCALE
        result = {"count": weight * factor, "sum": total * factor / SCALE, "mean": mean}
        # Rounding errors are relative to the magnitudes added, which may cancel in the sum.
        rounding = {"sum": 1e-12 * magnitude * factor / SCALE, "mean": 1e-12 * spread}
    return [result[stat] for stat in stats], [rounding.get(stat) for stat in stats]


def _since_reset(rows_with_value: NonNullRows, pieces: Pieces, silence_ms: int) -> Pieces:
    """The same windows, cut to start after the key's last gap of ``silence_ms``, its last reset."""
    timeline, positions = rows_with_value.timeline, rows_with_value.positions
    times, begin = timeline.times[positions], timeline.begin[positions]
    starts_over = np.ones(len(positions), np.bool_)
    starts_over[1:] = (begin[1:] != begin[:-1]) | (np.diff(times) >= silence_ms)
    since = np.maximum.accumulate(np.where(starts_over, np.arange(len(positions)), 0))
    rows = np.arange(len(pieces.first))
    first, cut_first = pieces.first.copy(), pieces.cut_first.copy()
    # Going back in time: the earliest event of each window so far, and whether there was no gap.
    earliest, contiguous = timeline.times.copy(), np.ones(len(rows), np.bool_)

    def clip(begin_at: I64, end_at: I64, owner: I64) -> I64:
        last, count = rows_with_value.run(begin_at, end_at)
        filled = count > 0
        safe = np.where(filled, last, 0)
        kept = contiguous[owner] & (earliest[owner] - times[safe] < silence_ms)
        start = np.maximum(last - count + 1, since[safe])
        contiguous[owner] &= ~filled | (kept & (start == last - count + 1))
        earliest[owner] = np.where(
            filled & kept, times[np.where(filled, start, 0)], earliest[owner]
        )
        begins = positions[np.where(filled, start, 0)]
        return np.where(filled & kept, begins, np.where(filled, end_at + 1, begin_at))

    if len(positions):
        first = clip(pieces.first, rows, rows)
        for some in _from_the_right(pieces.owner):
            owner = pieces.owner[some]
            cut_first[some] = clip(pieces.cut_first[some], pieces.cut_last[some], owner)
    return Pieces(first, pieces.owner, cut_first, pieces.cut_last)


def _from_the_right(owner: I64) -> list[I64]:
    """Groups of runs: the last one of each owner, then the last but one, and so on."""
    if not len(owner):
        return []
    ends = np.flatnonzero(np.append(owner[1:] != owner[:-1], True))
    end_of = ends[np.searchsorted(owner[ends], owner)]
    rank = end_of - np.arange(len(owner))
    by_rank = np.argsort(rank, kind="stable")
    edges = np.flatnonzero(np.diff(rank[by_rank])) + 1
    return np.split(by_rank, edges)
