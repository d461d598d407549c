"""Compaction: which generations are merged, and the background thread that merges them.

Deltas are merged by size: of those that are old enough, the longest run up to the newest in which
the first is no larger than all after it, if it has four deltas or more. So each record is rewritten
once per doubling of the state, and there are logarithmically many deltas. ::

    1 … 40 | 41 … 56 | 57 58 59 60 |  61 … 68          68 is the current generation
    └─────── old: may be merged ───┘ └ retained ┘
"""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from anabranch.state.store.generations import Segment

_FEWEST = 4
_SMALLEST = 64 << 10  # bytes; smaller ones count as this, so that they are merged together


def choose(
    segments: Sequence[Segment], generation: int, adopted: int, retained: int
) -> list[Segment]:
    """A run of segments to be merged; empty if none is due.

    ``adopted``, ``generation`` and the ``retained`` generations before that stay restorable.
    """
    below_adopted = [segment for segment in segments if segment.last <= adopted]
    old = [segment for segment in segments if adopted < segment.last <= generation - retained]
    return _run(below_adopted) or _run(old)


def _run(segments: Sequence[Segment]) -> list[Segment]:
    after, start = 0, len(segments)
    for at in range(len(segments) - 1, -1, -1):
        size = max(segments[at].size, _SMALLEST)
        if size <= after or not after:
            start = at
        after += size
    return list(segments[start:]) if len(segments) - start >= _FEWEST else []


class Compacted(Protocol):
    """What can be compacted. `compact` must not raise."""

    def compact(self) -> None: ...

    def abandon(self) -> None:
        """Make a running `compact` return early."""


class Compactor:
    """One compaction thread for all stores of a process, started on first use."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Compacted] = deque()
        self._running: Compacted | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def submit(self, store: Compacted) -> None:
        """Queue a store for compaction, unless it is queued already."""
        with self._changed:
            if self._stopped or store in self._waiting:
                return
            self._waiting.append(store)
            if self._thread is None:
                atexit.register(self.stop)
            if self._thread is None or not self._thread.is_alive():  # as after a fork
                self._thread = threading.Thread(target=self._run, name="compaction", daemon=True)
                self._thread.start()
            self._changed.notify()

    def forget(self, store: Compacted) -> None:
        """Remove a store from the queue. A running compaction is not interrupted."""
        with self._changed:
            if store in self._waiting:
                self._waiting.remove(store)

    def stop(self) -> None:
        """End early: a daemon thread must not run while the interpreter shuts down."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            running = self._running
        if running is not None:
            running.abandon()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                self._running = self._waiting.popleft()
            self._running.compact()
            with self._changed:
                self._running = None
