"""Evidence where each event is judged by the loss of the one model that served it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anabranch.models.evidence import kernels as k
from anabranch.models.evidence.paired import (
    F64,
    Advance,
    Crossing,
    Evidence,
    decode,
    every_crossing,
)
from anabranch.state.errors import DeclarationError


class TwoSampleEvidence(Evidence):
    """Champion and challenger serve different events, and each label tells of its own arm alone.

    Labels are gathered into blocks: a block is full when both arms have `block` labels in it, and
    the difference of the arms' mean losses within it is one observation. Which share of the traffic
    an arm has does not matter, and it may change at any time; what moves the loss of all events, as
    an hour of the day does, moves both arms of a block alike.

    What it supposes:

    * Which arm an event gets does not depend on its loss, given what was seen before. Assignment by
      a hash of a key is such a thing while keys are many: with a few heavy users in each arm, the
      arms differ because their users do, and no test on labels can tell. An arm must not get its
      labels sooner for lower losses either.
    * The traffic shares are not changed because of single losses within the block that is open.
      Acting on findings, on clocks or on people's wishes is safe.

    It needs many times the labels of `PairedEvidence`: the spread of losses between events, which
    pairing takes out, is larger than that between models.

    Args:
        alpha: see `Evidence`, as for `min_effect` and `method`.
        clip: where the difference of a block is cut. None: learned from the losses of the first
            `burn_in` labels, which are not used otherwise. 1 cuts nothing of losses in [0, 1].
        burn_in: labels, 100 unless it says otherwise; with `method="asymptotic"`, blocks.
        block: labels of each arm that fill a block. Of few, much of the larger arm is wasted; many
            take long to fill at small shares.

    References:
        Waudby-Smith, Ramdas 2024: see `PairedEvidence`.
        Johari, Koomen, Pekelis, Walsh: *Always valid inference: continuous monitoring of A/B
        tests*, Operations Research 2022.

    >>> random = np.random.default_rng(1)
    >>> arm = (random.random(9000) < 0.2).astype(np.int8)
    >>> evidence = TwoSampleEvidence(clip=1.0)
    >>> losses = random.random(9000) - 0.1 * arm
    >>> [crossing.finding.name for crossing in evidence.update(arm, losses)]
    ['BETTER']
    """

    KIND = 2.0

    def __init__(
        self,
        alpha: float = 0.05,
        clip: float | None = None,
        min_effect: float | None = None,
        method: str = "betting",
        burn_in: int | None = None,
        bound: float | None = None,
        block: int = 4,
    ) -> None:
        burn_in = 100 if burn_in is None else burn_in
        super().__init__(alpha, clip, min_effect, method, burn_in, bound)
        if block < 1:
            raise DeclarationError(f"block={block} in TwoSampleEvidence must be at least 1")
        self._state[k.BLOCK] = block

    def advance(self, arm: ArrayLike, losses: ArrayLike) -> Advance:
        """Take losses up to the first row that makes something certain.

        Args:
            arm: `(n,)` int8, 0 where the champion served and 1 where the challenger did.
            losses: `(n,) float64`, of the model that served. What is NaN or infinite is worse than
                any: the difference of its block is the whole clip, and none if both arms have such
                a loss.

        Raises:
            ValueError: the two are not of one length, or an arm is neither 0 nor 1.
        """
        return self._advance(*_checked(arm, losses))

    def update(self, arm: ArrayLike, losses: ArrayLike) -> list[Crossing]:
        """Take all losses, and tell what became certain at which row; see `advance`."""
        return every_crossing(self._advance, *_checked(arm, losses))

    def _advance(self, arm: NDArray[np.int8], losses: F64) -> Advance:
        return decode(int(k.run_two_samples(arm, losses, self._state)))


def _checked(arm: ArrayLike, losses: ArrayLike) -> tuple[NDArray[np.int8], F64]:
    arms, of_served = np.asarray(arm), np.ascontiguousarray(losses, np.float64)
    if arms.ndim != 1 or arms.shape != of_served.shape:
        raise ValueError(
            f"evidence needs two arrays (n,) of one length, not {arms.shape}, {of_served.shape}"
        )
    if not ((arms == 0) | (arms == 1)).all():
        raise ValueError("an arm is 0 (champion) or 1 (challenger)")
    return np.ascontiguousarray(arms, np.int8), of_served
