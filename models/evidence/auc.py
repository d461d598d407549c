"""Evidence on the area under the ROC curve, which is no mean of losses of single events."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anabranch.models.evidence import kernels as k
from anabranch.models.evidence.paired import (
    F64,
    Advance,
    Crossing,
    Evidence,
    Finding,
    decode,
    every_crossing,
)
from anabranch.state.compile import kernel
from anabranch.state.errors import DeclarationError, StateError


class AucEvidence(Evidence):
    """Does the challenger rank better? The difference of AUC on each window is one observation.

    Windows are of `window` labels one after another, and do not overlap. What is compared is thus
    the mean AUC *within windows*, which is a little other than that of the whole stream when the
    scores move. A window without both classes says nothing and is passed over, as both models have
    the same labels. `champion_loss` and `challenger_loss` are of 1 − AUC.

    Args:
        alpha: see `Evidence`, as for `clip` (in AUC), `min_effect` (in AUC) and `method`.
        burn_in: windows, 20 unless it says otherwise; 50 with `method="asymptotic"`.
        window: labels per window. The expected number of positives in one should be 10 or more.

    >>> random = np.random.default_rng(1)
    >>> y = random.random(40_000) < 0.3
    >>> champion, challenger = y + 2.0 * random.random(y.size), y + 1.8 * random.random(y.size)
    >>> evidence = AucEvidence(window=200)
    >>> [crossing.finding.name for crossing in evidence.update(y, champion, challenger)]
    ['BETTER']
    """

    KIND = 3.0

    def __init__(
        self,
        alpha: float = 0.05,
        clip: float | None = None,
        min_effect: float | None = None,
        method: str = "betting",
        burn_in: int | None = None,
        window: int = 500,
    ) -> None:
        if burn_in is None:
            burn_in = 20 if method == "betting" else 50
        super().__init__(alpha, clip, min_effect, method, burn_in, bound=1.0)
        if window < 2:
            raise DeclarationError(f"window={window} in AucEvidence must be at least 2")
        # Rows that are waiting for their window to fill: truth, champion's score, challenger's.
        self._rows = np.zeros((window, 3))
        self._filled = 0
        self._labels = 0

    @property
    def samples(self) -> int:
        """Labels seen."""
        return self._labels

    def advance(
        self, y_true: ArrayLike, champion_scores: ArrayLike, challenger_scores: ArrayLike
    ) -> Advance:
        """Take scores up to the first row that makes something certain.

        Args:
            y_true: `(n,)`, 0 or 1.
            champion_scores: `(n,) float64`, higher for what is more likely 1.
            challenger_scores: `(n,) float64`. A window with a score that is NaN or infinite has an
                AUC worse than any for that model.

        Raises:
            ValueError: they are not of one length, or a label is neither 0 nor 1.
        """
        return self._advance(_checked(y_true, champion_scores, challenger_scores))

    def update(
        self, y_true: ArrayLike, champion_scores: ArrayLike, challenger_scores: ArrayLike
    ) -> list[Crossing]:
        """Take all scores, and tell what became certain at which row; see `advance`."""
        rows = _checked(y_true, champion_scores, challenger_scores)
        return every_crossing(self._advance, rows)

    def to_array(self) -> F64:
        """All of it, declaration included: `(n,) float64`, a copy."""
        waiting = self._rows[: self._filled].ravel()
        return np.concatenate([self._state, [len(self._rows), self._labels], waiting])

    def _restore(self, state: F64) -> None:
        rest = state[k.LENGTH :]
        filled, odd = divmod(rest.size - 2, 3)
        if odd or not 0 <= filled < rest[0]:
            raise StateError(
                f"no AucEvidence can be made of {state.size} numbers: some are missing"
            )
        self._state = state[: k.LENGTH].copy()
        self._rows = np.zeros((int(rest[0]), 3))
        self._rows[:filled] = rest[2:].reshape(filled, 3)
        self._filled, self._labels = filled, int(rest[1])

    def _advance(self, rows: F64) -> Advance:
        taken = 0
        while taken < len(rows):
            some = rows[taken : taken + len(self._rows) - self._filled]
            self._rows[self._filled : self._filled + len(some)] = some
            self._filled += len(some)
            self._labels += len(some)
            taken += len(some)
            if self._filled == len(self._rows):
                found = self._close_window()
                if found:
                    return Advance(taken, found)
        return Advance(taken, ())

    def _close_window(self) -> tuple[Finding, ...]:
        self._filled = 0
        truth = self._rows[:, 0] == 1.0
        if truth.all() or not truth.any():
            return ()
        champion, challenger = (np.array([1.0 - auc(truth, self._rows[:, j])]) for j in (1, 2))
        found = decode(int(k.run_paired(champion, challenger, self._state))).found
        for finding in found:
            self._state[k.CROSSED + finding.value] = self._labels
        return found


def auc(truth: NDArray[np.bool_], scores: F64) -> float:
    """Probability that a 1 scores higher than a 0, ties counting half; NaN if a score is none.

    >>> auc(np.array([True, False, False]), np.array([0.5, 0.5, 0.1]))
    0.75
    """
    if not np.isfinite(scores).all():
        return float("nan")
    order = np.argsort(scores)
    return float(_auc_in_order(truth[order], scores[order]))


@kernel
def _auc_in_order(truth: NDArray[np.bool_], scores: F64) -> float:
    """Of rows whose scores rise: each 1 wins against the 0 below it, and half against its level."""
    below, ones, won, i = 0, 0, 0.0, 0
    while i < scores.size:
        level_ones, start = 0, i
        while i < scores.size and scores[i] == scores[start]:
            level_ones += truth[i]
            i += 1
        level_zeros = i - start - level_ones
        won += level_ones * (below + 0.5 * level_zeros)
        below += level_zeros
        ones += level_ones
    return won / (ones * below)


def _checked(y_true: ArrayLike, champion: ArrayLike, challenger: ArrayLike) -> F64:
    columns = [np.asarray(each, np.float64) for each in (y_true, champion, challenger)]
    shapes = [column.shape for column in columns]
    if columns[0].ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(f"evidence needs three arrays (n,) of one length, not {shapes}")
    y = columns[0]
    if not ((y == 0.0) | (y == 1.0)).all():
        raise ValueError("a label is 0 or 1")
    return np.array(columns).T
