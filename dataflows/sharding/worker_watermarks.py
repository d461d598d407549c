"""How far event time has come with each worker that reads.

A backlog is aligned within a worker, and one may be far ahead of another. Where their rows come
together, what is let go by event time goes by the slowest: nobody comes too late for having been
read by a slow worker.
"""

from __future__ import annotations

import time

from anabranch.dataflows.batch.batch import IDLE, NO_SPAN, Batch

STRANGERS_S = 60.0
"""How long it is waited to hear of a worker before the others go on without it."""


class Origins:
    """The workers whose rows come together here, and the event time of each (epoch ms).

    >>> origins = Origins(2)
    >>> origins.note("0", 5000)
    >>> origins.slowest() == -IDLE  # nobody knows where the other one is
    True
    >>> origins.note("1", 3000)
    >>> origins.slowest(), origins.room("1")
    (3000, 5000)
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._watermarks: dict[str, int] = {}
        self._strangers_until = time.monotonic() + STRANGERS_S

    def note(self, origin: str, watermark: int) -> None:
        """``watermark`` is `IDLE` where nothing is there to be read."""
        self._watermarks[origin] = watermark

    def advance(self, origin: str, time_ms: int) -> None:
        """Rows up to this time have come from there; it is not idle."""
        before = self._watermarks.get(origin, -IDLE)
        self._watermarks[origin] = max(time_ms, before if before < IDLE else -IDLE)

    def slowest(self) -> int:
        """The time of the slowest one that is not idle; `-IDLE` where there is no news of time."""
        if self._strangers():
            return -IDLE
        return min(self._working(None), default=-IDLE)

    def room(self, origin: str) -> int:
        """Up to which time rows of this one may move time on: `IDLE` where nobody is behind."""
        if self._strangers():
            return -IDLE
        return min(self._working(origin), default=IDLE)

    def _working(self, but: str | None) -> list[int]:
        return [time for origin, time in self._watermarks.items() if origin != but and time < IDLE]

    def _strangers(self) -> bool:
        return len(self._watermarks) < self._workers and time.monotonic() < self._strangers_until


def extent_of(batch: Batch) -> tuple[int, int]:
    """The least and the greatest time of its rows (epoch ms); `(IDLE, -IDLE)` if there is none."""
    spans = [batch.span] if batch.span != NO_SPAN else []
    if len(batch.labels):
        spans.append((int(batch.labels.times.min()), int(batch.labels.times.max())))
    return min((low for low, _ in spans), default=IDLE), max(
        (high for _, high in spans), default=-IDLE
    )
