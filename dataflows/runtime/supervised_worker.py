"""A worker process: its place in the cluster, and how it behaves below a supervisor.

A supervised worker says by its exit code why it ended, and ends with its supervisor.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anabranch.state.errors import AnabranchError

SUPERVISED = "ANABRANCH_SUPERVISED"
"""Environment variable of a supervised worker: the supervisor's process id."""

ERROR_FILE = "ANABRANCH_ERROR_FILE"
"""Environment variable of a supervised worker: the file for the error that the user must fix."""

EXIT_LOST = 3
"""Exit code of a worker that ended because another one is gone: that one is to blame."""

EXIT_REFUSED = 4
"""Exit code of a supervised worker that can't run until the user has fixed something."""

EXIT_INTERRUPTED = 130
"""Exit code of a process that the user has stopped."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PARENT_CHECK_S = 1.0
_UNRESPONSIVE_S = 10.0
_ORPHAN_S = 15.0


@dataclass(frozen=True, slots=True)
class WorkerId:
    """Which of the workers a process is; each worker is a process of its own.

    Attributes:
        process: its number, from 0.
        addresses: ``host:port`` of all workers, in the same order everywhere; empty for a single
            worker.
    """

    process: int = 0
    addresses: Sequence[str] = ()

    @property
    def workers(self) -> int:
        """How many workers the cluster has."""
        return max(len(self.addresses), 1)

    def __str__(self) -> str:
        return f"worker {self.process} of {self.workers}"


SINGLE_WORKER = WorkerId()
"""The only worker of a run in one process."""


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Leave an error that the user must fix to the supervisor, which prints it once for all.

    Raises:
        SystemExit: with `EXIT_REFUSED`, in place of such an error.
    """
    try:
        yield
    except AnabranchError as error:
        Path(os.environ[ERROR_FILE]).write_text(str(error))
        sys.exit(EXIT_REFUSED)


def end_with_supervisor(
    stop: threading.Event,
    *,
    unresponsive_s: float = _UNRESPONSIVE_S,
    orphan_s: float = _ORPHAN_S,
) -> None:
    """Unblock stop signals, and make sure that this worker ends on a stop signal, or when orphaned.

    The signals' handlers, which set ``stop``, must be installed. They run between two bytecodes of
    Python, so not while the engine waits for another worker to connect: then the process ends after
    ``unresponsive_s`` seconds. When the supervisor is gone ``stop`` is set, and after ``orphan_s``
    more seconds the process ends. Called from the main thread.
    """
    wakeup_reader, wakeup_writer = os.pipe()
    os.set_blocking(wakeup_writer, False)
    signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    supervisor = int(os.environ[SUPERVISED])

    def watch() -> None:
        signalled = False
        while os.getppid() == supervisor and not signalled:
            signalled = bool(select.select([wakeup_reader], [], [], _PARENT_CHECK_S)[0])
        if signalled and not stop.wait(unresponsive_s):
            os._exit(EXIT_INTERRUPTED)
        stop.set()
        while os.getppid() == supervisor:
            time.sleep(_PARENT_CHECK_S)
        time.sleep(orphan_s)
        os._exit(EXIT_LOST)

    threading.Thread(target=watch, daemon=True, name="supervisor watch").start()
