"""Merges simulated events and their later labels into the order of publication."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.producers.batch import Batch
from anabranch.producers.simulators.faults import Faults


@dataclass(frozen=True, slots=True)
class Chunk:
    """The events before ``until_ms`` and after the last chunk, and all their labels.

    ``events`` and ``labels`` have their own times; ``labelled`` is the row in ``events`` that each
    label is for, ``(labels,) int64``.
    """

    until_ms: int
    events: Batch
    labels: Batch
    labelled: NDArray[np.int64]


def timeline(chunks: Iterable[Chunk], faults: Faults, seed: int) -> Iterator[Batch]:
    """Batches of events and labels in order of publication; outstanding messages come at the end.

    A label is never published before its event, even if a fault delays the event.
    """
    random = np.random.default_rng([seed, 0xFA])
    outbox = _Outbox()
    for chunk in chunks:
        arrivals = faults.arrivals(random, chunk.events.times)
        outbox.add(chunk.events, arrivals)
        outbox.add(chunk.labels, np.maximum(chunk.labels.times, arrivals[chunk.labelled]))
        extra = faults.extra(random, chunk.events)
        outbox.add(extra, extra.times)
        batch = outbox.release(chunk.until_ms)
        if len(batch):
            yield batch
    rest = outbox.release(None)
    for start in range(0, len(rest), 4096):
        yield rest.part(start, start + 4096)


class _Outbox:
    """Messages that wait for their publication."""

    def __init__(self) -> None:
        self._rows = np.empty((0, 2), object)  # value, key
        self._times = np.empty(0, np.int64)
        self._labels = np.empty(0, np.bool_)

    def add(self, batch: Batch, times: NDArray[np.int64]) -> None:
        if not len(batch):
            return
        rows = np.empty((len(batch), 2), object)
        rows[:, 0] = batch.values
        rows[:, 1] = batch.keys
        self._rows = np.concatenate([self._rows, rows])
        self._times = np.concatenate([self._times, times])
        self._labels = np.concatenate([self._labels, batch.labels])

    def release(self, until_ms: int | None) -> Batch:
        """Remove and return everything before ``until_ms`` (None: everything), by time."""
        due = self._times < until_ms if until_ms is not None else np.ones(len(self._times), bool)
        rows = np.flatnonzero(due)
        rows = rows[np.argsort(self._times[rows], kind="stable")]
        batch = Batch(
            self._rows[rows, 0].tolist(),
            self._rows[rows, 1].tolist(),
            self._times[rows],
            self._labels[rows],
        )
        self._rows = self._rows[~due]
        self._times, self._labels = self._times[~due], self._labels[~due]
        return batch
