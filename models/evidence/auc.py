"""Anytime-valid test of the area under the ROC curve, on windows of labels.

An AUC is not a mean of losses of single events, so each window gives one observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anabranch.models.evidence import kernels as k
from anabranch.models.evidence.paired import (
    F64,
    Advance,
    Crossing,
    Evidence,
    EvidenceOptions,
    Finding,
    decode,
    every_crossing,
)
from anabranch.state.compile import kernel
from anabranch.state.errors import DeclarationError, StateError


class AucEvidence(Evidence):
    """Tests whether the challenger ranks better: each window's AUC difference is an observation.

    Windows are of `window` consecutive labels, and do not overlap. So the mean AUC *within windows*
    is compared, which differs a little from that of the whole stream when the scores drift. A
    window with only one class is skipped, as both models have the same labels. `champion_loss` and
    `challenger_loss` are of 1 − AUC.

    Args:
        alpha: see `Evidence`, as for the other parameters that are not listed here.
        clip: where differences of AUC are clipped.
        window: labels per window. The expected number of positives in one should be 10 or more.
        options: of `Evidence`. `min_effect` is in AUC; `burn_in` is in windows.

    >>> random = np.random.default_rng(1)
    >>> y = random.random(40_000) < 0.3
    >>> champion, challenger = y + 2.0 * random.random(y.size), y + 1.8 * random.random(y.size)
    >>> evidence = AucEvidence(window=200)
    >>> [crossing.finding.name for crossing in evidence.update(y, champion, challenger)]
    ['BETTER']
    """

    KIND = 3.0
    DEFAULT_BURN_IN: ClassVar[Mapping[str, int]] = {"betting": 20, "asymptotic": 50}

    def __init__(
        self,
        alpha: float = 0.05,
        clip: float | None = None,
        *,
        window: int = 500,
        **options: Unpack[EvidenceOptions],
    ) -> None:
        super().__init__(alpha, clip, bound=1.0, **options)
        if window < 2:
            raise DeclarationError(f"window={window} in AucEvidence must be at least 2")
        # The rows of the open window: truth, champion's score, challenger's score.
        self._rows = np.zeros((window, 3))
        self._filled = 0
        self._labels = 0

    @property
    def samples(self) -> int:
        """Number of labels."""
        return self._labels

    def advance(
        self, y_true: ArrayLike, champion_scores: ArrayLike, challenger_scores: ArrayLike
    ) -> Advance:
        """Add scores up to the first row with a finding.

        Args:
            y_true: `(n,)`, 0 or 1.
            champion_scores: `(n,) float64`, higher for what is more likely 1.
            challenger_scores: `(n,) float64`. In a window with a score that is NaN or infinite, the
                AUC of that model is worse than any other.

        Raises:
            ValueError: they differ in length, or a label is neither 0 nor 1.
        """
        return self._advance(_checked(y_true, champion_scores, challenger_scores))

    def update(
        self, y_true: ArrayLike, champion_scores: ArrayLike, challenger_scores: ArrayLike
    ) -> list[Crossing]:
        """Add all scores; returns the findings, with their rows. See `advance`."""
        rows = _checked(y_true, champion_scores, challenger_scores)
        return every_crossing(self._advance, rows)

    def to_array(self) -> F64:
        """The evidence with its parameters, for `from_array`: `(n,) float64`, a copy."""
        waiting = self._rows[: self._filled].ravel()
        return np.concatenate([self._state, [len(self._rows), self._labels], waiting])

    def _restore(self, state: F64) -> None:
        rest = state[k.LENGTH :]
        filled, odd = divmod(rest.size - 2, 3)
        if odd or not 0 <= filled < rest[0]:
            raise StateError(
                f"the array can't be restored as AucEvidence: of its {state.size} numbers some are "
                "missing"
            )
        self._state = state[: k.LENGTH].copy()
        self._rows = np.zeros((int(rest[0]), 3))
        self._rows[:filled] = rest[2:].reshape(filled, 3)
        self._filled, self._labels = filled, int(rest[1])

    def _advance(self, rows: F64) -> Advance:
        used = 0
        while used < len(rows):
            some = rows[used : used + len(self._rows) - self._filled]
            self._rows[self._filled : self._filled + len(some)] = some
            self._filled += len(some)
            self._labels += len(some)
            used += len(some)
            if self._filled == len(self._rows):
                findings = self._close_window()
                if findings:
                    return Advance(used, findings)
        return Advance(used, ())

    def _close_window(self) -> tuple[Finding, ...]:
        self._filled = 0
        truth = self._rows[:, 0] == 1.0
        if truth.all() or not truth.any():
            return ()
        champion, challenger = (np.array([1.0 - auc(truth, self._rows[:, j])]) for j in (1, 2))
        findings = decode(int(k.run_paired(champion, challenger, self._state))).findings
        for finding in findings:
            self._state[k.CROSSED + finding.value] = self._labels
        return findings


def auc(truth: NDArray[np.bool_], scores: F64) -> float:
    """Probability that a 1 scores above a 0, ties counting half; NaN if a score is not finite.

    >>> auc(np.array([True, False, False]), np.array([0.5, 0.5, 0.1]))
    0.75
    """
    if not np.isfinite(scores).all():
        return float("nan")
    order = np.argsort(scores)
    return float(_auc_in_order(truth[order], scores[order]))


@kernel
def _auc_in_order(truth: NDArray[np.bool_], scores: F64) -> float:
    """`auc` of rows with ascending scores: each 1 beats the 0s below it, and half those tied."""
    below, ones, won, i = 0, 0, 0.0, 0
    while i < scores.size:
        tied_ones, start = 0, i
        while i < scores.size and scores[i] == scores[start]:
            tied_ones += truth[i]
            i += 1
        tied_zeros = i - start - tied_ones
        won += tied_ones * (below + 0.5 * tied_zeros)
        below += tied_zeros
        ones += tied_ones
    return won / (ones * below)


def _checked(y_true: ArrayLike, champion: ArrayLike, challenger: ArrayLike) -> F64:
    columns = [np.asarray(each, np.float64) for each in (y_true, champion, challenger)]
    shapes = [column.shape for column in columns]
    if columns[0].ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(f"evidence needs three arrays (n,) of one length, not {shapes}")
    y = columns[0]
    if not ((y == 0.0) | (y == 1.0)).all():
        raise ValueError("each label must be 0 or 1")
    return np.array(columns).T
