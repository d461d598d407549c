"""A lock on a file, so that one export at a time writes to a directory or database."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from anabranch.dataflows.export.target import ExportError, in_use

_ID_BYTES = 32


class FileLock:
    """Locks ``path``, which is created, until `close` or the end of the process.

    Raises:
        ExportError: another process has locked it, or it can't be written.
    """

    def __init__(self, path: Path, target: str) -> None:
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ExportError(f"{path} can't be written: {error.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._descriptor, _ID_BYTES, 0).split(b"\n")[0].decode()
            self.close()
            raise in_use(target, f"process {owner}" if owner.isdigit() else "") from None
        line = f"{os.getpid()}\n".encode()
        os.pwrite(self._descriptor, line, 0)
        os.ftruncate(self._descriptor, len(line))

    def close(self) -> None:
        """Release the lock. The file stays: another process may have opened it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
