"""Waits for a bus that is away: says so, and gives up only when the flow is told to stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from anabranch.dataflows.bus import BusError, UnreachableError

LOG = logging.getLogger("anabranch.sink")
Made = TypeVar("Made")


def log_waiting(seconds: float, why: str) -> None:
    """Say in the log that the flow waits."""
    LOG.warning("waiting for the bus for %.0f s: %s", seconds, why)


@dataclass(slots=True)
class Patience:
    """How long to try again, and who is told.

    ``waiting(seconds, why)`` is called after ``first_s`` and then every ``every_s``. Once ``stop``
    is set, it is tried for ``grace_s`` more.
    """

    stop: threading.Event | None = None
    waiting: Callable[[float, str], None] = log_waiting
    first_s: float = 5.0
    every_s: float = 30.0
    grace_s: float = 10.0
    nap_s: float = 0.1

    def insist(self, attempt: Callable[[], Made]) -> Made:
        """What ``attempt`` gives as soon as it does not raise `UnreachableError`.

        An attempt should take about a second at most, for ``stop`` is looked at in between.

        Raises:
            BusError: told to stop, and the bus is still away; or what else ``attempt`` raises.
        """
        began = time.monotonic()
        tell_at = began + self.first_s
        give_up_at: float | None = None
        while True:
            try:
                return attempt()
            except UnreachableError as error:
                reason = error
            now = time.monotonic()
            if now >= tell_at:
                self.waiting(now - began, str(reason))
                tell_at = now + self.every_s
            if give_up_at is None and self.stop is not None and self.stop.is_set():
                give_up_at = now + self.grace_s
            if give_up_at is not None and now >= give_up_at:
                raise BusError(
                    f"stopped while the bus was away: {reason}; what was made since the last "
                    "finished epoch is not confirmed: start again when the bus is back"
                ) from reason
            time.sleep(self.nap_s)
