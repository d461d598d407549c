"""Evidence on AUC: windows, cuts and restarts, and windows that say nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.models.evidence.auc import AucEvidence, auc
from anabranch.models.evidence.paired import Finding
from anabranch.state.errors import DeclarationError, StateError
from tests.models.evidence.test_evidence import NOT_NUMBERS, in_cuts


def scores(seed: int, labels: int, noise: float) -> tuple[Any, Any, Any]:
    """Labels and scores of two models, the second with less noise than the first."""
    random = np.random.default_rng(seed)
    y = (random.random(labels) < 0.3).astype(float)
    shared = random.random(labels)
    return y, y + 2.0 * shared, y + noise * shared + 0.1 * random.random(labels)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[bool, int]]) -> None:
    truth = np.array([label for label, _ in rows])
    values = np.array([float(score) for _, score in rows])
    if truth.all() or not truth.any():
        return
    pairs = [
        1.0 if one > zero else 0.5 if one == zero else 0.0
        for one, zero in itertools.product(values[truth], values[~truth])
    ]
    assert auc(truth, values) == pytest.approx(np.mean(pairs))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 1500), max_size=10),
    holes=st.lists(st.integers(0, 1499), max_size=3),
)
def test_no_cut_and_no_restart_changes_a_bit(seed: int, cuts: list[int], holes: list[int]) -> None:
    columns = list(scores(seed, 1500, 1.5))
    columns[2][holes] = NOT_NUMBERS[: len(holes)]
    whole, at_once = in_cuts(AucEvidence(window=40, burn_in=5), columns, [])
    evidence, crossed = in_cuts(AucEvidence(window=40, burn_in=5), columns, cuts)
    assert evidence.to_array().tobytes() == whole.to_array().tobytes()
    assert crossed == at_once
    assert (evidence.samples, evidence.observations) == (1500, 37)
    assert all(evidence.crossed_at(finding) == row + 1 for row, finding in crossed)


def test_the_model_that_ranks_better_is_found_at_the_end_of_a_window() -> None:
    y, champion, challenger = scores(1, 20_000, 1.5)
    for columns, finding in (
        ((y, champion, challenger), Finding.BETTER),
        ((y, challenger, champion), Finding.WORSE),
    ):
        evidence = AucEvidence(window=100)
        (crossing,) = evidence.update(*columns)
        assert crossing.finding is finding
        assert crossing.row % 100 == 99
        assert evidence.samples == 20_000
    assert evidence.challenger_loss == pytest.approx(1.0 - auc(y == 1.0, champion), abs=0.01)


def test_equal_rankings_give_no_finding() -> None:
    y, champion, _ = scores(2, 20_000, 1.5)
    evidence = AucEvidence(window=100)
    evidence.update(y, champion, 3.0 * champion - 1.0)
    assert not evidence.findings
    assert evidence.difference == 0.0


def test_a_window_of_one_class_is_no_evidence() -> None:
    evidence = AucEvidence(window=4, clip=1.0)
    evidence.update([0, 0, 0, 0, 1, 1, 1, 1], np.arange(8), -np.arange(8))
    assert (evidence.observations, evidence.samples) == (0, 8)
    evidence.update([0, 1, 0, 1], [0, 1, 0, 1], [1, 0, 1, 0])
    assert evidence.observations == 1
    assert evidence.difference == -1.0


def test_a_score_that_is_no_number_makes_its_window_the_worst() -> None:
    y, champion, challenger = scores(3, 4_000, 1.5)
    challenger[::20] = np.nan
    evidence = AucEvidence(window=20, clip=0.5)
    evidence.update(y, champion, challenger)
    assert evidence.findings == {Finding.WORSE}
    assert evidence.difference == -1.0


def test_wrong_input_is_one_clear_sentence() -> None:
    with pytest.raises(DeclarationError, match="window=1 in AucEvidence must be at least 2"):
        AucEvidence(window=1)
    with pytest.raises(ValueError, match=r"three arrays .* of one length"):
        AucEvidence().update([0, 1], [0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="each label must be 0 or 1"):
        AucEvidence().update([0, 0.5], [0.1, 0.2], [0.1, 0.3])
    evidence = AucEvidence(window=10)
    evidence.update([0, 1], [0.1, 0.2], [0.3, 0.4])
    with pytest.raises(StateError, match="some are missing"):
        AucEvidence.from_array(evidence.to_array()[:-1])
