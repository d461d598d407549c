"""Which generations are merged, and the thread that does it in the background.

Deltas are merged by size: the longest run of the oldest ones' end in which the first is no larger
than all after it, when that is four or more. So each record is written again once for every
doubling, and what is left behind doubles in size from one to the next: both are logarithmic. ::

    1 … 40 | 41 … 56 | 57 58 59 60 |  61 … 68          68 is the present generation
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
_SMALLEST = 64 << 10  # bytes; smaller ones count as this, there are too many sizes below


def choose(
    segments: Sequence[Segment], generation: int, adopted: int, retained: int
) -> list[Segment]:
    """A run to be merged; empty if none is due.

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
    """What can be compacted. `compact` raises nothing."""

    def compact(self) -> None: ...

    def abandon(self) -> None:
        """Make a running `compact` return soon."""


class Compactor:
    """One thread for all stores of a process, started by the first one that needs it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Compacted] = deque()
        self._running: Compacted | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def submit(self, store: Compacted) -> None:
        """Compact it soon; once, however often this is called before."""
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
        """Do not begin with it. A compaction that runs is not ended."""
        with self._changed:
            if store in self._waiting:
                self._waiting.remove(store)

    def stop(self) -> None:
        """End without finishing: a daemon thread must not meet the end of the interpreter."""
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
