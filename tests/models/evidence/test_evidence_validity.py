"""What evidence promises: looked at after every label, it errs no more often than it says."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.models.evidence.paired import Finding, PairedEvidence
from anabranch.models.evidence.two_sample import TwoSampleEvidence
from benchmarks import heavy_tails
from benchmarks.calibrated_models import CHAMPION, losses_of_both, losses_of_one
from benchmarks.standard_tests import peeked_paired

ALPHA = 0.1


def at_most(share: float, runs: int) -> float:
    """Passed about once in 10,000 tries by a share that is what it should be."""
    return share + 3.7 * math.sqrt(share * (1.0 - share) / runs)


@pytest.mark.parametrize(
    ("finding", "mean"),
    [
        (Finding.BETTER, 0.0),
        (Finding.WORSE, 0.0),
        (Finding.FUTILE, 0.02),
        (Finding.HARMLESS, -0.02),
    ],
)
@pytest.mark.parametrize("up", [0.03, 0.1])
@pytest.mark.parametrize("bound", [None, 0.1])
def test_the_mean_of_an_e_value_is_one_at_the_edge_of_what_it_denies(
    finding: Finding, mean: float, up: float, bound: float | None
) -> None:
    """Over all sequences of 8 differences with that mean, weighed by their probability: exactly."""
    down = -0.1
    chance = (mean - down) / (up - down)
    expected = 0.0
    for ups in itertools.product([False, True], repeat=8):
        differences = np.where(ups, up, down)
        evidence = PairedEvidence(clip=0.1, min_effect=0.02, bound=bound)
        evidence.update(differences, np.zeros(8))
        probability = chance ** sum(ups) * (1.0 - chance) ** (8 - sum(ups))
        expected += probability * evidence.e_value_of(finding)
    assert expected == pytest.approx(1.0, abs=1e-12)


def test_the_mean_of_an_e_value_is_below_one_within_what_it_denies() -> None:
    values = {}
    for ups in itertools.product([False, True], repeat=8):
        evidence = PairedEvidence(clip=0.1)
        evidence.update(np.where(ups, 0.1, -0.1), np.zeros(8))
        values[ups] = evidence.e_value
    worse = sum(0.4 ** sum(u) * 0.6 ** (8 - sum(u)) * value for u, value in values.items())
    better = sum(0.6 ** sum(u) * 0.4 ** (8 - sum(u)) * value for u, value in values.items())
    assert worse < 0.95
    assert better > 1.05


def test_the_mean_of_an_e_value_of_two_samples_is_one_whatever_the_shares() -> None:
    arm = np.array([0, 0, 1, 0, 1, 1, 1, 0, 0, 1], np.int8)
    expected, distinct = 0.0, set()
    for bad in itertools.product([False, True], repeat=arm.size):
        evidence = TwoSampleEvidence(clip=1.0, block=2)
        evidence.update(arm, np.where(bad, 1.0, 0.25))
        probability = 0.2 ** sum(bad) * 0.8 ** (arm.size - sum(bad))
        expected += probability * evidence.e_value
        distinct.add(evidence.e_value)
        assert evidence.observations == 2
    assert expected == pytest.approx(1.0, abs=1e-12)
    assert len(distinct) > 5


@pytest.mark.parametrize("declared", [{}, {"clip": 0.1}, {"clip": 0.02}, {"method": "asymptotic"}])
def test_equal_models_are_seldom_told_apart_at_any_label(declared: dict[str, Any]) -> None:
    runs, wrong, peeked = 300, np.zeros(2), 0
    random = np.random.default_rng(1)
    for _ in range(runs):
        champion, challenger = losses_of_both(random, 4000, CHAMPION)
        evidence = PairedEvidence(alpha=ALPHA, **declared)
        evidence.update(champion, challenger)
        wrong += [finding in evidence.findings for finding in (Finding.BETTER, Finding.WORSE)]
        peeked += peeked_paired(champion - challenger, 1.2816)
    assert (wrong / runs <= at_most(ALPHA, runs)).all()
    assert wrong.sum() > 0  # else a test that never finds anything would do
    assert peeked / runs > 3 * ALPHA


def test_heavy_tails_of_equal_means_are_seldom_told_apart() -> None:
    """Differences that are cut are for the challenger: only the uncut ones can hold it back."""
    runs, wrong = 250, 0
    random, factor = np.random.default_rng(6), heavy_tails.equalizing_factor(count=1_000_000)
    for _ in range(runs):
        evidence = PairedEvidence(alpha=0.05)
        evidence.update(*heavy_tails.losses_of_both(random, 20_000, factor))
        wrong += Finding.BETTER in evidence.findings
    assert wrong / runs <= at_most(0.05, runs)


@pytest.mark.parametrize("shares", [(0.5,), (0.02, 0.1, 0.5)])
def test_equal_arms_are_seldom_told_apart_at_any_label(shares: tuple[float, ...]) -> None:
    runs, wrong = 300, np.zeros(2)
    random = np.random.default_rng(2)
    share = np.repeat(shares, 6000 // len(shares))
    for _ in range(runs):
        arm = (random.random(share.size) < share).astype(np.int8)
        evidence = TwoSampleEvidence(alpha=ALPHA)
        evidence.update(arm, losses_of_one(random, arm.size, CHAMPION))
        wrong += [finding in evidence.findings for finding in (Finding.BETTER, Finding.WORSE)]
    assert (wrong / runs <= at_most(ALPHA, runs)).all()
    assert wrong.sum() > 0


@pytest.mark.parametrize("true_mean", [0.0, 0.02])
@pytest.mark.parametrize("declared", [{"clip": 0.5, "bound": 0.5}, {"method": "asymptotic"}])
def test_the_interval_holds_the_mean_at_all_times_at_once(
    declared: dict[str, Any], true_mean: float
) -> None:
    runs, missed, width = 150, 0, 0.0
    random = np.random.default_rng(3)
    for _ in range(runs):
        # Skewed, and never cut: in [-0.1, 0.4) about a mean of 0.
        differences = 0.5 * random.random(1500) ** 4 - 0.1 + true_mean
        evidence, zeros, outside = PairedEvidence(ALPHA, **declared), np.zeros(50), False
        for start in range(0, 1500, 50):
            evidence.update(differences[start : start + 50], zeros)
            low, high = evidence.interval
            outside |= not low <= true_mean <= high
        missed += outside
        width += (high - low) / runs
    assert missed / runs <= at_most(ALPHA, runs)
    # An interval that is looked at once would have 1.96 instead of this for 95 %.
    assert 2 * 1.645 < width / (differences.std() / math.sqrt(1500)) < 2 * 4


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    labels=st.integers(1, 3000),
    shift=st.floats(-0.2, 0.2),
    clip=st.floats(0.01, 2.0),
    bound=st.one_of(st.none(), st.floats(0.01, 2.0)),
)
def test_interval_and_e_values_tell_the_same(
    seed: int, labels: int, shift: float, clip: float, bound: float | None
) -> None:
    """A value is never outside without its e-value; and with an e-value a bit beyond, always."""
    differences = np.random.default_rng(seed).normal(0.1 * shift, 0.1, labels)
    evidence = PairedEvidence(clip=clip, min_effect=0.005, bound=bound)
    evidence.update(differences, np.zeros(labels))
    low, high = evidence.clipped_interval
    widest_low, widest_high = evidence.interval
    for finding, outside in (
        (Finding.BETTER, low > 0.0),
        (Finding.WORSE, high < 0.0),
        (Finding.FUTILE, widest_high < 0.005),
        (Finding.HARMLESS, widest_low > -0.005),
    ):
        e_value = evidence.e_value_of(finding)
        assert not outside or e_value > 0.999 * 40
        assert outside or e_value < 40**1.1
    for cut, interval in ((clip, (low, high)), (4 * clip, (widest_low, widest_high))):
        cut = min(cut, bound or cut)
        mean = np.clip(differences, -cut, cut).mean()
        assert -cut <= interval[0] <= mean + 1e-9
        assert mean - 1e-9 <= interval[1] <= cut


def test_an_interval_shrinks_with_the_root_of_the_labels() -> None:
    random = np.random.default_rng(4)
    widths = []
    for labels in (4_000, 400_000):
        evidence = PairedEvidence(clip=0.2, bound=0.2)
        evidence.update(random.normal(0.0, 0.02, labels), np.zeros(labels))
        low, high = evidence.interval
        widths.append(high - low)
    assert 7 < widths[0] / widths[1] < 11


@pytest.mark.parametrize("declared", [{}, {"clip": 0.2}, {"method": "asymptotic"}])
def test_a_better_model_is_found_in_a_few_times_the_labels_of_a_fixed_test(
    declared: dict[str, Any],
) -> None:
    random, found = np.random.default_rng(5), []
    for _ in range(100):
        evidence = PairedEvidence(**declared)
        evidence.update(random.normal(0.01, 0.05, 1000), np.zeros(1000))
        found.append(evidence.crossed_at(Finding.BETTER) or math.inf)
    fixed = 6.18 * 25  # of a test with 80 % power
    assert np.quantile(found, 0.8, method="higher") < 2.8 * fixed


@pytest.mark.parametrize("d", [0.0007, 0.013, 0.0972, 0.13, 0.39])
def test_the_interval_closes_on_equal_differences_from_both_sides(d: float) -> None:
    """Between two nodes of the histogram as well: what is kept there has the mean of what came."""
    evidence = PairedEvidence(clip=0.1)
    evidence.update(np.full(200_000, d), np.zeros(200_000))
    low, high = evidence.interval
    assert 1e-6 < d - low < 2e-4
    assert 1e-6 < high - d < 2e-4
    low, high = evidence.clipped_interval
    assert low <= min(d, 0.1) <= high
    assert high - low < 2e-4
