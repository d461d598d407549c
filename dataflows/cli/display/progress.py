"""Shows how far a long check is: a bar on a terminal, else a line every ten seconds; on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from anabranch.dataflows.telemetry.logs import stderr_console

_LINE_EVERY_S = 10.0


@contextmanager
def watching() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields what is to be told of progress: what is done, how much, and of how many."""
    console = stderr_console()
    show = _bars if console.is_terminal else _lines
    with show(console) as tell:
        yield tell


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as progress:

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)

        yield tell


@contextmanager
def _lines(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    due = time.monotonic() + _LINE_EVERY_S

    def tell(what: str, done: int, total: int | None) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _LINE_EVERY_S
            share = f" {done / total:.0%}" if total else ""
            console.print(f"{what}{share}", highlight=False)

    yield tell
