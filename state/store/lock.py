"""One run per state directory: who holds it, and whose workers are still in it.

Two files in the directory are locked with ``flock``, which the kernel lets go of when a process
ends, however it ends::

    LOCK      exclusive: the launcher, whose process id is written into it
    WORKERS   shared: every worker that a launcher has started

A launcher may be killed while its workers wind down. So the next one, holding LOCK, waits until
nobody holds WORKERS. A worker takes WORKERS first and then looks whose id is in LOCK: either the
next launcher sees it, or it sees the next launcher.

The files stay: removing a locked file would let two runs each lock one of their own.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from anabranch.state.errors import StateError

_log = logging.getLogger("anabranch.state")

LAUNCHER, WORKERS = "LOCK", "WORKERS"
PATIENCE_S = 60.0

_POLL_S = 0.02
_ASKED_S = 0.2  # `holder` has it for a moment
_ID_BYTES = 32
_TAKEN = {errno.EAGAIN, errno.EACCES}


@contextmanager
def hold(
    directory: Path,
    *,
    patience_s: float = PATIENCE_S,
    say: Callable[[str], None] = _log.info,
) -> Iterator[None]:
    """Be the one run of ``directory``, which is made if it is not there, while the block runs.

    Workers of an earlier run that was killed get ``patience_s`` seconds to end; ``say`` is told so.

    Raises:
        StateError: another run holds it, earlier workers do not end, or it can't be made or
            written.
    """
    lock = _LockFile(directory, LAUNCHER)
    try:
        if not lock.take(fcntl.LOCK_EX, patience_s=_ASKED_S):
            owner = lock.read_id()
            who = "another run" if owner is None else f"a run that is going on (process {owner})"
            raise StateError(
                f"state directory {directory} belongs to {who}: end that one first, or name "
                "another directory with --state"
            )
        lock.write_id()
        _wait_for_workers(directory, patience_s, say)
        yield
        lock.clear_id()
    finally:
        lock.close()


@contextmanager
def join(directory: Path) -> Iterator[None]:
    """Be a worker of the run that holds ``directory``, while the block runs.

    That run is this process's parent (or this process itself): a worker that comes when its
    launcher has gone must not work beside those of the next one.

    Raises:
        StateError: that run does not hold ``directory`` any more, or it can't be written.
    """
    lock = _LockFile(directory, WORKERS)
    try:
        # Only a launcher that looks for workers holds it otherwise, and then only for a moment.
        taken = lock.take(fcntl.LOCK_SH, patience_s=1.0)
        if not taken or holder(directory) not in (os.getppid(), os.getpid()):
            raise StateError(
                f"the run that this worker (process {os.getpid()}) belongs to does not hold state "
                f"directory {directory} any more: start it again"
            )
        yield
    finally:
        lock.close()


def holder(directory: Path) -> int | None:
    """The process id of the run that holds ``directory``; None without one. Changes nothing."""
    try:
        descriptor = os.open(directory / LAUNCHER, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read_id(descriptor)
    finally:
        os.close(descriptor)
    return None


def _wait_for_workers(directory: Path, patience_s: float, say: Callable[[str], None]) -> None:
    """Return when no worker of an earlier run is left; the caller holds LOCK."""
    lock = _LockFile(directory, WORKERS)
    try:
        if lock.take(fcntl.LOCK_EX):
            return
        say(
            f"workers of an earlier run are still ending in {directory}: waiting for them, up to "
            f"{patience_s:g} s"
        )
        if not lock.take(fcntl.LOCK_EX, patience_s=patience_s):
            raise StateError(
                f"workers of an earlier run are still in state directory {directory} after "
                f"{patience_s:g} s: end them (`fuser {directory / WORKERS}` names them), then "
                "start again"
            )
    finally:
        lock.close()


class _LockFile:
    """A file of ``directory`` that is locked while it is open, by this process alone.

    Programs that it executes don't inherit it (Python's descriptors close on exec), and a fork
    closes its copy: a lock is let go of when all copies of its descriptor are closed.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StateError(_unusable(directory, error)) from None
        _OPEN.add(self)

    def take(self, kind: int, patience_s: float = 0.0) -> bool:
        """Lock the file; False when somebody else still has it after so many seconds."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise StateError(_unusable(self._path.parent, error)) from None
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)

    def read_id(self) -> int | None:
        """The process id in it."""
        return _read_id(self._descriptor)

    def write_id(self) -> None:
        """Write the id of this process into it, in place of what is there."""
        line = f"{os.getpid()}\n".encode()
        try:
            os.pwrite(self._descriptor, line, 0)
            os.ftruncate(self._descriptor, len(line))
        except OSError as error:
            raise StateError(_unusable(self._path.parent, error)) from None

    def clear_id(self) -> None:
        """Leave it empty."""
        os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


_OPEN: weakref.WeakSet[_LockFile] = weakref.WeakSet()


def _close_in_fork() -> None:
    for lock in list(_OPEN):
        lock.close()


os.register_at_fork(after_in_child=_close_in_fork)


def _read_id(descriptor: int) -> int | None:
    text = os.pread(descriptor, _ID_BYTES, 0).split(b"\n")[0]
    return int(text) if text.isdigit() else None


def _unusable(directory: Path, error: OSError) -> str:
    reason = "a file of that name is there" if error.errno == errno.EEXIST else error.strerror
    return (
        f"state directory {directory} can't be used ({reason}): make it writable, or name another "
        "with --state"
    )
