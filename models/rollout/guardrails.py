"""Guardrails at work: the first step at which a challenger does what it must never do."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.models.rollout.policies import Guardrails
from anabranch.state.compile import kernel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ERRORS_OVER, LOSSES_OVER, SHIFT_OVER = 1000, 1000, 1000
"""Steps, labels and events that the guardrails of errors, of loss and of shift look back on."""

_LATENCY_S, _LATENCY_STEPS = 1.0, 1000
_BINS = 10


@dataclass(frozen=True, slots=True)
class Breach:
    """A guardrail that was breached: at which step, and the sentence that says so."""

    step: int
    why: str


class Errors:
    """The share of the last 1,000 steps at which a model failed.

    >>> errors = Errors(0.001)
    >>> none = np.empty(0, np.int64)
    >>> errors.find(np.array([5]), none, 0), errors.find(np.array([5, 900]), none, 0)
    (None, 900)
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._steps = 0
        self._failed: deque[int] = deque()

    def find(self, raised: I64, silent: I64, first: int) -> int | None:
        """The first step, of those from `first` on, at which there were too many.

        Args:
            raised, silent: steps at which it raised, or had no answer.
            first: the step with which this call begins.
        """
        allowed = int(self._most * ERRORS_OVER)
        failed = deque(self._failed)
        for step in np.union1d(raised, silent).astype(np.int64).tolist():
            at = self._steps + step - first
            failed.append(at)
            while failed[0] <= at - ERRORS_OVER:
                failed.popleft()
            if len(failed) > allowed:
                return int(step)
        return None

    def take(self, raised: I64, silent: I64, first: int, steps: int) -> None:
        """Keep what was seen in so many steps."""
        for step in np.union1d(raised, silent).astype(np.int64).tolist():
            self._failed.append(self._steps + step - first)
        self._steps += steps
        while self._failed and self._failed[0] <= self._steps - ERRORS_OVER:
            self._failed.popleft()

    @property
    def share(self) -> float:
        """Of the last 1,000 steps."""
        return len(self._failed) / ERRORS_OVER


class LossRatio:
    """The mean of a challenger's last 1,000 losses, over that of the champion's on the same labels.

    >>> ratio = LossRatio(2.0)
    >>> ratio.find(np.full(1500, 0.1), np.repeat([0.1, 0.6], [1000, 500]))
    1199
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._ring = np.zeros((LOSSES_OVER, 2))
        self._sums = np.zeros(3)  # of the champion's losses, of the challenger's; how many came

    def find(self, champion: F64, challenger: F64) -> int | None:
        """The first label after which it is more than allowed, `(labels,) float64` both, finite."""
        ring, sums = self._ring.copy(), self._sums.copy()
        found = int(roll(champion, challenger, self._most, ring, sums))
        return None if found < 0 else found

    def take(self, champion: F64, challenger: F64) -> None:
        """Keep these."""
        roll(champion, challenger, np.inf, self._ring, self._sums)

    @property
    def value(self) -> float:
        """NaN before there are 1,000 labels, or without any loss."""
        champion, challenger, count = self._sums.tolist()
        return challenger / champion if count >= LOSSES_OVER and champion > 0 else float("nan")


@kernel
def roll(champion: F64, challenger: F64, most: float, ring: F64, sums: F64) -> int:
    """Put losses into the ring, one after the other, up to one after which the ratio is too large.

    Returns its index; -1: there is none.
    """
    size = ring.shape[0]
    for i in range(champion.size):
        at = int(sums[2]) % size
        sums[0] += champion[i] - ring[at, 0]
        sums[1] += challenger[i] - ring[at, 1]
        ring[at, 0], ring[at, 1] = champion[i], challenger[i]
        sums[2] += 1
        if sums[2] >= size and sums[1] > most * sums[0]:
            return i
    return -1


class Shift:
    """Population stability index of a challenger's predictions, by the champion's deciles.

    Over a thousand events at a time, one window after the other: `sum((q - p) log(q / p))` of the
    shares `p` and `q` of champion and challenger in each bin, half an event being added to each.
    See Siddiqi, *Credit Risk Scorecards* (2006).

    >>> shift = Shift(0.25)
    >>> rng = np.random.default_rng(1)
    >>> same = rng.random(2000)
    >>> shift.find(same, same), shift.find(same, same / 2)
    (None, 999)
    """

    def __init__(self, most: float | None) -> None:
        self._most = most
        self._champion = np.empty(0)
        self._challenger = np.empty(0)
        self.value = float("nan")

    def find(self, champion: F64, challenger: F64) -> int | None:
        """The event with which a window ended that is shifted by more than allowed."""
        if self._most is None:
            return None
        before = len(self._champion)
        for end, value in self._windows(champion, challenger):
            if value > self._most:
                return end - 1 - before
        return None

    def take(self, champion: F64, challenger: F64) -> None:
        """Keep these."""
        if self._most is None:
            return
        done = 0
        for end, value in self._windows(champion, challenger):
            self.value, done = value, end
        self._champion = np.concatenate([self._champion, champion])[done:]
        self._challenger = np.concatenate([self._challenger, challenger])[done:]

    def _windows(self, champion: F64, challenger: F64) -> list[tuple[int, float]]:
        """The ends of the windows that are full now, and the index of each."""
        if len(self._champion) + len(champion) < SHIFT_OVER:
            return []
        ours = np.concatenate([self._champion, champion])
        theirs = np.concatenate([self._challenger, challenger])
        ends = range(SHIFT_OVER, len(ours) + 1, SHIFT_OVER)
        return [(end, stability(ours[end - SHIFT_OVER : end], theirs[end - SHIFT_OVER : end]))
                for end in ends]  # fmt: skip


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
    """Microseconds per step, over a second of work or a thousand steps, whichever is first."""

    def __init__(self, most_us: float | None) -> None:
        self._most = most_us
        self._seconds, self._steps = 0.0, 0
        self.value = float("nan")

    def take(self, seconds: float, steps: int) -> bool:
        """Whether it is too slow."""
        if self._most is None:
            return False
        self._seconds += seconds
        self._steps += steps
        if self._seconds < _LATENCY_S and self._steps < _LATENCY_STEPS:
            return False
        self.value = 1e6 * self._seconds / max(self._steps, 1)
        self._seconds, self._steps = 0.0, 0
        return self.value > self._most


class Rails:
    """All guardrails of one challenger."""

    def __init__(self, declared: Guardrails) -> None:
        self.declared = declared
        self.errors = Errors(declared.error_rate)
        self.ratio = LossRatio(declared.loss_ratio)
        self.shift = Shift(declared.psi)
        self.latency = Latency(declared.latency_us)

    def figures(self) -> dict[str, float]:
        """What stands at each, by name, of those that are known."""
        found = {
            "error_rate": self.errors.share,
            "loss_ratio": self.ratio.value,
            "psi": self.shift.value,
            "latency_us": self.latency.value,
        }
        return {name: value for name, value in found.items() if value == value}
