"""The run of `anabranch demo`: simulator, pipeline, crash, live table, and explanations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from anabranch.dataflows.bus import Bus, open_bus
from anabranch.dataflows.cli.demo.topic_sample import event_time_ms, last_by, last_messages
from anabranch.dataflows.cli.demo.verification import TopicCounts, Verification, verify
from anabranch.dataflows.cli.display.live_status import LiveStatus, compiling
from anabranch.dataflows.declaration.topics import Topics
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.supervised_worker import EXIT_INTERRUPTED, STOP_SIGNALS
from anabranch.dataflows.runtime.supervisor import LocalWorkers, StopRequest, Supervisor
from anabranch.dataflows.steps.warmup import warm
from anabranch.dataflows.telemetry.status import Status, latencies, live_only, read_status
from anabranch.dataflows.telemetry.worker_metrics import shared_registry
from anabranch.state.errors import AnabranchError

NAME = "payments"
MESSAGES_PER_EVENT = 1.95  # almost every payment gets a label
DRIFT_AT = 0.6  # of all payments
FAULTS = {"malformed": 0.001, "duplicates": 0.001, "out-of-order": 0.05}
_POLL_S = 0.1
_CHECKPOINT_INTERVAL_S = 5.0
_MIN_CHECKPOINTS = 5  # even in a short demo
_INTERRUPTED = {EXIT_INTERRUPTED, *(-number for number in STOP_SIGNALS)}

Printer = Callable[[str], None]


class Demo:
    """One demo in ``directory``: past payments, then ``seconds`` of live traffic.

    With ``crash`` the worker is killed halfway through the live traffic.
    """

    def __init__(
        self, directory: Path, *, seconds: float, rate: float, history: int, crash: bool
    ) -> None:
        self._directory = directory
        self._url = f"sqlite:{directory / 'bus'}"
        self._log = directory / "simulator.log"
        self._rate = rate
        self._history = history
        self._events = history + round(seconds * rate / MESSAGES_PER_EVENT)
        self._drift_at = round(self._events * DRIFT_AT)
        self._checkpoint_s = min(_CHECKPOINT_INTERVAL_S, seconds / _MIN_CHECKPOINTS)
        self._pipeline = load_pipeline(NAME)
        self._crash = Crash((history + self._events) // 2) if crash else None
        self._stop = StopRequest()
        self._failure: Exception | None = None
        self._started = time.monotonic()
        self._finished = False

    def run(self, console: Console, *, command: str, kept: bool) -> bool:
        """Run the demo and explain it on ``console``; returns True if Ctrl-C stopped it early.

        Args:
            console: where to print.
            command: how the user calls this program.
            kept: whether the topics still exist afterwards.

        Raises:
            AnabranchError: the simulator failed, or an event has no prediction, or several.
        """
        print_ = _printer(console)
        print_(
            f"Simulated card payments, some of them fraud: {self._history:,} from the past, then "
            f"{self._rate:,.0f} messages per second of live traffic.\nFor each payment the "
            f"pipeline computes {len(self._pipeline.columns)} exact features, predicts fraud, and "
            "learns when the label arrives.\n"
        )
        with compiling(console):
            warm(self._pipeline)
        bus = open_bus(self._url)
        bus.create_topics(dict.fromkeys(self._pipeline.inputs, 1))
        status = self._flow(bus, console, print_)
        if self._finished:
            print_(result(verify(bus, self._pipeline), self._crash, status))
        _show_predictions(bus, self._pipeline.topics.predictions, print_)
        self._explain(bus, status, print_)
        bus.close()
        if self._finished:
            print_(_what_next(command, self._directory if kept else None))
        return not self._finished

    def _flow(self, bus: Bus, console: Console, print_: Printer) -> Status:
        """Run the pipeline under a supervisor, as `anabranch run` does, and feed it."""
        path = self._directory / "state"
        with ExitStack() as stack:
            state = StateDirectory.open(path, self._pipeline, bus, say=print_)
            stack.enter_context(state)
            environment = _cleared_environment()
            worker = LocalWorkers(self._worker_command(path), [0], environment=environment)
            stack.enter_context(worker)
            counts = TopicCounts(self._pipeline, bus, shared_registry(worker.metrics_directory))
            stack.callback(counts.close)
            live = LiveStatus(NAME, counts, console, line_every_s=5.0)
            run = Run(bus, self._pipeline.topics, state, worker, counts, print_)
            supervisor = Supervisor(
                worker, generation=state.generation, say=run.on_loss, on_restart=run.on_restart
            )
            with live.displayed():
                self._supervise(supervisor, run)
            if self._failure is not None:
                raise self._failure
            return live.summary(time.monotonic() - self._started)

    def _supervise(self, supervisor: Supervisor, run: Run) -> None:
        """Run the supervisor here and the scenario in a thread, until both have ended."""
        with _handles_signals(self._stop):
            thread = threading.Thread(target=self._play, args=(run,))
            thread.start()
            try:
                supervisor.run(self._stop)
            except AnabranchError:
                if not (self._stop.requested and self._crash and self._crash.in_progress):
                    raise  # otherwise Ctrl-C came together with the kill
            finally:
                self._stop.requested = True
                thread.join()

    def _worker_command(self, state: Path) -> list[str]:
        return [
            sys.executable, "-m", "anabranch", "run", NAME, "--bus", self._url,
            "--state", str(state),
            "--checkpoint-interval", f"{round(self._checkpoint_s * 1000)}ms",
        ]  # fmt: skip

    @contextmanager
    def _simulator(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run `anabranch simulate` in a process of its own, as a user would."""
        command = [
            sys.executable, "-m", "anabranch", "simulate", NAME, "--bus", self._url,
            "--events", str(self._events), "--history", str(self._history),
            "--rate", str(self._rate), "--drift-at", str(self._drift_at),
        ]  # fmt: skip
        for fault, share in FAULTS.items():
            command += [f"--{fault}", str(share)]
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                command, env=os.environ | _cleared_environment(), stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    def _play(self, run: Run) -> None:
        """The scenario: start traffic, kill the worker halfway, stop when everything is read."""
        crash = self._crash
        try:
            self._wait(run.counts.started)
            self._started = time.monotonic()
            with self._simulator() as simulator:
                if crash is not None:
                    self._wait(partial(run.can_crash_at, crash.at_event), simulator)
                    crash.kill(run)
                    self._wait(run.has_recovered, simulator)
                    crash.end(run)
                self._wait(lambda: simulator.poll() == 0 and run.counts.unread() == 0, simulator)
            self._finished = True
        except _Stopped:
            pass
        except Exception as error:  # re-raised in the main thread
            self._failure = error
        finally:
            self._stop.requested = True

    def _wait(
        self, condition: Callable[[], bool], simulator: subprocess.Popen[bytes] | None = None
    ) -> None:
        """Return when the condition is true.

        Raises:
            _Stopped: the demo was stopped before that.
            AnabranchError: the simulator failed.
        """
        while not condition():
            ended = None if simulator is None else simulator.poll()
            if self._stop.requested or ended in _INTERRUPTED:
                raise _Stopped
            if ended:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                reason = lines[-1] if lines else f"exit code {ended}"
                raise AnabranchError(f"the simulator failed: {reason}")
            time.sleep(_POLL_S)

    def _explain(self, bus: Bus, status: Status, print_: Printer) -> None:
        """Explain the dead letters and drift signals in the table."""
        if status.dead_letters:
            print_(
                "Dead letters: the simulator corrupts or duplicates one payment in a thousand on "
                "purpose. The pipeline\nsends them to payments.dead-letters with the reason, and "
                "continues. For example:"
            )
            dead_letters = last_messages(bus, self._pipeline.topics.dead_letters, 1000)
            for letter in last_by(dead_letters, "reason"):
                print_(f"  {letter['reason']}: {letter['detail']}")
            print_("")
        if status.drift:
            topics = self._pipeline.topics
            changed_ms = event_time_ms(bus, topics.events, self._drift_at)
            signals = last_messages(bus, topics.drift, 1000)
            after = sum(signal["ts"] >= changed_ms for signal in signals)
            print_(
                f"Drift signals, on {topics.drift}: {len(signals) - after} before payment "
                f"{self._drift_at:,}, while the model was new,\nand {after} after it, because the "
                "simulated fraud moves to other merchants there. The model keeps learning.\n"
            )


class Run:
    """The supervised run, as the scenario of the demo observes it."""

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        state: StateDirectory,
        worker: LocalWorkers,
        counts: TopicCounts,
        print_: Printer,
    ) -> None:
        self.worker, self.counts, self.print = worker, counts, print_
        self._bus, self._state = bus, state
        self._topics = topics
        self._before: int | None = None  # predictions published before the last restart

    def published(self) -> int:
        """Number of payments on the events topic."""
        return sum(self._bus.end_offsets(self._topics.events))

    def can_crash_at(self, event: int) -> bool:
        """Whether ``event`` payments are published, and the worker has a checkpoint to resume."""
        return self.published() >= event and self._predicted() > 0 and self._state.generation() > 0

    def has_recovered(self) -> bool:
        """Whether there are new predictions since the last restart, or nothing left to predict."""
        if self._before is None:
            return False
        return self._predicted() > self._before or self.counts.unread() == 0

    def on_loss(self, line: str) -> None:
        """Called when a worker has failed; ``line`` is the supervisor's message."""
        self.counts.on_loss()
        self.print(line)

    def on_restart(self) -> None:
        """Called before a new worker is started."""
        self.counts.on_restart(self._state.path / "recovery")
        self._before = self._predicted()
        self.print(
            f"from there {self.counts.unread():,} messages are to be read, the first of them for "
            "the second time; their predictions are on the topic already and are not published "
            "again"
        )

    def _predicted(self) -> int:
        return sum(self._bus.end_offsets(self._topics.predictions))


class Crash:
    """The deliberate crash, when event ``at_event`` is published.

    Attributes:
        latency: p50 / p99 of the live messages before it, as text.
        recovery_s: seconds from the kill to the first new prediction; 0 before that.
        in_progress: True from the kill to the first new prediction.
    """

    def __init__(self, at_event: int) -> None:
        self.at_event = at_event
        self.latency = ""
        self.recovery_s = 0.0
        self.in_progress = False

    def kill(self, run: Run) -> None:
        """Kill the worker."""
        self.latency = latencies(live_only(read_status(run.counts).latency))
        (worker,) = run.worker.workers
        run.print(
            f"kill -9 of the worker (process {worker.pid}): {run.published():,} payments are "
            "published so far, and more keep arriving"
        )
        self._since, self.in_progress = time.monotonic(), True
        worker.kill()

    def end(self, run: Run) -> None:
        """Report the first new prediction."""
        self.recovery_s, self.in_progress = time.monotonic() - self._since, False
        run.print(
            f"the new worker has taken over: new predictions {self.recovery_s:.1f} s after the kill"
        )


class _Stopped(Exception):
    """The demo was stopped early."""


@contextmanager
def _handles_signals(stop: StopRequest) -> Iterator[None]:
    """Let ``stop`` handle the stop signals while the ``with`` block runs."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop.install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cleared_environment() -> dict[str, str]:
    """The user's variables for our options, set to empty: they must not change the demo."""
    return {name: "" for name in os.environ if name.startswith("ANABRANCH_")}


def result(verification: Verification, crash: Crash | None, status: Status) -> str:
    """What became of all events, as text.

    Raises:
        AnabranchError: an event has no prediction or dead letter, or more than one.
    """
    if not verification.exactly_once:
        first = ""
        if verification.first is not None:
            first = f", the first at partition, offset {verification.first}"
        raise AnabranchError(
            f"of {verification.events:,} events {verification.lost:,} have no prediction or dead "
            f"letter, {verification.duplicated:,} have more than one{first}; "
            f"{verification.unknown:,} belong to no event: this is a bug; run it with --keep DIR, "
            "and report it with that directory"
        )
    killed = "" if crash is None else " despite the kill"
    lines = [
        f"{verification.events:,} events: every event has exactly one prediction or dead letter"
        f"{killed}",
        f"({verification.predictions:,} + {verification.dead_letters:,}); 0 duplicated, 0 lost",
    ]
    if crash is None:
        return f"{lines[0]}\n{lines[1]}. Counted on the topics, by the offset of each event.\n"
    after = latencies(live_only(status.latency))
    return (
        f"{lines[0]}\n{lines[1]}; recovered in {crash.recovery_s:.1f} s. "
        "Counted on the topics, by the offset of each event.\n"
        f"Latency from message to prediction, p50 / p99, was {crash.latency} until the kill, and "
        f"is {after} overall,\nbecause payments that arrived while no worker ran had to wait.\n"
    )


def _printer(console: Console) -> Printer:
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)


def _show_predictions(bus: Bus, topic: str, print_: Printer) -> None:
    """Print the last two predictions, and the highest score of the last thousand."""
    recent = last_messages(bus, topic, 1000)
    if not recent:
        return
    likeliest_fraud = max(recent, key=lambda each: each["score"] or 0.0)
    print_(f"Predictions on {topic} (the last two, and the most likely fraud of the last 1,000):")
    for each in [*recent[-2:], likeliest_fraud]:
        print_(
            f"  payment {each['id']}: fraud {str(each['prediction']).lower()}, "
            f"probability {each['score']:.3f}, by {each['model']} after {each['version']:,} labels"
        )
    print_("")


def _what_next(command: str, kept: Path | None) -> str:
    lines = [
        "Try next, in three terminals:",
        f"  {command} simulate payments --rate 1000",
        f"  {command} run payments",
        f"  {command} consume payments.predictions",
        "or with a data set of River:",
        f"  {command} publish --dataset Phishing",
        f"  {command} run dataset:Phishing --until-end",
    ]
    if kept is not None:
        url = f"sqlite:{kept / 'bus'}"
        lines += [
            "and inspect what this demo has kept:",
            f"  {command} topics --bus {url}",
            f"  {command} consume payments.drift --no-follow --pretty --bus {url}",
            f"  {command} state {kept / 'state'}",
        ]
    return "\n".join(lines)
