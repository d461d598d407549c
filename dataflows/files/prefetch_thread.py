"""An iterator that a thread of its own is ahead of, so that reading and working overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

_DEPTH = 2
_LOOK_UP_S = 0.1


class Ahead(Generic[Item]):
    """The items of ``source``, of which some are made before they are asked for.

    What ``source`` raises is raised where the item would have come. The thread begins with the
    first item that is asked for, and ends with the last one, or soon after `close`.

    >>> list(Ahead(iter([1, 2, 3])))
    [1, 2, 3]
    """

    def __init__(self, source: Iterator[Item]) -> None:
        self._source = source
        self._made: queue.Queue[Item | _End] = queue.Queue(_DEPTH)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
            self._thread.start()
        found = self._made.get()
        if isinstance(found, _End):
            self._made.put(found)  # for whoever asks again
            raise StopIteration if found.error is None else found.error
        return found

    def close(self) -> None:
        """Let the thread end; nothing may be asked for any more."""
        self._closed.set()

    def _work(self) -> None:
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
                self._made.put(item, timeout=_LOOK_UP_S)
            except queue.Full:
                continue
            return True
        return False


class _End:
    """Nothing comes any more; ``error`` is why, if it was not the end."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
