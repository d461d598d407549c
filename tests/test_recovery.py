"""After a kill, and after any stop, a run goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.crash_trial import Trial, check_once

EVENTS = 40_000


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A run of one worker that nothing happened to."""
    directory = tmp_path_factory.mktemp("unharmed")
    trial = Trial(directory, f"sqlite:{directory}/bus", batch=500)
    trial.fill(EVENTS)
    trial.finish("state")
    check_once(trial, EVENTS)
    return trial


def test_killed_again_and_again_it_ends_as_if_nothing_had_happened(
    unharmed: Trial, tmp_path: Path
) -> None:
    trial = Trial(tmp_path, f"sqlite:{tmp_path}/bus", batch=2, seed=unharmed.seed)
    trial.fill(EVENTS)
    trial.kill_until("state", kills=6)
    trial.finish("state")
    check_once(trial, EVENTS)
    for topic in trial.declared.topics.outputs:
        assert trial.outputs(topic) == unharmed.outputs(topic)
    assert trial.window_fingerprints("state") == unharmed.window_fingerprints("state")


def test_two_processes_killed_again_and_again_lose_and_double_nothing(tmp_path: Path) -> None:
    trial = Trial(tmp_path, f"sqlite:{tmp_path}/bus", partitions=4, batch=4)
    trial.fill(EVENTS)
    trial.kill_until("state", kills=5, processes=2)
    trial.finish("state", 2)
    check_once(trial, EVENTS)


def test_with_one_worker_then_two_then_one_nothing_changes(unharmed: Trial, tmp_path: Path) -> None:
    trial = Trial(tmp_path, f"sqlite:{tmp_path}/bus", batch=2, seed=unharmed.seed)
    trial.fill(EVENTS)
    for processes in (1, 2, 1, 2):
        trial.kill_until("state", kills=1, processes=processes)
    trial.finish("state", 1)
    check_once(trial, EVENTS)
    # One partition is read by one worker, so even the order of learning is the same; but windows
    # let go of events a little later, and a sum may be rounded otherwise.
    topic = trial.declared.topics.predictions
    found, expected = trial.outputs(topic)[0], unharmed.outputs(topic)[0]
    scores = [np.array([row.pop("score") for row in rows]) for rows in (found, expected)]
    assert found == expected
    np.testing.assert_allclose(*scores, atol=1e-9)
