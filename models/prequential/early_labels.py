"""The buffer of labels that arrived before their events."""

from __future__ import annotations

import heapq

import numpy as np

from anabranch.models.learners.learner import Label
from anabranch.models.learners.pickling import pickled, unpickled
from anabranch.state.store.delta import Delta, Items


class EarlyLabels:
    """Buffered labels by the number that the pending store gave them, each with its context.

    On disk each label has a slot; slots are reused.

    >>> early = EarlyLabels()
    >>> early.put(7, True, b"offset 12")
    >>> len(early), early.pop(7)
    (1, (True, b'offset 12'))
    """

    def __init__(self) -> None:
        self._labels: dict[int, tuple[int, Label, bytes]] = {}  # slot, value, context
        self._free: list[int] = []
        self._slots = 0
        self._touched: set[int] = set()

    def __len__(self) -> int:
        return len(self._labels)

    def oldest(self) -> bytes | None:
        """The context of the label that is buffered for longest; None without any."""
        return next((context for _, _, context in self._labels.values()), None)

    def put(self, number: int, value: Label, context: bytes) -> None:
        """Buffer a label."""
        if self._free:
            slot = heapq.heappop(self._free)
        else:
            slot = self._slots
            self._slots += 1
        self._labels[number] = slot, value, context
        self._touched.add(slot)

    def pop(self, number: int) -> tuple[Label, bytes]:
        """Remove a label; returns its value and its context."""
        slot, value, context = self._labels.pop(number)
        heapq.heappush(self._free, slot)
        self._touched.add(slot)
        return value, context

    def changes(self) -> Delta:
        """What changed since the last call; everything at the first."""
        delta = Delta()
        if self._touched:
            by_slot = {slot: (n, value, extra) for n, (slot, value, extra) in self._labels.items()}
            slots = sorted(self._touched)
            values = [pickled(by_slot[slot]) if slot in by_slot else None for slot in slots]
            delta.items["early"] = Items(np.array(slots, np.int64), values)
            self._touched.clear()
        return delta

    def restore(self, image: Delta) -> None:
        """Restore what `changes` returned. It is unpickled: pass only what this program wrote."""
        if "early" not in image.items:
            return
        items = image.items["early"]
        self._slots = int(items.index.max(initial=-1)) + 1
        free = set(range(self._slots))
        for slot, blob in zip(items.index.tolist(), items.values, strict=True):
            if blob is not None:
                number, value, context = unpickled(blob)
                self._labels[number] = slot, value, context
                free.discard(slot)
        self._free = sorted(free)
