"""Work that can be done side by side: kernels let go of Python's lock, so threads are enough."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def run_all(tasks: Sequence[Callable[[], None]]) -> None:
    """Do all of it, in as many threads as there are cores; returns when all is done.

    Raises:
        Exception: the first that a task raised.
    """
    *others, own = tasks
    started = [_pool().submit(task) for task in others]
    try:
        own()
    finally:
        failures = [future.exception() for future in started]
    for failure in failures:
        if failure is not None:
            raise failure


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "side-by-side")
