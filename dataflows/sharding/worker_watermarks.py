"""The watermarks of all workers, where rows of several workers come together.

A backlog is merged in event time only within a worker, and one worker may be far ahead of another.
Where their rows meet, the slowest worker's watermark decides what expires: no row is late because a
slow worker read it.
"""

from __future__ import annotations

import time

from anabranch.dataflows.batch.batch import IDLE, NO_SPAN, Batch

UNHEARD_TIMEOUT_S = 60.0
"""For how long a worker that has never reported is waited for."""


class WorkerWatermarks:
    """The event time that each worker has reached (epoch ms).

    >>> watermarks = WorkerWatermarks(2)
    >>> watermarks.update("0", 5000)
    >>> watermarks.slowest() == -IDLE  # the other worker has not reported yet
    True
    >>> watermarks.update("1", 3000)
    >>> watermarks.slowest(), watermarks.limit("1")
    (3000, 5000)
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._watermarks: dict[str, int] = {}
        self._furthest = -IDLE
        self._wait_until = time.monotonic() + UNHEARD_TIMEOUT_S

    def update(self, worker_id: str, watermark: int) -> None:
        """Set the watermark of a worker; `IDLE` if it has nothing to read."""
        self._watermarks[worker_id] = watermark

    def advance(self, worker_id: str, time_ms: int) -> None:
        """Raise the watermark of a worker, rows of which arrived: it is not idle."""
        self._furthest = max(time_ms, self._furthest)
        before = self._watermarks.get(worker_id, -IDLE)
        self._watermarks[worker_id] = max(time_ms, before if before < IDLE else -IDLE)

    def note_reached(self, time_ms: int) -> None:
        """A worker, idle or not, had come this far, maybe in an earlier run."""
        self._furthest = max(time_ms, self._furthest)

    def furthest_if_idle(self) -> int:
        """The time that the furthest worker has reached, if all are idle; else `-IDLE`."""
        waiting = self._waiting_for_unheard() or bool(self._active(None))
        return -IDLE if waiting else self._furthest

    def slowest(self) -> int:
        """The watermark of the slowest worker that is not idle; `-IDLE` if it is not known."""
        if self._waiting_for_unheard():
            return -IDLE
        return min(self._active(None), default=-IDLE)

    def limit(self, worker_id: str) -> int:
        """Up to which time rows of this worker may advance event time; `IDLE` for no limit."""
        if self._waiting_for_unheard():
            return -IDLE
        return min(self._active(worker_id), default=IDLE)

    def _active(self, but: str | None) -> list[int]:
        return [
            watermark
            for worker_id, watermark in self._watermarks.items()
            if worker_id != but and watermark < IDLE
        ]

    def _waiting_for_unheard(self) -> bool:
        return len(self._watermarks) < self._workers and time.monotonic() < self._wait_until


def time_span(batch: Batch) -> tuple[int, int]:
    """The least and the greatest time of a batch's rows (epoch ms); `(IDLE, -IDLE)` without any."""
    spans = [batch.span] if batch.span != NO_SPAN else []
    if len(batch.labels):
        spans.append((int(batch.labels.times.min()), int(batch.labels.times.max())))
    return min((low for low, _ in spans), default=IDLE), max(
        (high for _, high in spans), default=-IDLE
    )
