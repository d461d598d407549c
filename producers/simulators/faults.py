"""Faults on the way to a bus, in known shares, for demonstrations and tests.

Faults add messages or delay them, but never remove one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anabranch.producers.batch import Batch
from anabranch.state.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The shares (0 to 1) of events with each fault.

    Attributes:
        malformed: events that are followed by a malformed copy: truncated, with a value of another
            type, or not text at all.
        duplicates: events that are published a second time, up to ``delay_s`` later.
        out_of_order: events that are published up to ``delay_s`` seconds after they happened.
        delay_s: the longest delay, in seconds of event time.

    Raises:
        InputError: a share is outside 0 to 1, or the delay is negative.
    """

    malformed: float = 0.0
    duplicates: float = 0.0
    out_of_order: float = 0.0
    delay_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("malformed", "duplicates", "out_of_order"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise InputError(f"a share of {share:g} of {name} is out of range: give 0 to 1")
        if self.delay_s < 0:
            raise InputError(f"a delay of {self.delay_s:g} s is out of range: give 0 or more")

    def arrivals(self, random: np.random.Generator, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """When events that happened at ``times`` are published, ``(n,) int64`` epoch ms."""
        if not self.out_of_order:
            return times
        delayed = random.random(len(times)) < self.out_of_order
        return times + np.where(delayed, self._delays_ms(random, len(times)), 0)

    def extra(self, random: np.random.Generator, events: Batch) -> Batch:
        """The duplicates and malformed copies of ``events``, to be published besides them."""
        values: list[bytes] = []
        keys: list[bytes | None] = []
        times: list[int] = []
        if self.duplicates:
            delays = self._delays_ms(random, len(events))
            for row in np.flatnonzero(random.random(len(events)) < self.duplicates).tolist():
                values.append(events.values[row])
                keys.append(events.keys[row])
                times.append(int(events.times[row] + delays[row]))
        if self.malformed:
            for row in np.flatnonzero(random.random(len(events)) < self.malformed).tolist():
                values.append(_malformed(events.values[row], int(random.integers(3))))
                keys.append(events.keys[row])
                times.append(int(events.times[row]))
        return Batch.of("events", values, keys, times)

    def _delays_ms(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        return np.asarray(random.random(count) * self.delay_s * 1000, np.int64)


def _malformed(value: bytes, how: int) -> bytes:
    if how == 0:
        return value[: len(value) // 2]
    if how == 1:
        return value.replace(b'"ts":', b'"ts":"yesterday","was":', 1)
    return b"\xff\xfe" + value[::-1]
