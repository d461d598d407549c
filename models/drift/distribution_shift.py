"""Has the distribution of what flows by moved? Columns in windows of rows, beside a reference.

::

    rows   ├─ sample ─┤ edges of the bins: deciles, or the values where there are few
           ├──────────── reference ────────────┤├ window ┤├ window ┤├ window ┤ ...
                                                 each tested against the reference

A window is tested by Pearson's chi-square of two samples, column by column. Rows of a stream are
not independent (one card's payments share its windows), so that windows scatter more than the test
assumes; and at night they all lean one way. By how much, and in how many directions, is measured on
the windows of the reference and taken off: the second order correction of Rao and Scott (*On
chi-squared tests for multiway contingency tables*, Annals of Statistics 12, 1984), with the degrees
of freedom of that estimate in an F test. So the daily rhythm is no drift where the reference holds
a day or more, and what has a rhythm is watched less closely than what has none.

What is signalled must be both certain and large: a p-value so small that all columns together give
the false alarms that are allowed, and a population stability index of `psi`. The first such window
is a warning; a second one in a row is drift, once, until two in a row are without: then it is
resolved. A warning that nothing follows is resolved by the next window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from anabranch.models.drift.bins import BINS, bin_names, chi_square, edges_of, jensen_shannon
from anabranch.models.drift.declarations import Distributions, told
from anabranch.models.drift.reference_statistics import Known
from anabranch.models.drift.references import reference_of
from anabranch.models.drift.shift_kernels import count_rows
from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

Severity = Literal["warning", "drift", "resolved"]
SAMPLE: Final = 1000
_TOP: Final = 3
_OF_REFERENCE: Final = "reference "


@dataclass(frozen=True, slots=True)
class Shift:
    """A column's window beside its reference.

    Attributes:
        column: its number.
        severity: see the module.
        row: index of the window's last row, in the call that found it.
        time: event time of that row, ms; ``began`` that of the first window that was shifted.
        statistic: chi-square per degree of freedom, corrected; ``p`` its p-value, ``threshold``
            what that has to be below.
        psi: population stability index; ``js`` the Jensen–Shannon divergence, and
            ``ks`` the largest difference of the cumulated shares of bins.
        top: what moved the most: the bin, its share of the reference and of the window.
    """

    column: int
    severity: Severity
    row: int
    time: int
    began: int
    statistic: float
    p: float
    threshold: float
    psi: float
    js: float
    ks: float
    top: list[tuple[str, float, float]] = field(default_factory=list)


class _Stored(msgspec.Struct):
    """All but the sample, the counts and the reference.

    ``declared`` is what the counts depend on; ``first_ms`` the time of the window's first row, or
    of the sample's, ``ends_ms`` when its slot ends. ``sampled`` rows are in the sample, one in
    ``stride``; it ``counts`` once that is done.
    """

    rows: int
    filled: int
    cuts: list[int]
    streaks: list[list[int]]
    declared: str = ""
    first_ms: int = 0
    ends_ms: int = 0
    sampled: int = 0
    stride: int = 1
    counts: bool = False


class Shifts:
    """Distributions of some columns, at work.

    What it finds depends on the order of rows alone, and not on how they are cut into calls.

    Args:
        declared: see there.
        columns: how many.
        together: columns that are watched in all, among which false alarms are divided.
        memories_ms: by column, how far back a value looks: values that share their past are not
            independent, and a reference tells of their scatter only so often as they forget it.

    Attributes:
        psi: `(columns,) float64`: of the last window that was compared; None: none was since this
            object was made.

    >>> shifts = Shifts(Distributions(window=200, reference="0s"), columns=1, together=1)
    >>> values = np.random.default_rng(1).normal(size=(4000, 1))
    >>> values[3000:] += 1
    >>> found = shifts.look(values, np.arange(4000))
    >>> [(each.severity, each.row, round(each.psi, 1)) for each in found]
    [('warning', 3199, 0.8), ('drift', 3399, 1.0)]
    """

    def __init__(
        self,
        declared: Distributions,
        columns: int,
        together: int,
        memories_ms: Sequence[int] | None = None,
    ) -> None:
        self._window, self._psi = declared.window, declared.psi
        self._threshold = declared.false_alarms * 1e-6 * self._window / max(together, 1)
        self._columns = columns
        self._memories_ms = np.array(memories_ms or [0] * columns, np.float64)
        self._sample = np.zeros((SAMPLE, columns))
        self._edges = np.zeros((columns, BINS - 1))
        self._counts = np.zeros((columns, BINS + 1))  # of the window
        self._reference = reference_of(declared.reference, columns, BINS + 1)
        self._touched = False
        self.psi: F64 | None = None
        streaks = [[0, 0, 0] for _ in range(columns)]
        self._state = _Stored(
            0, 0, [0] * columns, streaks, f"{self._window:,} rows beside {told(declared)}"
        )

    @property
    def rows(self) -> int:
        """Rows seen."""
        return self._state.rows

    @property
    def whole(self) -> bool:
        """Whether windows are compared: the reference is there."""
        return self._reference.whole

    @property
    def shifted(self) -> bool:
        """Whether a column is in drift, or in warning of it."""
        return any(drifting or windows == 1 for drifting, windows, _ in self._state.streaks)

    def look(self, values: F64, times: I64, suspect: Mask | None = None) -> list[Shift]:
        """Look at rows, in order.

        Args:
            values: `(rows, columns) float64`, C-contiguous; NaN: missing, a bin of its own.
            times: `(rows,) int64`, event time in ms.
            suspect: `(rows,) bool`; set where the window before was `shifted`.
        """
        found: list[Shift] = []
        state, done, since = self._state, 0, 0
        shifted = suspect is not None and self.shifted
        if len(values):
            self._touched = True
            if state.rows == 0:
                state.first_ms = int(times[0])
        while done < len(values):
            if not state.counts:
                done = self._collect(values, times, done)
                continue
            if state.filled == 0:
                self._begin(int(times[done]))
            end = min(done + self._window - state.filled, len(values))
            beyond = self._end_of_slot(times, done, end)
            if beyond is not None:
                end = beyond
            cuts = np.array(state.cuts, np.int64)
            count_rows(values, done, end, self._edges, cuts, self._counts)
            state.filled += end - done
            state.rows += end - done
            done = end
            if state.filled < self._window and beyond is None:
                continue
            last = done - 1 if state.filled == self._window else done
            found += self._close(last, int(times[last]))
            if suspect is not None:
                suspect[since:done] |= shifted
                since, shifted = done, self.shifted
        if suspect is not None:
            suspect[since:] |= shifted
        return found

    def _begin(self, time: int) -> None:
        """A window begins."""
        slot, state = self._reference.slot_ms, self._state
        state.first_ms = time
        if slot:
            state.ends_ms = (time // slot + 1) * slot

    def _end_of_slot(self, times: I64, done: int, end: int) -> int | None:
        """The row with which another slot begins, where the window is to end before it."""
        slot, state = self._reference.slot_ms, self._state
        if not slot:
            return None
        while done < end:
            later = times[done:end] >= state.ends_ms
            row = done + int(np.argmax(later))
            if not later[row - done]:
                return None
            if (state.filled + row - done) * 4 >= self._window:
                return row
            state.ends_ms = (int(times[row]) // slot + 1) * slot  # too few: it goes on
        return None

    def _collect(self, values: F64, times: I64, first: int) -> int:
        """Sample rows for the edges, for as long as the reference asks; how many rows are done.

        Whenever the sample is full and more is to come, every second row of it is dropped, and of
        what comes only one in twice as many is taken.
        """
        state, sample, row = self._state, self._sample, first
        begins = state.first_ms + self._reference.sample_ms
        while row < len(values):
            due = row + -state.rows % state.stride  # the row that is taken next
            if state.sampled < SAMPLE:
                stop = due + (SAMPLE - state.sampled - 1) * state.stride + 1
                taken = values[due : min(stop, len(values)) : state.stride]
                sample[state.sampled : state.sampled + len(taken)] = taken
                state.sampled += len(taken)
            else:
                stop = due
                later = times[row : due + 1] >= begins
                if later.any():
                    stop = row + int(np.argmax(later))
                    state.rows += stop - row
                    return self._lay_out(stop)
                if due < len(values):
                    sample[: SAMPLE // 2] = sample[::2]
                    state.sampled, state.stride = SAMPLE // 2, state.stride * 2
            stop = min(stop, len(values))
            state.rows, row = state.rows + stop - row, stop
        return len(values)

    def _lay_out(self, row: int) -> int:
        state = self._state
        for column in range(self._columns):
            edges = edges_of(self._sample[: state.sampled, column])
            self._edges[column, : len(edges)] = edges
            state.cuts[column] = len(edges)
        state.counts, self._sample = True, np.zeros((0, self._columns))
        return row

    def _close(self, row: int, time: int) -> list[Shift]:
        state, counts = self._state, self._counts
        usual = self._reference.known(state.first_ms)
        found, calm = ([], None) if usual is None else self._test(usual, row, time)
        self._reference.add(counts, state.filled, state.first_ms, time, calm)
        self._counts = np.zeros_like(counts)
        state.filled = 0
        return found

    def _test(self, usual: Known, row: int, time: int) -> tuple[list[Shift], Mask]:
        """What one more window tells; and which columns are as usual."""
        state, size = self._state, self._state.filled
        reference, window = usual.counts, self._counts
        total = reference.sum(axis=1, keepdims=True)
        # Half a row in every bin: one that the reference never met is rare, not impossible.
        bins = np.array(state.cuts)[:, None] + 1
        used = np.arange(BINS + 1) < bins
        used[:, -1] = (reference[:, -1] + window[:, -1]) > 0
        share = np.where(used, (reference + 0.5) / (total + 0.5 * used.sum(1, keepdims=True)), 0.0)
        now = np.where(used, (window + 0.5) / (size + 0.5 * used.sum(1, keepdims=True)), 0.0)
        with np.errstate(all="ignore"):
            moved = np.where(used, (now - share) * np.log(now / share), 0.0)
        scatter = (1 + size / total[:, 0]) * usual.trace
        statistic = chi_square(window, size * share, usual.fewest) / scatter
        freedom = usual.freedom_of(self._memories_ms)
        p = fdtrc(usual.directions, freedom * usual.directions, statistic)
        psi = self.psi = moved.sum(axis=1)
        shifted = (p < self._threshold) & (psi >= self._psi)
        found = []
        for column, is_shifted in enumerate(shifted.tolist()):
            severity = self._turn(column, is_shifted, time)
            if severity is not None:
                found.append(Shift(
                    column, severity, row, time, state.streaks[column][2], float(statistic[column]),
                    float(p[column]), self._threshold, float(psi[column]),
                    jensen_shannon(share[column], now[column]),
                    float(np.abs(np.cumsum(share[column] - now[column])).max()),
                    self._top(column, moved[column], share[column], now[column]),
                ))  # fmt: skip
        return found, ~shifted

    def _turn(self, column: int, shifted: bool, time: int) -> Severity | None:
        """What one more window makes of a column: [drifting, windows in a row, began]."""
        streak = self._state.streaks[column]
        drifting = bool(streak[0])
        if shifted == drifting:
            warned = not drifting and streak[1] == 1
            streak[1] = 0
            return "resolved" if warned else None
        streak[1] += 1
        if not drifting and streak[1] == 1:
            streak[2] = time
            return "warning"
        if streak[1] < 2:
            return None
        streak[0], streak[1] = int(shifted), 0
        return "drift" if shifted else "resolved"

    def _top(self, column: int, moved: F64, share: F64, now: F64) -> list[tuple[str, float, float]]:
        edges = self._edges[column, : self._state.cuts[column]].tolist()
        names = bin_names(edges)
        order = np.argsort(-moved, kind="stable")[:_TOP].tolist()
        return [
            (names[at] if at < len(names) else "missing", float(share[at]), float(now[at]))
            for at in order
            if moved[at] > 0
        ]

    def changes(self) -> Delta:
        """What changed since the last call; at first, everything."""
        delta = Delta()
        if not self._touched:
            return delta
        state = self._state
        delta.blobs["sample"] = self._sample[: state.sampled].tobytes()
        delta.blobs["state"] = msgspec.json.encode(state)
        delta.blobs["counts"] = self._counts.tobytes()
        delta.blobs["edges"] = self._edges.tobytes()
        for name, blob in self._reference.changes().items():
            delta.blobs[_OF_REFERENCE + name] = blob
        self._touched = False
        return delta

    def restore(self, image: Delta) -> None:
        """Take up what `changes` gave; of other columns, or another reference, it begins anew.

        Raises:
            StateError: it is damaged.
        """
        if "state" not in image.blobs:
            return
        try:
            state = msgspec.json.decode(image.blobs["state"], type=_Stored)
        except msgspec.MsgspecError as error:
            raise StateError(f"monitors can't be read from the state: {error}") from None
        if len(state.cuts) != self._columns or state.declared != self._state.declared:
            return
        self._state = state
        self._counts[:] = np.frombuffer(image.blobs["counts"]).reshape(self._counts.shape)
        own = len(_OF_REFERENCE)
        self._reference.restore(
            {n[own:]: b for n, b in image.blobs.items() if n.startswith(_OF_REFERENCE)}
        )
        self._edges[:] = np.frombuffer(image.blobs["edges"]).reshape(self._edges.shape)
        if state.counts:
            self._sample = np.zeros((0, self._columns))
        else:
            sample = np.frombuffer(image.blobs["sample"])
            self._sample[: state.sampled] = sample.reshape(-1, self._columns)

    def begin_with(self, image: Delta) -> None:
        """Take up the bins and the reference alone; of other columns, or another one, nothing.

        Raises:
            StateError: see `restore`.
        """
        fresh = self._state
        self.restore(image)
        if self._state is fresh:
            return
        self._state.filled = 0
        self._state.streaks = [[0, 0, 0] for _ in range(self._columns)]
        self._counts[:] = 0.0
        self._reference.touch()
        self._touched = True


def told_of(image: Delta) -> str:
    """What distributions were compared with, of which this was kept, for people; empty: nothing.

    >>> told_of(Delta())
    ''
    """
    for name, blob in image.blobs.items():
        if name.endswith("state"):
            return msgspec.json.decode(blob, type=_Stored).declared
    return ""
