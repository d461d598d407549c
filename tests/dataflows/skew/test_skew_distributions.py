"""PSI, Jensen–Shannon and Kolmogorov–Smirnov distances of training and serving."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from anabranch.dataflows.skew.distributions import shift

RANDOM = np.random.default_rng(5)
NORMAL = RANDOM.normal(size=20_000)
VALUES = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.floats(-100, 100), st.just(float("nan"))),
    min_size=1,
    max_size=60,
)


def test_another_sample_of_the_same_has_a_psi_by_chance():
    found = shift("x", NORMAL, RANDOM.normal(size=5_000))
    assert found.psi == pytest.approx(found.psi_by_chance, abs=3 * found.psi_by_chance)
    assert found.psi_by_chance == pytest.approx(9 * (1 / 20_000 + 1 / 5_000))
    assert found.psi < 0.01


@pytest.mark.parametrize(
    ("by", "least", "most"), [(0.1, 0.005, 0.05), (0.4, 0.1, 0.25), (1, 0.5, 2)]
)
def test_a_normal_that_moves_by_d_has_a_psi_of_about_d_squared(
    by: float, least: float, most: float
):
    """Its symmetric divergence is d²; bins lose a little."""
    found = shift("x", NORMAL, NORMAL + by)
    assert least < found.psi < most
    assert found.psi == pytest.approx(by**2, rel=0.25)
    assert found.ks == pytest.approx(2 * stats.norm.cdf(by / 2) - 1, abs=0.02)


def test_shares_of_a_one_hot_column():
    training = np.repeat([0.0, 1.0], [900, 100])
    served = np.repeat([0.0, 1.0], [700, 300])
    found = shift("x", training, served)
    p, q = np.array([0.9, 0.1]), np.array([0.7, 0.3])
    assert found.psi == pytest.approx(np.sum((q - p) * np.log(q / p)), rel=0.02)
    assert found.js == pytest.approx(jensenshannon(p, q, base=2) ** 2, rel=0.02)
    assert found.ks == pytest.approx(0.2)
    assert found.mean == (0.1, 0.3)


def test_a_shift_of_the_nonzero_values_of_a_sparse_column():
    """Eight of ten quantiles are 0; the other values still have bins."""
    training = np.concatenate([np.zeros(8_000), np.abs(NORMAL[:2_000]) + 1])
    moved = np.concatenate([np.zeros(8_000), np.abs(NORMAL[:2_000]) + 5])
    assert shift("x", training, training).psi == 0
    assert shift("x", training, moved).psi > 0.25


def test_a_value_that_training_did_not_have():
    assert shift("x", np.array([0.0, 1.0] * 50), np.full(100, 7.0)).psi > 1
    assert shift("x", np.zeros(100), np.zeros(50)).psi == 0
    assert shift("x", np.zeros(100), np.ones(50)).psi > 1


def test_missing_values_are_a_shift_by_themselves():
    served = NORMAL.copy()
    served[::2] = np.nan
    found = shift("x", NORMAL, served)
    assert found.missing == (0.0, 0.5)
    assert found.psi > 0.25
    assert found.ks < 0.02
    nothing = shift("x", NORMAL, np.full(10, np.nan))
    assert (nothing.ks, nothing.missing) == (1.0, (0.0, 1.0))
    assert shift("x", np.full(9, np.nan), np.full(10, np.nan)).psi == pytest.approx(0)


@pytest.mark.filterwarnings("ignore:divide by zero")  # of the p-value, which nobody asked for
@given(training=VALUES, served=VALUES)
@settings(max_examples=60, deadline=None)
def test_laws(training: list[float], served: list[float]):
    left, right = np.array(training), np.array(served)
    found = shift("x", left, right)
    assert found.psi >= 0
    assert 0 <= found.js <= 1
    assert 0 <= found.ks <= 1
    assert shift("x", left, left).psi == 0
    there = left[~np.isnan(left)], right[~np.isnan(right)]
    if len(there[0]) and len(there[1]):
        assert found.ks == pytest.approx(stats.ks_2samp(*there, method="asymp").statistic)
