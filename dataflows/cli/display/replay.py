"""Shows a replay while it goes on, and sums it up: progress on stderr, the summary on stdout."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from anabranch.dataflows.bus import Bus
from anabranch.dataflows.cli.display.live_status import compiling
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.replay.replay import (
    InterruptedReplayError,
    Replayed,
    ReplaySettings,
    replay,
)
from anabranch.dataflows.runtime.supervised_worker import EXIT_INTERRUPTED
from anabranch.dataflows.runtime.supervisor import StopRequest
from anabranch.dataflows.steps.warmup import warm
from anabranch.dataflows.telemetry.logs import stderr_console
from anabranch.dataflows.telemetry.status import quality_title, read_status
from anabranch.dataflows.telemetry.worker_metrics import WorkerMetrics

_LINE_EVERY_S = 10.0
_REFRESH_S = 0.2


def show(pipeline: Pipeline, settings: ReplaySettings, bus: Bus | None, name: str) -> None:
    """Replay with a progress bar (or a line now and then), then say what came of it.

    ``name`` is what the user calls the pipeline.

    Raises:
        typer.Exit: with 130 when it was interrupted.
        AnabranchError: what made it impossible.
    """
    console = stderr_console()
    found, metrics = Replayed(), WorkerMetrics(pipeline.name)
    asked = threading.Event()
    stop = StopRequest(asked.set, lambda: _end_at_once(console))
    stop.install()
    with compiling(console):
        warm(pipeline)
    began = time.monotonic()
    try:
        with _shown(console, found):
            replay(pipeline, settings, bus, stop=asked, metrics=metrics, told=found)
    except InterruptedReplayError:
        typer.echo(f"interrupted after {_messages(found)}: nothing was written")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    quality = read_status(metrics.registry).quality
    for line in summary(settings, found, quality, time.monotonic() - began, name):
        typer.echo(line)


def summary(
    settings: ReplaySettings, found: Replayed, quality: dict[str, float], seconds: float, name: str
) -> Iterator[str]:
    """What came of a replay, line by line."""
    rate = (found.events + found.labels) / max(seconds, 1e-9)
    shown = f"{seconds:.{1 if seconds >= 1 else 2}f} s"
    yield f"replayed {_messages(found)} in {shown} ({rate:,.0f}/s)"
    yield f"{settings.rows}: {found.rows:,} rows, {found.labelled:,} with a label"
    if quality:
        yield "quality: " + ", ".join(f"{quality_title(n)} {v:.4f}" for n, v in quality.items())
    if found.dead:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in found.dead.most_common())
        where = settings.dead_letters or "--dead-letters FILE writes them down"
        yield f"{found.dead.total():,} dead letters ({reasons}): {where}"
    if found.dead["late"] > found.rows:
        yield f"most events were late: sort {settings.events} by time, or raise allowed_lateness="
    if settings.state is not None:
        places = ", ".join(
            f"{at.topic} {at.partition} at {offset:,}"
            for at, offset in sorted(found.offsets.items())
        )
        yield f"{settings.state}: goes on from {places}"
        yield f"next: anabranch run {name} --state {settings.state}"


def _messages(found: Replayed) -> str:
    return f"{found.events:,} events and {found.labels:,} labels"


@contextmanager
def _shown(console: Console, found: Replayed) -> Iterator[None]:
    done = threading.Event()
    follow = _bar if console.is_terminal else _lines
    thread = threading.Thread(target=follow, args=(console, found, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _bar(console: Console, found: Replayed, done: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("looking through the input", total=None)
        while not done.wait(_REFRESH_S):
            if found.total:
                read = found.events + found.labels
                doing = "replaying" if read < found.total else "writing the rows"
                progress.update(task, description=doing, total=found.total, completed=read)


def _lines(console: Console, found: Replayed, done: threading.Event) -> None:
    began: tuple[float, int] | None = None
    while not done.wait(_LINE_EVERY_S):
        read, now = found.events + found.labels, time.monotonic()
        began = began or (now, read)
        rate = (read - began[1]) / (now - began[0]) if now > began[0] else 0.0
        left = f", {(found.total - read) / rate:,.0f} s left" if rate else ""
        line = f"replayed {read:,} of {found.total:,} messages{left}"
        console.print(line, highlight=False, soft_wrap=True)


def _end_at_once(console: Console) -> None:
    console.show_cursor()
    console.print("ended at once: what is half done is removed by the next replay", soft_wrap=True)
    os._exit(EXIT_INTERRUPTED)
