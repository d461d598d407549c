"""Batches of messages, which all producers yield."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["events", "labels"]
"""Which of a pipeline's two input topics a message is for."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages in the order in which they are published.

    Attributes:
        values: the payloads.
        keys: what they are partitioned by; None for round-robin.
        times: when each is published, ``(n,) int64`` epoch ms.
        labels: ``(n,) bool``, which of them go to the labels topic; all others are events.
    """

    values: list[bytes]
    keys: list[bytes | None]
    times: NDArray[np.int64]
    labels: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        kind: Kind,
        values: list[bytes],
        keys: list[bytes | None],
        times: Sequence[int] | NDArray[np.int64],
    ) -> Batch:
        """Messages that are all of one kind."""
        labels = np.full(len(values), kind == "labels")
        return cls(values, keys, np.asarray(times, np.int64), labels)

    def __len__(self) -> int:
        return len(self.values)

    def part(self, start: int, stop: int) -> Batch:
        """The messages ``start`` to ``stop``, as a batch."""
        cut = slice(start, stop)
        return Batch(self.values[cut], self.keys[cut], self.times[cut], self.labels[cut])

    def only(self, kind: Kind) -> Batch:
        """The messages for one topic, in order."""
        wanted = self.labels if kind == "labels" else ~self.labels
        if wanted.all():
            return self
        rows = np.flatnonzero(wanted)
        indices = rows.tolist()
        return Batch(
            [self.values[index] for index in indices],
            [self.keys[index] for index in indices],
            self.times[rows],
            self.labels[rows],
        )
