"""Waiting for a condition, with limits that hold on a machine with other work on every core."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

GENEROUS_S = 120.0
"""The limit of every wait: it ends a test that hangs and says nothing about speed."""

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    limit_s: float = GENEROUS_S,
    what: str | Callable[[], str] = "the condition",
    every_s: float = 0.02,
) -> T:
    """Call ``condition`` until it returns something true, and return that.

    Args:
        condition: Called at least once; an exception that it raises ends the wait.
        limit_s: Seconds of the monotonic clock after which the wait fails.
        what: What is waited for, for the failure's message; a function is called only then (for
            the output of a process, say).
        every_s: Seconds between two calls.

    Raises:
        AssertionError: ``condition`` was still false after ``limit_s`` seconds.

    >>> wait_until([0, 0, 7].pop)
    7
    >>> wait_until(lambda: False, 0, "the first prediction")
    Traceback (most recent call last):
        ...
    AssertionError: waited 0 s in vain for the first prediction
    """
    end = time.monotonic() + limit_s
    while not (result := condition()):
        if time.monotonic() >= end:
            described = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {limit_s:g} s in vain for {described}")
        time.sleep(every_s)
    return result
