"""After a kill, and after any stop, a run resumes as if nothing had happened.

The quick trials; `make soak` kills fifty times and more, on Kafka and on several hosts too.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.crash_trial import Trial
from tests.support.run_result import (
    check_features,
    check_merchants,
    check_once,
    check_same,
    dead_letters,
)

pytestmark = pytest.mark.stress

EVENTS = 20_000
FEATURES = str(Path(__file__).parents[2] / "soak" / "payments_with_features.py")


def unharmed(directory: Path, partitions: int) -> Trial:
    """A run of one worker that nothing happened to."""
    trial = Trial(directory, f"sqlite:{directory}/bus", FEATURES, partitions, faulty=True)
    trial.fill(EVENTS)
    trial.finish("state")
    return trial


@pytest.fixture(scope="module")
def from_one_partition(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return unharmed(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def from_two_partitions(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return unharmed(tmp_path_factory.mktemp("two"), 2)


def check_exact(trial: Trial, expected: Trial) -> None:
    check_once(trial)
    check_features(trial, expected)
    check_merchants(trial)
    assert dead_letters(trial) == dead_letters(expected)


def test_killed_again_and_again_it_ends_as_if_nothing_had_happened(
    from_one_partition: Trial, tmp_path: Path
) -> None:
    trial = Trial(tmp_path, f"sqlite:{tmp_path}/bus", FEATURES, faulty=True)
    trial.fill(EVENTS)
    trial.kill_until("state", kills=4)
    trial.finish("state")
    check_once(trial)
    check_same(trial, "state", from_one_partition)


@pytest.mark.slow
def test_two_processes_killed_again_and_again_lose_and_double_nothing(
    from_two_partitions: Trial, tmp_path: Path
) -> None:
    trial = Trial(tmp_path, f"sqlite:{tmp_path}/bus", FEATURES, partitions=2, faulty=True)
    trial.fill(EVENTS)
    trial.kill_until("state", kills=2, processes=2)
    trial.finish("state", 2)
    check_exact(trial, from_two_partitions)


def test_with_one_worker_then_two_then_one_nothing_changes(
    from_two_partitions: Trial, tmp_path: Path
) -> None:
    trial = Trial(tmp_path, f"sqlite:{tmp_path}/bus", FEATURES, partitions=2, faulty=True)
    trial.fill(EVENTS)
    for processes in (1, 2):
        trial.kill_until("state", kills=1, processes=processes)
    trial.finish("state", 1)
    check_exact(trial, from_two_partitions)
