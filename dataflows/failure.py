"""Keeps the one sentence that tells why a flow failed, and keeps the engine's own report away.

When a step raises, the engine writes a panic report of many lines straight to the process's
standard error, and wraps the error several times. For a fault of this program that is what one
wants to see; for an error that says what to do (`AnabranchError`) it buries the sentence. So what
runs inside the engine is watched: such an error is kept, and standard error is silent from then
until the engine has returned.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from bytewax.operators import StatefulBatchLogic

from dataflows.bus import Bus, Publisher, Reader, TopicPartition
from state.errors import AnabranchError

Taken = TypeVar("Taken")
Given = TypeVar("Given")
Returned = TypeVar("Returned")

_STDERR = 2


class Guard:
    """Watches calls that the engine makes; ``failure`` is the first of our errors in them."""

    def __init__(self) -> None:
        self.failure: AnabranchError | None = None
        self._stderr: int | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The engine runs in this block; afterwards standard error is itself again."""
        try:
            yield
        finally:
            if self._stderr is not None:
                os.dup2(self._stderr, _STDERR)
                os.close(self._stderr)
                self._stderr = None

    def call(self, function: Callable[..., Returned], *args: Any, **options: Any) -> Returned:
        """Call ``function``; an error that tells the user what to do silences the engine."""
        try:
            return function(*args, **options)
        except AnabranchError as error:
            self._keep(error)
            raise

    def _keep(self, error: AnabranchError) -> None:
        if self.failure is None:
            self.failure = error
            sys.stderr.flush()
            self._stderr = os.dup(_STDERR)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, _STDERR)
            os.close(nowhere)


def watched(
    step: StatefulBatchLogic[Taken, Given, None], guard: Guard | None
) -> StatefulBatchLogic[Taken, Given, None]:
    """A stateful step, watched if there is a guard."""
    return step if guard is None else _WatchedStep(step, guard)


class _WatchedStep(StatefulBatchLogic[Taken, Given, None]):
    def __init__(self, step: StatefulBatchLogic[Taken, Given, None], guard: Guard) -> None:
        self._step = step
        self._guard = guard

    def on_batch(self, values: list[Taken]) -> tuple[Any, bool]:
        return self._guard.call(self._step.on_batch, values)

    def on_notify(self) -> tuple[Any, bool]:
        return self._guard.call(self._step.on_notify)

    def on_eof(self) -> tuple[Any, bool]:
        return self._guard.call(self._step.on_eof)

    def notify_at(self) -> datetime | None:
        return self._step.notify_at()

    def snapshot(self) -> None:
        return self._guard.call(self._step.snapshot)


class WatchedBus:
    """A `Bus` whose publishers are watched; all else goes through."""

    def __init__(self, bus: Bus, guard: Guard) -> None:
        self._bus = bus
        self._guard = guard
        self.url = bus.url

    def create_topics(self, partitions: Mapping[str, int]) -> list[str]:
        return self._bus.create_topics(partitions)

    def topics(self) -> dict[str, int]:
        return self._guard.call(self._bus.topics)

    def start_offsets(self, topic: str) -> list[int]:
        return self._guard.call(self._bus.start_offsets, topic)

    def end_offsets(self, topic: str) -> list[int]:
        return self._guard.call(self._bus.end_offsets, topic)

    def publisher(self) -> Publisher:
        return _WatchedPublisher(self._guard.call(self._bus.publisher), self._guard)

    def reader(self, positions: Mapping[TopicPartition, int], group: str | None = None) -> Reader:
        return self._guard.call(self._bus.reader, positions, group)

    def close(self) -> None:
        self._bus.close()


class _WatchedPublisher:
    def __init__(self, publisher: Publisher, guard: Guard) -> None:
        self._publisher = publisher
        self._guard = guard

    def append(self, topic: str, values: Sequence[bytes], **columns: Any) -> None:
        self._guard.call(self._publisher.append, topic, values, **columns)

    def flush(self, timeout_s: float = 30.0) -> None:
        self._guard.call(self._publisher.flush, timeout_s)

    def close(self) -> None:
        self._guard.call(self._publisher.close)
