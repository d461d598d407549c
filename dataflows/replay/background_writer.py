"""A thread that works on what others hand it, a few items behind them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

_DEPTH = 1
_LOOK_UP_S = 0.1


class GivenUpError(Exception):
    """What was worked on is not wanted any more."""


class Behind(Generic[Item]):
    """Runs ``work`` in a thread, on an iterator of all that is `put`, in order.

    `put` waits while the work is more than a few items behind. What it raises is raised by the next
    call. Close it in the end, whatever happened.
    """

    def __init__(self, work: Callable[[Iterator[Item]], None]) -> None:
        self._work = work
        self._items: queue.Queue[Item | None] = queue.Queue(_DEPTH)
        self._closed = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="behind", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over an item."""
        self._put(item)

    def _put(self, item: Item | None) -> None:
        while self._failure is None:
            try:
                self._items.put(item, timeout=_LOOK_UP_S)
            except queue.Full:
                continue
            return
        raise self._failure

    def finish(self) -> None:
        """Wait until all that was put is worked on."""
        self._put(None)  # the end
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the thread; the iterator raises GivenUpError if it has not ended by then."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work(self._all())
        except BaseException as error:
            self._failure = error

    def _all(self) -> Iterator[Item]:
        while True:
            try:
                item = self._items.get(timeout=_LOOK_UP_S)
            except queue.Empty:
                if self._closed.is_set():
                    raise GivenUpError from None
                continue
            if item is None:
                return
            yield item
