"""Kills a running pipeline again and again, and tells whether anybody could notice from its output.

A backlog is published, and worked through once without interruption. Then the same is done by
processes that are killed with SIGKILL at random moments and started again, until the end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any

from dataflows.bus import Bus, TopicPartition, open_bus
from dataflows.inspection import inspect
from dataflows.load import load_pipeline
from dataflows.pipeline import Pipeline
from dataflows.place import DATABASE
from dataflows.windows import EntityWindows
from producers.publish import publish
from producers.simulators import simulate
from state.fingerprint import fingerprint
from state.store import look

EPOCH = "150ms"


@dataclass
class Trial:
    """A pipeline, a bus with a backlog, and a state directory; ``url`` is where the bus is."""

    directory: Path
    url: str
    pipeline: str = "payments"
    partitions: int = 1
    batch: int = 20
    seed: int = 1
    kills: int = 0
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.declared: Pipeline = load_pipeline(self.pipeline)
        self.random = random.Random(self.seed)

    def fill(self, events: int) -> None:
        """Publish the backlog: the same messages for the same arguments."""
        bus = open_bus(self.url)
        try:
            topics = dict.fromkeys(self.declared.inputs, self.partitions)
            bus.create_topics(topics)
            batches = simulate(self.pipeline, seed=self.seed, events=events)
            kinds = dict(zip(("events", "labels"), self.declared.inputs, strict=False))
            publish(bus, batches, topics=kinds)
        finally:
            bus.close()

    def command(self, state: str, processes: int = 1, *more: str) -> list[str]:
        """What starts the run, to the end of the backlog."""
        return [
            sys.executable, "-m", "dataflows.cli", "run", self.pipeline, "--bus", self.url,
            "--state", str(self.directory / state), "--until-end", "--epoch", EPOCH,
            "--batch", str(self.batch), "--processes", str(processes), *more,
        ]  # fmt: skip

    def start(self, state: str, processes: int = 1, *more: str) -> Popen[str]:
        """Start the run; its words go to a file, so that nobody has to read them."""
        log = (self.directory / f"{state}.log").open("a")
        with log:
            return Popen(
                self.command(state, processes, *more), stdout=log, stderr=log, text=True,
                env={**os.environ, "COLUMNS": "200"}, stdin=PIPE,
            )  # fmt: skip

    def finish(self, state: str, processes: int = 1, *more: str, timeout_s: float = 240) -> None:
        """Run to the end without a kill."""
        process = self.start(state, processes, *more)
        try:
            code = process.wait(timeout_s)
        except TimeoutExpired:
            end(process)
            raise
        assert code == 0, self.log(state)

    def log(self, state: str) -> str:
        """What the runs of a state directory said."""
        return (self.directory / f"{state}.log").read_text()[-5_000:]

    def kill_until(self, state: str, kills: int, processes: int = 1) -> None:
        """Kill ``kills`` times at random moments of the run, starting again each time."""
        done = 0
        while done < kills:
            process = self.start(state, processes)
            try:
                done += self._kill_some(process, state, processes, kills - done)
            finally:
                end(process)
        self.kills += done

    def _kill_some(self, process: Popen[str], state: str, processes: int, most: int) -> int:
        """Kill the only process; or workers, again and again, and in the end the supervisor."""
        if processes == 1:
            self._let_run(process, state)
            return 1
        done = 0
        for _ in range(self.random.randint(1, 6)):
            self._let_run(process, state)
            workers = children(process.pid)
            if workers and done < most - 1:
                kill(self.random.choice(workers))
                done += 1
        return done + 1

    def _let_run(self, process: Popen[str], state: str) -> None:
        """Wait for a random moment: of the start-up now and then, else of the work."""
        if self.random.random() < 0.1:
            time.sleep(self.random.uniform(0, 2.5))
            return
        before = inspect_generation(self.directory / state)
        deadline = time.monotonic() + 60
        while inspect_generation(self.directory / state) == before:
            assert process.poll() is None, f"it ended too early:\n{self.log(state)}"
            assert time.monotonic() < deadline, f"no progress:\n{self.log(state)}"
            time.sleep(0.01)
        time.sleep(self.random.uniform(0, 0.6))

    def outputs(self, topic: str) -> dict[int, list[dict[str, Any]]]:
        """All messages of an output topic, by partition."""
        bus = open_bus(self.url)
        try:
            return {
                number: list(_messages(bus, topic, number)) for number in range(self.partitions)
            }
        finally:
            bus.close()

    def window_fingerprints(self, state: str) -> dict[str, list[str]]:
        """By entity; for the layout of a single worker."""
        identity = inspect(self.directory / state).identity
        place = self.directory / state / f"layout-{identity.layout}" / "windows"
        image = look(place / DATABASE).image()
        found = {}
        for entity in self.declared.entities:
            windows = EntityWindows(self.declared, entity, False)
            windows.restore(image.part(entity))
            found[entity] = [fingerprint(each) for _, each in windows.groups]
        return found


def check_once(trial: Trial, events: int) -> None:
    """Every event has one prediction, and every message of the outputs another cause."""
    rows = trial.outputs(trial.declared.topics.predictions)
    seen = Counter((row["partition"], row["offset"]) for each in rows.values() for row in each)
    doubled = [at for at, times in seen.items() if times > 1]
    assert not doubled, f"{len(doubled)} events were predicted twice, first {min(doubled)}"
    assert len(seen) == events, f"{events - len(seen)} events of {events} have no prediction"
    for each in rows.values():
        offsets = [row["offset"] for row in each]
        assert offsets == sorted(offsets)
    for topic in (trial.declared.topics.dead_letters, trial.declared.topics.drift):
        marks = Counter(
            (row["topic"], row["partition"], row["offset"], row.get("reason", row.get("subject")))
            for each in trial.outputs(topic).values()
            for row in each
        )
        assert all(times == 1 for times in marks.values()), f"doubled on {topic}"


def inspect_generation(state: Path) -> int:
    """How far a state directory is; 0 when it is not there yet."""
    from dataflows.resume_point import recovery_files, resume_epoch
    from state.errors import StateError

    try:
        return resume_epoch(recovery_files(state / "recovery"))
    except StateError:  # it is being made
        return 0


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        found += [int(number) for number in task.read_text().split()]
    return found


def kill(process: int) -> None:
    """SIGKILL; nothing if it has ended."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def end(process: Popen[str]) -> None:
    """Kill a process, which may have ended, and wait for those that it had started."""
    workers = children(process.pid) if process.poll() is None else []
    kill(process.pid)
    process.wait()
    deadline = time.monotonic() + 30
    for worker in workers:
        while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)


def _messages(bus: Bus, topic: str, partition: int) -> Iterator[dict[str, Any]]:
    end_at = bus.end_offsets(topic)[partition]
    at = TopicPartition(topic, partition)
    reader = bus.reader({at: bus.start_offsets(topic)[partition]})
    try:
        while reader.positions()[at] < end_at:
            for piece in reader.poll(10_000, 0.5):
                yield from map(json.loads, piece.values)
    finally:
        reader.close()
