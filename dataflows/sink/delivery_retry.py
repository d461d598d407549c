"""Retries calls of a bus that is unavailable; logs it, and stops only with the flow."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from anabranch.dataflows.bus import BusError, UnreachableError

LOG = logging.getLogger("anabranch.sink")
Result = TypeVar("Result")


def log_waiting(seconds: float, why: str) -> None:
    """Log that the flow waits for the bus."""
    LOG.warning("waiting for the bus for %.0f s: %s", seconds, why)


@dataclass(slots=True)
class DeliveryRetry:
    """How often a call of the bus is retried, and for how long.

    Attributes:
        stop: set when the flow should end; retries then last ``grace_s`` longer.
        on_waiting: called with the seconds waited and the reason, after ``first_s`` and then every
            ``every_s``.
        poll_s: the time between two attempts.
        of: what is called, in messages.
    """

    stop: threading.Event | None = None
    on_waiting: Callable[[float, str], None] = log_waiting
    first_s: float = 5.0
    every_s: float = 30.0
    grace_s: float = 10.0
    poll_s: float = 0.1
    of: str = "the bus"

    def call(self, attempt: Callable[[], Result]) -> Result:
        """What ``attempt`` returns as soon as it does not raise `UnreachableError`.

        An attempt should take about a second at most, as ``stop`` is checked in between.

        Raises:
            BusError: the flow is stopped and the bus still unavailable; or ``attempt`` raised it.
        """
        began = time.monotonic()
        report_at = began + self.first_s
        deadline: float | None = None
        while True:
            try:
                return attempt()
            except UnreachableError as error:
                reason = error
            now = time.monotonic()
            if now >= report_at:
                self.on_waiting(now - began, str(reason))
                report_at = now + self.every_s
            if deadline is None and self.stop is not None and self.stop.is_set():
                deadline = now + self.grace_s
            if deadline is not None and now >= deadline:
                raise BusError(
                    f"stopped while {self.of} was unavailable: {reason}; output since the last "
                    f"completed epoch is not confirmed: start again when {self.of} is back"
                ) from reason
            time.sleep(self.poll_s)
