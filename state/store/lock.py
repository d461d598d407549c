"""Locks for one run per state directory: its launcher, and its workers.

Two files in the directory are locked with ``flock``, which the kernel releases when a process ends,
however it ends::

    LOCK      exclusive: the launcher, whose process id is written into it
    WORKERS   shared: every worker that a launcher has started

A launcher may be killed while its workers still shut down. So the next one, after locking LOCK,
waits until WORKERS is not locked. A worker locks WORKERS first and then checks whose id is in LOCK:
either the next launcher sees it, or it sees the next launcher.

The files are not removed: if a locked file were, two runs could each lock one of their own.
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
from anabranch.state.store.permissions import make_private_directory, umask

_log = logging.getLogger("anabranch.state")

LAUNCHER, WORKERS = "LOCK", "WORKERS"
LOCK_TIMEOUT_S = 60.0

_POLL_S = 0.02
_PROBED_S = 0.2  # `holder` locks it briefly
_ID_BYTES = 32
_LOCKED = {errno.EAGAIN, errno.EACCES}


@contextmanager
def hold(
    directory: Path,
    *,
    timeout_s: float = LOCK_TIMEOUT_S,
    say: Callable[[str], None] = _log.info,
) -> Iterator[None]:
    """Lock ``directory``, which is created if missing, for one run while the block runs.

    Workers of an earlier run that was killed get ``timeout_s`` seconds to end; ``say`` is called
    with a sentence about that.

    Raises:
        StateError: another run has locked it, earlier workers do not end, or it can't be written.
    """
    lock = _LockFile(directory, LAUNCHER)
    try:
        if not lock.acquire(fcntl.LOCK_EX, timeout_s=_PROBED_S):
            owner = lock.read_id()
            run = "another run" if owner is None else f"another run (process {owner})"
            raise StateError(
                f"state directory {directory} is used by {run}: stop that first, or name "
                "another directory with --state"
            )
        lock.write_id()
        _wait_for_workers(directory, timeout_s, say)
        yield
        lock.clear_id()
    finally:
        lock.close()


@contextmanager
def join(directory: Path) -> Iterator[None]:
    """Lock ``directory`` for a worker of the run that has locked it, while the block runs.

    The launcher of that run must be this process or its parent: a worker that starts after its
    launcher has ended must not work beside those of the next one.

    Raises:
        StateError: that run has not locked ``directory`` any more, or it can't be written.
    """
    lock = _LockFile(directory, WORKERS)
    try:
        # Otherwise only a launcher that checks for workers locks it, and only briefly.
        locked = lock.acquire(fcntl.LOCK_SH, timeout_s=1.0)
        if not locked or holder(directory) not in (os.getppid(), os.getpid()):
            raise StateError(
                f"the run of this worker (process {os.getpid()}) no longer has the lock of state "
                f"directory {directory}: start the run again"
            )
        yield
    finally:
        lock.close()


def holder(directory: Path) -> int | None:
    """The process id of the run that has locked ``directory``; None without one."""
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


def _wait_for_workers(directory: Path, timeout_s: float, say: Callable[[str], None]) -> None:
    """Return when no worker of an earlier run is left; the caller has locked LOCK."""
    lock = _LockFile(directory, WORKERS)
    try:
        if lock.acquire(fcntl.LOCK_EX):
            return
        say(
            f"workers of an earlier run are still ending in {directory}: waiting for them, up to "
            f"{timeout_s:g} s"
        )
        if not lock.acquire(fcntl.LOCK_EX, timeout_s=timeout_s):
            raise StateError(
                f"workers of an earlier run are still in state directory {directory} after "
                f"{timeout_s:g} s: end them (`fuser {directory / WORKERS}` names them), then "
                "start again"
            )
    finally:
        lock.close()


class _LockFile:
    """A file of ``directory`` that is locked while it is open, by this process alone.

    Executed programs don't inherit it (Python's descriptors close on exec), and a forked process
    closes its copy: a lock is released when all copies of its descriptor are closed.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / name
        try:
            make_private_directory(directory)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666 & ~umask())
        except OSError as error:
            raise StateError(_unusable(directory, error)) from None
        _OPEN.add(self)

    def acquire(self, kind: int, timeout_s: float = 0.0) -> bool:
        """Lock the file; False when another process still has it after ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno not in _LOCKED:
                    raise StateError(_unusable(self._path.parent, error)) from None
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)

    def read_id(self) -> int | None:
        """The process id in the file."""
        return _read_id(self._descriptor)

    def write_id(self) -> None:
        """Replace the content by the id of this process."""
        line = f"{os.getpid()}\n".encode()
        try:
            os.pwrite(self._descriptor, line, 0)
            os.ftruncate(self._descriptor, len(line))
        except OSError as error:
            raise StateError(_unusable(self._path.parent, error)) from None

    def clear_id(self) -> None:
        """Empty the file."""
        os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Release the lock."""
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
