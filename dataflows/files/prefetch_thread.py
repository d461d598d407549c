"""Iterates in a thread that stays ahead of its consumer, so that reading and processing overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

_DEPTH = 2
_POLL_S = 0.1


class PrefetchThread(Generic[Item]):
    """The items of ``source``, a few of which are produced before they are needed.

    An error of ``source`` is raised where its next item would be. The thread starts with the first
    item that is requested, and ends with the last one, or soon after `close`.

    >>> list(PrefetchThread(iter([1, 2, 3])))
    [1, 2, 3]
    """

    def __init__(self, source: Iterator[Item]) -> None:
        self._source = source
        self._items: queue.Queue[Item | _End] = queue.Queue(_DEPTH)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
            self._thread.start()
        item = self._items.get()
        if isinstance(item, _End):
            self._items.put(item)  # for the next call
            raise StopIteration if item.error is None else item.error
        return item

    def close(self) -> None:
        """Let the thread end; no item may be requested afterwards."""
        self._closed.set()

    def _run(self) -> None:
        try:
            for item in self._source:
                if not self._put(item):
                    return
            end = _End(None)
        except BaseException as error:
            end = _End(error)
        self._put(end)

    def _put(self, item: Item | _End) -> bool:
        while not self._closed.is_set():
            try:
                self._items.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False


class _End:
    """The end of the items; ``error`` is why, unless they are complete."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
