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
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from bytewax.operators import StatefulBatchLogic

from anabranch.dataflows.bus import (
    Bus,
    OnOutOfRange,
    Publisher,
    Reader,
    TopicPartition,
    UnreachableError,
)
from anabranch.state.errors import AnabranchError

Taken = TypeVar("Taken")
Given = TypeVar("Given")
Kept = TypeVar("Kept")
Returned = TypeVar("Returned")

_STDERR = 2


class Guard:
    """Watches calls that the engine makes; ``failure`` is the first of our errors in them."""

    def __init__(self) -> None:
        self.failure: AnabranchError | None = None
        self.failing = False
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
        except BaseException as error:
            self.note(error)
            raise

    def note(self, error: BaseException) -> None:
        """Something that the engine called has failed so; it is about to be told."""
        if isinstance(error, UnreachableError):
            return  # it is still being tried: whoever asked decides
        self.failing = True
        if isinstance(error, AnabranchError):
            self._keep(error)

    def call_if_well(self, function: Callable[..., None], *args: Any) -> None:
        """Call ``function`` unless something has failed before.

        The engine closes everything while it fails; one more error then would abort the process.
        """
        if not self.failing:
            self.call(function, *args)

    def _keep(self, error: AnabranchError) -> None:
        if self.failure is None:
            self.failure = error
            sys.stderr.flush()
            self._stderr = os.dup(_STDERR)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, _STDERR)
            os.close(nowhere)


def watched(
    make: Callable[[], StatefulBatchLogic[Taken, Given, Kept]], guard: Guard | None
) -> StatefulBatchLogic[Taken, Given, Kept]:
    """A stateful step, watched from the moment it is made if there is a guard."""
    return make() if guard is None else _WatchedStep(guard.call(make), guard)


class _WatchedStep(StatefulBatchLogic[Taken, Given, Kept]):
    def __init__(self, step: StatefulBatchLogic[Taken, Given, Kept], guard: Guard) -> None:
        self._step = step
        self._guard = guard
        self._on_batch = step.on_batch
        self.notify_at = step.notify_at  # type: ignore[method-assign]  # asked at every batch

    def on_batch(self, values: list[Taken]) -> tuple[Any, bool]:
        try:
            return self._on_batch(values)
        except BaseException as error:
            self._guard.note(error)
            raise

    def on_notify(self) -> tuple[Any, bool]:
        return self._guard.call(self._step.on_notify)

    def on_eof(self) -> tuple[Any, bool]:
        return self._guard.call(self._step.on_eof)

    def snapshot(self) -> Kept:
        return self._guard.call(self._step.snapshot)


class WatchedBus:
    """A `Bus` whose publishers and readers are watched; all else goes through."""

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

    def publisher(self, stop: threading.Event | None = None) -> Publisher:
        return _WatchedPublisher(self._guard.call(self._bus.publisher, stop), self._guard)

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        group: str | None = None,
        on_out_of_range: OnOutOfRange = "stop",
    ) -> Reader:
        reader = self._guard.call(self._bus.reader, positions, group, on_out_of_range)
        return _WatchedReader(reader, self._guard)

    def close(self) -> None:
        self._bus.close()


class _WatchedPublisher:
    def __init__(self, publisher: Publisher, guard: Guard) -> None:
        self._publisher = publisher
        self._guard = guard
        self._append = publisher.append

    def append(self, topic: str, values: Sequence[bytes], **columns: Any) -> None:
        try:
            self._append(topic, values, **columns)
        except BaseException as error:
            self._guard.note(error)
            raise

    def flush(self, timeout_s: float = 30.0) -> None:
        self._guard.call_if_well(self._publisher.flush, timeout_s)

    def close(self) -> None:
        self._guard.call_if_well(self._publisher.close)


class _WatchedReader:
    def __init__(self, reader: Reader, guard: Guard) -> None:
        self._reader = reader
        self._guard = guard
        self.poll = reader.poll  # as it is: the intake ends the flow by itself if it fails
        self.pause, self.resume = reader.pause, reader.resume
        self.positions, self.ends = reader.positions, reader.ends
        self.unavailable_reason = reader.unavailable_reason

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        self._guard.call_if_well(self._reader.commit, positions)

    def close(self) -> None:
        self._guard.call_if_well(self._reader.close)
