"""Distribution shift: windows of rows, compared column by column with a reference.

::

    rows   ├─ sample ─┤ edges of the bins: deciles, or the values where there are few
           ├──────────── reference ────────────┤├ window ┤├ window ┤├ window ┤ ...
                                                 each tested against the reference

A window is tested by Pearson's chi-square of two samples, column by column. Rows of a stream are
not independent (one card's payments share its windows), so that windows scatter more than the test
assumes; and at night they all deviate in one direction. By how much, and in how many directions, is
measured on the windows of the reference and corrected for: the second order correction of Rao and
Scott (*On chi-squared tests for multiway contingency tables*, Annals of Statistics 12, 1984), with
the degrees of freedom of that estimate in an F test. So the daily cycle is not drift where the
reference covers a day or more, and columns with a cycle are monitored less closely than others.

What is signalled must be both significant and large: a p-value so small that all columns together
give the accepted false alarms, and a population stability index of `psi`. The first such window is
a warning; a second one in a row is drift, once, until two in a row are without: then it is
resolved. A warning that is not followed by a second window is resolved by the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from anabranch.models.drift.bins import (
    BINS,
    Bins,
    bin_names,
    chi_square,
    count_rows,
    edges_of,
    jensen_shannon,
)
from anabranch.models.drift.declarations import Distributions
from anabranch.models.drift.reference_statistics import ReferenceStatistics
from anabranch.models.drift.references import reference_of
from anabranch.state.errors import StateError
from anabranch.state.store.delta import Delta

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

Severity = Literal["warning", "drift", "resolved"]
SAMPLE: Final = 1000
"""Rows from which the edges of the bins are determined."""

_TOP: Final = 3
_REFERENCE: Final = "reference "


@dataclass(frozen=True, slots=True)
class DistributionShift:
    """A change of the state of a column, with the window that caused it.

    Attributes:
        column: its index.
        severity: see the module.
        row: index of the window's last row, in the call that found it.
        time: event time of that row, ms; ``began`` that of the first shifted window.
        statistic: chi-square per degree of freedom, corrected; ``p`` its p-value, ``threshold``
            the significance level.
        psi: population stability index; ``js`` the Jensen–Shannon divergence, and ``ks`` the
            largest difference of the cumulated shares of bins.
        top: the bins that moved the most: name, share of the reference and share of the window.
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


class _State(msgspec.Struct):
    """What is persisted besides the sample, the counts and the reference.

    ``declared`` is what the counts depend on; ``first_ms`` the time of the window's first row, or
    of the sample's, ``ends_ms`` when its slot ends. ``cuts`` are the used edges of each column,
    ``streaks`` see `DistributionMonitor._next_severity`. ``sampled`` rows are in the sample, one in
    ``stride``; windows are counted (``counts``) once that is complete.
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


class DistributionMonitor:
    """A running monitor of the distributions of some columns.

    What it signals depends only on the rows and their order, and not on how they are split into
    calls.

    Args:
        declared: see `Distributions`.
        columns: how many.
        together: columns that are monitored in all, which share the accepted false alarms.
        memories_ms: by column, how far back a value looks: values with a common past are not
            independent, so a reference measures their scatter only as often as they forget it.

    Attributes:
        psi: `(columns,) float64`, of the last window that was compared; None before the first of
            this object.

    >>> running = DistributionMonitor(Distributions(window=200, reference="0s"), 1, together=1)
    >>> values = np.random.default_rng(1).normal(size=(4000, 1))
    >>> values[3000:] += 1
    >>> shifts = running.update(values, np.arange(4000))
    >>> [(each.severity, each.row, round(each.psi, 1)) for each in shifts]
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
        self._bins = Bins(
            edges=np.zeros((columns, BINS - 1)),
            used=np.zeros(columns, np.int64),
            counts=np.zeros((columns, BINS + 1)),
        )
        self._reference = reference_of(declared.reference, columns, BINS + 1)
        self._changed = False
        self.psi: F64 | None = None
        streaks = [[0, 0, 0] for _ in range(columns)]
        self._state = _State(
            0, 0, [0] * columns, streaks, f"{self._window:,} rows beside {declared.reference_text}"
        )

    @property
    def rows(self) -> int:
        """Rows seen."""
        return self._state.rows

    @property
    def reference_ready(self) -> bool:
        """Whether windows are compared: the reference is complete."""
        return self._reference.ready

    @property
    def shifted(self) -> bool:
        """Whether a column is in drift, or in warning of it."""
        return any(drifting or windows == 1 for drifting, windows, _ in self._state.streaks)

    def update(
        self, values: F64, times: I64, quarantined: Mask | None = None
    ) -> list[DistributionShift]:
        """Take rows in order; returns the shifts.

        Args:
            values: `(rows, columns) float64`, C-contiguous; NaN: missing, which has its own bin.
            times: `(rows,) int64`, event time in ms.
            quarantined: `(rows,) bool`; set where the window before was `shifted`.
        """
        shifts: list[DistributionShift] = []
        state, done, since = self._state, 0, 0
        shifted = quarantined is not None and self.shifted
        if len(values):
            self._changed = True
            if state.rows == 0:
                state.first_ms = int(times[0])
        while done < len(values):
            if not state.counts:
                done = self._collect(values, times, done)
                continue
            done, last = self._count(values, times, done)
            if last is None:
                continue
            shifts += self._close(last, int(times[last]))
            if quarantined is not None:
                quarantined[since:done] |= shifted
                since, shifted = done, self.shifted
        if quarantined is not None:
            quarantined[since:] |= shifted
        return shifts

    def _count(self, values: F64, times: I64, first: int) -> tuple[int, int | None]:
        """Count rows up to the end of the window, of its slot, or of all.

        Returns:
            How many rows are done, and the row with which the window ends; None: it does not.
        """
        state = self._state
        if state.filled == 0:
            self._start_window(int(times[first]))
        end = min(first + self._window - state.filled, len(values))
        slot_end = self._end_of_slot(times, first, end)
        if slot_end is not None:
            end = slot_end
        count_rows(values, first, end, self._bins)
        state.filled += end - first
        state.rows += end - first
        if state.filled == self._window:
            return end, end - 1
        return end, slot_end

    def _start_window(self, time: int) -> None:
        slot, state = self._reference.slot_ms, self._state
        state.first_ms = time
        if slot:
            state.ends_ms = (time // slot + 1) * slot

    def _end_of_slot(self, times: I64, first: int, end: int) -> int | None:
        """The row at which another slot starts, where the window is to end before it."""
        slot, state = self._reference.slot_ms, self._state
        if not slot:
            return None
        while first < end:
            later = times[first:end] >= state.ends_ms
            row = first + int(np.argmax(later))
            if not later[row - first]:
                return None
            if (state.filled + row - first) * 4 >= self._window:
                return row
            state.ends_ms = (int(times[row]) // slot + 1) * slot  # too few rows: it continues
        return None

    def _collect(self, values: F64, times: I64, first: int) -> int:
        """Sample rows for the edges, for as long as the reference asks; returns the rows done.

        Whenever the sample is full and more rows are to come, every second row of it is dropped,
        and of the following rows only one in twice as many is sampled.
        """
        state, sample, row = self._state, self._sample, first
        sampled_until = state.first_ms + self._reference.sample_ms
        while row < len(values):
            due = row + -state.rows % state.stride  # the row that is sampled next
            if state.sampled < SAMPLE:
                stop = due + (SAMPLE - state.sampled - 1) * state.stride + 1
                more = values[due : min(stop, len(values)) : state.stride]
                sample[state.sampled : state.sampled + len(more)] = more
                state.sampled += len(more)
            else:
                stop = due
                later = times[row : due + 1] >= sampled_until
                if later.any():
                    stop = row + int(np.argmax(later))
                    state.rows += stop - row
                    self._set_bins()
                    return stop
                if due < len(values):
                    sample[: SAMPLE // 2] = sample[::2]
                    state.sampled, state.stride = SAMPLE // 2, state.stride * 2
            stop = min(stop, len(values))
            state.rows, row = state.rows + stop - row, stop
        return len(values)

    def _set_bins(self) -> None:
        """Determine the edges from the sample."""
        state = self._state
        for column in range(self._columns):
            edges = edges_of(self._sample[: state.sampled, column])
            self._bins.edges[column, : len(edges)] = edges
            state.cuts[column] = self._bins.used[column] = len(edges)
        state.counts, self._sample = True, np.zeros((0, self._columns))

    def _close(self, row: int, time: int) -> list[DistributionShift]:
        """End a window: compare it with the reference, then add it to that."""
        state, counts = self._state, self._bins.counts
        reference = self._reference.statistics_at(state.first_ms)
        shifts, stable = ([], None) if reference is None else self._test(reference, row, time)
        self._reference.add(counts, state.filled, state.first_ms, time, stable)
        self._bins.counts[:] = 0.0
        state.filled = 0
        return shifts

    def _test(
        self, reference: ReferenceStatistics, row: int, time: int
    ) -> tuple[list[DistributionShift], Mask]:
        """The shifts that one more window shows, and which columns are stable."""
        size, window = self._state.filled, self._bins.counts
        total = reference.counts.sum(axis=1)
        share, now, terms = self._shares(reference.counts, window, size)
        scatter = (1 + size / total) * reference.trace
        statistic = chi_square(window, size * share, reference.min_expected) / scatter
        freedom = reference.freedom_by_column(self._memories_ms)
        p = fdtrc(reference.directions, freedom * reference.directions, statistic)
        psi = self.psi = terms.sum(axis=1)
        shifted = (p < self._threshold) & (psi >= self._psi)
        shifts = []
        for column, is_shifted in enumerate(shifted.tolist()):
            severity = self._next_severity(column, is_shifted, time)
            if severity is not None:
                shifts.append(DistributionShift(
                    column, severity, row, time, self._state.streaks[column][2],
                    float(statistic[column]), float(p[column]), self._threshold,
                    float(psi[column]), jensen_shannon(share[column], now[column]),
                    float(np.abs(np.cumsum(share[column] - now[column])).max()),
                    self._top(column, terms[column], share[column], now[column]),
                ))  # fmt: skip
        return shifts, ~shifted

    def _shares(self, reference: F64, window: F64, size: int) -> tuple[F64, F64, F64]:
        """The share of each bin in the reference and in the window, and its term of the psi.

        Half a row is added to every bin: one that the reference never met is rare, not impossible.
        """
        used = np.arange(BINS + 1) < self._bins.used[:, None] + 1
        used[:, -1] = (reference[:, -1] + window[:, -1]) > 0
        more = 0.5 * used.sum(axis=1, keepdims=True)
        total = reference.sum(axis=1, keepdims=True)
        share = np.where(used, (reference + 0.5) / (total + more), 0.0)
        now = np.where(used, (window + 0.5) / (size + more), 0.0)
        with np.errstate(all="ignore"):
            terms = np.where(used, (now - share) * np.log(now / share), 0.0)
        return share, now, terms

    def _next_severity(self, column: int, shifted: bool, time: int) -> Severity | None:
        """The effect of one more window on a column; None: no change.

        A streak is whether the column is in drift, the windows in a row that say otherwise, and the
        time of the first shifted one.
        """
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

    def _top(self, column: int, terms: F64, share: F64, now: F64) -> list[tuple[str, float, float]]:
        """The bins with the largest terms of the psi: name, share before, and share now."""
        names = bin_names(self._bins.edges[column, : self._bins.used[column]].tolist())
        order = np.argsort(-terms, kind="stable")[:_TOP].tolist()
        return [
            (names[at] if at < len(names) else "missing", float(share[at]), float(now[at]))
            for at in order
            if terms[at] > 0
        ]

    def changes(self) -> Delta:
        """What changed since the last call; the first time everything."""
        delta = Delta()
        if not self._changed:
            return delta
        state = self._state
        delta.blobs["sample"] = self._sample[: state.sampled].tobytes()
        delta.blobs["state"] = msgspec.json.encode(state)
        delta.blobs["counts"] = self._bins.counts.tobytes()
        delta.blobs["edges"] = self._bins.edges.tobytes()
        for name, blob in self._reference.changes().items():
            delta.blobs[_REFERENCE + name] = blob
        self._changed = False
        return delta

    def restore(self, image: Delta) -> None:
        """Restore the merge of all `changes`; of other columns or another reference, nothing.

        Raises:
            StateError: it is damaged.
        """
        if "state" not in image.blobs:
            return
        try:
            state = msgspec.json.decode(image.blobs["state"], type=_State)
        except msgspec.MsgspecError as error:
            raise StateError(
                f"the distribution monitors can't be read from the state: {error}; continue with "
                "the version that wrote it, or use a new state directory"
            ) from None
        if len(state.cuts) != self._columns or state.declared != self._state.declared:
            return
        self._state = state
        self._bins.used[:] = state.cuts
        for array, name in ((self._bins.counts, "counts"), (self._bins.edges, "edges")):
            array[:] = np.frombuffer(image.blobs[name]).reshape(array.shape)
        blobs = {
            name.removeprefix(_REFERENCE): blob
            for name, blob in image.blobs.items()
            if name.startswith(_REFERENCE)
        }
        self._reference.restore(blobs)
        if state.counts:
            self._sample = np.zeros((0, self._columns))
        else:
            sample = np.frombuffer(image.blobs["sample"])
            self._sample[: state.sampled] = sample.reshape(-1, self._columns)

    def restore_reference(self, image: Delta) -> None:
        """Restore only the bins and the reference; of other columns or another one, nothing.

        Raises:
            StateError: see `restore`.
        """
        empty = self._state
        self.restore(image)
        if self._state is empty:
            return
        self._state.filled = 0
        self._state.streaks = [[0, 0, 0] for _ in range(self._columns)]
        self._bins.counts[:] = 0.0
        self._reference.mark_changed()
        self._changed = True


def stored_reference(image: Delta) -> str:
    """What the monitors in `image` compare with, in words; empty if there are none.

    >>> stored_reference(Delta())
    ''
    """
    for name, blob in image.blobs.items():
        if name.endswith("state"):
            return msgspec.json.decode(blob, type=_State).declared
    return ""
