"""Anytime-valid tests of whether a challenger's loss is lower than the champion's.

A fixed-horizon test that is evaluated after every label and stopped when it looks good promotes a
worse model far more often than its level says. The evidence here may be evaluated after every
label, and acted upon at any time. `Evidence` is the base of all designs; `PairedEvidence` compares
both models on the same events.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anabranch.models.evidence import kernels as k
from anabranch.models.evidence.confidence_sequence import betting_bound
from anabranch.models.evidence.normal_mixture import normal_half_width
from anabranch.state.errors import DeclarationError, StateError

F64 = NDArray[np.float64]


class Finding(Enum):
    """What a test has shown, each with an error probability of at most alpha.

    * BETTER: the challenger's mean loss is lower than the champion's.
    * WORSE: it is higher.
    * FUTILE: it is not lower by `min_effect` or more, so that more labels are not worth it.
    * HARMLESS: it is not higher by `min_effect` or more. FUTILE and HARMLESS together: the two are
      practically equal.
    """

    BETTER = k.BETTER
    WORSE = k.WORSE
    FUTILE = k.FUTILE
    HARMLESS = k.HARMLESS


@dataclass(frozen=True, slots=True)
class Advance:
    """How far evidence has advanced.

    Attributes:
        rows: number of the given rows that were used; at least one, if there were any.
        findings: those of the last of these rows; empty if there are none, and all rows are used.
    """

    rows: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Crossing:
    """A finding, and the row of the call with which its test crossed the threshold."""

    row: int
    finding: Finding


class Evidence:
    """The base of paired losses, losses of two samples, and windows of AUC.

    **What is tested.** BETTER and WORSE, the sign: the mean of the differences champion −
    challenger, each clipped to ± `clip`. Without clipping, no test can be both quick and valid at
    every sample size: a loss that may be 1 and was never seen could outweigh thousands of small
    gains. `clipped_share` is the share that was clipped. FUTILE, HARMLESS and `interval`, the size:
    differences are clipped at four times `clip`, or at `bound` if that is less. That is slower and
    hardly ever clips; at `bound` it never does.

    **Guarantees.** `method="betting"`: whatever the distribution of the losses, and at any sample
    size, a finding is made at all with probability at most `alpha` if it is wrong at every label,
    given the labels before. A finding needs the asymptotic test of the unclipped differences to
    agree, so in the limit of many labels the guarantee is about the plain mean as well.
    `method="asymptotic"` is that test alone, and finds nothing before `burn_in` labels.

    Args:
        alpha: the error probability allowed to each finding.
        clip: where differences are clipped, in units of the loss. None: learned from a burn-in, as
            eight times the root mean square of its differences; nothing is bet until then.
        min_effect: the smallest difference of interest, in units of the loss; None leaves out
            FUTILE and HARMLESS.
        method: `"betting"` or `"asymptotic"`.
        burn_in: labels before the first e-value; None: `DEFAULT_BURN_IN`, by method.
        bound: the largest possible difference of losses, if there is one: 1 for error, Brier score
            and the absolute error of a probability.

    Raises:
        DeclarationError: a parameter is out of range.
    """

    KIND: ClassVar[float]
    """Identifies the class in `to_array`."""
    DEFAULT_BURN_IN: ClassVar[Mapping[str, int]] = {"betting": 50, "asymptotic": 100}

    def __init__(
        self,
        alpha: float = 0.05,
        clip: float | None = None,
        min_effect: float | None = None,
        method: str = "betting",
        burn_in: int | None = None,
        bound: float | None = None,
    ) -> None:
        _check(type(self).__name__, alpha, clip, min_effect, method, burn_in, bound)
        state = np.zeros(k.LENGTH)
        if burn_in is None:
            burn_in = self.DEFAULT_BURN_IN[method]
        state[k.LAYOUT], state[k.KIND] = k.THIS_LAYOUT, self.KIND
        state[k.METHOD] = k.BETTING if method == "betting" else k.ASYMPTOTIC
        state[k.ALPHA], state[k.MIN_EFFECT] = alpha, min_effect or 0.0
        state[k.BURN_IN] = burn_in
        state[k.CLIP], state[k.BOUND] = clip or 0.0, bound or 0.0
        if clip is not None:
            k.set_clips(state)
        state[k.E_VALUE : k.E_VALUE + k.TESTS] = 1.0
        state[k.WEALTH : k.HISTOGRAM] = np.tile(k.BET_WEIGHTS, k.TESTS)
        self._state = state

    @property
    def samples(self) -> int:
        """Number of labels."""
        return int(self._state[k.SAMPLES])

    @property
    def observations(self) -> int:
        """Number of differences: of labels, of blocks, or of windows."""
        return int(self._state[k.OBSERVED])

    @property
    def alpha(self) -> float:
        """The error probability allowed to each finding."""
        return float(self._state[k.ALPHA])

    @property
    def clip(self) -> float | None:
        """Where differences are clipped; None while it is learned, and if nothing is clipped."""
        return float(self._state[k.CLIP]) or None

    @property
    def clipped_share(self) -> float:
        """Share of the differences that were clipped to ± `clip`; 0 if there are none."""
        used = self._state[k.USED]
        return float(self._state[k.CLIPPED] / used) if used else 0.0

    @property
    def not_finite(self) -> int:
        """Number of losses that were NaN or infinite, which count as the worst possible."""
        return int(self._state[k.NOT_FINITE])

    @property
    def champion_loss(self) -> float:
        """Mean of the champion's finite losses; NaN if there are none."""
        return self._mean(k.CHAMPION_LOSS, k.CHAMPION_COUNT)

    @property
    def challenger_loss(self) -> float:
        """Mean of the challenger's finite losses; NaN if there are none."""
        return self._mean(k.CHALLENGER_LOSS, k.CHALLENGER_COUNT)

    @property
    def difference(self) -> float:
        """Mean of the differences champion − challenger, not clipped; above 0: it is better."""
        return self._mean(k.MEAN, k.OBSERVED)

    @property
    def clipped_difference(self) -> float:
        """Mean of the differences clipped to ± `clip`, without those of the burn-in.

        The plain mean with `method="asymptotic"`; NaN if there are none.
        """
        if self._state[k.METHOD] == k.ASYMPTOTIC:
            return self.difference
        return self._mean(k.CLIPPED_MEAN, k.USED)

    @property
    def e_value(self) -> float:
        """Current evidence that the challenger is better; see `e_value_of`."""
        return self.e_value_of(Finding.BETTER)

    @property
    def e_value_worse(self) -> float:
        """Current evidence that the challenger is worse."""
        return self.e_value_of(Finding.WORSE)

    def e_value_of(self, finding: Finding) -> float:
        """Current evidence for a finding; if that is wrong, its mean is at most 1 at any time.

        At 1 / alpha the finding is made, if the asymptotic test of the plain differences agrees.

        Values above 1e100 are reduced to it. FUTILE and HARMLESS stay at 1 without a `min_effect`.
        """
        return float(self._state[k.E_VALUE + finding.value])

    def crossed_at(self, finding: Finding) -> int | None:
        """The label at which a finding was made, counted from 1; None if it was not."""
        return int(self._state[k.CROSSED + finding.value]) or None

    @property
    def findings(self) -> frozenset[Finding]:
        """All findings so far. They stay, even if the evidence declines later."""
        return frozenset(f for f in Finding if self.crossed_at(f) is not None)

    @property
    def interval(self) -> tuple[float, float]:
        """Confidence interval of the mean difference: 1 − alpha at all times together.

        It takes about a millisecond. With betting, differences are clipped at four times `clip` or
        at `bound`, and their mean is assumed to be constant; the asymptotic interval is of the
        average so far. Infinite, or as wide as the clipping, before there is evidence. A sign can
        be known before a size: BETTER may be found while zero is still inside.
        """
        s = self._state
        if s[k.METHOD] == k.ASYMPTOTIC:
            count, deviation = float(s[k.OBSERVED]), float(k.spread(s))
            if count < s[k.BURN_IN] or deviation == 0.0:
                return -math.inf, math.inf
            width = normal_half_width(count, deviation, self.alpha / 2)
            return self.difference - width, self.difference + width
        return self._interval_within(k.WIDE_CLIP, k.WIDE_CLIP_MEAN)

    @property
    def clipped_interval(self) -> tuple[float, float]:
        """As `interval`, of the differences clipped to ± `clip`, which BETTER and WORSE test."""
        if self._state[k.METHOD] == k.ASYMPTOTIC:
            return self.interval
        return self._interval_within(k.CLIP, k.CLIPPED_MEAN)

    def _interval_within(self, cut: int, mean: int) -> tuple[float, float]:
        s = self._state
        if s[k.CLIP] == 0.0:
            return -math.inf, math.inf
        low, high = (
            float(betting_bound(side, s[mean], s[cut], self.alpha / 2, s)) for side in (1.0, -1.0)
        )
        return low, high

    def to_array(self) -> F64:
        """The evidence with its parameters, for `from_array`: `(n,) float64`, a copy."""
        return self._state.copy()

    @classmethod
    def from_array(cls, array: F64) -> Self:
        """Evidence that continues, bit for bit, from the one that gave the array.

        Raises:
            StateError: the array is of another class or version.
        """
        state = np.array(array, np.float64)
        if state.ndim != 1 or state.size < k.LENGTH or state[k.LAYOUT] != k.THIS_LAYOUT:
            raise StateError(
                f"the array can't be restored as {cls.__name__}: it has another layout"
            )
        if state[k.KIND] != cls.KIND:
            raise StateError(
                f"the array can't be restored as {cls.__name__}: it is of another class"
            )
        evidence = cls.__new__(cls)
        evidence._restore(state)
        return evidence

    def _restore(self, state: F64) -> None:
        if state.size != k.LENGTH:
            raise StateError(
                f"the array can't be restored as {type(self).__name__}: it has {state.size} "
                f"numbers in place of {k.LENGTH}"
            )
        self._state = state

    def _mean(self, mean: int, count: int) -> float:
        return float(self._state[mean]) if self._state[count] else math.nan


class PairedEvidence(Evidence):
    """Both models predict every event, so that each label gives one difference of losses.

    The most powerful design, and the one for challengers that predict in shadow. A loss that is NaN
    or infinite is worse than any other: the difference is then `clip`, and 0 if both losses are.

    References:
        Waudby-Smith, Ramdas: *Estimating means of bounded random variables by betting*, JRSS B
        2024. Howard, Ramdas, McAuliffe, Sekhon: *Time-uniform, nonparametric, nonasymptotic
        confidence sequences*, Annals of Statistics 2021. For `method="asymptotic"`: see
        `models.evidence.normal_mixture`.

    >>> random = np.random.default_rng(1)
    >>> champion = random.random(2000)
    >>> evidence = PairedEvidence()
    >>> [(crossing.row, crossing.finding.name)
    ...  for crossing in evidence.update(champion, 0.95 * champion + 0.02 * random.random(2000))]
    [(104, 'BETTER')]
    >>> low, high = evidence.interval
    >>> low < evidence.difference < high
    True
    """

    KIND = 1.0

    def advance(self, champion_losses: ArrayLike, challenger_losses: ArrayLike) -> Advance:
        """Add losses up to the first row with a finding.

        So a decision can be made with the evidence as of that row, however the stream was cut into
        batches; call again with the rows that are left.

        Args:
            champion_losses: `(n,) float64`.
            challenger_losses: `(n,) float64`, of the same events.

        Raises:
            ValueError: the two differ in length.
        """
        return self._advance(*one_length(champion_losses, challenger_losses))

    def update(self, champion_losses: ArrayLike, challenger_losses: ArrayLike) -> list[Crossing]:
        """Add all losses; returns the findings, with their rows.

        Evidence is bit-identical however the stream is cut into calls.

        Args:
            champion_losses: `(n,) float64`.
            challenger_losses: `(n,) float64`, of the same events.

        Raises:
            ValueError: the two differ in length.
        """
        champion, challenger = one_length(champion_losses, challenger_losses)
        return every_crossing(self._advance, champion, challenger)

    def _advance(self, champion: F64, challenger: F64) -> Advance:
        return decode(int(k.run_paired(champion, challenger, self._state)))


def every_crossing(advance: Callable[..., Advance], *columns: NDArray[Any]) -> list[Crossing]:
    """Advance until all rows of the columns are used; returns the findings, with their rows."""
    crossings: list[Crossing] = []
    row = 0
    while row < len(columns[0]):
        step = advance(*(column[row:] for column in columns))
        row += step.rows
        crossings += [Crossing(row - 1, finding) for finding in step.findings]
    return crossings


def one_length(first: ArrayLike, second: ArrayLike) -> tuple[F64, F64]:
    """Two arrays as contiguous `(n,) float64`.

    Raises:
        ValueError: they differ in length.
    """
    a, b = (np.ascontiguousarray(each, np.float64) for each in (first, second))
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"evidence needs two arrays (n,) of one length, not {a.shape}, {b.shape}")
    return a, b


def decode(result: int) -> Advance:
    """Decode the result of `kernels.run_paired` or `kernels.run_two_samples`."""
    rows, bits = divmod(result, 1 << k.TESTS)
    return Advance(rows, tuple(f for f in Finding if bits >> f.value & 1) if bits else ())


class EvidenceOptions(TypedDict, total=False):
    """Parameters of `Evidence` that its subclasses pass on."""

    min_effect: float | None
    method: str
    burn_in: int | None


def _check(
    where: str,
    alpha: float,
    clip: float | None,
    min_effect: float | None,
    method: str,
    burn_in: int | None,
    bound: float | None,
) -> None:
    if not 0.0 < alpha < 1.0:
        raise DeclarationError(f"alpha={alpha} in {where} must lie between 0 and 1")
    if method not in ("betting", "asymptotic"):
        raise DeclarationError(f"unknown method {method!r} in {where}: use betting or asymptotic")
    for name, value in (("clip", clip), ("min_effect", min_effect), ("bound", bound)):
        if value is not None and not 1e-100 < value < 1e100:
            raise DeclarationError(f"{name}={value} in {where} must be a number above 0")
    if clip is not None and method == "asymptotic":
        raise DeclarationError(f"clip={clip} in {where}: the asymptotic method clips nothing")
    if clip is not None and min_effect is not None and min_effect >= clip:
        raise DeclarationError(f"min_effect={min_effect} in {where} must be below clip={clip}")
    if bound is not None and min_effect is not None and min_effect >= bound:
        raise DeclarationError(f"min_effect={min_effect} in {where} must be below bound={bound}")
    if burn_in is not None and burn_in < 1:
        raise DeclarationError(f"burn_in={burn_in} in {where} must be at least 1")
