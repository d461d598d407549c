"""The disk with the state fills up during a run: one error message, and the next run resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.crash_trial import Trial, reached
from tests.support.run_result import check_once, check_same
from tests.support.small_disk import mounted

EVENTS = 60_000
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB in memory."""
    with mounted(tmp_path / "disk", 64) as disk:
        yield disk


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk(small_disk: Path, tmp_path: Path, processes: int) -> None:
    trial = Trial(tmp_path, f"sqlite:{tmp_path}/bus", partitions=processes, faulty=True)
    trial.fill(EVENTS)
    state = str(small_disk / "state")
    with trial.start(state, "--processes", str(processes)) as run:
        run.wait_until(lambda: reached(small_disk / "state") > 3)
        fill_up(small_disk / "ballast")
        assert run.wait(60) == 1, run.said()
        said = [line for line in run.said().splitlines() if line.startswith("error:")]
        assert len(said) == 1, run.said()
        assert "full" in said[0]
        assert "Traceback" not in run.said()
        assert "panicked" not in run.said()
    (small_disk / "ballast").unlink()
    trial.finish(state, processes)
    check_once(trial)
    if processes == 1:
        (tmp_path / "unharmed").mkdir()
        unharmed = Trial(tmp_path / "unharmed", f"sqlite:{tmp_path}/bus-unharmed", faulty=True)
        unharmed.fill(EVENTS)
        unharmed.finish("state")
        check_same(trial, state, unharmed)


def fill_up(ballast: Path) -> None:
    """Use up the free space, to the last byte."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 10, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
