"""What `anabranch demo` does: simulator, pipeline, a crash, live table, and what to make of it."""

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
from anabranch.dataflows.cli.demo.verification import Settled, TopicCounts, settle
from anabranch.dataflows.cli.display.live_status import Watch, compiling
from anabranch.dataflows.cli.topic_sample import event_time_ms, last_messages, one_per
from anabranch.dataflows.pipelines.loader import load_pipeline
from anabranch.dataflows.recovery.state_directory import StateDirectory
from anabranch.dataflows.runtime.supervised_worker import EXIT_INTERRUPTED, STOP_SIGNALS
from anabranch.dataflows.runtime.supervisor import LocalWorkers, StopRequest, Supervisor
from anabranch.dataflows.steps.warmup import warm
from anabranch.dataflows.telemetry.status import Status, latencies, live_only, read_status
from anabranch.dataflows.telemetry.worker_metrics import shared_registry
from anabranch.state.errors import AnabranchError

NAME = "payments"
MESSAGES_PER_EVENT = 1.95  # almost every payment gets a verdict
DRIFT_AT = 0.6  # of all payments
FAULTS = {"malformed": 0.001, "duplicates": 0.001, "out-of-order": 0.05}
_LOOK_EVERY_S = 0.1
_EPOCH_S = 5.0
_EPOCHS = 5  # at least so many, however short it is
_INTERRUPTED = {EXIT_INTERRUPTED, *(-number for number in STOP_SIGNALS)}

Printer = Callable[[str], None]


class Show:
    """One run of the demo in ``directory``: a history, then ``seconds`` of live traffic.

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
        self._epoch_s = min(_EPOCH_S, seconds / _EPOCHS)
        self._pipeline = load_pipeline(NAME)
        self._crash = Crash((history + self._events) // 2) if crash else None
        self._stop = StopRequest()
        self._failure: Exception | None = None
        self._began = time.monotonic()
        self._finished = False

    def run(self, console: Console, *, command: str, kept: bool) -> bool:
        """Run, show, and explain on ``console``; true if Ctrl-C ended it early.

        ``command`` is how the user calls this program; ``kept``: the topics will still be there.

        Raises:
            AnabranchError: the simulator failed, or an event was lost or answered twice.
        """
        print_ = _printer(console)
        print_(
            f"Simulated card payments, some of them fraud: {self._history:,} from the past, then "
            f"{self._rate:,.0f} messages a second as they happen.\nFor each the pipeline keeps "
            f"{len(self._pipeline.columns)} features exact, predicts fraud, and learns when the "
            "verdict arrives.\n"
        )
        with compiling(console):
            warm(self._pipeline)
        bus = open_bus(self._url)
        bus.create_topics(dict.fromkeys(self._pipeline.inputs, 1))
        status = self._flow(bus, console, print_)
        if self._finished:
            print_(result(settle(bus, self._pipeline), self._crash, status))
        _show_predictions(bus, self._pipeline.topics.predictions, print_)
        self._explain(bus, status, print_)
        bus.close()
        if self._finished:
            print_(_what_next(command, self._directory if kept else None))
        return not self._finished

    def _flow(self, bus: Bus, console: Console, print_: Printer) -> Status:
        """The pipeline as `anabranch run --state` in a process of its own, and what feeds it."""
        path = self._directory / "state"
        with ExitStack() as stack:
            state = StateDirectory.open(path, self._pipeline, bus, say=print_)
            stack.enter_context(state)
            worker = LocalWorkers(self._worker_command(path), [0], environment=_none_of_ours())
            stack.enter_context(worker)
            counts = TopicCounts(self._pipeline, bus, shared_registry(worker.metrics_directory))
            watch = Watch(NAME, counts, console, line_every_s=5.0)
            run = Run(bus, self._pipeline.topics.predictions, state, worker, counts, print_)
            supervisor = Supervisor(
                worker, generation=state.generation, say=run.on_loss, on_restart=run.on_restart
            )
            with _listening(self._stop):
                thread = threading.Thread(target=self._conduct, args=(run,))
                thread.start()
                try:
                    with watch.shown():
                        supervisor.run(self._stop)
                except AnabranchError:
                    if not (self._stop.requested and self._crash and self._crash.going_on):
                        raise  # else Ctrl-C came together with the kill
                finally:
                    self._stop.requested = True
                    thread.join()
            if self._failure is not None:
                raise self._failure
            status = watch.summary(time.monotonic() - self._began)
            counts.close()
            return status

    def _worker_command(self, state: Path) -> list[str]:
        return [
            sys.executable, "-m", "anabranch", "run", NAME, "--bus", self._url,
            "--state", str(state), "--epoch", f"{round(self._epoch_s * 1000)}ms",
        ]  # fmt: skip

    @contextmanager
    def _simulator(self) -> Iterator[subprocess.Popen[bytes]]:
        """`anabranch simulate` as a process of its own, as it would be in earnest."""
        command = [
            sys.executable, "-m", "anabranch", "simulate", NAME, "--bus", self._url,
            "--events", str(self._events), "--history", str(self._history),
            "--rate", str(self._rate), "--drift-at", str(self._drift_at),
        ]  # fmt: skip
        for fault, share in FAULTS.items():
            command += [f"--{fault}", str(share)]
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                command, env=os.environ | _none_of_ours(), stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    def _conduct(self, run: Run) -> None:
        """Let traffic flow, kill the worker halfway, and stop all when everything is read."""
        crash = self._crash
        try:
            self._wait(run.counts.heard)
            self._began = time.monotonic()
            with self._simulator() as simulator:
                if crash is not None:
                    self._wait(partial(run.is_at, crash.at_event), simulator)
                    crash.happen(run)
                    self._wait(run.is_back, simulator)
                    crash.is_over(run)
                self._wait(lambda: simulator.poll() == 0 and run.counts.unread() == 0, simulator)
            self._finished = True
        except _Stopped:
            pass
        except Exception as error:  # for the thread that waits
            self._failure = error
        finally:
            self._stop.requested = True

    def _wait(
        self, condition: Callable[[], bool], simulator: subprocess.Popen[bytes] | None = None
    ) -> None:
        """Return when it is so.

        Raises:
            _Stopped: somebody wants the end before that.
            AnabranchError: the simulator failed.
        """
        while not condition():
            ended = None if simulator is None else simulator.poll()
            if self._stop.requested or ended in _INTERRUPTED:
                raise _Stopped
            if ended:
                said = self._log.read_text(errors="replace").strip().splitlines()
                reason = said[-1] if said else f"exit code {ended}"
                raise AnabranchError(f"the simulator failed: {reason}")
            time.sleep(_LOOK_EVERY_S)

    def _explain(self, bus: Bus, status: Status, print_: Printer) -> None:
        """What the warnings in the table mean."""
        if status.dead_letters:
            print_(
                "Dead letters: the simulator breaks or repeats one payment in a thousand on "
                "purpose. They are set aside with\ntheir reason on payments.dead-letters, and the "
                "stream goes on. For example:"
            )
            letters = last_messages(bus, self._pipeline.topics.dead_letters, 1000)
            for letter in one_per(letters, "reason"):
                print_(f"  {letter['reason']}: {letter['detail']}")
            print_("")
        if status.drift:
            topics = self._pipeline.topics
            changed_ms = event_time_ms(bus, topics.events, self._drift_at)
            signals = last_messages(bus, topics.drift, 1000)
            after = sum(signal["ts"] >= changed_ms for signal in signals)
            print_(
                f"Drift signals, on {topics.drift}: {len(signals) - after} before payment "
                f"{self._drift_at:,}, while the model was young,\nand {after} after it, since the "
                "simulated fraud moved to other merchants there. The model goes on learning.\n"
            )


class Run:
    """The run that goes on under the supervisor, as the one who conducts the show sees it."""

    def __init__(
        self,
        bus: Bus,
        predictions: str,
        state: StateDirectory,
        worker: LocalWorkers,
        counts: TopicCounts,
        print_: Printer,
    ) -> None:
        self.worker, self.counts, self.print = worker, counts, print_
        self._bus, self._state = bus, state
        self._predictions = predictions
        self._before: int | None = None  # predictions that the worker left which was lost

    def published(self) -> int:
        """Payments on their topic."""
        return sum(self._bus.end_offsets(f"{NAME}.events"))

    def is_at(self, event: int) -> bool:
        """Whether so many are published, and the worker has something to go on from."""
        return self.published() >= event and self._predicted() > 0 and self._state.generation() > 0

    def is_back(self) -> bool:
        """Whether there are more predictions than before the last restart, or none can come."""
        if self._before is None:
            return False
        return self._predicted() > self._before or self.counts.unread() == 0

    def on_loss(self, line: str) -> None:
        """A worker was lost; ``line`` is what the supervisor says of it."""
        self.counts.lose()
        self.print(line)

    def on_restart(self) -> None:
        """Another one will be started now."""
        self.counts.go_on(self._state.path / "recovery")
        self._before = self._predicted()
        self.print(
            f"from there {self.counts.unread():,} messages are to be read, the first of them "
            "again; what they led to is published already, and is not published twice"
        )

    def _predicted(self) -> int:
        return sum(self._bus.end_offsets(self._predictions))


class Crash:
    """The one that is made on purpose, when event ``at_event`` is published.

    Attributes:
        latency: p50 / p99 of the live messages until then, for people.
        back_s: how long it took until there were predictions again; 0 before that.
        going_on: from the kill until then.
    """

    def __init__(self, at_event: int) -> None:
        self.at_event = at_event
        self.latency = ""
        self.back_s = 0.0
        self.going_on = False

    def happen(self, run: Run) -> None:
        """Kill the worker."""
        self.latency = latencies(live_only(read_status(run.counts).latency))
        (worker,) = run.worker.workers
        run.print(
            f"kill −9 of the worker (process {worker.pid}), in the middle of it all: "
            f"{run.published():,} payments are published, and more keep coming"
        )
        self._since, self.going_on = time.monotonic(), True
        worker.kill()

    def is_over(self, run: Run) -> None:
        """There are predictions again."""
        self.back_s, self.going_on = time.monotonic() - self._since, False
        run.print(
            f"the next worker has taken over: new predictions {self.back_s:.1f} s after the kill"
        )


class _Stopped(Exception):
    """The show ends early."""


@contextmanager
def _listening(stop: StopRequest) -> Iterator[None]:
    """Let ``stop`` take the stop signals while the block runs."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop.install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _none_of_ours() -> dict[str, str]:
    """The user's environment variables for our options, all empty: they are meant for others."""
    return {name: "" for name in os.environ if name.startswith("ANABRANCH_")}


def result(settled: Settled, crash: Crash | None, status: Status) -> str:
    """What became of all events, in plain words.

    Raises:
        AnabranchError: not what was promised.
    """
    if not settled.once:
        first = "" if settled.first is None else f", the first at partition, offset {settled.first}"
        raise AnabranchError(
            f"of {settled.events:,} events {settled.lost:,} have no prediction or dead letter, "
            f"{settled.twice:,} have more than one{first}; {settled.unknown:,} are about no event: "
            "this must never be; run it with --keep DIR, and report it with that directory"
        )
    killed = "" if crash is None else ", and the worker killed in the middle"
    lines = [
        f"{settled.events:,} events{killed}: every event has exactly one prediction or dead letter",
        f"({settled.predictions:,} + {settled.dead_letters:,}); 0 twice, 0 lost",
    ]
    if crash is None:
        return f"{lines[0]}\n{lines[1]}. Counted on the topics, by where each event stands.\n"
    after = latencies(live_only(status.latency))
    return (
        f"{lines[0]}\n{lines[1]}; back after {crash.back_s:.1f} s. "
        "Counted on the topics, by where each event stands.\n"
        f"Message to prediction, p50 / p99, was {crash.latency} until the kill; payments that came "
        f"while no worker\nran had to wait for the next one, which makes it {after} in all.\n"
    )


def _printer(console: Console) -> Printer:
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)


def _show_predictions(bus: Bus, topic: str, print_: Printer) -> None:
    """Two ordinary predictions, and the most suspicious of the last thousand."""
    found = last_messages(bus, topic, 1000)
    if not found:
        return
    suspect = max(found, key=lambda each: each["score"] or 0.0)
    print_(f"Predictions, from {topic} (the last two, and the likeliest fraud of the last 1,000):")
    for each in [*found[-2:], suspect]:
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
        "or one of River's data sets, to its end:",
        f"  {command} publish --dataset Phishing",
        f"  {command} run dataset:Phishing --until-end",
    ]
    if kept is not None:
        url = f"sqlite:{kept / 'bus'}"
        lines += [
            "and look at what this demo left:",
            f"  {command} topics --bus {url}",
            f"  {command} consume payments.drift --no-follow --pretty --bus {url}",
            f"  {command} state {kept / 'state'}",
        ]
    return "\n".join(lines)
