"""A cluster on two hosts recovers when one of them is disconnected or dies."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.crash_trial import Run, Trial, reached
from tests.support.network_hosts import NetworkHosts, why_not
from tests.support.run_result import (
    check_features,
    check_merchants,
    check_once,
    dead_letters,
)

EVENTS = 60_000
PORT = 7411
FEATURES = str(Path(__file__).parent / "payments_with_features.py")
pytestmark = pytest.mark.timeout(420)


class TwoHosts:
    """A run on two hosts with a state directory each; the bus is on a shared disk."""

    def __init__(self, directory: Path, hosts: NetworkHosts) -> None:
        self.directory, self.hosts = directory, hosts
        self.trial = Trial(
            directory, f"sqlite:{directory}/bus", FEATURES, 4, batch=50, epoch="300ms", faulty=True
        )
        self.trial.fill(EVENTS)
        self._stack = ExitStack()
        self.runs: list[Run] = []

    def __enter__(self) -> TwoHosts:
        self.runs = [self.start(0), self.start(1)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, number: int, *more: str, batch: int = 0) -> Run:
        listed = ",".join(f"{self.hosts.address(n)}:{PORT}" for n in (0, 1))
        where = ("--addresses", listed, "--process-id", str(number))
        run = self.trial.start(
            f"host-{number}", *where, *more, batch=batch, within=self.hosts.within(number)
        )
        return self._stack.enter_context(run)

    def wait_for_progress(self) -> None:
        """Wait until more events are predicted, some of them after a committed epoch."""
        paths = [self.directory / f"host-{number}" for number in (0, 1)]
        epochs = [reached(path) for path in paths]
        self.trial.wait_for_predictions(self.runs[0], 200)
        self.runs[0].wait_until(
            lambda: any(reached(p) > e for p, e in zip(paths, epochs, strict=True))
        )

    def wait_for_output(self, number: int, words: str, since: int) -> None:
        """Wait until a host has printed ``words`` after its first ``since`` characters."""
        self.runs[number].wait_until(lambda: words in self.runs[number].said()[since:])

    def finish(self) -> None:
        """Stop both cleanly, and process the rest in large batches."""
        for run in self.runs:
            run.process.send_signal(signal.SIGTERM)
        assert [run.wait(60) for run in self.runs] == [0, 0], [run.said() for run in self.runs]
        self.runs = [
            self.start(number, "--checkpoint-interval", "2s", batch=1000) for number in (0, 1)
        ]
        assert [run.wait(180) for run in self.runs] == [0, 0], [run.said() for run in self.runs]

    def check(self) -> None:
        """Assert that each event has one prediction, with the features of an undisturbed run."""
        check_once(self.trial)
        (self.directory / "unharmed").mkdir()
        bus = f"sqlite:{self.directory}/bus-unharmed"
        unharmed = Trial(self.directory / "unharmed", bus, FEATURES, 4, faulty=True)
        unharmed.fill(EVENTS)
        unharmed.finish("state")
        check_features(self.trial, unharmed)
        check_merchants(self.trial)
        assert dead_letters(self.trial) == dead_letters(unharmed)


@pytest.fixture
def patience() -> int | None:
    return None


@pytest.fixture
def cluster(tmp_path: Path, patience: int | None) -> Iterator[TwoHosts]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with NetworkHosts(2, patience) as hosts, TwoHosts(tmp_path, hosts) as running:
        running.wait_for_progress()
        yield running


LOST = "lost its connection to another one; restarting it"


def test_nothing_is_lost_if_a_host_is_disconnected_or_dies(cluster: TwoHosts) -> None:
    cluster.hosts.cut_off(1)
    time.sleep(10)  # the tested network failure
    cluster.hosts.reconnect(1)
    cluster.wait_for_progress()
    for number in (1, 0):
        before = len(cluster.runs[1 - number].said())
        cluster.runs[number].kill(all_at_once=True)
        cluster.wait_for_output(1 - number, LOST, before)
        cluster.runs[number] = cluster.start(number)
        cluster.wait_for_progress()
    before = len(cluster.runs[0].said())
    assert cluster.hosts.reset_connections(0) > 0
    cluster.wait_for_output(0, LOST, before)
    cluster.wait_for_progress()
    cluster.finish()
    cluster.check()


@pytest.mark.parametrize("patience", [3])
def test_nothing_is_lost_if_a_network_failure_outlasts_the_connections(cluster: TwoHosts) -> None:
    before = [len(run.said()) for run in cluster.runs]
    cluster.hosts.cut_off(1)
    # Who has something on its way gives up; the other one hears of it when the cut is over.
    cluster.runs[0].wait_until(
        lambda: any(LOST in run.said()[at:] for run, at in zip(cluster.runs, before, strict=True))
    )
    time.sleep(5)  # it retries without success
    cluster.hosts.reconnect(1)
    cluster.wait_for_progress()
    cluster.finish()
    cluster.check()
