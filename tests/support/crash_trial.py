"""Kills a running pipeline at random moments, a given number of times.

A backlog is published, and processed once without interruption. Then the same is done by processes
that are killed with SIGKILL and restarted, until the end. `tests.support.run_result` compares the
results.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from threading import Event

from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.resume_point import recovery_files, resume_epoch
from anabranch.producers.batch import Kind
from anabranch.producers.publish import publish
from anabranch.state.errors import StateError
from tests.support.backlog import backlog
from tests.support.kafka_broker import KEEP_HISTORY
from tests.support.kill_points import hits
from tests.support.waiting import GENEROUS_S, wait_until

EPOCH = "150ms"
ALL_AT_ONCE = 1000  # messages per batch of a run that is not killed


@dataclass
class Trial:
    """A pipeline, a bus with a backlog, and state directories; ``url`` is where the bus is.

    ``batch`` is small if kills should hit many batches. ``kills`` counts them, and ``hit`` what
    they interrupted. Setting ``stop`` ends the trial.
    """

    directory: Path
    url: str
    pipeline: str = "payments"
    partitions: int = 1
    batch: int = 2
    seed: int = 1
    epoch: str = EPOCH
    faulty: bool = False
    kills: int = 0
    hit: Counter[str] = field(default_factory=Counter)
    stop: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self.declared: Pipeline = load_pipeline(self.pipeline)
        self.random = random.Random(self.seed)

    def fill(self, events: int) -> None:
        """Publish the backlog: the same messages for the same arguments."""
        bus = open_bus(self.url, KEEP_HISTORY if self.url.startswith("kafka:") else None)
        try:
            bus.create_topics(dict.fromkeys(self.declared.inputs, self.partitions))
            topics: dict[Kind, str] = dict(
                zip(("events", "labels"), self.declared.inputs, strict=False)
            )
            publish(bus, backlog(events, self.seed, self.faulty), topics=topics)
        finally:
            bus.close()

    def command(self, state: str, batch: int, *more: str) -> list[str]:
        """The command of a run to the end of the backlog."""
        return [
            sys.executable, "-m", "anabranch", "run", self.pipeline, "--bus", self.url,
            "--state", str(self.directory / state), "--until-end",
            "--checkpoint-interval", self.epoch, "--batch-size", str(batch), *more,
        ]  # fmt: skip

    def start(self, state: str, *more: str, batch: int = 0, within: Sequence[str] = ()) -> Run:
        """Start the run, with the command ``within`` before it, such as a network namespace."""
        told = [*within, *self.command(state, batch or self.batch, *more)]
        return Run(told, self.directory / f"{Path(state).name}.log")

    def finish(
        self,
        state: str,
        processes: int = 1,
        limit_s: float = 2 * GENEROUS_S,
        batch: int = ALL_AT_ONCE,
    ) -> None:
        """Run to the end without a kill."""
        more = ("--processes", str(processes), "--checkpoint-interval", "1s")
        with self.start(state, *more, batch=batch) as run:
            assert run.wait(limit_s) == 0, run.said()

    def kill_until(self, state: str, kills: int, processes: int = 1) -> None:
        """Kill ``kills`` times at random moments of the run, restarting each time."""
        # Several processes commit for about as long as an epoch, and then each reads one batch.
        batch = self.batch if processes == 1 else self.batch * 20
        done = 0
        while done < kills:
            assert not self.stop.is_set(), "told to end"
            began = reached(self.directory / state)
            with self.start(state, "--processes", str(processes), batch=batch) as run:
                done += self._kill_some(run, processes, kills - done)
            self.hit.update(hits(self.directory / state, self.url, began))
        self.kills += done

    def _kill_some(self, run: Run, processes: int, most: int) -> int:
        """Kill the only process; or workers, again and again, and in the end the supervisor."""
        if processes == 1:
            self._let_run(run)
            run.kill()
            self.hit["the only process"] += 1
            return 1
        done = 0
        for _ in range(self.random.randint(2, 7)):
            self._let_run(run)
            workers = children(run.process.pid)
            if workers and done < most - 1:
                kill(self.random.choice(workers))
                self.hit["a worker"] += 1
                done += 1
        run.kill()
        self.hit["a supervisor"] += 1
        return done + 1

    def _let_run(self, run: Run) -> None:
        """Wait for a random moment: during the start-up, or after predictions were published.

        Completed epochs are no sign of progress: a reader that still connects has them too.
        """
        if self.random.random() < 0.25:
            time.sleep(self.random.uniform(0, 5))
        else:
            self.wait_for_predictions(run)
            time.sleep(self.random.uniform(0, 0.6))
        assert run.process.poll() is None, f"the run has ended already:\n{run.said()}"

    def wait_for_predictions(self, run: Run, count: int = 1, limit_s: float = GENEROUS_S) -> None:
        """Wait until the run has published ``count`` more predictions."""
        bus = open_bus(self.url)
        try:
            before = self._published(bus)
            run.wait_until(lambda: self._published(bus) >= before + count, limit_s)
        finally:
            bus.close()

    def _published(self, bus: Bus) -> int:
        topic = self.declared.topics.predictions
        return sum(bus.end_offsets(topic)) if topic in bus.topics() else 0


class Run:
    """A running `anabranch run`; a context manager that kills it with all its workers.

    Its output goes to a file, so that no pipe has to be drained.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("a") as words:
            self._from = words.tell()
            self.process: Popen[str] = Popen(
                command, stdout=words, stderr=words, text=True, stdin=PIPE,
                env={**os.environ, "COLUMNS": "200"},
            )  # fmt: skip

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def said(self) -> str:
        """Its output so far."""
        with self._log.open() as words:
            words.seek(self._from)
            return words.read()

    def wait(self, limit_s: float) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self.process.wait(limit_s)
        except TimeoutExpired:
            raise AssertionError(f"the run did not end in {limit_s:g} s:\n{self.said()}") from None

    def wait_until(self, condition: Callable[[], bool], limit_s: float = GENEROUS_S) -> None:
        """Wait until ``condition()`` is true; fails if the run ends before."""

        def met() -> bool:
            if condition():
                return True
            assert self.process.poll() is None, f"the run ended too early:\n{self.said()}"
            return False

        wait_until(met, limit_s, lambda: f"progress of the run, which said:\n{self.said()}", 0.05)

    def wait_until_said(self, words: str, limit_s: float = GENEROUS_S) -> None:
        """Wait until its output contains ``words``."""
        self.wait_until(lambda: words in self.said(), limit_s)

    def kill(self, all_at_once: bool = False) -> None:
        """Kill it, and wait for its workers, which end by themselves or are killed ``all_at_once``.

        Does nothing if it has ended.
        """
        workers = children(self.process.pid) if self.process.poll() is None else []
        kill(self.process.pid)
        for worker in workers if all_at_once else []:
            kill(worker)
        self.process.wait()
        for worker in workers:
            wait_until(
                lambda worker=worker: not Path(f"/proc/{worker}").exists(),  # type: ignore[misc]
                what=lambda worker=worker: f"the end of worker {worker}:\n{self.said()}",  # type: ignore[misc]
            )


def reached(state: Path) -> int:
    """The epoch of a state directory; 0 if it does not exist yet."""
    try:
        return resume_epoch(recovery_files(state / "recovery"))
    except StateError:  # it is being made
        return 0


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += [int(number) for number in task.read_text().split()]
        except OSError:  # the thread has ended
            continue
    return found


def kill(process: int) -> None:
    """Send SIGKILL, unless the process has ended."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return
