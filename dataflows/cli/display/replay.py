"""Runs a replay with progress on stderr and a summary on stdout."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.cli.display.live_status import compiling
from anabranch.dataflows.cli.display.progress import in_background
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.time_unit_check import unit_advice
from anabranch.dataflows.replay.replay import (
    InterruptedReplayError,
    ReplayReport,
    ReplaySettings,
    replay,
)
from anabranch.dataflows.runtime.supervised_worker import EXIT_INTERRUPTED
from anabranch.dataflows.runtime.supervisor import StopRequest
from anabranch.dataflows.steps.warmup import warm
from anabranch.dataflows.telemetry.console import LiteralColumn, echo
from anabranch.dataflows.telemetry.logs import stderr_console
from anabranch.dataflows.telemetry.status import quality_line, read_status, unjoined_text
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics

_LINE_EVERY_S = 10.0
_REFRESH_S = 0.2


def run_replay(pipeline: Pipeline, settings: ReplaySettings, bus: Bus | None, name: str) -> None:
    """Replay with a progress bar (without a terminal, a line now and then), and print a summary.

    ``name`` is the pipeline as the user typed it.

    Raises:
        typer.Exit: with 130 when interrupted.
        AnabranchError: the replay is impossible; the message says why.
    """
    console = stderr_console()
    report, metrics = ReplayReport(), WorkerMetrics(pipeline.name)
    interrupted = threading.Event()
    StopRequest(interrupted.set, lambda: _exit_at_once(console)).install()
    with compiling(console):
        warm(pipeline)
    started = time.monotonic()
    try:
        with in_background(partial(_bar if console.is_terminal else _lines, console, report)):
            replay(pipeline, settings, bus, stop=interrupted, metrics=metrics, report=report)
    except InterruptedReplayError:
        echo(f"interrupted after {_messages(report)}: nothing was written")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    status = read_status(metrics.registry)
    for line in summary(settings, report, status.quality, time.monotonic() - started, name):
        echo(line)
    unjoined = unjoined_text(status)
    if unjoined is not None:
        echo(unjoined)
    for topic, unit in status.units.items():
        echo(unit_advice(topic, unit))


def summary(
    settings: ReplaySettings,
    report: ReplayReport,
    quality: dict[str, float],
    seconds: float,
    name: str,
) -> Iterator[str]:
    """The results of a replay, line by line."""
    rate = (report.events + report.labels) / max(seconds, 1e-9)
    duration = f"{seconds:.{1 if seconds >= 1 else 2}f} s"
    yield f"replayed {_messages(report)} in {duration} ({rate:,.0f}/s)"
    yield f"{settings.rows}: {report.rows:,} rows, {report.labelled:,} with a label"
    if quality:
        yield "quality: " + quality_line(quality)
    dead = report.dead_letters
    if dead:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dead.most_common())
        where = settings.dead_letters or "use --dead-letters FILE to see them"
        yield f"{dead.total():,} dead letters ({reasons}): {where}"
    if dead["late"] > report.rows:
        what = settings.events or "them"
        yield f"most events were late: sort {what} by time, or raise allowed_lateness"
    if settings.state is not None:
        offsets = ", ".join(
            f"{at.topic} {at.partition} at {offset:,}"
            for at, offset in sorted(report.offsets.items())
        )
        yield f"{settings.state}: a run continues from {offsets}"
        yield f"next: anabranch run {name} --state {settings.state}"


def _messages(report: ReplayReport) -> str:
    return f"{report.events:,} events and {report.labels:,} labels"


def _bar(console: Console, report: ReplayReport, done: threading.Event) -> None:
    columns = (
        LiteralColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("scanning the input", total=None)
        while not done.wait(_REFRESH_S):
            if report.total:
                read = report.events + report.labels
                phase = "replaying" if read < report.total else "writing the rows"
                progress.update(task, description=phase, total=report.total, completed=read)


def _lines(console: Console, report: ReplayReport, done: threading.Event) -> None:
    first: tuple[float, int] | None = None
    while not done.wait(_LINE_EVERY_S):
        read, now = report.events + report.labels, time.monotonic()
        first = first or (now, read)
        rate = (read - first[1]) / (now - first[0]) if now > first[0] else 0.0
        left = f", {(report.total - read) / rate:,.0f} s left" if rate else ""
        line = f"replayed {read:,} of {report.total:,} messages{left}"
        console.print(line, highlight=False, soft_wrap=True)


def _exit_at_once(console: Console) -> None:
    console.show_cursor()
    console.print("stopped: the next replay removes the unfinished files", soft_wrap=True)
    os._exit(EXIT_INTERRUPTED)
