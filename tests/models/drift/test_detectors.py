"""Drift monitors signal each change once, however values are split into calls, and skip NaN."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift

from anabranch.models.drift.detectors import Alarm, DriftMonitor, Monitor, monitor
from anabranch.state.errors import DeclarationError

HOUR = 3_600_000
MONITORS = [
    monitor("loss", cooldown="0s"),
    monitor("loss", delta=0.1, clock=1, cooldown="30s"),
    monitor("loss", "PageHinkley", threshold=3.0, cooldown="10s"),
    monitor("loss", "PageHinkley", threshold=2.0, mode="up", min_instances=5, cooldown="0s"),
    monitor("loss", "KSWIN", alpha=0.001, window_size=80, stat_size=25, cooldown="0s"),
    *(monitor("loss", name, cooldown="0s") for name in ("DDM", "EDDM", "HDDM_A")),
    monitor("loss", "HDDMW", cooldown="0s"),  # River's spelling
]
RIVERS = {"HDDM_A": "HDDMA", "HDDM_W": "HDDMW"}


def errors(rates: list[float], length: int, seed: int = 0) -> Any:
    """0/1 losses whose rate changes at known places, one a second; and their times, ms."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.random(length) < rate for rate in rates]).astype(float)
    return values, np.arange(values.size, dtype=np.int64) * 1_000


def in_cuts(watch: DriftMonitor, values: Any, times: Any, cuts: list[int]) -> list[Alarm]:
    found: list[Alarm] = []
    bounds = [0, *sorted(cuts), len(values)]
    for low, high in itertools.pairwise(bounds):
        found += watch.update_many(values[low:high], times[low:high])
        watch.__dict__ = pickle.loads(pickle.dumps(watch.__dict__))
    return found


@settings(max_examples=60, deadline=None)
@given(
    declared=st.sampled_from(MONITORS),
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 600), max_size=10),
    holes=st.lists(st.integers(0, 599), max_size=20),
)
def test_alarms_depend_neither_on_calls_nor_on_missing_values(
    declared: Monitor, seed: int, cuts: list[int], holes: list[int]
) -> None:
    values, times = errors([0.05, 0.6, 0.1], 200, seed)
    values[holes] = np.array([np.nan, np.inf, -np.inf])[np.arange(len(holes)) % 3]
    whole = DriftMonitor(declared).update_many(values, times)
    assert in_cuts(DriftMonitor(declared), values, times, cuts) == whole
    clean = np.isfinite(values)
    assert DriftMonitor(declared).update_many(values[clean], times[clean]) == whole


@pytest.mark.parametrize("declared", [MONITORS[0], *MONITORS[3:]])
def test_detections_are_those_of_river(declared: Monitor) -> None:
    values, times = errors([0.1, 0.7, 0.1, 0.7], 400)
    name = RIVERS.get(declared.detector, declared.detector)
    river = getattr(drift, name, None) or getattr(drift.binary, name)
    river = river(**declared.parameters)
    want = []
    for i, value in enumerate(values.tolist()):
        river.update(value)
        if river.drift_detected:
            want.append(i)
    found = DriftMonitor(declared).update_many(values, times)
    assert [alarm.row for alarm in found] == want
    assert len(want) >= 2


@pytest.mark.parametrize("detector", ["ADWIN", "PageHinkley"])
def test_a_change_is_signalled_soon_and_once(detector: str) -> None:
    values, times = errors([0.1, 0.5], 2_000)
    alarms = DriftMonitor(monitor("loss", detector)).update_many(values, times)
    assert len(alarms) == 1
    (alarm,) = alarms
    assert 2_000_000 < alarm.time < 2_000_000 + 400_000
    assert alarm.time == alarm.row * 1_000
    assert alarm.before == pytest.approx(0.12, abs=0.05)
    assert alarm.after > 0.3
    assert alarm.statistic > 0
    assert alarm.seen == alarm.row + 1


def test_each_alarm_describes_its_own_change() -> None:
    values, times = np.repeat([0.0, 1.0, 5.0], 500), np.arange(1_500) * HOUR
    first, second = DriftMonitor(monitor("loss", clock=1)).update_many(values, times)
    assert (first.before, second.before) == (0.0, 1.0)
    assert 0.0 < first.after <= 1.0 < second.after <= 5.0
    # The second change comes before the newest values are all from after the first.
    values = np.concatenate([np.zeros(500), np.ones(30), np.full(40, 50.0)])
    first, second = DriftMonitor(monitor("loss", clock=1, cooldown="0s")).update_many(
        values, times[:570]
    )
    assert second.row - first.row < 32
    assert second.before == second.after > 1.0  # too soon to tell them apart


def test_false_alarms_are_rare() -> None:
    values, times = errors([0.2], 200_000)
    for declared in (monitor("loss"), monitor("loss", "PageHinkley", threshold=150)):
        assert len(DriftMonitor(declared).update_many(values, times)) <= 2


def test_the_cool_down_runs_in_event_time() -> None:
    values, times = errors([0.1, 0.9] * 4, 200)
    quick = DriftMonitor(monitor("loss", clock=1, cooldown="0s")).update_many(values, times)
    slow = DriftMonitor(monitor("loss", clock=1, cooldown="10m")).update_many(values, times)
    assert len(quick) > len(slow) >= 2
    gaps = np.diff([alarm.time for alarm in slow])
    assert (gaps >= 600_000).all()
    # Stretched a thousand times, the same values are a thousand times slower: nothing is hidden.
    assert len(DriftMonitor(monitor("loss", clock=1)).update_many(values, times * 10_000)) == len(
        quick
    )


def test_nan_does_not_disable_a_detector() -> None:
    values, times = errors([0.1, 0.9], 300)
    values[[3, 50]] = [np.nan, np.inf]
    assert len(DriftMonitor(monitor("loss")).update_many(values, times)) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: monitor("x", "adwin"), "unknown detector 'adwin' in monitor.*: there are ADWIN"),
        (lambda: monitor("x", epsilon=1), "unknown parameter 'epsilon' .* ADWIN has delta, clock"),
        (lambda: monitor("x", "PageHinkley", mode="left"), "can.t be created: Invalid 'mode'"),
        (lambda: monitor("x", "DDM"), "DDM .* takes only right and wrong"),
        (lambda: monitor("loss", "EDDM", loss="brier"), "takes only right and wrong"),
        (lambda: monitor("loss", "HDDM_A", alpha=1), "HDDM_A has drift_confidence"),
        (lambda: monitor("x", cooldown="soon"), "'soon' is not a duration"),
        (lambda: monitor("x", loss="brier"), "its subject is a feature"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_one_clear_sentence(make: Any, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        make()


@pytest.mark.parametrize("detector", ["KSWIN", "DDM", "HDDM_A", "HDDM_W"])
def test_every_detector_signals_an_increase(detector: str) -> None:
    values, times = errors([0.1, 0.6], 2_000)
    first = DriftMonitor(monitor("loss", detector)).update_many(values, times)[0]
    if detector == "KSWIN":  # one test for every value: some come by chance
        alarms = DriftMonitor(monitor("loss", detector, cooldown="0s")).update_many(values, times)
        assert any(2_000 < alarm.row < 2_200 and alarm.increased for alarm in alarms)
    else:
        assert 2_000 < first.row < 2_200
        assert first.increased
