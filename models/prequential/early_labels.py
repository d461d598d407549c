"""The values of labels whose events have not come, with whatever the caller wants back of them."""

from __future__ import annotations

import heapq

import numpy as np

from anabranch.models.learners.learner import Label
from anabranch.models.learners.pickling import dumps, loads
from anabranch.state.store.delta import Delta, Items


class HeldLabels:
    """Labels by the number that the pending store gave them.

    They are kept on disk one by one, in places that are used again.

    >>> held = HeldLabels()
    >>> held.keep(7, True, b"where it was read")
    >>> len(held), held.take(7)
    (1, (True, b'where it was read'))
    """

    def __init__(self) -> None:
        self._labels: dict[int, tuple[int, Label, bytes]] = {}  # place, value, note
        self._free: list[int] = []
        self._places = 0
        self._touched: set[int] = set()

    def __len__(self) -> int:
        return len(self._labels)

    def keep(self, number: int, value: Label, note: bytes) -> None:
        """Hold a label."""
        if self._free:
            place = heapq.heappop(self._free)
        else:
            place = self._places
            self._places += 1
        self._labels[number] = place, value, note
        self._touched.add(place)

    def take(self, number: int) -> tuple[Label, bytes]:
        """Hold it no longer; its value and note."""
        place, value, note = self._labels.pop(number)
        heapq.heappush(self._free, place)
        self._touched.add(place)
        return value, note

    def changes(self) -> Delta:
        """What changed since the last call; at first, everything."""
        delta = Delta()
        if self._touched:
            held = {place: (n, value, note) for n, (place, value, note) in self._labels.items()}
            places = sorted(self._touched)
            values = [dumps(held[place]) if place in held else None for place in places]
            delta.items["held"] = Items(np.array(places, np.int64), values)
            self._touched.clear()
        return delta

    def restore(self, image: Delta) -> None:
        """Take what `changes` gave. It is unpickled: give only what this program wrote."""
        if "held" not in image.items:
            return
        items = image.items["held"]
        self._places = int(items.index.max(initial=-1)) + 1
        free = set(range(self._places))
        for place, blob in zip(items.index.tolist(), items.values, strict=True):
            if blob is not None:
                number, value, note = loads(blob)
                self._labels[number] = place, value, note
                free.discard(place)
        self._free = sorted(free)
