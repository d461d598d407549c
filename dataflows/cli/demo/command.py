"""``anabranch demo``: the main job in under a minute, with nothing to set up."""

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
from rich.console import Console

from anabranch.state.errors import InputError


def demo(
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds", min=1, max=600, metavar="N", help="How long live traffic goes on."
        ),
    ] = 25.0,
    rate: Annotated[
        float, typer.Option("--rate", min=100, metavar="N", help="Live messages a second.")
    ] = 6000.0,
    history: Annotated[
        int, typer.Option("--history", min=0, metavar="N", help="Payments that happened before.")
    ] = 20_000,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            metavar="DIR",
            help="Keep the topics and the state in this directory, to look at them later.",
        ),
    ] = None,
    no_crash: Annotated[
        bool, typer.Option("--no-crash", help="Let the worker live: no kill −9 halfway.")
    ] = False,
) -> None:
    """Simulated payments, exact features, a model that learns, a crash: live, in under a minute.

    Halfway the worker is killed, and the next one goes on from its state. At the end all events are
    counted: each must have exactly one prediction or dead letter.

    Everything happens in a temporary directory, on the embedded bus; nothing is left behind.

    Examples:

        anabranch demo

        anabranch demo --keep demo-data
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up, as after Ctrl-C
    from anabranch.dataflows.cli.demo.demo_run import Show

    with _directory(keep) as directory:
        show = Show(directory, seconds=seconds, rate=rate, history=history, crash=not no_crash)
        interrupted = show.run(Console(), command=_command(), kept=keep is not None)
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
            raise InputError(f"{keep} is not empty: name a new directory to keep the topics in")
    except OSError as error:
        raise InputError(f"can't keep topics in {keep}: {error.strerror}") from None
    yield keep


def _command() -> str:
    """What to type to get this program: its name where that is on the path, else where it is."""
    started = Path(sys.argv[0])
    if started.name != "anabranch":
        return "python -m anabranch"
    found = shutil.which("anabranch")
    same = found is not None and started.exists() and Path(found).samefile(started)
    return "anabranch" if same else str(started)
