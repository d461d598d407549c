"""References that windows are compared with: the start of a stream, its recent past, the same hour.

::

    "1d"                ├── reference ──┤                         ├ window ┤
    Sliding("7d")                   ├──────── reference ────────┤··├ window ┤   advances by 24ths
    Seasonal("7d")      ├ Mo ┤ Tu ┤ … ├ Su ┤ Mo ┤ Tu ┤ … ├ Su ┤   ├ Mo, 9 to 10 ┤
                        └── 9 to 10 ──────────┴── 9 to 10

Each also estimates how its own windows scatter around it, which is more than chance where rows
depend on each other: see `models.drift.distribution_shift`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import count
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.models.drift.declarations import PIECES, Seasonal, Sliding
from anabranch.models.drift.reference_statistics import (
    ReferenceStatistics,
    Scatter,
    Stable,
    WindowSums,
    fill,
    reference_statistics,
)
from anabranch.state.durations import parse_duration_ms

F64 = NDArray[np.float64]
LOG = logging.getLogger("anabranch.drift")


class Reference(Protocol):
    """A running reference of a number of columns with a number of bins.

    Attributes:
        slot_ms: the length of a slot, where a window must not extend over two; 0: no slots.
        sample_ms: for how long rows are sampled before any are counted.
    """

    slot_ms: int
    sample_ms: int

    @property
    def ready(self) -> bool:
        """Whether windows can be compared with it."""
        ...

    def add(self, counts: F64, rows: int, first_ms: int, last_ms: int, stable: Stable) -> None:
        """Add a window that has ended.

        Args:
            counts: `(columns, bins)`, of its rows.
            rows: their number.
            first_ms, last_ms: event times of its first and last row.
            stable: the columns from which scatter is estimated; None: all.
        """
        ...

    def statistics_at(self, first_ms: int) -> ReferenceStatistics | None:
        """The baseline of a window that starts then; None: there is none yet."""
        ...

    def changes(self) -> dict[str, bytes]:
        """What changed since the last call, by name; the first time everything."""
        ...

    def restore(self, blobs: Mapping[str, bytes]) -> None:
        """Restore the merge of all `changes`."""
        ...

    def mark_changed(self) -> None:
        """Let the next call of `changes` return everything."""
        ...


def reference_of(declared: str | Sliding | Seasonal, columns: int, bins: int) -> Reference:
    """A new, empty reference."""
    if isinstance(declared, Sliding):
        return _SlidingReference(parse_duration_ms(declared.span), columns, bins)
    if isinstance(declared, Seasonal):
        return _SeasonalReference(declared, columns, bins)
    return _FixedReference(parse_duration_ms(declared), columns, bins)


class _Unslotted:
    """One baseline for all times."""

    slot_ms = sample_ms = 0
    _statistics: ReferenceStatistics | None = None

    def statistics_at(self, first_ms: int) -> ReferenceStatistics | None:
        return self._statistics

    @property
    def ready(self) -> bool:
        return self._statistics is not None


class _FixedReference(_Unslotted):
    """The first so much event time, and at least `MIN_WINDOWS` windows."""

    def __init__(self, span_ms: int, columns: int, bins: int) -> None:
        self._span_ms = span_ms
        self._sums = WindowSums(columns, bins)
        self._first_ms: int | None = None
        self._covered_ms = 0
        self._changed = True

    def add(self, counts: F64, rows: int, first_ms: int, last_ms: int, stable: Stable) -> None:
        if self._statistics is not None:
            return
        self._changed = True
        if self._first_ms is None:
            self._first_ms = first_ms
        self._sums.add(counts, rows, None)
        self._covered_ms = max(last_ms - self._first_ms, 0)
        if self._covered_ms >= self._span_ms and self._sums.sufficient:
            self._statistics = self._sums.statistics(self._covered_ms)

    def changes(self) -> dict[str, bytes]:
        if not self._changed:
            return {}
        self._changed = False
        head = msgspec.json.encode((self._first_ms, self._covered_ms, self._statistics is not None))
        return {"head": head, "sums": self._sums.dump()}

    def restore(self, blobs: Mapping[str, bytes]) -> None:
        kind = tuple[int | None, int, bool]
        self._first_ms, self._covered_ms, ready = msgspec.json.decode(blobs["head"], type=kind)
        self._sums.load(blobs["sums"])
        self._statistics = self._sums.statistics(self._covered_ms) if ready else None
        self._changed = False

    def mark_changed(self) -> None:
        self._changed = True


class _SlidingReference(_Unslotted):
    """The last so much event time, in `PIECES`; without the newest one, which is not complete yet.

    Where that holds fewer than `MIN_WINDOWS` windows, it extends further back.
    """

    def __init__(self, span_ms: int, columns: int, bins: int) -> None:
        self._piece_ms = span_ms // PIECES
        self._shape = columns, bins
        self._pieces: dict[int, WindowSums] = {}
        self._slots: dict[int, int] = {}  # under which number each is persisted
        self._first: int | None = None
        self._changed: set[int] = set()
        self._written = False

    def add(self, counts: F64, rows: int, first_ms: int, last_ms: int, stable: Stable) -> None:
        newest = max(self._pieces, default=None)
        piece = last_ms // self._piece_ms
        if self._first is None:
            self._first = piece
        if newest is not None and piece <= newest:
            piece = newest  # late, or the same piece
        else:
            self._pieces[piece] = WindowSums(*self._shape)
            used = set(self._slots.values())
            self._slots[piece] = next(at for at in count() if at not in used)
            self._advance(piece)
        self._pieces[piece].add(counts, rows, stable)
        self._changed.add(piece)

    def _advance(self, newest: int) -> None:
        sums = WindowSums(*self._shape)
        for piece, each in sorted(self._pieces.items(), reverse=True):
            if piece == newest:
                continue
            if piece >= newest - PIECES or not sums.sufficient:
                sums += each
            else:
                del self._pieces[piece], self._slots[piece]
        self._changed &= self._pieces.keys()
        assert self._first is not None
        if newest - self._first >= PIECES and sums.sufficient:
            self._statistics = sums.statistics((newest - min(self._pieces)) * self._piece_ms)

    def changes(self) -> dict[str, bytes]:
        if not self._changed and self._written:
            return {}
        self._written = True
        blobs = {f"piece {self._slots[p]}": self._pieces[p].dump() for p in self._changed}
        self._changed.clear()
        return {**blobs, "head": msgspec.json.encode((self._first, self._slots))}

    def restore(self, blobs: Mapping[str, bytes]) -> None:
        self._written = True
        kind = tuple[int | None, dict[int, int]]
        self._first, self._slots = msgspec.json.decode(blobs["head"], type=kind)
        for piece, slot in self._slots.items():
            self._pieces[piece] = WindowSums(*self._shape)
            self._pieces[piece].load(blobs[f"piece {slot}"])
        if self._pieces:
            self._advance(max(self._pieces))

    def mark_changed(self) -> None:
        self._changed, self._written = set(self._pieces), False


class _SeasonalState(msgspec.Struct, rename={"complete": "whole"}):
    """The progress of a seasonal reference: the current visit of a slot, if not complete."""

    first_ms: int | None = None
    visit: int | None = None
    windows: int = 0
    complete: bool = False


class _SeasonalReference:
    """The same slot of the first periods.

    Windows of one visit to a slot are alike, those of another week less so. So the scatter of
    windows within a visit is measured, and that of visits within a slot; how much a window of a new
    visit will scatter follows from both (an analysis of variance with random effects).
    """

    def __init__(self, declared: Seasonal, columns: int, bins: int) -> None:
        self.slot_ms = parse_duration_ms(declared.slot)
        self.sample_ms = period_ms = parse_duration_ms(declared.period)
        self._span_ms = declared.periods * period_ms
        slots = period_ms // self.slot_ms
        self._state = _SeasonalState()
        self._counts = np.zeros((slots, columns, bins))
        # Sums of squares over rows: of windows in their visit, and of visits.
        self._in_visits, self._of_visits = np.zeros((2, slots, columns, bins))
        self._freedom = np.zeros((2, slots))  # windows less visits, and the number of visits
        self._pooled = WindowSums(columns, bins)
        self._visit = np.zeros((2, columns, bins))  # counts, and squares over rows
        self._statistics: dict[int, ReferenceStatistics] = {}
        self._changed = True

    def add(self, counts: F64, rows: int, first_ms: int, last_ms: int, stable: Stable) -> None:
        state = self._state
        if state.complete:
            return
        self._changed = True
        if state.first_ms is None:
            state.first_ms = first_ms
        visit = first_ms // self.slot_ms
        if state.visit is not None and visit != state.visit:
            self._end_visit(state.visit)
            state.windows = 0
        if first_ms - state.first_ms >= self._span_ms:
            state.complete = True
            self._finish()
            return
        state.visit = visit
        state.windows += 1
        self._visit += counts, np.square(counts) / rows
        self._pooled.add(counts, rows, None)

    def _end_visit(self, visit: int) -> None:
        slot = visit % len(self._counts)
        counts, squares = self._visit
        visit_squares = np.square(counts) / counts.sum(axis=1, keepdims=True)
        self._counts[slot] += counts
        self._in_visits[slot] += squares - visit_squares
        self._of_visits[slot] += visit_squares
        self._freedom[:, slot] += self._state.windows - 1, 1
        self._visit[:] = 0.0

    def _finish(self) -> None:
        """Set the statistics of each slot that was visited twice or more."""
        usable, visited = np.flatnonzero(self._freedom[1] >= 2), np.count_nonzero(self._freedom[1])
        if len(usable) * 2 < visited:
            LOG.warning(
                "of %d slots only %d were visited twice: the others are not monitored; choose a "
                "longer slot= in Seasonal(…), or a smaller window=", visited, len(usable),
            )  # fmt: skip
        if not len(usable):
            return
        counts = self._counts[usable]
        share = counts / counts.sum(axis=2, keepdims=True)
        pooled = self._pooled.statistics(self._span_ms)
        visits = (self._freedom[1, usable] - 1).sum()
        scatter = Scatter(self._trace(usable, counts, share), pooled.directions, visits)
        for index, slot in enumerate(usable.tolist()):
            self._statistics[slot] = reference_statistics(
                counts[index],
                scatter,
                share[index],
                self._span_ms,
                min_expected=1.0,  # an hour fills few of the bins of all hours
            )

    def _trace(self, slots: NDArray[np.int64], counts: F64, share: F64) -> F64:
        """`(columns,) float64`: how much a window of a new visit to these slots will scatter."""
        rows = counts.sum(axis=2, keepdims=True)
        weight = np.divide(1.0, share, out=np.zeros_like(share), where=share > 0)
        within = (self._in_visits[slots] * weight).sum(axis=(0, 2))
        between = ((self._of_visits[slots] - rows * np.square(share)) * weight).sum(axis=(0, 2))
        of_windows, of_visits = self._freedom[0, slots].sum(), (self._freedom[1, slots] - 1).sum()
        # Per window of one visit; and what is added by a visit, which has several windows' rows.
        between /= of_visits
        within = between if not of_windows else within / of_windows
        windows = 1 + self._freedom[0, slots].sum() / self._freedom[1, slots].sum()
        repeats = 1 + 1 / self._freedom[1, slots].mean()
        trace: F64 = within + np.maximum(between - within, 0.0) / windows * repeats
        return trace

    @property
    def ready(self) -> bool:
        return bool(self._statistics)

    def statistics_at(self, first_ms: int) -> ReferenceStatistics | None:
        return self._statistics.get(first_ms // self.slot_ms % len(self._counts))

    def changes(self) -> dict[str, bytes]:
        if not self._changed:
            return {}
        self._changed = False
        numbers = b"".join(each.tobytes() for each in self._arrays())
        state = msgspec.json.encode(self._state)
        return {"head": state, "slots": numbers, "pooled": self._pooled.dump()}

    def restore(self, blobs: Mapping[str, bytes]) -> None:
        self._state = msgspec.json.decode(blobs["head"], type=_SeasonalState)
        fill(self._arrays(), blobs["slots"])
        self._pooled.load(blobs["pooled"])
        if self._state.complete:
            self._finish()
        self._changed = False

    def mark_changed(self) -> None:
        self._changed = True

    def _arrays(self) -> tuple[F64, ...]:
        return self._counts, self._in_visits, self._of_visits, self._freedom, self._visit
