"""Runs the console command: in this process where that is fast, else in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from anabranch.dataflows.cli import main
from tests.support.waiting import GENEROUS_S


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Call = Callable[..., Done]


def caller(directory: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    """A function that runs ``anabranch`` with arguments, in this process and in ``directory``.

    Its keyword arguments are environment variables. Signal handlers are restored afterwards.
    """

    def call(*arguments: object, **environment: str) -> Done:
        numbers = (signal.SIGINT, signal.SIGTERM)
        handlers = {number: signal.getsignal(number) for number in numbers}
        here, umask = Path.cwd(), os.umask(0o022)
        os.chdir(directory)
        capfd.readouterr()
        try:
            with (
                patch.object(sys, "argv", ["anabranch", *map(str, arguments)]),
                patch.dict(os.environ, {"COLUMNS": "100", **environment}),
                pytest.raises(SystemExit) as ended,
            ):
                main()
        finally:
            os.chdir(here)
            os.umask(umask)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capfd.readouterr()
        code = ended.value.code
        return Done(code if isinstance(code, int) else int(code is not None), out, err)

    return call


class Command:
    """``anabranch`` in a process of its own; a context manager that kills it in the end."""

    def __init__(self, directory: Path, *arguments: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "anabranch", *map(str, arguments)],
            cwd=directory,
            env={**os.environ, "COLUMNS": "100", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._read: list[str] = []

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait_for_output(self, text: str) -> None:
        """Return once ``text`` has been printed on stdout.

        Raises:
            AssertionError: the command has ended without it.
        """
        assert self.process.stdout is not None
        for line in iter(self.process.stdout.readline, ""):
            self._read.append(line)
            if text in line:
                return
        raise AssertionError(f"{text!r} was not printed: {''.join(self._read)}")

    def done(self, limit_s: float = 5 * GENEROUS_S) -> Done:
        """Wait for its end; a command may compile kernels first, which takes minutes under load."""
        if not self._read:
            out, err = self.process.communicate(timeout=limit_s)
            return Done(self.process.returncode, out, err)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        out = "".join(self._read) + self.process.stdout.read()
        err = self.process.stderr.read()
        return Done(self.process.wait(limit_s), out, err)


def run_command(directory: Path, *arguments: object, **environment: str) -> Done:
    """Run ``anabranch`` in a process of its own, to its end."""
    with Command(directory, *arguments, **environment) as command:
        return command.done()
