"""The simplest stream program, a process that copies one topic to another, and its latency.

Its latency is the lower limit for any program between the same two topics of a bus. `measure`
compares any program (`Between`) with it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from anabranch.dataflows.bus import Bus, TopicPartition, open_bus

__all__ = ["Between", "Latency", "Wire", "echo_between", "measure"]

_WARM_UP_S = 1.0

Between = Callable[[str, str, str], AbstractContextManager[None]]
"""Runs a program from ``(url, source topic, target topic)`` while its context is open."""


class Latency(NamedTuple):
    """Milliseconds from the scheduled publishing of a message until it was read back."""

    p50_ms: float
    p99_ms: float
    worst_ms: float
    messages: int


@dataclass(frozen=True, slots=True)
class Wire:
    """How message ``n`` is written to the source, and which one a message of the target is."""

    encode: Callable[[int], bytes]
    decode: Callable[[bytes], int]


NUMBERS = Wire(lambda n: b"%d" % n, int)


def measure(
    bus: Bus,
    source: str,
    target: str,
    between: Between,
    per_second: int,
    seconds: float,
    wire: Wire = NUMBERS,
) -> Latency:
    """Publish to ``source`` at a steady rate and time each message's arrival on ``target``.

    Latency counts from when a message was *scheduled*, so that a stall counts for every message
    that it delayed. Both topics are created, with one partition. The first second is not counted.

    Raises:
        RuntimeError: a message was lost, duplicated or out of order.
    """
    bus.create_topics({source: 1, target: 1})
    with between(bus.url, source, target):
        return _drive(bus, source, target, per_second, seconds, wire)


def _drive(
    bus: Bus, source: str, target: str, per_second: int, seconds: float, wire: Wire
) -> Latency:
    total = int(per_second * (seconds + _WARM_UP_S))
    publisher = bus.publisher()
    reader = bus.reader({TopicPartition(target, 0): bus.end_offsets(target)[0]})
    back: list[bytes] = []
    messages = [wire.encode(n) for n in range(total)]
    waited: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    sent, start = 0, time.monotonic_ns() + 200_000_000
    due = start + np.arange(total, dtype=np.int64) * (1_000_000_000 // per_second)
    deadline = time.monotonic() + seconds + _WARM_UP_S + 30
    while len(back) < total and time.monotonic() < deadline:
        ready = int(np.searchsorted(due, time.monotonic_ns()))
        if ready > sent:
            publisher.append(source, messages[sent:ready])
            sent = ready
        for part in reader.poll(10_000, 0.001):  # also what paces the publishing
            now = time.monotonic_ns()
            waited.append(now - due[len(back) : len(back) + len(part.values)])
            back += part.values
    publisher.close()
    reader.close()
    if [wire.decode(value) for value in back] != list(range(total)):
        raise RuntimeError(f"{total} messages were sent, {len(back)} came back, or out of order")
    counted = np.concatenate(waited)[int(per_second * _WARM_UP_S) :] / 1e6
    p50, p99 = np.percentile(counted, [50, 99])
    return Latency(float(p50), float(p99), float(counted.max()), len(counted))


@contextmanager
def echo_between(url: str, source: str, target: str) -> Iterator[None]:
    """A process that copies ``source`` to ``target`` as fast as it can."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=_copy, args=(url, source, target, ready), daemon=True)
    process.start()
    try:
        if not ready.wait(30):
            raise RuntimeError("the echo did not start")
        yield
    finally:
        process.terminate()
        process.join()


def _copy(url: str, source: str, target: str, ready: Any) -> None:
    bus = open_bus(url)
    publisher = bus.publisher()
    reader = bus.reader({TopicPartition(source, 0): bus.end_offsets(source)[0]})
    ready.set()
    while True:
        for part in reader.poll(10_000, 0.1):
            publisher.append(target, part.values, keys=part.keys)
