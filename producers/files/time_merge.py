"""Merges a stream of events and a stream of labels by time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from anabranch.dataflows.declaration.shape import Path
from anabranch.producers.batch import Batch
from anabranch.producers.files.json_fields import JsonFields, key_bytes


def merged(events: Iterator[Batch], labels: Iterator[Batch]) -> Iterator[Batch]:
    """All messages of both, by time; each keeps its order, and on equal times events go first.

    A message whose time is before its predecessor's goes with its predecessor.
    """
    inputs = [_Input(events), _Input(labels)]
    while inputs[0].fill() | inputs[1].fill():  # both, always
        bound = min(each.latest for each in inputs if each.open)
        parts = [each.take(bound) for each in inputs]
        times = np.concatenate([times for _, times in parts])
        order = np.argsort(times, kind="stable")
        yield _concatenated([batch for batch, _ in parts], order)


class _Input:
    """One stream with a batch of it buffered, and times that never fall."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._batch = Batch.of("events", [], [], [])
        self._times = self._batch.times
        self.latest = int(np.iinfo(np.int64).min)
        self.open = True

    def fill(self) -> bool:
        """Buffer a batch; returns False at the end of the stream."""
        while self.open and not len(self._batch):
            batch = next(self._batches, None)
            if batch is None:
                self.open = False
            elif len(batch):
                rising = np.maximum(np.maximum.accumulate(batch.times), self.latest)
                self._batch, self._times, self.latest = batch, rising, int(rising[-1])
        return self.open

    def take(self, bound: int) -> tuple[Batch, np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """Remove and return what is not later than ``bound``."""
        count = int(np.searchsorted(self._times, bound, side="right"))
        taken, times = self._batch.part(0, count), self._times[:count]
        self._batch = self._batch.part(count, len(self._batch))
        self._times = self._times[count:]
        return taken, times


def _concatenated(parts: list[Batch], order: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
    indices = order.tolist()
    values = list(chain.from_iterable(part.values for part in parts))
    keys = list(chain.from_iterable(part.keys for part in parts))
    return Batch(
        [values[index] for index in indices],
        [keys[index] for index in indices],
        np.concatenate([part.times for part in parts])[order],
        np.concatenate([part.labels for part in parts])[order],
    )


def keyed_by_event(
    batches: Iterator[Batch], event_id: Sequence[Path], label_id: Sequence[Path]
) -> Iterator[Batch]:
    """Give every label the key of its event, so that both go to one partition.

    ``event_id`` and ``label_id`` are where the ids are. ``batches`` hold each event before its
    label. The key of every event is remembered. A label whose event is not known, or that cannot be
    decoded, keeps its own key.
    """
    of_event, of_label = JsonFields([event_id]), JsonFields([label_id])
    key_of: dict[bytes, bytes | None] = {}
    for batch in batches:
        keys = list(batch.keys)
        for row, is_label in enumerate(batch.labels.tolist()):
            found = (of_label if is_label else of_event).read(batch.values[row])
            name = None if found is None else key_bytes(found[0])
            if name is None:
                continue
            if is_label:
                keys[row] = key_of.get(name, keys[row])
            else:
                key_of[name] = keys[row]
        yield Batch(batch.values, keys, batch.times, batch.labels)
