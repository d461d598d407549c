"""``anabranch demo``: shows a pipeline at work in under a minute, without any setup."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from anabranch.dataflows.telemetry.console import TextConsole
from anabranch.state.errors import InputError


def demo(
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds", min=1, max=600, metavar="N", help="Duration of the live traffic."
        ),
    ] = 25.0,
    rate: Annotated[
        float,
        typer.Option("--rate", min=100, metavar="N", help="Messages per second of live traffic."),
    ] = 6000.0,
    history: Annotated[
        int,
        typer.Option(
            "--history", min=0, metavar="N", help="Number of past payments to process first."
        ),
    ] = 20_000,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            metavar="DIR",
            help="Keep topics and state in this directory for inspection; it must be empty.",
        ),
    ] = None,
    no_crash: Annotated[
        bool, typer.Option("--no-crash", help="Don't kill the worker halfway.")
    ] = False,
) -> None:
    """Run a fraud pipeline on simulated payments, with a crash halfway, in under a minute.

    Halfway the worker is killed with SIGKILL, and a new one resumes from its state. At the end the
    demo verifies that every event has exactly one prediction or dead letter.

    It uses the embedded bus in a temporary directory, which is removed at the end.

    Examples:

        anabranch demo

        anabranch demo --keep demo-data
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up, as after Ctrl-C
    from anabranch.dataflows.cli.demo.demo_run import Demo

    with _directory(keep) as directory:
        run = Demo(directory, seconds=seconds, rate=rate, history=history, crash=not no_crash)
        interrupted = run.run(TextConsole(), command=_command(), kept=keep is not None)
    if interrupted:
        raise typer.Exit(130)


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="anabranch-demo-") as name:
            yield Path(name)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise InputError(f"{keep} is not empty: name a new directory with --keep")
    except OSError as error:
        raise InputError(f"{keep} can't be created: {error.strerror}") from None
    yield keep


def _command() -> str:
    """How the user can call this program: by its name if that is on the path, else by its path."""
    started = Path(sys.argv[0])
    if started.name != "anabranch":
        return "python -m anabranch"
    executable = shutil.which("anabranch")
    same = executable is not None and started.exists() and Path(executable).samefile(started)
    return "anabranch" if same else str(started)
