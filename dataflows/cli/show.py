"""What `anabranch demo` does: simulator, pipeline, live table, and what to make of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from dataflows.bus import Bus, open_bus
from dataflows.cli.live import Watch, compiling
from dataflows.cli.samples import event_time_ms, last_messages, one_per
from dataflows.intake import IntakeOptions
from dataflows.load import load_pipeline
from dataflows.metrics import WorkerMetrics
from dataflows.status import Status, read_status
from dataflows.warmup import warm
from dataflows.worker import run_worker, stop_on_signals
from state.errors import AnabranchError

NAME = "payments"
MESSAGES_PER_EVENT = 1.95  # almost every payment gets a verdict
DRIFT_AT = 0.6  # of all payments
FAULTS = {"malformed": 0.001, "duplicates": 0.001, "out-of-order": 0.05}
_LOOK_EVERY_S = 0.1

Printer = Callable[[str], None]


class Show:
    """One run of the demo in ``directory``: a history, then ``seconds`` of live traffic."""

    def __init__(self, directory: Path, *, seconds: float, rate: float, history: int) -> None:
        self._url = f"sqlite:{directory / 'bus'}"
        self._log = directory / "simulator.log"
        self._rate = rate
        self._history = history
        self._events = history + round(seconds * rate / MESSAGES_PER_EVENT)
        self._drift_at = round(self._events * DRIFT_AT)
        self._pipeline = load_pipeline(NAME)
        self._options = IntakeOptions()
        self._finished = False

    def run(self, console: Console, *, command: str, kept: bool) -> bool:
        """Run, show, and explain on ``console``; true if Ctrl-C ended it early.

        ``command`` is how the user calls this program; ``kept``: the topics will still be there.

        Raises:
            AnabranchError: the simulator failed.
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
        status = self._flow(bus, console)
        _show_predictions(bus, self._pipeline.topics.predictions, print_)
        self._explain(bus, status, print_)
        bus.close()
        if self._finished:
            print_(_what_next(command, self._url if kept else None))
        return not self._finished

    def _flow(self, bus: Bus, console: Console) -> Status:
        metrics = WorkerMetrics(NAME)
        watch = Watch(NAME, metrics.registry, console, line_every_s=5.0)
        started = time.monotonic()
        with stop_on_signals(self._options), self._simulator() as simulator:
            thread = threading.Thread(target=self._stop_at_end, args=(simulator, bus, metrics))
            thread.start()
            try:
                with watch.shown():
                    run_worker(self._pipeline, bus, self._options, metrics=metrics)
            finally:
                self._options.stop.set()
                thread.join()
        return watch.summary(time.monotonic() - started)

    @contextmanager
    def _simulator(self) -> Iterator[subprocess.Popen[bytes]]:
        """`anabranch simulate` as a process of its own, as it would be in earnest."""
        command = [
            sys.executable, "-m", "dataflows.cli", "simulate", NAME, "--bus", self._url,
            "--events", str(self._events), "--history", str(self._history),
            "--rate", str(self._rate), "--drift-at", str(self._drift_at),
        ]  # fmt: skip
        for fault, share in FAULTS.items():
            command += [f"--{fault}", str(share)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ANABRANCH_")}
        with self._log.open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    def _stop_at_end(
        self, simulator: subprocess.Popen[bytes], bus: Bus, metrics: WorkerMetrics
    ) -> None:
        """Stop the flow when the simulator is done and all that it published was read."""
        stop = self._options.stop
        while simulator.poll() is None:
            if stop.wait(_LOOK_EVERY_S):
                return
        if simulator.returncode != 0:
            said = self._log.read_text(errors="replace").strip().splitlines()
            reason = said[-1] if said else f"exit code {simulator.returncode}"
            self._options.failure = AnabranchError(f"the simulator failed: {reason}")
            stop.set()
            return
        published = sum(sum(bus.end_offsets(topic)) for topic in self._pipeline.inputs)
        while _read(metrics) < published:
            if stop.wait(_LOOK_EVERY_S):
                return
        self._finished = True
        stop.set()

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


def _printer(console: Console) -> Printer:
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)


def _read(metrics: WorkerMetrics) -> float:
    status = read_status(metrics.registry)
    return status.events + status.labels


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


def _what_next(command: str, kept_url: str | None) -> str:
    lines = [
        "Try next, in three terminals:",
        f"  {command} simulate payments --rate 1000",
        f"  {command} run payments",
        f"  {command} consume payments.predictions",
        "or one of River's data sets, to its end:",
        f"  {command} publish --dataset Phishing",
        f"  {command} run dataset:Phishing --until-end",
    ]
    if kept_url is not None:
        lines += [
            "and look at what this demo left:",
            f"  {command} topics --bus {kept_url}",
            f"  {command} consume payments.drift --no-follow --pretty --bus {kept_url}",
        ]
    return "\n".join(lines)
