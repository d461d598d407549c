"""Guardrails at work: the first step at which a challenger exceeds one of its limits."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from anabranch.models.rollout.policy import Guardrails
from anabranch.state.compile import kernel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ERROR_WINDOW, LOSS_WINDOW, PSI_WINDOW = 1000, 1000, 1000
"""Steps, labels and events over which errors, losses and the shift of predictions are measured."""

_LATENCY_S, _LATENCY_STEPS = 1.0, 1000
_BINS = 10


class ErrorRate:
    """The share of the last 1,000 steps at which a model failed.

    >>> errors = ErrorRate(0.001)
    >>> none = np.empty(0, np.int64)
    >>> errors.peek(np.array([5]), none, 0), errors.peek(np.array([5, 900]), none, 0)
    (None, 900)
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._steps = 0
        self._failed: deque[int] = deque()

    def peek(self, raised: I64, abstained: I64, first: int) -> int | None:
        """The first step, of those from `first` on, at which the rate is above the limit; or None.

        Args:
            raised, abstained: steps at which it raised, or gave no prediction; `(n,) int64`.
            first: the step with which this call begins.
        """
        allowed = int(self._limit * ERROR_WINDOW)
        failed = deque(self._failed)
        for step in np.union1d(raised, abstained).astype(np.int64).tolist():
            at = self._steps + step - first
            failed.append(at)
            while failed[0] <= at - ERROR_WINDOW:
                failed.popleft()
            if len(failed) > allowed:
                return int(step)
        return None

    def commit(self, raised: I64, abstained: I64, first: int, steps: int) -> None:
        """Keep the failures of this number of steps, which begin at `first`."""
        for step in np.union1d(raised, abstained).astype(np.int64).tolist():
            self._failed.append(self._steps + step - first)
        self._steps += steps
        while self._failed and self._failed[0] <= self._steps - ERROR_WINDOW:
            self._failed.popleft()

    @property
    def share(self) -> float:
        """Share of the last 1,000 steps that failed."""
        return len(self._failed) / ERROR_WINDOW


class LossRatio:
    """The ratio of the mean losses of challenger and champion over the last 1,000 labels.

    >>> ratio = LossRatio(2.0)
    >>> ratio.peek(np.full(1500, 0.1), np.repeat([0.1, 0.6], [1000, 500]))
    1199
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._ring = np.zeros((LOSS_WINDOW, 2))
        self._sums = np.zeros(3)  # of the champion's losses, of the challenger's; number of labels

    def peek(self, champion: F64, challenger: F64) -> int | None:
        """The first label after which the ratio is above the limit; or None.

        Args:
            champion, challenger: their losses on the same labels, `(labels,) float64`, finite.
        """
        ring, sums = self._ring.copy(), self._sums.copy()
        label = int(roll(champion, challenger, self._limit, ring, sums))
        return None if label < 0 else label

    def commit(self, champion: F64, challenger: F64) -> None:
        """Keep these losses; see `peek`."""
        roll(champion, challenger, np.inf, self._ring, self._sums)

    @property
    def value(self) -> float:
        """The ratio now; NaN before there are 1,000 labels, or without any loss."""
        champion, challenger, count = self._sums.tolist()
        return challenger / champion if count >= LOSS_WINDOW and champion > 0 else float("nan")


@kernel
def roll(champion: F64, challenger: F64, limit: float, ring: F64, sums: F64) -> int:
    """Put losses into the ring, up to the first after which the ratio is above the limit.

    Returns its index; -1: there is none.
    """
    size = ring.shape[0]
    for i in range(champion.size):
        at = int(sums[2]) % size
        sums[0] += champion[i] - ring[at, 0]
        sums[1] += challenger[i] - ring[at, 1]
        ring[at, 0], ring[at, 1] = champion[i], challenger[i]
        sums[2] += 1
        if sums[2] >= size and sums[1] > limit * sums[0]:
            return i
    return -1


class PredictionShift:
    """Population stability index of a challenger's predictions, by the champion's deciles.

    Over windows of a thousand events that do not overlap: `sum((q - p) log(q / p))` of the shares
    `p` and `q` of champion and challenger in each bin, with half an event added to each.
    See Siddiqi, *Credit Risk Scorecards* (2006).

    >>> shift = PredictionShift(0.25)
    >>> rng = np.random.default_rng(1)
    >>> same = rng.random(2000)
    >>> shift.peek(same, same), shift.peek(same, same / 2)
    (None, 999)
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._champion = np.empty(0)
        self._challenger = np.empty(0)
        self.value = float("nan")

    def peek(self, champion: F64, challenger: F64) -> int | None:
        """The last event of the first window whose index is above the limit; or None."""
        if self._limit is None:
            return None
        before = len(self._champion)
        for end, value in self._windows(champion, challenger):
            if value > self._limit:
                return end - 1 - before
        return None

    def commit(self, champion: F64, challenger: F64) -> None:
        """Keep these predictions, `(events,) float64`."""
        if self._limit is None:
            return
        done = 0
        for end, value in self._windows(champion, challenger):
            self.value, done = value, end
        self._champion = np.concatenate([self._champion, champion])[done:]
        self._challenger = np.concatenate([self._challenger, challenger])[done:]

    def _windows(self, champion: F64, challenger: F64) -> list[tuple[int, float]]:
        """The ends of the windows that are full now, and the stability index of each."""
        if len(self._champion) + len(champion) < PSI_WINDOW:
            return []
        ours = np.concatenate([self._champion, champion])
        theirs = np.concatenate([self._challenger, challenger])
        ends = range(PSI_WINDOW, len(ours) + 1, PSI_WINDOW)
        windows = [(end, slice(end - PSI_WINDOW, end)) for end in ends]
        return [(end, stability(ours[window], theirs[window])) for end, window in windows]


def stability(expected: F64, actual: F64) -> float:
    """Population stability index of two samples, by the deciles of the first; NaN is left out.

    >>> round(stability(np.arange(1000.0), np.arange(1000.0) + 200), 2)
    1.27
    """
    expected, actual = expected[np.isfinite(expected)], actual[np.isfinite(actual)]
    if not expected.size or not actual.size:
        return float("nan")
    edges = np.unique(np.quantile(expected, np.linspace(0, 1, _BINS + 1)[1:-1]))
    p = _shares(expected, edges)
    q = _shares(actual, edges)
    return float(((q - p) * np.log(q / p)).sum())


def _shares(values: F64, edges: F64) -> F64:
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    shares: F64 = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return shares


class Latency:
    """Mean microseconds per step, over a second of work or a thousand steps, whichever is first."""

    def __init__(self, limit_us: float | None) -> None:
        self._limit = limit_us
        self._seconds, self._steps = 0.0, 0
        self.value = float("nan")

    def commit(self, seconds: float, steps: int) -> bool:
        """Add the time of this number of steps; returns whether the mean is above the limit."""
        if self._limit is None:
            return False
        self._seconds += seconds
        self._steps += steps
        if self._seconds < _LATENCY_S and self._steps < _LATENCY_STEPS:
            return False
        self.value = 1e6 * self._seconds / max(self._steps, 1)
        self._seconds, self._steps = 0.0, 0
        return self.value > self._limit


class GuardrailMonitors:
    """The guardrails of one challenger, measured.

    Args:
        limits: as they are declared.
    """

    def __init__(self, limits: Guardrails) -> None:
        self.errors = ErrorRate(limits.error_rate)
        self.loss_ratio = LossRatio(limits.loss_ratio)
        self.psi = PredictionShift(limits.psi)
        self.latency = Latency(limits.latency_us)

    def values(self) -> dict[str, float]:
        """The current value of each guardrail that is measured, by name."""
        values = {
            "error_rate": self.errors.share,
            "loss_ratio": self.loss_ratio.value,
            "psi": self.psi.value,
            "latency_us": self.latency.value,
        }
        return {name: value for name, value in values.items() if value == value}
