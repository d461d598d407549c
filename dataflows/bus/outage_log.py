"""Logs outages of a bus: when it stops responding, repeatedly, and when it responds again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["SILENT_S", "OutageLog"]

SILENT_S = 5.0  # a shorter outage is not reported: a broker restarts in that time
_AGAIN_S = 30.0
_LOG = logging.getLogger("anabranch.bus")


class OutageLog:
    """The outages of the bus at ``url``, one after the other.

    It logs a warning after `SILENT_S`, one every 30 s from then on, and a line when the bus
    responds again. ``clock`` gives seconds.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._since: float | None = None
        self._why = ""
        self._next_line = 0.0

    def no_answer(self, why: str = "", quietly: bool = False) -> None:
        """Record that no response came yet; ``why`` is the last error. ``quietly``: don't log."""
        now = self._clock()
        if self._since is None:
            self._since = now
            self._next_line = now + SILENT_S
        self._why = why
        if now >= self._next_line and not quietly:
            self._next_line += _AGAIN_S
            _LOG.warning("%s", self._text(now - self._since))

    def answered(self) -> None:
        """Record a response."""
        since, self._since = self._since, None
        if since is not None and self._next_line > since + SILENT_S:
            _LOG.info("%s answers again, after %.0f s", self._url, self._clock() - since)

    def silent_s(self) -> float:
        """How long the bus has not responded, in seconds."""
        since = self._since
        return 0.0 if since is None else self._clock() - since

    def unavailable_reason(self) -> str | None:
        """The text of the warning, once the outage is long enough for one; else None."""
        silent_s = self.silent_s()
        return self._text(silent_s) if silent_s >= SILENT_S else None

    def _text(self, silent_s: float) -> str:
        why = f" (last error: {self._why})" if self._why else ""
        return f"no answer from {self._url} for {silent_s:.0f} s: still waiting{why}"
