"""A small file system in memory that a test can fill up or make read-only; needs root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(disk: Path, megabytes: int) -> Iterator[Path]:
    """Mount ``disk`` during the ``with`` block; skips the test if that is not possible."""
    disk.mkdir()
    options = f"size={megabytes}m"
    try:
        _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk can't be mounted here: {error}")
    try:
        yield disk
    finally:
        _run("umount", "-l", str(disk))


def make_read_only(disk: Path) -> None:
    """Make the file system read-only, also for root."""
    _run("mount", "-o", "remount,ro", str(disk))


def make_writable(disk: Path) -> None:
    """Undo `make_read_only`."""
    _run("mount", "-o", "remount,rw", str(disk))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
