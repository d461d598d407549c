"""Ends a process in which threads of the engine may still run.

When the engine fails it leaves threads behind. Tearing down Python below them ends some processes
with SIGSEGV or SIGABRT instead of their exit code, so such a process is left without that.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import NoReturn

from anabranch.dataflows.runtime.supervised_worker import SUPERVISED
from anabranch.dataflows.telemetry.logs import stop_capture

_engine_started = False


def engine_started() -> None:
    """Note that threads of the engine may run from now on."""
    global _engine_started
    _engine_started = True


def must_leave(code: int) -> bool:
    """Whether a process that ends with ``code`` must not be torn down.

    A supervised worker never is, whatever it was doing when it refused.
    """
    return code != 0 and (_engine_started or SUPERVISED in os.environ)


def leave(code: int) -> NoReturn:
    """End the process at once, after everything that was printed or logged is written."""
    with suppress(Exception):
        stop_capture()
        logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
