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
from itertools import pairwise
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from models.shift_kernels import count_rows
from state.delta import Delta, Rows
from state.durations import format_duration_ms, parse_duration_ms
from state.errors import DeclarationError, StateError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

Severity = Literal["warning", "drift", "resolved"]
SAMPLE: Final = 1000
BINS: Final = 10
_LEAST_WINDOWS: Final = 10
_TOP: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Distributions:
    """Watch the distributions of features, predictions, labels and what is missing.

    Attributes:
        window: rows that are compared with the reference at a time.
        reference: the first so much event time is the reference, and ten windows at least.
        psi: the least population stability index that is signalled. Below 0.1 is usually called
            none, above 0.25 a large one.
        false_alarms: those that are allowed per million rows, of all columns together.
        ignore: features that are not watched. Those of the hour and the day never are: they always
            move.
    """

    window: int = 1000
    reference: str = "1d"
    psi: float = 0.1
    false_alarms: float = 1.0
    ignore: Sequence[str] = ()

    def check(self, where: str) -> None:
        """Refuse what can't be.

        Raises:
            DeclarationError: in one sentence.
        """
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 100:
            raise DeclarationError(f"window={self.window!r} of {where} must be 100 rows or more")
        for what in ("psi", "false_alarms"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise DeclarationError(f"{what}={value!r} of {where} must be above 0")
        parse_duration_ms(self.reference)


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
        psi: population stability index.
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
    top: list[tuple[str, float, float]] = field(default_factory=list)


class _Stored(msgspec.Struct):
    """All but the sample and the counts."""

    rows: int
    windows: int
    first_ms: int
    filled: int
    cuts: list[int]
    streaks: list[list[int]]
    scatter: list[tuple[float, float]]


class Shifts:
    """Distributions of some columns, at work.

    What it finds depends on the order of rows alone, and not on how they are cut into calls.

    Args:
        declared: see there.
        columns: how many.
        together: columns that are watched in all, among which false alarms are divided.

    >>> shifts = Shifts(Distributions(window=200, reference="0s"), columns=1, together=1)
    >>> values = np.random.default_rng(1).normal(size=(4000, 1))
    >>> values[3000:] += 1
    >>> found = shifts.look(values, np.arange(4000))
    >>> [(each.severity, each.row, round(each.psi, 1)) for each in found]
    [('warning', 3199, 0.8), ('drift', 3399, 1.0)]
    """

    def __init__(self, declared: Distributions, columns: int, together: int) -> None:
        self._window, self._psi = declared.window, declared.psi
        self._reference_ms = parse_duration_ms(declared.reference)
        self._threshold = declared.false_alarms * 1e-6 * self._window / max(together, 1)
        self._columns = columns
        self._sample = np.zeros((SAMPLE, columns))
        self._edges = np.zeros((columns, BINS - 1))
        self._counts = np.zeros((2, columns, BINS + 1))  # reference, window
        # Of the reference's windows: the sum of all products of two bins.
        self._products = np.zeros((columns, BINS + 1, BINS + 1))
        self._new_samples = 0  # of the sample's rows, since the last `changes`
        self._touched = False
        self._state = _Stored(0, 0, 0, 0, [0] * columns, [[0, 0, 0] for _ in range(columns)], [])

    @property
    def rows(self) -> int:
        """Rows seen."""
        return self._state.rows

    @property
    def referenced(self) -> bool:
        """Whether the reference is complete."""
        return bool(self._state.scatter)

    def look(self, values: F64, times: I64) -> list[Shift]:
        """Look at rows, in order.

        Args:
            values: `(rows, columns) float64`, C-contiguous; NaN: missing, a bin of its own.
            times: `(rows,) int64`, event time in ms.
        """
        found: list[Shift] = []
        state, done = self._state, 0
        self._touched |= len(values) > 0
        while done < len(values):
            if state.rows == 0:
                state.first_ms = int(times[0])
            if state.rows < SAMPLE:
                done = self._collect(values, done)
                continue
            end = min(done + self._window - state.filled, len(values))
            cuts = np.array(state.cuts, np.int64)
            count_rows(values, done, end, self._edges, cuts, self._counts[1])
            state.filled += end - done
            state.rows += end - done
            done = end
            if state.filled == self._window:
                found += self._close(done - 1, int(times[done - 1]))
        return found

    def _collect(self, values: F64, first: int) -> int:
        """Keep rows for the edges, up to the sample's size; how many rows are done."""
        state = self._state
        end = min(first + SAMPLE - state.rows, len(values))
        self._sample[state.rows : state.rows + end - first] = values[first:end]
        state.rows += end - first
        if state.rows == SAMPLE:
            for column in range(self._columns):
                edges = edges_of(self._sample[:, column])
                self._edges[column, : len(edges)] = edges
                state.cuts[column] = len(edges)
        return end

    def _close(self, row: int, time: int) -> list[Shift]:
        state, counts = self._state, self._counts
        found: list[Shift] = []
        if state.scatter:
            found = self._test(row, time)
        else:
            counts[0] += counts[1]
            self._products += counts[1][:, :, None] * counts[1][:, None, :]
            state.windows += 1
            long_enough = time - state.first_ms >= self._reference_ms
            if long_enough and state.windows >= _LEAST_WINDOWS:
                self._measure_scatter()
        counts[1] = 0.0
        state.filled = 0
        return found

    def _measure_scatter(self) -> None:
        """How the windows of the reference scatter: the trace, and in how many directions.

        Of independent rows both are the degrees of freedom.
        """
        state, size = self._state, self._window
        share = self._counts[0] / self._counts[0].sum(axis=1, keepdims=True)
        mean = size * share
        root = np.sqrt(np.where(share > 0, mean, np.inf))
        products = self._products - state.windows * mean[:, :, None] * mean[:, None, :]
        covariance = products / ((state.windows - 1) * root[:, :, None] * root[:, None, :])
        for column in range(self._columns):
            freedom = max(float((share[column] > 0).sum() - 1), 1.0)
            trace = float(np.trace(covariance[column]))
            directions = trace**2 / max(float(np.square(covariance[column]).sum()), 1e-300)
            if trace < freedom:  # never less than chance alone
                trace, directions = freedom, freedom
            state.scatter.append((trace, min(max(directions, 1.0), freedom)))

    def _test(self, row: int, time: int) -> list[Shift]:
        state, size = self._state, self._window
        reference, window = self._counts
        total = reference.sum(axis=1, keepdims=True)
        # Half a row in every bin: one that the reference never met is rare, not impossible.
        bins = np.array(state.cuts)[:, None] + 1
        used = np.arange(BINS + 1) < bins
        used[:, -1] = (reference[:, -1] + window[:, -1]) > 0
        share = np.where(used, (reference + 0.5) / (total + 0.5 * used.sum(1, keepdims=True)), 0.0)
        now = np.where(used, (window + 0.5) / (size + 0.5 * used.sum(1, keepdims=True)), 0.0)
        with np.errstate(all="ignore"):
            parts = np.where(used, np.square(window - size * share) / (size * share), 0.0)
            moved = np.where(used, (now - share) * np.log(now / share), 0.0)
        trace, directions = np.array(state.scatter).T
        statistic = parts.sum(axis=1) / (1 + size / total[:, 0]) / trace
        p = fdtrc(directions, (state.windows - 1) * directions, statistic)
        psi = moved.sum(axis=1)
        shifted = (p < self._threshold) & (psi >= self._psi)
        found = []
        for column, is_shifted in enumerate(shifted.tolist()):
            severity = self._turn(column, is_shifted, time)
            if severity is not None:
                found.append(Shift(
                    column, severity, row, time, state.streaks[column][2], float(statistic[column]),
                    float(p[column]), self._threshold, float(psi[column]),
                    self._top(column, moved[column], share[column], now[column]),
                ))  # fmt: skip
        return found

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
        names = _names(edges)
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
        sampled = min(state.rows, SAMPLE)
        if sampled < SAMPLE or self._new_samples < SAMPLE:
            rows = np.arange(self._new_samples, sampled)
            delta.rows["sample"] = Rows(rows, {"values": self._sample[rows]})
            self._new_samples = sampled
        delta.blobs["state"] = msgspec.json.encode(state)
        delta.blobs["counts"] = self._counts.tobytes()
        delta.blobs["products"] = b"" if state.scatter else self._products.tobytes()
        delta.blobs["edges"] = self._edges.tobytes()
        self._touched = False
        return delta

    def restore(self, image: Delta) -> None:
        """Take up what `changes` gave; of other columns, it begins anew.

        Raises:
            StateError: it is damaged.
        """
        if "state" not in image.blobs:
            return
        try:
            state = msgspec.json.decode(image.blobs["state"], type=_Stored)
        except msgspec.MsgspecError as error:
            raise StateError(f"monitors can't be read from the state: {error}") from None
        if len(state.cuts) != self._columns:
            return
        self._state = state
        self._counts[:] = np.frombuffer(image.blobs["counts"]).reshape(self._counts.shape)
        if image.blobs["products"]:
            products = np.frombuffer(image.blobs["products"])
            self._products[:] = products.reshape(self._products.shape)
        self._edges[:] = np.frombuffer(image.blobs["edges"]).reshape(self._edges.shape)
        if "sample" in image.rows:
            sample = image.rows["sample"]
            self._sample[sample.index] = sample.columns["values"]
        self._new_samples = min(state.rows, SAMPLE)


def edges_of(values: F64) -> F64:
    """Where the bins of a column begin, ascending; the first bin is below all.

    Of few values each has a bin, and what is below or above all of them too.

    >>> edges_of(np.array([0.0, 1.0, 1.0, 0.0]))
    array([0. , 0.5, 1. ])
    >>> edges_of(np.arange(101.0))
    array([10., 20., 30., 40., 50., 60., 70., 80., 90.])
    """
    known = np.unique(values[~np.isnan(values)])
    if 0 < len(known) <= BINS - 2:
        between = (known[1:] + known[:-1]) / 2
        return np.array([known[0], *between, np.nextafter(known[-1], np.inf)])
    if not len(known):
        return known
    deciles = np.quantile(values[~np.isnan(values)], np.arange(1, BINS) / BINS)
    edges: F64 = np.unique(deciles)
    # A value that fills whole deciles has a bin of its own: the next begins behind it.
    above: F64 = edges[edges > known[0]]
    return above


def _names(edges: list[float]) -> list[str]:
    if not edges:
        return ["any"]
    middle = [f"{a:.4g} to {b:.4g}" for a, b in pairwise(edges)]
    last, before = f"{edges[-1]:.4g} or more", float(np.nextafter(edges[-1], -np.inf))
    if len(repr(before)) < len(repr(edges[-1])):  # the next number behind a value
        last = f"above {before:.4g}"
    return [f"below {edges[0]:.4g}", *middle, last]


def told(declared: Distributions) -> str:
    """The reference, for people.

    >>> told(Distributions())
    'the first 1d'
    """
    return f"the first {format_duration_ms(parse_duration_ms(declared.reference))}"
