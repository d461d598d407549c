"""Atomic writes of small files, and checks of free disk space."""

from __future__ import annotations

import os
from pathlib import Path

from anabranch.state.errors import StateError
from anabranch.state.store.permissions import make_private


def atomic_write(path: Path, content: bytes) -> None:
    """Replace the content of ``path``; after a crash it has the old content or the new.

    Raises:
        StateError: it can't be written; the old content is unchanged.
    """
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            make_private(new)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise StateError(f"{path} can't be written: {error.strerror}") from None


def sync_directory(directory: Path) -> None:
    """Make files created, renamed or removed in a directory survive a power failure."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_free_space(directory: Path, min_bytes: int) -> None:
    """Raise if the file system of ``directory`` has less than ``min_bytes`` free.

    Raises:
        StateError: it has less, or the directory can't be read.
    """
    try:
        disk = os.statvfs(directory)
    except OSError as error:
        raise StateError(f"{directory} can't be read: {error.strerror}") from None
    blocks = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
    free = blocks * disk.f_frsize
    if disk.f_blocks and free < min_bytes:  # some file systems report no blocks at all
        raise StateError(
            f"the state at {directory} can't be written, the disk is full: {free:,} bytes are "
            "left; free some space there"
        )
