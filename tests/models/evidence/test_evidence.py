"""Paired evidence: the cut into calls, restarts, signs, units, and losses that are no numbers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.models.evidence.auc import AucEvidence
from anabranch.models.evidence.paired import Evidence, Finding, PairedEvidence
from anabranch.models.evidence.two_sample import TwoSampleEvidence
from anabranch.state.errors import DeclarationError, StateError

DECLARED: list[dict[str, Any]] = [
    {},
    {"clip": 0.2, "min_effect": 0.01, "bound": 0.6},
    {"min_effect": 0.005, "burn_in": 10, "alpha": 0.2},
    {"method": "asymptotic", "min_effect": 0.02},
]
NOT_NUMBERS = np.array([np.nan, np.inf, -np.inf])


def losses(seed: int, labels: int = 600, better: float = 0.1) -> tuple[Any, Any]:
    """Skewed losses in [0, 1] of two models, the second better by a share."""
    random = np.random.default_rng(seed)
    champion = random.random(labels) ** 3
    challenger = (1.0 - better) * champion + 0.03 * (random.random(labels) - 0.5)
    return champion, challenger


def in_cuts(evidence: Any, columns: list[Any], cuts: list[int]) -> tuple[Any, list[Any]]:
    """Evidence after all rows, restored after each call; and what crossed at which row."""
    crossed = []
    for low, high in itertools.pairwise([0, *sorted(cuts), len(columns[0])]):
        found = evidence.update(*(column[low:high] for column in columns))
        crossed += [(low + crossing.row, crossing.finding) for crossing in found]
        evidence = type(evidence).from_array(evidence.to_array())
    return evidence, crossed


@settings(max_examples=60, deadline=None)
@given(
    declared=st.sampled_from(DECLARED),
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 600), max_size=10),
    holes=st.lists(st.integers(0, 1199), max_size=20),
)
def test_no_cut_and_no_restart_changes_a_bit(
    declared: dict[str, Any], seed: int, cuts: list[int], holes: list[int]
) -> None:
    both = np.concatenate(losses(seed))
    both[holes] = NOT_NUMBERS[np.arange(len(holes)) % 3]
    columns = list(both.reshape(2, 600))
    whole, at_once = in_cuts(PairedEvidence(**declared), columns, [])
    evidence, crossed = in_cuts(PairedEvidence(**declared), columns, cuts)
    assert evidence.to_array().tobytes() == whole.to_array().tobytes()
    assert crossed == at_once
    assert {finding for _, finding in crossed} == evidence.findings
    assert all(evidence.crossed_at(finding) == row + 1 for row, finding in crossed)
    assert evidence.interval == whole.interval
    assert evidence.clipped_interval == whole.clipped_interval


@pytest.mark.parametrize("declared", DECLARED)
def test_advance_stops_with_the_evidence_of_the_row_that_decided(declared: dict[str, Any]) -> None:
    champion, challenger = losses(3, 3000, better=0.3)
    evidence, row, crossed = PairedEvidence(**declared), 0, []
    while row < champion.size:
        step = evidence.advance(champion[row:], challenger[row:])
        row += step.rows
        if step.findings:
            until = PairedEvidence(**declared)
            until.update(champion[:row], challenger[:row])
            assert until.to_array().tobytes() == evidence.to_array().tobytes()
            crossed += [(row - 1, finding) for finding in step.findings]
    assert evidence.samples == 3000
    whole = PairedEvidence(**declared).update(champion, challenger)
    assert crossed == [(crossing.row, crossing.finding) for crossing in whole]
    assert Finding.BETTER in evidence.findings


@settings(max_examples=30, deadline=None)
@given(declared=st.sampled_from(DECLARED), seed=st.integers(0, 10_000))
def test_models_that_change_places_change_signs(declared: dict[str, Any], seed: int) -> None:
    champion, challenger = losses(seed, better=0.05)
    one, other = PairedEvidence(**declared), PairedEvidence(**declared)
    one.update(champion, challenger)
    other.update(challenger, champion)
    mirror = {
        Finding.BETTER: Finding.WORSE,
        Finding.WORSE: Finding.BETTER,
        Finding.FUTILE: Finding.HARMLESS,
        Finding.HARMLESS: Finding.FUTILE,
    }
    for finding, mirrored in mirror.items():
        assert one.e_value_of(finding) == other.e_value_of(mirrored)
        assert one.crossed_at(finding) == other.crossed_at(mirrored)
    low, high = one.interval
    assert other.interval == pytest.approx((-high, -low), rel=1e-6)
    assert one.difference == -other.difference


def test_a_better_model_is_found_better_and_a_worse_one_worse() -> None:
    for better, finding in ((0.3, Finding.BETTER), (-0.3, Finding.WORSE)):
        champion, challenger = losses(1, 3000, better)
        for declared in DECLARED:
            evidence = PairedEvidence(**declared)
            evidence.update(champion, challenger)
            assert finding in evidence.findings
            assert {Finding.BETTER, Finding.WORSE} - {finding} not in evidence.findings
            low, high = evidence.interval
            assert low < np.mean(champion - challenger) < high
            low, high = evidence.clipped_interval
            assert low < evidence.clipped_difference < high
            assert evidence.champion_loss == pytest.approx(champion.mean())
            assert evidence.challenger_loss == pytest.approx(challenger.mean())
            assert evidence.difference == pytest.approx((champion - challenger).mean())


@pytest.mark.parametrize("method", ["betting", "asymptotic"])
def test_equal_models_are_found_as_good_as_equal(method: str) -> None:
    champion, challenger = losses(2, 5000, better=0.0)
    evidence = PairedEvidence(min_effect=0.005, method=method)
    evidence.update(champion, challenger)
    assert evidence.findings == {Finding.FUTILE, Finding.HARMLESS}
    assert -0.005 < evidence.interval[0] < evidence.interval[1] < 0.005
    # A model that is better by more than that is not.
    evidence = PairedEvidence(min_effect=0.005, method=method)
    evidence.update(*losses(2, 5000, better=0.2))
    assert evidence.findings == {Finding.BETTER, Finding.HARMLESS}


def test_a_learned_scale_makes_the_unit_of_the_loss_meaningless() -> None:
    champion, challenger = losses(4, 2000)
    small, large = PairedEvidence(), PairedEvidence()
    found = small.update(champion, challenger)
    assert found
    assert large.update(champion * 2.0**20, challenger * 2.0**20) == found
    assert small.clip is not None
    assert large.clip == small.clip * 2.0**20
    assert large.e_value == small.e_value
    differences = (champion - challenger)[:50]
    assert small.clip == pytest.approx(8.0 * math.sqrt((differences**2).mean()))


def test_nothing_is_bet_on_what_the_scale_was_learned_from() -> None:
    champion, challenger = losses(4, 51)
    evidence = PairedEvidence(burn_in=50)
    evidence.update(champion[:49], challenger[:49])
    assert evidence.clip is None
    assert evidence.interval == (-math.inf, math.inf)
    evidence.update(champion[49:50], challenger[49:50])
    assert evidence.clip is not None
    assert evidence.e_value == evidence.e_value_worse == 1.0
    evidence.update(champion[50:], challenger[50:])
    assert evidence.e_value != 1.0


def test_a_learned_scale_leaves_room_for_the_effect_of_interest() -> None:
    evidence = PairedEvidence(min_effect=0.5)
    evidence.update(*losses(2, 3000, better=0.0))
    assert evidence.clip == 0.5
    assert evidence.findings == {Finding.FUTILE, Finding.HARMLESS}


def test_what_is_cut_is_counted() -> None:
    champion, challenger = np.array([0.9, 0.1, 0.5, 0.0]), np.array([0.1, 0.1, 0.45, 0.3])
    evidence = PairedEvidence(clip=0.2)
    evidence.update(champion, challenger)
    assert evidence.clipped_share == 0.5
    assert evidence.clipped_difference == pytest.approx(0.0125)
    assert evidence.difference == pytest.approx(0.1375)
    twin = PairedEvidence(clip=0.2)
    twin.update(np.array([0.2, 0.0, 0.05, 0.0]), np.array([0.0, 0.0, 0.0, 0.2]))
    assert evidence.e_value == pytest.approx(twin.e_value)
    assert evidence.clipped_interval == pytest.approx(twin.clipped_interval)


def test_nothing_is_found_against_the_mean_of_uncut_losses() -> None:
    """Often a little better, rarely much worse: the cut differences alone would promote it."""
    champion, challenger = np.full(2000, 0.1), np.full(2000, 0.09)
    challenger[::40] = 1.0
    evidence = PairedEvidence(clip=0.02)
    evidence.update(champion, challenger)
    assert evidence.e_value > 20
    assert evidence.difference < 0
    assert Finding.BETTER not in evidence.findings
    assert Finding.WORSE not in evidence.findings


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    clip=st.one_of(st.none(), st.floats(0.005, 0.5)),
    better=st.floats(-0.3, 0.3),
)
def test_a_finding_is_one_of_the_asymptotic_test_too(
    seed: int, clip: float | None, better: float
) -> None:
    champion, challenger = losses(seed, 1500, better)
    challenger[::97] += 0.5
    evidence, row = PairedEvidence(clip=clip, min_effect=0.004), 0
    if clip is not None and clip <= 0.01:
        evidence = PairedEvidence(clip=clip)
    limit = PairedEvidence(min_effect=0.004, method="asymptotic", burn_in=1)
    while row < champion.size:
        step = evidence.advance(champion[row:], challenger[row:])
        limit.update(champion[row : row + step.rows], challenger[row : row + step.rows])
        row += step.rows
        for finding in step.findings:
            assert evidence.e_value_of(finding) >= 20
            assert limit.e_value_of(finding) >= 20


@pytest.mark.parametrize("declared", DECLARED)
@pytest.mark.parametrize("bad", NOT_NUMBERS)
def test_a_loss_that_is_no_number_is_worse_than_any(declared: dict[str, Any], bad: float) -> None:
    good, broken = np.full(400, 0.3), np.full(400, bad)
    evidence = PairedEvidence(**declared)
    evidence.update(good, broken)
    assert Finding.WORSE in evidence.findings
    assert Finding.BETTER not in evidence.findings
    assert evidence.not_finite == 400
    assert math.isnan(evidence.challenger_loss)
    evidence = PairedEvidence(**declared)
    evidence.update(broken, good)
    assert Finding.BETTER in evidence.findings
    evidence = PairedEvidence(**declared)
    evidence.update(broken, broken)
    assert not evidence.findings & {Finding.BETTER, Finding.WORSE}
    assert np.isfinite([evidence.e_value_of(finding) for finding in Finding]).all()


def test_a_few_losses_that_are_no_numbers_do_not_deafen() -> None:
    champion, challenger = losses(5, 3000, better=0.3)
    challenger[[5, 700]], champion[60] = np.nan, np.inf
    evidence = PairedEvidence()
    evidence.update(champion, challenger)
    assert Finding.BETTER in evidence.findings
    assert math.isfinite(evidence.difference)


@pytest.mark.parametrize("declared", DECLARED)
def test_identical_models_prove_nothing_about_a_difference(declared: dict[str, Any]) -> None:
    champion, _ = losses(6)
    evidence = PairedEvidence(**declared)
    evidence.update(champion, champion)
    assert evidence.e_value == evidence.e_value_worse == 1.0
    # Nothing is learned of a clip, nor of a spread; with a clip, that there is no difference.
    scaled = "clip" in declared
    assert evidence.findings == ({Finding.FUTILE, Finding.HARMLESS} if scaled else set())
    low, high = evidence.interval
    assert low < 0.0 < high


@pytest.mark.parametrize("declared", DECLARED)
def test_numbers_stay_numbers_when_everything_is_certain(declared: dict[str, Any]) -> None:
    champion, challenger = losses(7, 50_000, better=0.5)
    evidence = PairedEvidence(**declared)
    evidence.update(champion, challenger)
    assert 1e80 < evidence.e_value <= 1e100
    assert evidence.e_value_worse < 1e-3
    assert np.isfinite(evidence.to_array()).all()
    low, high = evidence.interval
    assert 0.0 < low < evidence.difference < high
    huge = PairedEvidence(**{**declared, "clip": None})
    huge.update(np.array([1e308, -1e308] * 100), np.array([-1e308, 1e308] * 100))
    assert np.isfinite(huge.to_array()).all()


def test_no_rows_change_nothing() -> None:
    evidence = PairedEvidence()
    before = evidence.to_array()
    assert evidence.update([], []) == []
    assert evidence.advance([], []).rows == 0
    assert (evidence.to_array() == before).all()
    assert math.isnan(evidence.difference)


@pytest.mark.parametrize("kind", [PairedEvidence, TwoSampleEvidence, AucEvidence])
@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"alpha": 0.0}, "alpha=0.0 in .*Evidence must lie between 0 and 1"),
        ({"alpha": math.nan}, "alpha=nan"),
        ({"clip": -1.0}, "clip=-1.0 in .* must be a number above 0"),
        ({"clip": math.inf}, "clip=inf"),
        ({"min_effect": 0.0}, "min_effect=0.0 in .* must be a number above 0"),
        ({"min_effect": 0.2, "clip": 0.1}, "min_effect=0.2 in .* must be below clip=0.1"),
        ({"method": "bayes"}, "unknown method 'bayes' in .*: use betting or asymptotic"),
        ({"method": "asymptotic", "clip": 0.1}, "the asymptotic method clips nothing"),
        ({"burn_in": 0}, "burn_in=0 in .* must be at least 1"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_one_clear_sentence(
    kind: type[Evidence], declared: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeclarationError, match=message):
        kind(**declared)


def test_arrays_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one length, not \(3,\), \(2,\)"):
        PairedEvidence().update(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="one length"):
        PairedEvidence().advance(np.zeros((2, 2)), np.zeros((2, 2)))


def test_the_state_of_something_else_is_refused() -> None:
    whole = PairedEvidence().to_array()
    other = whole.copy()
    other[0] += 1
    for array in (whole[:-1], np.empty(0), other, np.append(whole, 0.0)):
        with pytest.raises(StateError, match="can't be restored as PairedEvidence"):
            PairedEvidence.from_array(array)
    with pytest.raises(StateError, match="of another class"):
        TwoSampleEvidence.from_array(whole)


def test_a_copy_of_the_state_does_not_move() -> None:
    evidence = PairedEvidence(clip=0.5)
    array = evidence.to_array()
    kept = array.copy()
    copy = PairedEvidence.from_array(array)
    evidence.update(*losses(8))
    copy.update(*losses(9))
    assert (array == kept).all()
