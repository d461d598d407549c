"""Rescaling to one, two, four, two and one workers, with kills between, equals one worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.crash_trial import Trial
from tests.support.run_result import (
    check_features,
    check_merchants,
    check_once,
    dead_letters,
)

EVENTS = 150_000  # more than is read between the kills
FEATURES = str(Path(__file__).parent / "payments_with_features.py")
pytestmark = pytest.mark.timeout(420)


def test_from_one_to_four_and_back_with_kills_between(tmp_path: Path) -> None:
    directories = [tmp_path / name for name in ("harmed", "unharmed")]
    harmed, unharmed = (
        Trial(each, f"sqlite:{each}/bus", FEATURES, 4, faulty=True) for each in directories
    )
    for trial in (harmed, unharmed):
        trial.directory.mkdir()
        trial.fill(EVENTS)
    for processes in (1, 2, 4, 2, 1):
        harmed.kill_until("state", kills=3, processes=processes)
    harmed.finish("state")
    unharmed.finish("state")
    print(f"\n{harmed.kills} kills: {dict(harmed.hit)}")
    check_once(harmed)
    check_features(harmed, unharmed)
    check_merchants(harmed)
    assert dead_letters(harmed) == dead_letters(unharmed)
