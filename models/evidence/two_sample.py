"""Anytime-valid test of unpaired losses: each label counts for the model that served the event."""

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
    decode,
    every_crossing,
)
from anabranch.state.errors import DeclarationError


class TwoSampleEvidence(Evidence):
    """Champion and challenger serve different events, and each label counts for its own arm alone.

    Labels are collected into blocks: a block is complete when both arms have `block` labels in it,
    and the difference of the arms' mean losses within it is one observation. The traffic share of
    an arm does not matter, and may change at any time; what moves the loss of all events, such as
    the hour of the day, moves both arms of a block alike.

    Assumptions:

    * The arm of an event does not depend on its loss, given the labels before. Assignment by a hash
      of a key has this property if there are many keys: with a few heavy users in each arm, the
      arms differ because their users do, and no test on labels can detect that. Nor may an arm get
      its labels sooner for lower losses.
    * The traffic shares are not changed because of single losses within the open block. Acting on
      findings, on the clock or on commands is safe.

    It needs many times the labels of `PairedEvidence`: the variance of losses between events, which
    pairing removes, is larger than that between models.

    Args:
        alpha: see `Evidence`, as for the other parameters that are not listed here.
        clip: where the difference of a block is clipped. None: learned from the losses of the first
            `burn_in` labels, which are not used otherwise. 1 clips nothing of losses in [0, 1].
        block: labels of each arm that complete a block. With few, much of the larger arm is wasted;
            many take long at small shares.
        options: of `Evidence`. `burn_in` is in labels; with `method="asymptotic"`, in blocks.

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
    DEFAULT_BURN_IN: ClassVar[Mapping[str, int]] = {"betting": 100, "asymptotic": 100}

    def __init__(
        self,
        alpha: float = 0.05,
        clip: float | None = None,
        *,
        bound: float | None = None,
        block: int = 4,
        **options: Unpack[EvidenceOptions],
    ) -> None:
        super().__init__(alpha, clip, bound=bound, **options)
        if block < 1:
            raise DeclarationError(f"block={block} in TwoSampleEvidence must be at least 1")
        self._state[k.BLOCK] = block

    def advance(self, arm: ArrayLike, losses: ArrayLike) -> Advance:
        """Add losses up to the first row with a finding.

        Args:
            arm: `(n,)` int8, 0 where the champion served and 1 where the challenger did.
            losses: `(n,) float64`, of the model that served. NaN and infinity are worse than any
                other: the difference of the block is then `clip`, and 0 if both arms have such a
                loss.

        Raises:
            ValueError: the two differ in length, or an arm is neither 0 nor 1.
        """
        return self._advance(*_checked(arm, losses))

    def update(self, arm: ArrayLike, losses: ArrayLike) -> list[Crossing]:
        """Add all losses; returns the findings, with their rows. See `advance`."""
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
        raise ValueError("each arm must be 0 (champion) or 1 (challenger)")
    return np.ascontiguousarray(arms, np.int8), of_served
