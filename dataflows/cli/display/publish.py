"""Publishes batches for `publish` and `simulate`: progress on stderr, a summary on stdout.

Ctrl-C and SIGTERM take effect between two appends, so that the summary counts what is stored.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.messages.time_unit_check import TimeUnitCheck
from anabranch.dataflows.telemetry.console import LiteralColumn, echo
from anabranch.dataflows.telemetry.logs import stderr_console
from anabranch.state.errors import InputError

if TYPE_CHECKING:
    from anabranch.producers.batch import Batch, Kind
    from anabranch.producers.publish import PublishCounts

LOG = logging.getLogger("anabranch.bus")
_LINE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Pacing:
    """How fast to publish: ``rate`` messages/s, ``speedup`` × event time, or at full speed."""

    rate: float | None = None
    speedup: float | None = None


class Stop:
    """Defers Ctrl-C and SIGTERM: `check` raises the `KeyboardInterrupt` between two appends."""

    def __init__(self) -> None:
        self._requested = threading.Event()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle signals while the ``with`` block runs; a second Ctrl-C interrupts at once."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._request) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has arrived."""
        if self._requested.is_set():
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Sleep; a signal ends it early with KeyboardInterrupt."""
        self._requested.wait(seconds)
        self.check()

    def _request(self, number: int, _frame: FrameType | None) -> None:
        if self._requested.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested.set()


class Publishing:
    """Publishes one or more series of batches to a pipeline's topics, with one progress bar.

    ``total`` is the expected number of messages, or of events with ``count_events``; None: unknown.
    What ``checks`` have found, and ``notes``, is told at the end.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Mapping[Kind, str],
        *,
        total: int | None,
        count_events: bool = False,
        checks: Sequence[TimeUnitCheck] = (),
        notes: Sequence[str] = (),
    ) -> None:
        from anabranch.producers.publish import PublishCounts

        self._bus = bus
        self._topics = topics
        self._total = total
        self._count_events = count_events
        self._checks = checks
        self._notes = notes
        self._done = PublishCounts()
        self._stop = Stop()
        self._started = time.monotonic()

    @contextmanager
    def progress(self) -> Iterator[Callable[[Iterator[Batch], Pacing], None]]:
        """Display progress while the ``with`` block runs, then print the summary.

        Yields a function that publishes batches at a pace.

        Raises:
            typer.Exit: with 130, after the summary, if interrupted.
        """
        from anabranch.producers.publish import ahead_text

        console = stderr_console()
        show = self._bar if console.is_terminal else self._lines
        try:
            with self._stop.on_signals(), show(console) as update:
                yield lambda batches, pacing: self._send(batches, pacing, update)
        except InputError as error:
            if not self._done.messages:
                raise
            raise InputError(f"{error} ({self.summary()} before that)") from None
        echo(self.summary())
        for note in self._notes:
            echo(note)
        if self._done.first_ahead is not None:
            LOG.warning(ahead_text(self._done.ahead, self._done.first_ahead))
        for check in self._checks:
            if check.advice is not None:
                echo(check.advice)
        if self._done.interrupted:
            raise typer.Exit(130)

    def summary(self) -> str:
        """One line: the number of messages by topic, and the duration."""
        parts = [f"{self._done.events:,} events to {self._topics['events']}"]
        if "labels" in self._topics:
            parts.append(f"{self._done.labels:,} labels to {self._topics['labels']}")
        seconds = time.monotonic() - self._started
        line = f"published {' and '.join(parts)} in {seconds:.{1 if seconds >= 1 else 2}f} s"
        return f"interrupted: {line}; all of them are stored" if self._done.interrupted else line

    def _send(
        self, batches: Iterator[Batch], pacing: Pacing, update: Callable[[PublishCounts], None]
    ) -> None:
        from anabranch.producers.publish import publish

        if self._done.interrupted:
            return
        before = replace(self._done)

        def on_progress(counts: PublishCounts) -> None:
            self._done.events = before.events + counts.events
            self._done.labels = before.labels + counts.labels
            update(self._done)
            if not counts.interrupted:
                self._stop.check()

        try:
            counts = publish(
                self._bus,
                batches,
                topics=self._topics,
                rate=pacing.rate,
                speedup=pacing.speedup,
                on_progress=on_progress,
                sleep=self._stop.sleep,
            )
        except KeyboardInterrupt:  # after the last message
            self._done.interrupted = True
        else:
            self._done.interrupted = counts.interrupted
            self._done.ahead += counts.ahead
            self._done.first_ahead = self._done.first_ahead or counts.first_ahead

    def _counted(self, counts: PublishCounts) -> int:
        return counts.events if self._count_events else counts.messages

    @contextmanager
    def _bar(self, console: Console) -> Iterator[Callable[[PublishCounts], None]]:
        columns = (
            (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            if self._total is not None
            else (SpinnerColumn(), TextColumn("{task.completed:,}"), TimeElapsedColumn())
        )
        title = LiteralColumn("publishing to " + self._topics["events"].removesuffix(".events"))
        with Progress(title, *columns, console=console, transient=True) as progress:
            task = progress.add_task("publish", total=self._total)
            yield lambda counts: progress.update(task, completed=self._counted(counts))

    @contextmanager
    def _lines(self, console: Console) -> Iterator[Callable[[PublishCounts], None]]:
        due = time.monotonic() + _LINE_EVERY_S

        def update(counts: PublishCounts) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + _LINE_EVERY_S
                of = "" if self._total is None else f" of {self._total:,}"
                console.print(f"published {self._counted(counts):,}{of} so far", highlight=False)

        yield update
