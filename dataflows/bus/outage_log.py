"""Says, and goes on saying, that a bus does not answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["SILENT_S", "Waiting"]

SILENT_S = 5.0  # what is shorter is no news: a broker restarts in that time
_AGAIN_S = 30.0
_LOG = logging.getLogger("anabranch.bus")


class Waiting:
    """One wait after the other for the answers of the bus at ``url``.

    A warning after `SILENT_S`, one every 30 s from then on, and a line when the bus is back.
    ``clock`` gives seconds.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._since: float | None = None
        self._why = ""
        self._next_line = 0.0

    def still(self, why: str = "", quietly: bool = False) -> None:
        """There is no answer yet; ``why`` is the last error heard. ``quietly``: others say so."""
        now = self._clock()
        if self._since is None:
            self._since = now
            self._next_line = now + SILENT_S
        self._why = why
        if now >= self._next_line and not quietly:
            self._next_line += _AGAIN_S
            _LOG.warning("%s", self._sentence(now - self._since))

    def over(self) -> None:
        """There was an answer."""
        since, self._since = self._since, None
        if since is not None and self._next_line > since + SILENT_S:
            _LOG.info("%s answers again, after %.0f s", self._url, self._clock() - since)

    def silent_s(self) -> float:
        """How long the bus has been waited for."""
        since = self._since
        return 0.0 if since is None else self._clock() - since

    def trouble(self) -> str | None:
        """The sentence of the warning, once the wait is long enough for one."""
        silent_s = self.silent_s()
        return self._sentence(silent_s) if silent_s >= SILENT_S else None

    def _sentence(self, silent_s: float) -> str:
        why = f" (last error: {self._why})" if self._why else ""
        return f"no answer from {self._url} for {silent_s:.0f} s: still waiting{why}"
