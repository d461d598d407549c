"""Evidence that stays valid while it is watched: does the challenger lose less?

A fixed test that is looked at after every label and stopped when it looks good promotes a worse
model far more often than its level says. What is kept here may be looked at after every label, and
acted upon whenever one likes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anabranch.models.evidence import kernels as k
from anabranch.models.evidence.confidence_sequence import betting_bound
from anabranch.models.evidence.normal_mixture import normal_half_width
from anabranch.state.errors import DeclarationError, StateError

F64 = NDArray[np.float64]


class Finding(Enum):
    """What a test has made certain, each with an error of at most alpha.

    * BETTER: the challenger's mean loss is lower than the champion's.
    * WORSE: it is higher.
    * FUTILE: it is not lower by `min_effect` or more. Going on is not worth it.
    * HARMLESS: it is not higher by `min_effect` or more. FUTILE and HARMLESS: the two are as good
      as equal.
    """

    BETTER = k.BETTER
    WORSE = k.WORSE
    FUTILE = k.FUTILE
    HARMLESS = k.HARMLESS


@dataclass(frozen=True, slots=True)
class Advance:
    """How far evidence went.

    Attributes:
        rows: how many of the rows given it has taken; at least one, if there were any.
        found: what became certain at the last of them; empty if nothing did, and all rows are
            taken.
    """

    rows: int
    found: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Crossing:
    """A finding, and the row of the call that made it certain."""

    row: int
    finding: Finding


class Evidence:
    """What paired losses, losses of two samples and windows of AUC have in common.

    **What is tested.** BETTER and WORSE, the sign: the mean of the differences champion −
    challenger, each cut to ± `clip`. Uncut, no test can be both quick and valid at every sample
    size: a loss that may be 1 and was never seen could outweigh thousands of small gains. `clipped`
    tells how many were cut. FUTILE, HARMLESS and `interval`, the size: differences are cut at four
    times the clip, or at `bound` if that is less. That is slower and hardly ever cuts; at `bound`
    it never does.

    **What is promised.** `method="betting"`: whatever the distribution of the losses, and at any
    sample size, a finding comes up at all with probability at most `alpha` if it is wrong at every
    label, given the labels before. A finding needs the asymptotic test of the uncut
    differences to agree, so in the limit of many labels the promise is about the plain mean as
    well. `method="asymptotic"` is that test alone, and says nothing before `burn_in` labels.

    Args:
        alpha: the error allowed to each finding.
        clip: where differences are cut, in units of the loss. None: learned from a burn-in, as
            eight times the root mean square of its differences; nothing is bet until then.
        min_effect: the smallest difference of interest, in units of the loss; None leaves out
            FUTILE and HARMLESS.
        method: `"betting"` or `"asymptotic"`.
        burn_in: labels before the first e-value: 50 where a clip is learned, 100 for
            `"asymptotic"`, unless it says otherwise.
        bound: the largest difference that losses can have, if there is one: 1 for error, Brier
            score and the absolute error of a probability.

    Raises:
        DeclarationError: a parameter that makes no sense.
    """

    KIND: ClassVar[float]
    """Tells the states of different classes apart."""

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
        betting = method == "betting"
        if burn_in is None:
            burn_in = 50 if betting else 100
        state[k.LAYOUT], state[k.KIND] = k.THIS_LAYOUT, self.KIND
        state[k.METHOD] = k.BETTING if betting else k.ASYMPTOTIC
        state[k.ALPHA], state[k.MIN_EFFECT] = alpha, min_effect or 0.0
        state[k.BURN_IN] = burn_in
        state[k.CLIP], state[k.BOUND] = clip or 0.0, bound or 0.0
        if clip is not None:
            k.fix_cuts(state)
        state[k.E_VALUE : k.E_VALUE + k.TESTS] = 1.0
        state[k.WEALTH : k.HISTOGRAM] = np.tile(k.BET_WEIGHTS, k.TESTS)
        self._state = state

    @property
    def samples(self) -> int:
        """Labels seen."""
        return int(self._state[k.SAMPLES])

    @property
    def observations(self) -> int:
        """Differences seen: of labels, of blocks, or of windows."""
        return int(self._state[k.OBSERVED])

    @property
    def alpha(self) -> float:
        """The error allowed to each finding."""
        return float(self._state[k.ALPHA])

    @property
    def clip(self) -> float | None:
        """Where differences are cut; None while it is being learned, and if nothing is cut."""
        return float(self._state[k.CLIP]) or None

    @property
    def clipped(self) -> float:
        """Share of the differences that were cut to ± `clip`; 0 if there are none."""
        used = self._state[k.USED]
        return float(self._state[k.CLIPPED] / used) if used else 0.0

    @property
    def not_finite(self) -> int:
        """Losses that were NaN or infinite: each counted as one that could not have been worse."""
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
        """Mean of the differences champion − challenger, uncut: above 0 is for the challenger."""
        return self._mean(k.MEAN, k.OBSERVED)

    @property
    def clipped_difference(self) -> float:
        """Mean of the differences as they were cut to ± `clip`, without those of the burn-in.

        The plain mean with `method="asymptotic"`; NaN if there are none.
        """
        if self._state[k.METHOD] == k.ASYMPTOTIC:
            return self.difference
        return self._mean(k.CLIPPED_MEAN, k.USED)

    @property
    def e_value(self) -> float:
        """Evidence now that the challenger is better; see `e_value_of`."""
        return self.e_value_of(Finding.BETTER)

    @property
    def e_value_worse(self) -> float:
        """Evidence now that the challenger is worse."""
        return self.e_value_of(Finding.WORSE)

    def e_value_of(self, finding: Finding) -> float:
        """Evidence now for a finding; under what it denies, its mean is at most 1 at any time.

        At 1 / alpha something is found, if the asymptotic test of the uncut differences agrees.

        Values past 1e100 are cut. FUTILE and HARMLESS stay at 1 without a `min_effect`.
        """
        return float(self._state[k.E_VALUE + finding.value])

    def found_at(self, finding: Finding) -> int | None:
        """The label at which a finding became certain, counted from 1; None if it is not."""
        return int(self._state[k.CROSSED + finding.value]) or None

    @property
    def found(self) -> frozenset[Finding]:
        """All that is certain by now. It stays so, even if evidence wanes later."""
        return frozenset(f for f in Finding if self.found_at(f) is not None)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the mean difference lies, with probability 1 − alpha at all times together.

        It takes about a millisecond. With betting, differences are cut at four times the clip or
        at `bound`, and their mean is supposed to stay the same; the asymptotic one is of the
        average so far. Infinite, or as wide as the cut, while nothing is known. A sign can be known
        before a size: BETTER may be found when zero is still inside.
        """
        s = self._state
        if s[k.METHOD] == k.ASYMPTOTIC:
            count, deviation = float(s[k.OBSERVED]), float(k.spread(s))
            if count < s[k.BURN_IN] or deviation == 0.0:
                return -math.inf, math.inf
            width = normal_half_width(count, deviation, self.alpha / 2)
            return self.difference - width, self.difference + width
        return self._interval_within(k.WIDE, k.WIDE_MEAN)

    @property
    def clipped_interval(self) -> tuple[float, float]:
        """As `interval`, of the differences cut to ± `clip`, which BETTER and WORSE are about."""
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
        """All of it, declaration included: `(n,) float64`, a copy."""
        return self._state.copy()

    @classmethod
    def from_array(cls, array: F64) -> Self:
        """Evidence that goes on, bit for bit, where the one that gave the array stood.

        Raises:
            StateError: the array is not of this class and version.
        """
        state = np.array(array, np.float64)
        if state.ndim != 1 or state.size < k.LENGTH or state[k.LAYOUT] != k.THIS_LAYOUT:
            raise StateError(f"no {cls.__name__} can be made of the array: its layout is another")
        if state[k.KIND] != cls.KIND:
            raise StateError(f"no {cls.__name__} can be made of the array: it is of another class")
        made = cls.__new__(cls)
        made._restore(state)
        return made

    def _restore(self, state: F64) -> None:
        if state.size != k.LENGTH:
            raise StateError(
                f"no {type(self).__name__} can be made of {state.size} numbers: it has {k.LENGTH}"
            )
        self._state = state

    def _mean(self, mean: int, count: int) -> float:
        return float(self._state[mean]) if self._state[count] else math.nan


class PairedEvidence(Evidence):
    """Both models score every event: each label gives one difference of losses.

    The strongest design, and the one for challengers that predict in shadow. A loss that is NaN or
    infinite is worse than any: the difference is then the whole clip, and none if both are.

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
        """Take losses up to the first row that makes something certain.

        So a decision can be made with the evidence as of that very row, however the stream was cut;
        call again with the rows that are left.

        Args:
            champion_losses: `(n,) float64`.
            challenger_losses: `(n,) float64`, of the same events.

        Raises:
            ValueError: the two are not of one length.
        """
        return self._advance(*one_length(champion_losses, challenger_losses))

    def update(self, champion_losses: ArrayLike, challenger_losses: ArrayLike) -> list[Crossing]:
        """Take all losses, and tell what became certain at which row.

        Any cut of a stream into calls gives bit-identical evidence.

        Args:
            champion_losses: `(n,) float64`.
            challenger_losses: `(n,) float64`, of the same events.

        Raises:
            ValueError: the two are not of one length.
        """
        champion, challenger = one_length(champion_losses, challenger_losses)
        return every_crossing(self._advance, champion, challenger)

    def _advance(self, champion: F64, challenger: F64) -> Advance:
        return decode(int(k.run_paired(champion, challenger, self._state)))


def every_crossing(advance: Callable[..., Advance], *columns: NDArray[Any]) -> list[Crossing]:
    """Advance until all rows of the columns are taken."""
    crossings: list[Crossing] = []
    row = 0
    while row < len(columns[0]):
        step = advance(*(column[row:] for column in columns))
        row += step.rows
        crossings += [Crossing(row - 1, finding) for finding in step.found]
    return crossings


def one_length(first: ArrayLike, second: ArrayLike) -> tuple[F64, F64]:
    """Two arrays as `(n,) float64`, in one piece each.

    Raises:
        ValueError: they are not of one length.
    """
    a, b = (np.ascontiguousarray(each, np.float64) for each in (first, second))
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"evidence needs two arrays (n,) of one length, not {a.shape}, {b.shape}")
    return a, b


def decode(result: int) -> Advance:
    """What a loop of `evidence_kernels` returns."""
    rows, bits = divmod(result, 1 << k.TESTS)
    return Advance(rows, tuple(f for f in Finding if bits >> f.value & 1) if bits else ())


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
        raise DeclarationError(
            f"unknown method {method!r} in {where}: there are betting, asymptotic"
        )
    for name, value in (("clip", clip), ("min_effect", min_effect), ("bound", bound)):
        if value is not None and not 1e-100 < value < 1e100:
            raise DeclarationError(f"{name}={value} in {where} must be a number above 0")
    if clip is not None and method == "asymptotic":
        raise DeclarationError(f"clip={clip} in {where}: the asymptotic method cuts nothing")
    if clip is not None and min_effect is not None and min_effect >= clip:
        raise DeclarationError(f"min_effect={min_effect} in {where} must be below clip={clip}")
    if bound is not None and min_effect is not None and min_effect >= bound:
        raise DeclarationError(f"min_effect={min_effect} in {where} must be below bound={bound}")
    if burn_in is not None and burn_in < 1:
        raise DeclarationError(f"burn_in={burn_in} in {where} must be at least 1")
