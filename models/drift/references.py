"""What a window is compared with: the first while of a stream, the last while, or the same hour.

::

    "1d"                ├── reference ──┤                         ├ window ┤
    Sliding("7d")                   ├──────── reference ────────┤··├ window ┤   moves on, by 24ths
    Seasonal("7d")      ├ Mo ┤ Tu ┤ … ├ Su ┤ Mo ┤ Tu ┤ … ├ Su ┤   ├ Mo, 9 to 10 ┤
                        └── 9 to 10 ──────────┴── 9 to 10

Each also says how its own windows scatter around it, which is more than chance where rows depend on
each other: see `models.drift.distribution_shift`.
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
from anabranch.models.drift.reference_statistics import Calm, Known, Sums, fill, known_of
from anabranch.state.durations import parse_duration_ms

F64 = NDArray[np.float64]
LOG = logging.getLogger("anabranch.drift")


class Reference(Protocol):
    """A reference at work, of so many columns with so many bins."""

    slot_ms: int
    """How long a window is of one slot; 0: always."""
    sample_ms: int
    """For how long rows are sampled, before any are counted."""

    @property
    def whole(self) -> bool:
        """Whether something is known to be usual."""
        ...

    def add(self, counts: F64, rows: int, first_ms: int, last_ms: int, calm: Calm) -> None:
        """A window is over: `(columns, bins)` counts of its rows, and the times of two of them.

        How much is usual to scatter is learned of the columns that are ``calm``; None: of all.
        """
        ...

    def known(self, first_ms: int) -> Known | None:
        """What is usual at this time; None: not known yet."""
        ...

    def changes(self) -> dict[str, bytes]:
        """What changed since the last call, by name; at first, everything."""
        ...

    def restore(self, blobs: Mapping[str, bytes]) -> None:
        """Take up what all calls of `changes` gave."""
        ...

    def touch(self) -> None:
        """Let the next call of `changes` give everything."""
        ...


def reference_of(declared: str | Sliding | Seasonal, columns: int, bins: int) -> Reference:
    """A fresh one."""
    if isinstance(declared, Sliding):
        return _Last(parse_duration_ms(declared.span), columns, bins)
    if isinstance(declared, Seasonal):
        return _BySlot(declared, columns, bins)
    return _First(parse_duration_ms(declared), columns, bins)


class _AtAnyTime:
    """One reference for all times."""

    slot_ms = sample_ms = 0
    _known: Known | None = None

    def known(self, first_ms: int) -> Known | None:
        return self._known

    @property
    def whole(self) -> bool:
        return self._known is not None


class _First(_AtAnyTime):
    """The first so much event time, and `LEAST_WINDOWS` at least."""

    def __init__(self, span_ms: int, columns: int, bins: int) -> None:
        self._span_ms = span_ms
        self._sums = Sums(columns, bins)
        self._first_ms: int | None = None
        self._taken_ms = 0
        self._touched = True

    def add(self, counts: F64, rows: int, first_ms: int, last_ms: int, calm: Calm) -> None:
        if self._known is not None:
            return
        self._touched = True
        if self._first_ms is None:
            self._first_ms = first_ms
        self._sums.add(counts, rows, None)
        self._taken_ms = max(last_ms - self._first_ms, 0)
        if self._taken_ms >= self._span_ms and self._sums.enough:
            self._known = self._sums.known(self._taken_ms)

    def changes(self) -> dict[str, bytes]:
        if not self._touched:
            return {}
        self._touched = False
        head = msgspec.json.encode((self._first_ms, self._taken_ms, self._known is not None))
        return {"head": head, "sums": self._sums.dump()}

    def restore(self, blobs: Mapping[str, bytes]) -> None:
        kind = tuple[int | None, int, bool]
        self._first_ms, self._taken_ms, whole = msgspec.json.decode(blobs["head"], type=kind)
        self._sums.load(blobs["sums"])
        self._known = self._sums.known(self._taken_ms) if whole else None
        self._touched = False

    def touch(self) -> None:
        self._touched = True


class _Last(_AtAnyTime):
    """The last so much event time, in `PIECES`; the newest one, not whole yet, is no part of it.

    Where that holds less than `LEAST_WINDOWS`, it reaches further back.
    """

    def __init__(self, span_ms: int, columns: int, bins: int) -> None:
        self._piece_ms = span_ms // PIECES
        self._shape = columns, bins
        self._pieces: dict[int, Sums] = {}
        self._places: dict[int, int] = {}  # where each is kept
        self._first: int | None = None
        self._touched: set[int] = set()
        self._written = False

    def add(self, counts: F64, rows: int, first_ms: int, last_ms: int, calm: Calm) -> None:
        newest = max(self._pieces, default=None)
        piece = last_ms // self._piece_ms
        if self._first is None:
            self._first = piece
        if newest is not None and piece <= newest:
            piece = newest  # late, or as before
        else:
            self._pieces[piece] = Sums(*self._shape)
            taken = set(self._places.values())
            self._places[piece] = next(at for at in count() if at not in taken)
            self._move_on(piece)
        self._pieces[piece].add(counts, rows, calm)
        self._touched.add(piece)

    def _move_on(self, newest: int) -> None:
        sums = Sums(*self._shape)
        for piece, each in sorted(self._pieces.items(), reverse=True):
            if piece == newest:
                continue
            if piece >= newest - PIECES or not sums.enough:
                sums += each
            else:
                del self._pieces[piece], self._places[piece]
        self._touched &= self._pieces.keys()
        assert self._first is not None
        if newest - self._first >= PIECES and sums.enough:
            self._known = sums.known((newest - min(self._pieces)) * self._piece_ms)

    def changes(self) -> dict[str, bytes]:
        if not self._touched and self._written:
            return {}
        self._written = True
        blobs = {f"piece {self._places[p]}": self._pieces[p].dump() for p in self._touched}
        self._touched.clear()
        return {**blobs, "head": msgspec.json.encode((self._first, self._places))}

    def restore(self, blobs: Mapping[str, bytes]) -> None:
        self._written = True
        kind = tuple[int | None, dict[int, int]]
        self._first, self._places = msgspec.json.decode(blobs["head"], type=kind)
        for piece, place in self._places.items():
            self._pieces[piece] = Sums(*self._shape)
            self._pieces[piece].load(blobs[f"piece {place}"])
        if self._pieces:
            self._move_on(max(self._pieces))

    def touch(self) -> None:
        self._touched, self._written = set(self._pieces), False


class _Slotted(msgspec.Struct):
    """Where a seasonal reference stands: the visit of a slot that goes on, and whether it grows."""

    first_ms: int | None = None
    visit: int | None = None
    windows: int = 0
    whole: bool = False


class _BySlot:
    """The same slot of the first periods.

    Windows of one visit to a slot are alike, and those of another week less so. So it is measured
    by how much windows scatter in a visit and how much visits do in a slot; what a window of a new
    visit will scatter follows from both (an analysis of variance with random effects).
    """

    def __init__(self, declared: Seasonal, columns: int, bins: int) -> None:
        self.slot_ms = parse_duration_ms(declared.slot)
        self.sample_ms = period_ms = parse_duration_ms(declared.period)
        self._span_ms = declared.periods * period_ms
        slots = period_ms // self.slot_ms
        self._state = _Slotted()
        self._counts = np.zeros((slots, columns, bins))
        # Sums of squares by rows: of windows, in their visit; of visits.
        self._in_visits, self._of_visits = np.zeros((2, slots, columns, bins))
        self._freedom = np.zeros((2, slots))  # in visits, and the number of visits
        self._pooled = Sums(columns, bins)
        self._visit = np.zeros((2, columns, bins))  # counts, and squares by rows
        self._known: dict[int, Known] = {}
        self._touched = True

    def add(self, counts: F64, rows: int, first_ms: int, last_ms: int, calm: Calm) -> None:
        state = self._state
        if state.whole:
            return
        self._touched = True
        if state.first_ms is None:
            state.first_ms = first_ms
        visit = first_ms // self.slot_ms
        if state.visit is not None and visit != state.visit:
            self._end_visit(state.visit)
            state.windows = 0
        if first_ms - state.first_ms >= self._span_ms:
            state.whole = True
            self._learn_all()
            return
        state.visit = visit
        state.windows += 1
        self._visit += counts, np.square(counts) / rows
        self._pooled.add(counts, rows, None)

    def _end_visit(self, visit: int) -> None:
        slot = visit % len(self._counts)
        counts, squares = self._visit
        whole = np.square(counts) / counts.sum(axis=1, keepdims=True)
        self._counts[slot] += counts
        self._in_visits[slot] += squares - whole
        self._of_visits[slot] += whole
        self._freedom[:, slot] += self._state.windows - 1, 1
        self._visit[:] = 0.0

    def _learn_all(self) -> None:
        """What is usual in each slot that was visited twice or more."""
        usual, visited = np.flatnonzero(self._freedom[1] >= 2), np.count_nonzero(self._freedom[1])
        if len(usual) * 2 < visited:
            LOG.warning(
                "of %d slots only %d were visited twice: the others are not watched; choose a "
                "longer slot= in Seasonal(…), or a smaller window=", visited, len(usual),
            )  # fmt: skip
        if not len(usual):
            return
        counts = self._counts[usual]
        rows = counts.sum(axis=2, keepdims=True)
        share = counts / rows
        seen = share > 0
        weight = np.divide(1.0, share, out=np.zeros_like(share), where=seen)
        within = (self._in_visits[usual] * weight).sum(axis=(0, 2))
        between = ((self._of_visits[usual] - rows * np.square(share)) * weight).sum(axis=(0, 2))
        of_windows, of_visits = self._freedom[0, usual].sum(), (self._freedom[1, usual] - 1).sum()
        # Per window of one visit; and what a visit adds, whose rows are so many windows.
        between /= of_visits
        within = between if not of_windows else within / of_windows
        windows = 1 + self._freedom[0, usual].sum() / self._freedom[1, usual].sum()
        repeats = 1 + 1 / self._freedom[1, usual].mean()
        trace = within + np.maximum(between - within, 0.0) / windows * repeats
        pooled = self._pooled.known(self._span_ms)
        for place, slot in enumerate(usual.tolist()):
            self._known[slot] = known_of(
                counts[place],
                trace,
                pooled.directions,
                of_visits,
                share[place],
                self._span_ms,
                fewest=1.0,  # an hour fills few of the bins of all hours
            )

    @property
    def whole(self) -> bool:
        return bool(self._known)

    def known(self, first_ms: int) -> Known | None:
        return self._known.get(first_ms // self.slot_ms % len(self._counts))

    def changes(self) -> dict[str, bytes]:
        if not self._touched:
            return {}
        self._touched = False
        numbers = b"".join(each.tobytes() for each in self._arrays())
        state = msgspec.json.encode(self._state)
        return {"head": state, "slots": numbers, "pooled": self._pooled.dump()}

    def restore(self, blobs: Mapping[str, bytes]) -> None:
        self._state = msgspec.json.decode(blobs["head"], type=_Slotted)
        fill(self._arrays(), blobs["slots"])
        self._pooled.load(blobs["pooled"])
        if self._state.whole:
            self._learn_all()
        self._touched = False

    def touch(self) -> None:
        self._touched = True

    def _arrays(self) -> tuple[F64, ...]:
        return self._counts, self._in_visits, self._of_visits, self._freedom, self._visit
