"""The features of entities: windows, distinct values, time since the last event, decayed sums.

Every function takes a `Timeline` and gives ``(n,) float64`` by position. A value that is null does
not enter, but its row is answered: so values are numbered among those that enter.
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
"""A variance below this part of the mean square is 0, as `state.windows.specs` declares."""

FORGOTTEN_AFTER = 50
"""Half-lives without an event after which a decayed key starts anew, as declared there."""

NEGLIGIBLE_AFTER = 400
"""Half-lives after which an event weighs nothing: 4e-121."""


class Entered:
    """Those rows of a timeline that have a value, and windows in their numbers.

    Args:
        timeline: of all rows.
        values: ``(n,) float64``, in order of arrival, NaN for null; None: all enter, without one.
    """

    def __init__(self, timeline: Timeline, values: F64 | None) -> None:
        rows = len(timeline.order)
        there = np.ones(rows, np.bool_)
        if values is not None:
            values = values[timeline.order]
            there = ~np.isnan(values)
            values = values[there]
        self.timeline = timeline
        self.positions: I64 = np.flatnonzero(there)
        self.values: F64 = np.zeros(rows) if values is None else values
        self._before: I64 = np.concatenate([[0], np.cumsum(there)])

    def run(self, first: I64, last: I64) -> tuple[I64, I64]:
        """Runs of positions as last number and count of those that entered."""
        end = self._before[last + 1]
        return end - 1, np.maximum(end - self._before[np.minimum(first, last + 1)], 0)

    def count(self, pieces: Pieces) -> I64:
        """How many entered each row's window."""
        _, count = self.run(pieces.first, np.arange(len(pieces.first)))
        np.add.at(count, pieces.owner, self.run(pieces.cut_first, pieces.cut_last)[1])
        return count

    def fold(self, pieces: Pieces, leaves: Measure, combine: Combine) -> Measure:
        """The measure of each row's window; zeros where nothing entered."""
        last, count = self.run(pieces.first, np.arange(len(pieces.first)))
        found = fold(leaves, last, count, combine)
        cut_last, cut_count = self.run(pieces.cut_first, pieces.cut_last)
        parts = fold(leaves, cut_last, cut_count, combine)
        for some in _from_the_right(pieces.owner):
            some = some[cut_count[some] > 0]
            owner = pieces.owner[some]
            left = tuple(column[some] for column in parts)
            right = tuple(column[owner] for column in found)
            with np.errstate(all="ignore"):
                both = combine(left, right)
            alone = count[owner] == 0
            for column, only, joined in zip(found, left, both, strict=True):
                column[owner] = np.where(alone, only, joined)
            count[owner] += cut_count[some]
        return found


def windows(
    timeline: Timeline, values: F64 | None, widths: Sequence[int], stats: Sequence[str], times: I64
) -> tuple[list[F64], list[F64 | None]]:
    """Statistics of sliding windows: for each width, for each statistic; and their slack.

    Args:
        timeline: by time, or by pane.
        values: see `Entered`.
        widths: in units of the timeline.
        stats: see `state.windows.specs.WindowSpec`.
        times: ``(n,) int64`` event times in order of arrival, which say what is first in a pane.
    """
    entered = Entered(timeline, values)
    found: list[F64] = []
    slack: list[F64 | None] = []
    for width in widths:
        pieces = timeline.pieces(timeline.starts(width))
        of_width, free = _statistics(entered, pieces, set(stats), times)
        of_width |= _by_definition(entered, pieces, set(stats) - set(of_width), times)
        found += [of_width[stat] for stat in stats]
        slack += [free.get(stat) for stat in stats]
    return found, slack


def _statistics(
    entered: Entered, pieces: Pieces, stats: set[str], times: I64
) -> tuple[dict[str, F64], dict[str, F64]]:
    values, count = entered.values, entered.count(pieces)
    found: dict[str, F64] = {}
    slack: dict[str, F64] = {}
    some = np.maximum(count, 1)
    found["count"] = count.astype(np.float64)
    if stats & {"sum", "mean"}:
        total, rest = entered.fold(pieces, sum_leaves(values), add)
        found["sum"] = (total + rest) / SCALE
        found["mean"] = (total + rest) / some / SCALE
    if stats & {"std", "var"}:
        _, mean, rest, squares = entered.fold(pieces, moment_leaves(values), pool)
        with np.errstate(all="ignore"):
            all_squares = squares + some * np.square(mean + rest)
            resolved = ~(squares <= UNRESOLVED * all_squares)
            found["var"] = np.where(resolved & (count > 1), squares / np.maximum(count - 1, 1), 0.0)
            found["std"] = np.sqrt(found["var"])
            slack["var"] = UNRESOLVED * all_squares
            slack["std"] = np.sqrt(UNRESOLVED * all_squares)
    for stat, combine in (("max", greatest), ("min", least)):
        if stat in stats:
            found[stat] = entered.fold(pieces, (values,), combine)[0]
    if stats & {"first", "last"}:
        turn = _turns(entered, times)
        for stat, combine in (("last", greatest), ("first", least)):
            at = entered.fold(pieces, (turn,), combine)[0]
            by_turn = np.zeros(len(values) + 1)
            by_turn[turn] = values
            found[stat] = np.where(count > 0, by_turn[at], 0.0)
    return found, slack


def _by_definition(entered: Entered, pieces: Pieces, stats: set[str], times: I64) -> dict[str, F64]:
    if not stats:
        return {}
    rows = np.arange(len(pieces.first))
    runs = [
        (rows, *entered.run(pieces.first, rows)),
        (pieces.owner, *entered.run(pieces.cut_first, pieces.cut_last)),
    ]
    return by_definition(stats, entered.values, _turns(entered, times), runs, len(rows))


def _turns(entered: Entered, times: I64) -> I64:
    """By number of entering: its place among them by key, event time and arrival."""
    timeline = entered.timeline
    rows = timeline.order[entered.positions]
    turn = np.empty(len(rows), np.int64)
    turn[np.lexsort((rows, times[rows], timeline.begin[entered.positions]))] = np.arange(len(rows))
    return turn


def since_last(timeline: Timeline, within_ms: int) -> F64:
    """Seconds since the key's previous event, at most ``within_ms``."""
    previous = timeline.previous()
    since = np.where(previous >= 0, timeline.times - timeline.times[previous], within_ms)
    return np.minimum(since, within_ms) / 1000.0


def distinct(timeline: Timeline, codes: I64, width: int) -> F64:
    """How many different codes are in each window; ``codes`` are by arrival, below 0 for null.

    A code counts from where it stands to before where it stands next, or to where the window has
    left it behind: one step up and one down. Rows that miss late events are counted one by one.
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
    found = np.cumsum(steps[:-1])
    pieces = timeline.pieces(timeline.starts(width))
    runs: dict[int, list[I64]] = {}
    for owner, first, last in zip(
        pieces.owner.tolist(), pieces.cut_first.tolist(), pieces.cut_last.tolist(), strict=True
    ):
        runs.setdefault(owner, []).append(codes[first : last + 1])
    for owner, parts in runs.items():
        seen = np.unique(np.concatenate([*parts, codes[pieces.first[owner] : owner + 1]]))
        found[owner] = np.count_nonzero(seen >= 0)
    return found.astype(np.float64)


def decayed(
    timeline: Timeline, values: F64, half_life_ms: int, stats: Sequence[str]
) -> tuple[list[F64], list[F64 | None]]:
    """Statistics in which an event's weight halves with every ``half_life_ms``; and their slack."""
    entered = Entered(timeline, values)
    pieces = timeline.pieces(timeline.starts(NEGLIGIBLE_AFTER * half_life_ms))
    pieces = _since_forgotten(entered, pieces, FORGOTTEN_AFTER * half_life_ms)
    times = timeline.times[entered.positions]
    leaves = decay_leaves(times, entered.values)
    latest, weight, total, magnitude = entered.fold(pieces, leaves, fade(half_life_ms))
    rest = np.where(weight > 0, np.exp2((latest - timeline.times) / half_life_ms), 0.0)
    with np.errstate(all="ignore"):
        mean = np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), 0.0) / SCALE
        spread = np.where(weight > 0, magnitude / np.where(weight > 0, weight, 1.0), 0.0) / SCALE
        found = {"count": weight * rest, "sum": total * rest / SCALE, "mean": mean}
        # Rounding is relative to what was added up, which may cancel.
        slack = {"sum": 1e-12 * magnitude * rest / SCALE, "mean": 1e-12 * spread}
    return [found[stat] for stat in stats], [slack.get(stat) for stat in stats]


def _since_forgotten(entered: Entered, pieces: Pieces, silence_ms: int) -> Pieces:
    """The same windows from where the key started anew: after the last gap of ``silence_ms``."""
    timeline, positions = entered.timeline, entered.positions
    times, begin = timeline.times[positions], timeline.begin[positions]
    anew = np.ones(len(positions), np.bool_)
    anew[1:] = (begin[1:] != begin[:-1]) | (np.diff(times) >= silence_ms)
    since = np.maximum.accumulate(np.where(anew, np.arange(len(positions)), 0))
    rows = np.arange(len(pieces.first))
    first, cut_first = pieces.first.copy(), pieces.cut_first.copy()
    # The time of the earliest event of a window so far, going back; and whether it goes on.
    earliest, goes_on = timeline.times.copy(), np.ones(len(rows), np.bool_)

    def clip(begin_at: I64, end_at: I64, owner: I64) -> I64:
        last, count = entered.run(begin_at, end_at)
        filled = count > 0
        safe = np.where(filled, last, 0)
        kept = goes_on[owner] & (earliest[owner] - times[safe] < silence_ms)
        start = np.maximum(last - count + 1, since[safe])
        goes_on[owner] &= ~filled | (kept & (start == last - count + 1))
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
    """Runs by owner, taken apart: the last one of each owner, then the one before, and so on."""
    if not len(owner):
        return []
    ends = np.flatnonzero(np.append(owner[1:] != owner[:-1], True))
    end_of = ends[np.searchsorted(owner[ends], owner)]
    rank = end_of - np.arange(len(owner))
    by_rank = np.argsort(rank, kind="stable")
    edges = np.flatnonzero(np.diff(rank[by_rank])) + 1
    return np.split(by_rank, edges)
