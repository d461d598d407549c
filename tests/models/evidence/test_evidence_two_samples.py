"""Evidence of two samples: cuts, restarts, shares that change, and what moves both arms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.models.evidence.paired import Finding
from anabranch.models.evidence.two_sample import TwoSampleEvidence
from anabranch.state.errors import DeclarationError
from tests.models.evidence.test_evidence import NOT_NUMBERS, in_cuts

DECLARED: list[dict[str, Any]] = [
    {"alpha": 0.4},
    {"clip": 1.0, "min_effect": 0.05, "block": 1},
    {"burn_in": 20, "block": 3},
    {"method": "asymptotic", "burn_in": 10},
]


def arms(random: Any, share: Any, labels: int) -> Any:
    return (random.random(labels) < share).astype(np.int8)


@settings(max_examples=60, deadline=None)
@given(
    declared=st.sampled_from(DECLARED),
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 600), max_size=10),
    holes=st.lists(st.integers(0, 599), max_size=10),
)
def test_no_cut_and_no_restart_changes_a_bit(
    declared: dict[str, Any], seed: int, cuts: list[int], holes: list[int]
) -> None:
    random = np.random.default_rng(seed)
    arm = arms(random, 0.3, 600)
    losses = random.random(600) - 0.3 * arm
    losses[holes] = NOT_NUMBERS[np.arange(len(holes)) % 3]
    whole, at_once = in_cuts(TwoSampleEvidence(**declared), [arm, losses], [])
    evidence, crossed = in_cuts(TwoSampleEvidence(**declared), [arm, losses], cuts)
    assert evidence.to_array().tobytes() == whole.to_array().tobytes()
    assert crossed == at_once
    assert all(evidence.crossed_at(finding) == row + 1 for row, finding in crossed)


@pytest.mark.parametrize("declared", DECLARED)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_the_better_arm_is_found(declared: dict[str, Any], share: float) -> None:
    for sign, finding in ((-0.2, Finding.BETTER), (0.2, Finding.WORSE)):
        random = np.random.default_rng(1)
        arm = arms(random, share, 20_000)
        evidence = TwoSampleEvidence(**declared)
        evidence.update(arm, random.random(20_000) + sign * arm)
        assert finding in evidence.findings
        assert ({Finding.BETTER, Finding.WORSE} - {finding}).isdisjoint(evidence.findings)
        assert evidence.difference == pytest.approx(-sign, abs=0.05)
        low, high = evidence.interval
        assert low < -sign < high
        assert evidence.challenger_loss == pytest.approx(0.5 + sign, abs=0.05)


def test_what_moves_both_arms_while_the_share_grows_is_no_difference() -> None:
    """Losses rise with the day, and the challenger serves most when they are high."""
    random = np.random.default_rng(2)
    day = np.linspace(0.0, 1.0, 20_000)
    arm = arms(random, 0.02 + 0.6 * day, day.size)
    losses = 0.8 * day + 0.2 * random.random(day.size)
    evidence = TwoSampleEvidence(clip=1.0)
    evidence.update(arm, losses)
    assert evidence.challenger_loss - evidence.champion_loss > 0.1
    assert not evidence.findings
    low, high = evidence.interval
    assert low < 0.0 < high


def test_a_block_is_full_when_both_arms_fill_it() -> None:
    evidence = TwoSampleEvidence(clip=1.0, block=2)
    evidence.update([0, 0, 0, 0, 1], [0.4, 0.6, 0.8, 0.6, 0.2])
    assert evidence.observations == 0
    evidence.update([1], [0.4])
    assert (evidence.observations, evidence.samples) == (1, 6)
    assert evidence.difference == pytest.approx(0.6 - 0.3)
    evidence.update([1, 1, 0, 0], [0.5, 0.5, 0.5, 0.3])
    assert evidence.difference == pytest.approx((0.3 - 0.1) / 2)


def test_one_arm_alone_gives_no_finding() -> None:
    evidence = TwoSampleEvidence()
    evidence.update(np.zeros(5000, np.int8), np.random.default_rng(3).random(5000))
    assert (evidence.observations, evidence.e_value) == (0, 1.0)


@pytest.mark.parametrize("bad", NOT_NUMBERS)
def test_a_loss_that_is_no_number_is_worse_than_any(bad: float) -> None:
    random = np.random.default_rng(4)
    arm = arms(random, 0.3, 2000)
    for broken, finding in ((1, Finding.WORSE), (0, Finding.BETTER)):
        evidence = TwoSampleEvidence()
        evidence.update(arm, np.where(arm == broken, bad, 0.2))
        assert evidence.findings == {finding}
    evidence = TwoSampleEvidence()
    evidence.update(arm, np.full(2000, bad))
    assert not evidence.findings


def test_wrong_input_is_one_clear_sentence() -> None:
    with pytest.raises(DeclarationError, match="block=0 in TwoSampleEvidence must be at least 1"):
        TwoSampleEvidence(block=0)
    with pytest.raises(ValueError, match=r"one length, not \(2,\), \(3,\)"):
        TwoSampleEvidence().update([0, 1], [0.1, 0.2, 0.3])
    for arm in ([0, 2], [0, 256], [0.5, 1]):
        with pytest.raises(ValueError, match="each arm must be 0"):
            TwoSampleEvidence().advance(arm, [0.1, 0.2])


def test_a_learned_scale_is_that_of_a_block() -> None:
    losses = np.random.default_rng(5).random(60)
    evidence = TwoSampleEvidence(burn_in=60, block=9)
    evidence.update(np.zeros(60, np.int8), losses)
    assert evidence.clip == pytest.approx(8.0 * losses.std() * np.sqrt(2 / 9))
