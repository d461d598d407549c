"""A worker's side of supervision: how it says why it ends, and that it ends with its supervisor."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anabranch.state.errors import AnabranchError

SUPERVISED = "ANABRANCH_SUPERVISED"
"""In the environment of a worker that a supervisor has started: the supervisor's process id."""

REFUSAL = "ANABRANCH_REFUSAL"
"""In its environment: the file that it leaves the sentence of a refusal in."""

EXIT_LOST = 3
"""The exit code of a worker that ends because another one is gone: the other one is to blame."""

EXIT_REFUSED = 4
"""The exit code of a supervised worker that can't go on until the user has mended something."""

EXIT_INTERRUPTED = 130
"""The exit code of a process that the user has ended."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PARENT_EVERY_S = 1.0
_DEAF_S = 5.0
_ORPHAN_S = 15.0


@contextmanager
def refusals_told() -> Iterator[None]:
    """Leave the sentence of an error that the user must mend to the supervisor, which says it once.

    Raises:
        SystemExit: with `EXIT_REFUSED`, in place of such an error.
    """
    try:
        yield
    except AnabranchError as error:
        Path(os.environ[REFUSAL]).write_text(str(error))
        sys.exit(EXIT_REFUSED)


def end_with_supervisor(
    stop: threading.Event, *, deaf_s: float = _DEAF_S, orphan_s: float = _ORPHAN_S
) -> None:
    """Let stop signals in, and see to it that this worker ends when told to or left alone.

    The signals' handlers, which set ``stop``, must be there. They run between two steps of Python,
    so not while the engine waits for another worker to connect: then the process ends after
    ``deaf_s`` seconds. When the supervisor is gone ``stop`` is set, and after ``orphan_s`` more
    seconds the process ends. Called from the main thread.
    """
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    supervisor = int(os.environ[SUPERVISED])

    def watch() -> None:
        told = False
        while os.getppid() == supervisor and not told:
            told = bool(select.select([ear], [], [], _PARENT_EVERY_S)[0])
        if told and not stop.wait(deaf_s):
            os._exit(EXIT_INTERRUPTED)
        stop.set()
        while os.getppid() == supervisor:
            time.sleep(_PARENT_EVERY_S)
        time.sleep(orphan_s)
        os._exit(EXIT_LOST)

    threading.Thread(target=watch, daemon=True, name="supervisor watch").start()
