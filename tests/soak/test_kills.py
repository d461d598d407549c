"""A run is killed with SIGKILL fifty times and more, and its results are as if it had not been.

With one worker and one partition everything is equal bit for bit to an uninterrupted run. With two
processes and four partitions the order in which models learn is not deterministic, but each event
has one prediction with exact features.

Three trials run at a time, as a start waits as much as it computes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest

from tests.support.crash_trial import Trial
from tests.support.kafka_broker import KafkaBroker, missing_tools
from tests.support.run_result import (
    check_features,
    check_merchants,
    check_once,
    check_same,
    dead_letters,
)

KILLS = 50
PIPELINES = Path(__file__).parent
FEATURES = str(PIPELINES / "payments_with_features.py")
FOREST = str(PIPELINES / "payments_forest.py")
STOP = Event()
pytestmark = pytest.mark.timeout(1800)


@dataclass
class Killed:
    """A trial with many kills, the same without, and the duration of both."""

    trial: Trial
    unharmed: Trial
    seconds: float

    def report(self) -> str:
        hit = ", ".join(f"{count:,} {what}" for what, count in self.trial.hit.items())
        return f"\n{self.trial.kills} kills in {self.seconds:.0f} s: {hit}"


def trial(directory: Path, url: str, pipeline: str, partitions: int, seed: int) -> Trial:
    directory.mkdir(exist_ok=True)
    batch = 5 if pipeline == FOREST else 2
    return Trial(directory, url, pipeline, partitions, batch, seed, faulty=True, stop=STOP)


def kill_often(
    directory: Path, url: str | None, pipeline: str, partitions: int, processes: int, events: int
) -> Killed:
    """``url`` None: the embedded bus. The uninterrupted run is one worker on it."""
    began = time.monotonic()
    directory.mkdir()
    embedded = f"sqlite:{directory}/bus"
    harmed = trial(directory / "harmed", url or embedded, pipeline, partitions, seed=processes)
    unharmed = trial(
        directory / "unharmed", f"{embedded}-unharmed", pipeline, partitions, harmed.seed
    )
    harmed.fill(events)
    harmed.kill_until("state", KILLS, processes)
    harmed.finish("state", processes)
    unharmed.fill(events)
    unharmed.finish("state")
    return Killed(harmed, unharmed, time.monotonic() - began)


Trials = dict[str, Future[Killed]]

# By test: the pipeline, partitions, processes, and events. The slow ones first.
TRIALS = {
    "test_two_processes_on_the_embedded_bus": (FEATURES, 4, 2, 150_000),
    "test_two_processes_on_kafka": (FEATURES, 4, 2, 150_000),
    "test_one_worker_with_a_large_forest_on_kafka": (FOREST, 1, 1, 50_000),
    "test_one_worker_on_the_embedded_bus": (FEATURES, 1, 1, 60_000),
}


@pytest.fixture(scope="module")
def trials(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    brokers: dict[str, KafkaBroker],
) -> Iterator[Trials]:
    """The trials of the selected tests, started together."""
    directory = tmp_path_factory.mktemp("kills")
    chosen = {item.name for item in request.session.items}
    found = {}
    with ThreadPoolExecutor(3) as pool:
        for name, how in TRIALS.items():
            if name in chosen and (name in brokers or not name.endswith("_kafka")):
                url = brokers[name].url if name in brokers else None
                found[name] = pool.submit(kill_often, directory / name, url, *how)
        yield found
        STOP.set()
        for each in found.values():
            each.cancel()


@pytest.fixture
def killed(request: pytest.FixtureRequest, trials: Trials) -> Killed:
    """The result of a test's trial."""
    trial = trials.get(request.node.name)
    if trial is None:
        pytest.skip(str(missing_tools()))
    return trial.result()


@pytest.fixture(scope="module")
def brokers(request: pytest.FixtureRequest) -> Iterator[dict[str, KafkaBroker]]:
    """One broker per selected trial on Kafka, as all use the same topic names."""
    chosen = {item.name for item in request.session.items}
    names = [name for name in TRIALS if name in chosen and name.endswith("_kafka")]
    with ExitStack() as stack:
        if missing_tools() is None:
            yield {name: stack.enter_context(KafkaBroker(fast_start=True)) for name in names}
        else:
            yield {}


def check_one_worker(killed: Killed) -> None:
    print(killed.report())
    check_once(killed.trial)
    check_same(killed.trial, "state", killed.unharmed)
    check_phases(killed.trial)


def check_two_processes(killed: Killed) -> None:
    print(killed.report())
    check_once(killed.trial)
    check_features(killed.trial, killed.unharmed)
    check_merchants(killed.trial)
    letters = dead_letters(killed.trial)
    assert letters == dead_letters(killed.unharmed)
    reasons = {reason for _, _, _, reason, _ in letters}
    assert reasons >= {"late", "duplicate id", "not JSON", "does not fit the type"}
    check_phases(killed.trial)


def check_phases(trial: Trial) -> None:
    """Assert that kills hit the critical moments: during a commit, and after publishing."""
    assert trial.kills == KILLS
    assert trial.hit["before the first epoch of a start"] > 0
    assert trial.hit["with places to roll back"] > 0
    assert trial.hit["with messages to suppress"] > 0


def test_two_processes_on_the_embedded_bus(killed: Killed) -> None:
    check_two_processes(killed)


@pytest.mark.kafka
def test_two_processes_on_kafka(killed: Killed) -> None:
    check_two_processes(killed)


@pytest.mark.kafka
def test_one_worker_with_a_large_forest_on_kafka(killed: Killed) -> None:
    check_one_worker(killed)


def test_one_worker_on_the_embedded_bus(killed: Killed) -> None:
    check_one_worker(killed)
