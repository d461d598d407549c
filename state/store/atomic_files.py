"""Small files that are either wholly there or not at all, and the room that a disk has left."""

from __future__ import annotations

import os
from pathlib import Path

from anabranch.state.errors import StateError


def write_whole(path: Path, content: bytes) -> None:
    """Write ``path`` by way of a second file, so that a crash leaves the old content or the new.

    Raises:
        StateError: the disk does not take it; what was there is as it was.
    """
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise StateError(f"{path} can't be written: {error.strerror}") from None


def sync_directory(directory: Path) -> None:
    """Make sure that what was created, renamed or removed in a directory survives a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_room(directory: Path, least: int) -> None:
    """Raise if the disk that holds ``directory`` has not ``least`` bytes left.

    Raises:
        StateError: it has not.
    """
    try:
        disk = os.statvfs(directory)
    except OSError as error:
        raise StateError(f"{directory} can't be read: {error.strerror}") from None
    blocks = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
    room = blocks * disk.f_frsize
    if disk.f_blocks and room < least:  # without blocks, the file system does not tell
        raise StateError(
            f"the state at {directory} can't be written, the disk is full: {room:,} bytes are "
            "left; make room there"
        )
