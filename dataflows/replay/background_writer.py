"""A background thread that consumes items in order, at most a few behind the producer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

_DEPTH = 1
_POLL_S = 0.1


class ClosedEarlyError(Exception):
    """Raised inside ``work`` when the writer is closed before `finish`."""


class BackgroundWriter(Generic[Item]):
    """Runs ``work`` in a thread, on an iterator over the items that are `put`, in order.

    `put` blocks while the thread is more than a few items behind. An exception of ``work`` is
    raised by the next call. Always call `close` in the end.
    """

    def __init__(self, work: Callable[[Iterator[Item]], None]) -> None:
        self._work = work
        self._items: queue.Queue[Item | None] = queue.Queue(_DEPTH)
        self._closed = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="background-writer", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Queue an item; blocks while the queue is full."""
        self._put(item)

    def _put(self, item: Item | None) -> None:
        while self._failure is None:
            try:
                self._items.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return
        raise self._failure

    def finish(self) -> None:
        """Wait until ``work`` has returned, having consumed every item."""
        self._put(None)  # end of the iterator
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop the thread; unless it has finished, its iterator raises `ClosedEarlyError`."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work(self._iterate())
        except BaseException as error:
            self._failure = error

    def _iterate(self) -> Iterator[Item]:
        while True:
            try:
                item = self._items.get(timeout=_POLL_S)
            except queue.Empty:
                if self._closed.is_set():
                    raise ClosedEarlyError from None
                continue
            if item is None:
                return
            yield item
