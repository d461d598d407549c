"""Displays progress on stderr: bars on a terminal, else a line every ten seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TimeRemainingColumn

from anabranch.dataflows.telemetry.console import LiteralColumn
from anabranch.dataflows.telemetry.logs import stderr_console

_LINE_EVERY_S = 10.0


@contextmanager
def in_background(display: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run ``display`` in a thread during the ``with`` block, which sets its event at the end."""
    done = threading.Event()
    thread = threading.Thread(target=display, args=(done,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def progress_display() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield a callback that takes a task's name, the units done, and their total or None."""
    console = stderr_console()
    show = _bars if console.is_terminal else _lines
    with show(console) as on_progress:
        yield on_progress


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    columns = (LiteralColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as progress:

        def on_progress(task: str, done: int, total: int | None) -> None:
            if task not in tasks:
                tasks[task] = progress.add_task(task)
            progress.update(tasks[task], completed=done, total=total)

        yield on_progress


@contextmanager
def _lines(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    due = time.monotonic() + _LINE_EVERY_S

    def on_progress(task: str, done: int, total: int | None) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _LINE_EVERY_S
            share = f" {done / total:.0%}" if total else ""
            console.print(f"{task}{share}", highlight=False)

    yield on_progress
