"""Kernels of the sequential tests: they add one difference after another, and report findings.

The state is one float64 vector, `state`: a head of `HEAD` numbers, the wealths of the bets
(`TESTS` × `BETS`), and the histogram (`NODES`) from which intervals are computed. A difference is
the champion's loss minus the challenger's, so that above zero the challenger is better.

**Betting** (Waudby-Smith & Ramdas 2024). Each test starts with wealth 1, split over bets of `BETS`
sizes. A bet of size f multiplies its wealth by 1 + f x, where x, in [-1, 1], is the clipped
difference beyond what the hypothesis allows, as a share of the most that it could fall short by.
If the hypothesis is true, x is at most 0 in the mean, wealth is a supermartingale, and it ever
reaches 1 / alpha with probability at most alpha (Ville 1939).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from anabranch.models.evidence.normal_mixture import log_normal_e_value
from anabranch.state.compile import F64, inlined, kernel

# Parameters.
LAYOUT, KIND, METHOD, ALPHA, MIN_EFFECT, BURN_IN, BLOCK = 0, 1, 2, 3, 4, 5, 6
# Counts: labels, differences, those that were bet on, and of these the clipped ones.
SAMPLES, OBSERVED, USED, CLIPPED, NOT_FINITE = 7, 8, 9, 10, 11
CLIP, SQUARES, LARGEST = 12, 13, 14
MEAN, M2, CLIPPED_MEAN = 15, 16, 17
CHAMPION_LOSS, CHAMPION_COUNT, CHALLENGER_LOSS, CHALLENGER_COUNT = 18, 19, 20, 21
# For each test: its e-value, and the label at which it crossed (counted from 1; 0: never).
E_VALUE, CROSSED = 22, 26
# The open block of two samples: for each arm the count, the sum, and the number not finite.
OPEN = 30
# The largest possible difference, if declared; and where differences are clipped for sizes.
BOUND, WIDE_CLIP, WIDE_CLIP_MEAN = 36, 37, 38
HEAD = 40

BETTER, WORSE, FUTILE, HARMLESS = 0, 1, 2, 3
TESTS = 4
BETS = 16
WEALTH = HEAD
NODES, INNER = 65, 20
HISTOGRAM = WEALTH + TESTS * BETS
LENGTH = HISTOGRAM + NODES

BETTING, ASYMPTOTIC = 0.0, 1.0
THIS_LAYOUT = 1.0
"""The version of this layout."""

BET_SIZES = np.geomspace(0.005, 0.9, BETS)
BET_WEIGHTS = np.sqrt(BET_SIZES) / np.sqrt(BET_SIZES).sum()
LEARNED_CLIP = 8.0
"""A learned clip is this many times the root mean square of the burn-in."""
WIDE_FACTOR = 4.0
"""The size of a difference is tested with this multiple of the clip of its sign."""

_MOST_WEALTH, _LEAST_WEALTH = 1e100, 1e-300
_LARGEST = 1e150  # its square is still a number


@inlined
def _bet(x: float, test: int, state: F64) -> None:
    """Update the wealths of a test by `x`, in [-1, 1]."""
    wealth = state[WEALTH + test * BETS : WEALTH + (test + 1) * BETS]
    even, odd = 0.0, 0.0
    for k in range(0, BETS, 2):
        first = wealth[k] * (1.0 + BET_SIZES[k] * x)
        second = wealth[k + 1] * (1.0 + BET_SIZES[k + 1] * x)
        # Losing wealth keeps it a supermartingale; subnormal numbers are slow.
        first = first if first > _LEAST_WEALTH else 0.0
        second = second if second > _LEAST_WEALTH else 0.0
        wealth[k], wealth[k + 1] = first, second
        even += first
        odd += second
    total = even + odd
    if total > _MOST_WEALTH:
        for k in range(BETS):
            wealth[k] *= 1e-10
        total *= 1e-10
    state[E_VALUE + test] = total


@inlined
def _add_to_histogram(d: float, state: F64) -> None:
    """Add `d` to the histogram, split between two nodes so that the mean is preserved.

    The logarithm of a wealth is concave in the difference, so the wealth computed from the nodes is
    never more than that of betting on the difference itself.
    """
    clip, wide, size = state[CLIP], state[WIDE_CLIP], abs(d)
    if size <= clip:
        step = min(int(INNER * math.sqrt(size / clip)), INNER - 1)
    else:
        outer = NODES // 2 - INNER
        step = INNER + min(int(outer * (size - clip) / (wide - clip)), outer - 1)
    low, high = node(step, clip, wide), node(step + 1, clip, wide)
    share = min(max((size - low) / (high - low), 0.0), 1.0)
    sign = 1 if d > 0.0 else -1
    middle = HISTOGRAM + NODES // 2
    state[middle + sign * step] += 1.0 - share
    state[middle + sign * (step + 1)] += share


@inlined
def node(j: int, clip: float, wide: float) -> float:
    """Position of the node `j` steps from zero: dense there, one at `clip`, the last at `wide`."""
    if j <= INNER:
        return clip * j * j / (INNER * INNER)
    return clip + (wide - clip) * (j - INNER) / (NODES // 2 - INNER)


@inlined
def _test_by_betting(d: float, state: F64) -> None:
    clip, wide, effect = state[CLIP], state[WIDE_CLIP], state[MIN_EFFECT]
    clipped = min(max(d, -clip), clip)
    state[USED] += 1.0
    state[CLIPPED] += 1.0 if clipped != d else 0.0
    state[CLIPPED_MEAN] += (clipped - state[CLIPPED_MEAN]) / state[USED]
    _bet(clipped / clip, BETTER, state)
    _bet(-clipped / clip, WORSE, state)
    clipped = min(max(d, -wide), wide)
    state[WIDE_CLIP_MEAN] += (clipped - state[WIDE_CLIP_MEAN]) / state[USED]
    if effect > 0.0:
        _bet((effect - clipped) / (wide - effect), FUTILE, state)
        _bet((effect + clipped) / (wide - effect), HARMLESS, state)
    _add_to_histogram(clipped, state)


@kernel
def spread(state: F64) -> float:
    """Standard deviation of the differences; if all are equal, what one unlike them would add."""
    squares = state[M2] if state[M2] > 0.0 else state[LARGEST] ** 2
    return math.sqrt(squares / max(state[OBSERVED], 1.0))


@inlined
def _log_asymptotic_e_value(test: int, deviation: float, state: F64) -> float:
    """The asymptotic e-value of a test, from the mean of the differences as they are."""
    beyond = state[MEAN]
    if test == WORSE:
        beyond = -beyond
    elif test == FUTILE:
        beyond = state[MIN_EFFECT] - beyond
    elif test == HARMLESS:
        beyond = state[MIN_EFFECT] + beyond
    if deviation == 0.0:  # identical losses
        return 230.0 if beyond > 0.0 else -230.0
    return log_normal_e_value(beyond * state[OBSERVED] / deviation, state[OBSERVED])


@inlined
def _test_asymptotically(state: F64) -> None:
    deviation = spread(state)
    state[USED] = state[OBSERVED]
    if state[OBSERVED] < state[BURN_IN] or deviation == 0.0:
        return
    for test in range(TESTS if state[MIN_EFFECT] > 0.0 else 2):
        log_e = _log_asymptotic_e_value(test, deviation, state)
        state[E_VALUE + test] = math.exp(min(log_e, 230.0))


@inlined
def _new_crossings(state: F64) -> int:
    """Bits of the tests that have just crossed for the first time.

    The asymptotic test of the unclipped differences must agree with the bets on clipped ones. That
    can only remove findings, so it adds no error.
    """
    crossed = 0
    threshold = 1.0 / state[ALPHA]
    for test in range(TESTS if state[MIN_EFFECT] > 0.0 else 2):
        if state[E_VALUE + test] >= threshold and state[CROSSED + test] == 0.0:
            log_e = _log_asymptotic_e_value(test, spread(state), state)
            if log_e >= math.log(threshold):
                state[CROSSED + test] = state[SAMPLES]
                crossed |= 1 << test
    return crossed


@inlined
def _learn_clip(count: float, mean_square: float, state: F64) -> None:
    """Fix the clip once the burn-in is over. With identical models there is nothing to test."""
    if count < state[BURN_IN]:
        return
    if mean_square > 0.0:
        state[CLIP] = max(LEARNED_CLIP * math.sqrt(mean_square), state[MIN_EFFECT])
    elif state[NOT_FINITE] > 0.0:
        state[CLIP] = max(1.0, state[MIN_EFFECT])
    set_clips(state)


@kernel
def set_clips(state: F64) -> None:
    """Set both clips, once the clip is known; neither is above the bound."""
    bound = state[BOUND] if state[BOUND] > 0.0 else math.inf
    state[CLIP] = min(state[CLIP], bound)
    state[WIDE_CLIP] = min(WIDE_FACTOR * state[CLIP], bound)


@kernel
def _observe(d: float, worst: int, state: F64) -> int:
    """Add one difference; returns the bits of the tests that crossed with it.

    `worst` is 1 or -1 if the loss of one model was not finite, so that there is no difference, and
    0 otherwise.
    """
    betting = state[METHOD] == BETTING
    if worst != 0:
        d = worst * (state[WIDE_CLIP] if state[WIDE_CLIP] > 0.0 else max(state[LARGEST], 1e-150))
    d = min(max(d, -_LARGEST), _LARGEST)
    state[LARGEST] = max(state[LARGEST], abs(d))
    state[OBSERVED] += 1.0
    old = state[MEAN]
    state[MEAN] += (d - old) / state[OBSERVED]
    state[M2] += (d - old) * (d - state[MEAN])
    if not betting:
        _test_asymptotically(state)
    elif state[CLIP] > 0.0:
        _test_by_betting(d, state)
    else:
        state[SQUARES] += 0.0 if worst != 0 else d * d
        _learn_clip(state[OBSERVED], state[SQUARES] / state[OBSERVED], state)
        return 0
    return _new_crossings(state)


@inlined
def _count_loss(loss: float, challenger: bool, state: F64) -> None:
    """Update the mean of an arm's finite losses."""
    mean, count = CHAMPION_LOSS, CHAMPION_COUNT
    if challenger:
        mean, count = CHALLENGER_LOSS, CHALLENGER_COUNT
    if math.isfinite(loss):
        state[count] += 1.0
        state[mean] += (min(max(loss, -_LARGEST), _LARGEST) - state[mean]) / state[count]
    else:
        state[NOT_FINITE] += 1.0


@kernel
def run_paired(champion: F64, challenger: F64, state: F64) -> int:
    """Add losses `(rows,)` up to the first row at which a test crosses.

    Returns 16 times the number of rows used, plus the bits of the tests that crossed at the last.
    """
    for i in range(champion.size):
        first, second = champion[i], challenger[i]
        state[SAMPLES] += 1.0
        _count_loss(first, False, state)
        _count_loss(second, True, state)
        d, worst = first - second, 0
        if not (math.isfinite(first) and math.isfinite(second)):
            d, worst = 0.0, int(math.isfinite(second)) - int(math.isfinite(first))
        crossed = _observe(d, worst, state)
        if crossed:
            return 16 * (i + 1) + crossed
    return 16 * champion.size


@inlined
def _close_block(state: F64) -> int:
    """Compare the arms within the open block, and start the next."""
    not_finite_0, not_finite_1 = state[OPEN + 2] > 0.0, state[OPEN + 5] > 0.0
    d, worst = 0.0, 0
    if not_finite_0 != not_finite_1:
        worst = 1 if not_finite_0 else -1
    elif not not_finite_0:
        d = state[OPEN + 1] / state[OPEN] - state[OPEN + 4] / state[OPEN + 3]
    for j in range(OPEN, OPEN + 6):
        state[j] = 0.0
    return _observe(d, worst, state)


@kernel
def run_two_samples(arm: NDArray[np.int8], losses: F64, state: F64) -> int:
    """Add losses `(rows,)` of the arms that served, 0 or 1; returns as `run_paired` does."""
    for i in range(losses.size):
        loss, challenger = losses[i], arm[i] != 0
        state[SAMPLES] += 1.0
        _count_loss(loss, challenger, state)
        if state[CLIP] == 0.0 and state[METHOD] == BETTING:
            # The variance of single losses predicts that of a block's difference.
            _learn_from_loss(loss, state)
            continue
        at = OPEN + 3 if challenger else OPEN
        state[at] += 1.0
        if math.isfinite(loss):
            state[at + 1] += min(max(loss, -_LARGEST), _LARGEST)
        else:
            state[at + 2] += 1.0
        if state[OPEN] >= state[BLOCK] and state[OPEN + 3] >= state[BLOCK]:
            crossed = _close_block(state)
            if crossed:
                return 16 * (i + 1) + crossed
    return 16 * losses.size


@inlined
def _learn_from_loss(loss: float, state: F64) -> None:
    """Mean and variance of the burn-in's losses, in the fields that the open block uses later."""
    count, mean, squares = OPEN, OPEN + 1, OPEN + 2
    if math.isfinite(loss):
        loss = min(max(loss, -_LARGEST), _LARGEST)
        state[count] += 1.0
        old = state[mean]
        state[mean] += (loss - old) / state[count]
        state[squares] += (loss - old) * (loss - state[mean])
    variance = state[squares] / max(state[count], 1.0)
    _learn_clip(state[SAMPLES], 2.0 * variance / state[BLOCK], state)
    if state[CLIP] > 0.0:
        for j in range(OPEN, OPEN + 6):
            state[j] = 0.0
