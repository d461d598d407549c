"""A run that is stopped and resumed gives what an uninterrupted one gives.

Everything runs in this process, on a backlog of three partitions with events that come out of
order, too late, or twice.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.bus.memory import MemoryBus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.resume_point import CHECKSUMS, read_resume_point
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.worker import run_worker
from anabranch.dataflows.source.bus_source import SourceOptions
from tests.support.checkpoint_pipeline import (
    MINUTE,
    OUTPUTS,
    PARTITIONS,
    PIPELINE,
    T0,
    Json,
    check_once,
    publish,
    stopping_after,
    trades,
)

MESSAGES = trades(150, seed=3)
Outputs = dict[str, list[list[Json]]]


def declared(directory: Path, old: str = "", new: str = "") -> Pipeline:
    """The pipeline, with ``old`` replaced by ``new``."""
    assert old in PIPELINE
    file = directory / "flow.py"
    file.write_text(PIPELINE.replace(old, new) if old else PIPELINE)
    return load_pipeline(str(file))


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return declared(tmp_path)


def bus_with(messages: list[tuple[str, Json]]) -> MemoryBus:
    bus = MemoryBus()
    bus.create_topics({"trades.events": PARTITIONS, "trades.labels": PARTITIONS})
    publish(bus, messages)
    return bus


def run(
    pipeline: Pipeline,
    bus: Bus,
    state: Path,
    *,
    reads: int | None = None,
    batch: int = 7,
    epoch_s: float = 0.001,
) -> bool:
    """Run to the end, or stop after so many reads; returns whether it was stopped."""
    with (
        stopping_after(reads) as stop,
        StateDirectory.open(state, pipeline, bus) as opened,
    ):
        options = SourceOptions(limit=batch, until_end=True, stop=stop)
        run_worker(pipeline, bus, options, checkpoint_interval_s=epoch_s, state=opened)
    return stop.is_set()


def outputs(bus: MemoryBus) -> Outputs:
    """All messages, by topic and partition."""
    return {topic: [[*map(json.loads, log.values)] for log in bus.logs(topic)] for topic in OUTPUTS}


def reasons(found: Outputs) -> list[str]:
    return [row["reason"] for rows in found["trades.dead-letters"] for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    directory = tmp_path_factory.mktemp("uninterrupted")
    bus = bus_with(MESSAGES)
    run(declared(directory), bus, directory / "state")
    found = outputs(bus)
    check_once(found)
    assert {"late", "duplicate id", "label without event"} == set(reasons(found))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_stopped_anywhere_it_gives_what_an_uninterrupted_run_gives(
    pipeline: Pipeline, tmp_path: Path, uninterrupted: Outputs, seed: int
) -> None:
    """Stopped repeatedly, with other batches and other epochs each time."""
    chance, bus, stops = random.Random(seed), bus_with(MESSAGES), 0
    while run(
        pipeline,
        bus,
        tmp_path / "state",
        reads=chance.randrange(4, 60),
        batch=chance.choice([1, 3, 9]),
        epoch_s=chance.choice([0, 0.002, 60]),
    ):
        stops += 1
    assert stops > 1
    assert outputs(bus) == uninterrupted


def test_a_backlog_after_a_long_pause_is_not_late(pipeline: Pipeline, tmp_path: Path) -> None:
    """Hours of it, in order: event time counts, not how long no run was active."""
    bus = bus_with([])
    for first in (0, 600, 1200):
        publish(bus, [trade(minute) for minute in range(first, first + 60)])
        run(pipeline, bus, tmp_path / "state")
    found = outputs(bus)
    assert reasons(found) == []
    assert sum(map(len, found["trades.predictions"])) == 180


def trade(minute: float, account: str = "account 1", number: str = "") -> tuple[str, Json]:
    ts = T0 + int(minute * MINUTE)
    return account, {"id": number or f"m{minute}", "ts": ts, "account": account, "amount": 1.0}


def test_the_watermark_and_the_ids_seen_survive(pipeline: Pipeline, tmp_path: Path) -> None:
    bus = bus_with([trade(0), trade(10), trade(20)])
    run(pipeline, bus, tmp_path / "state")
    publish(bus, [trade(20), trade(14.9), trade(15.1), trade(10), trade(21)])
    run(pipeline, bus, tmp_path / "state")
    found = outputs(bus)
    dead_letters = [row for rows in found["trades.dead-letters"] for row in rows]
    assert [(row["offset"], row["reason"]) for row in dead_letters] == [
        (3, "duplicate id"),
        (4, "late"),
        (6, "late"),
    ]
    assert [row["offset"] for rows in found["trades.predictions"] for row in rows] == [
        *(0, 1, 2, 5, 7)
    ]


def test_metrics_and_monitors_may_change_between_runs(tmp_path: Path) -> None:
    bus, state = bus_with(MESSAGES), tmp_path / "state"
    assert run(declared(tmp_path), bus, state, reads=20)
    more = 'metrics=("LogLoss", "Accuracy"),\n    monitors=[monitor("amount")],'
    other = PIPELINE.replace('metrics=("LogLoss",),', more).replace(
        "import Event", "import monitor, Event"
    )
    (tmp_path / "flow.py").write_text(other)
    pipeline = load_pipeline(str(tmp_path / "flow.py"))
    assert run(pipeline, bus, state, reads=20)
    run(declared(tmp_path), bus, state)
    found = outputs(bus)
    check_once(found)
    seen = sum(map(len, found["trades.predictions"])) + sum(
        row["topic"] == "trades.events" for rows in found["trades.dead-letters"] for row in rows
    )
    assert seen == sum("amount" in message for _, message in MESSAGES)


@contextmanager
def rows_of(store: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(store)) as connection, connection:
        yield connection


def killed_before_the_epoch_was_confirmed(before: Path, state: Path) -> None:
    """Leave in ``state`` what the engine leaves when it is killed just before it confirms the epoch
    of the run that went from ``before`` to ``state``: everything was written but its position."""
    store = "recovery/part-0.sqlite3"
    epoch = read_resume_point(before / "recovery").epoch
    with rows_of(state / store) as new:
        snaps = new.execute("SELECT * FROM snaps WHERE snap_epoch = ?", (epoch,)).fetchall()
        last = new.execute("SELECT * FROM exs ORDER BY ex_num DESC LIMIT 1").fetchall()
    assert len(snaps) > PARTITIONS
    shutil.copytree(before / "recovery", state / "recovery", dirs_exist_ok=True)
    (state / "recovery" / CHECKSUMS).unlink()  # made when a run ends
    for rest in ("-wal", "-shm"):
        Path(f"{state / store}{rest}").unlink(missing_ok=True)
    with rows_of(state / store) as new:
        new.executemany("INSERT INTO snaps VALUES (?, ?, ?, ?, ?)", snaps)
        new.executemany("INSERT INTO exs VALUES (?, ?, ?, ?)", last)
    assert read_resume_point(state / "recovery").epoch == epoch


def test_what_a_killed_run_left_unconfirmed_is_never_used_later(
    pipeline: Pipeline, tmp_path: Path, uninterrupted: Outputs
) -> None:
    """The next run ends before it has read anything, so nothing replaces what was left."""
    bus, state = bus_with(MESSAGES), tmp_path / "state"
    assert run(pipeline, bus, state, reads=30, batch=3, epoch_s=60)
    shutil.copytree(state, tmp_path / "before")
    assert run(pipeline, bus, state, reads=30, batch=3, epoch_s=60)
    killed_before_the_epoch_was_confirmed(tmp_path / "before", state)
    assert run(pipeline, bus, state, reads=0, epoch_s=60)
    run(pipeline, bus, state)
    found = outputs(bus)
    check_once(found)
    assert found == uninterrupted


def test_rows_are_read_however_short_epochs_are(
    pipeline: Pipeline, tmp_path: Path, uninterrupted: Outputs
) -> None:
    """As if committing takes longer than an epoch: one ends in each round.

    The engine may hand a worker its partitions in any order.
    """
    for seed in range(3):
        bus, state, rounds = bus_with(MESSAGES), tmp_path / f"state {seed}", 0
        while run(pipeline, bus, state, reads=100, epoch_s=0):
            rounds += 1
            assert rounds < 12, "it makes no progress"
        assert outputs(bus) == uninterrupted
