"""Keeps the error that explains why a flow failed, and suppresses the engine's panic report.

When a step raises, the engine writes a panic report of many lines straight to the process's
standard error, and wraps the exception several times. For a bug in this program that is what one
wants to see; for an error that tells the user what to do (`AnabranchError`) it buries the sentence.
So calls that the engine makes are guarded: such an error is kept, and standard error is silenced
from then until the engine has returned.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from bytewax.operators import StatefulBatchLogic

from anabranch.dataflows.bus import (
    Bus,
    OnOutOfRange,
    Publisher,
    Reader,
    TopicLimits,
    TopicPartition,
    UnreachableError,
)
from anabranch.state.errors import AnabranchError

In = TypeVar("In")
Out = TypeVar("Out")
State = TypeVar("State")
Result = TypeVar("Result")

_STDERR = 2


class ErrorGuard:
    """Guards calls that the engine makes.

    Attributes:
        failure: the first `AnabranchError` that one of them raised.
        unexpected: the first other error: the engine of a cluster reports only that a connection
            was lost.
        failed: whether any of them raised.
    """

    def __init__(self) -> None:
        self.failure: AnabranchError | None = None
        self.unexpected: Exception | None = None
        self.failed = False
        self._stderr: int | None = None

    @contextmanager
    def engine_running(self) -> Iterator[None]:
        """The engine runs in this block; standard error is restored at its end."""
        try:
            yield
        finally:
            if self._stderr is not None:
                os.dup2(self._stderr, _STDERR)
                os.close(self._stderr)
                self._stderr = None

    def call(self, function: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """Call ``function``; an error of it is recorded, and raised on."""
        try:
            return function(*args, **options)
        except BaseException as error:
            self.record(error)
            raise

    def record(self, error: BaseException) -> None:
        """Record an error that is about to reach the engine."""
        if isinstance(error, UnreachableError):
            return  # the caller decides whether to try again
        self.failed = True
        if isinstance(error, AnabranchError):
            self._keep(error)
        elif self.unexpected is None and isinstance(error, Exception):
            self.unexpected = error

    def replace(self, error: AnabranchError) -> None:
        """Keep ``error`` in place of what was recorded: it says more of the same failure."""
        self.record(error)
        self.failure = error

    def call_unless_failed(self, function: Callable[..., None], *args: Any) -> None:
        """Call ``function`` unless a guarded call has failed before.

        The engine closes everything while it fails; one more error then would abort the process.
        """
        if not self.failed:
            self.call(function, *args)

    def _keep(self, error: AnabranchError) -> None:
        if self.failure is None:
            self.failure = error
            sys.stderr.flush()
            self._stderr = os.dup(_STDERR)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, _STDERR)
            os.close(null)


def guarded(
    make: Callable[[], StatefulBatchLogic[In, Out, State]], guard: ErrorGuard | None
) -> StatefulBatchLogic[In, Out, State]:
    """A stateful step, guarded from its construction on if there is a guard."""
    return make() if guard is None else _GuardedStep(guard.call(make), guard)


class _GuardedStep(StatefulBatchLogic[In, Out, State]):
    def __init__(self, step: StatefulBatchLogic[In, Out, State], guard: ErrorGuard) -> None:
        self._step = step
        self._guard = guard
        self._on_batch = step.on_batch
        self.notify_at = step.notify_at  # type: ignore[method-assign]  # called at every batch

    def on_batch(self, values: list[In]) -> tuple[Any, bool]:
        try:
            return self._on_batch(values)
        except BaseException as error:
            self._guard.record(error)
            raise

    def on_notify(self) -> tuple[Any, bool]:
        return self._guard.call(self._step.on_notify)

    def on_eof(self) -> tuple[Any, bool]:
        return self._guard.call(self._step.on_eof)

    def snapshot(self) -> State:
        return self._guard.call(self._step.snapshot)


class GuardedBus:
    """A `Bus` whose publishers and readers are guarded."""

    def __init__(self, bus: Bus, guard: ErrorGuard) -> None:
        self._bus = bus
        self._guard = guard
        self.url = bus.url

    def create_topics(self, partitions: Mapping[str, int]) -> list[str]:
        return self._bus.create_topics(partitions)

    def add_partitions(self, topic: str, count: int) -> None:
        self._guard.call(self._bus.add_partitions, topic, count)

    def topics(self) -> dict[str, int]:
        return self._guard.call(self._bus.topics)

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        return self._guard.call(self._bus.topic_ids, topics)

    def start_offsets(self, topic: str) -> list[int]:
        return self._guard.call(self._bus.start_offsets, topic)

    def end_offsets(self, topic: str) -> list[int]:
        return self._guard.call(self._bus.end_offsets, topic)

    def offsets_at(self, topic: str, time_ms: int) -> list[int]:
        return self._guard.call(self._bus.offsets_at, topic, time_ms)

    def open_transactions(self, topic: str) -> dict[int, int]:
        return self._guard.call(self._bus.open_transactions, topic)

    def limits(self, topic: str) -> TopicLimits:
        return self._guard.call(self._bus.limits, topic)

    def publisher(self, stop: threading.Event | None = None) -> Publisher:
        return _GuardedPublisher(self._guard.call(self._bus.publisher, stop), self._guard)

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        group: str | None = None,
        on_out_of_range: OnOutOfRange = "stop",
        headers: bool = False,
    ) -> Reader:
        more = {"headers": True} if headers else {}
        reader = self._guard.call(self._bus.reader, positions, group, on_out_of_range, **more)
        return _GuardedReader(reader, self._guard)

    def close(self) -> None:
        self._bus.close()


class _GuardedPublisher:
    def __init__(self, publisher: Publisher, guard: ErrorGuard) -> None:
        self._publisher = publisher
        self._guard = guard
        self._append = publisher.append

    def append(self, topic: str, values: Sequence[bytes], **columns: Any) -> None:
        try:
            self._append(topic, values, **columns)
        except BaseException as error:
            self._guard.record(error)
            raise

    def flush(self, timeout_s: float = 30.0) -> None:
        self._guard.call_unless_failed(self._publisher.flush, timeout_s)

    def close(self) -> None:
        self._guard.call_unless_failed(self._publisher.close)


class _GuardedReader:
    def __init__(self, reader: Reader, guard: ErrorGuard) -> None:
        self._reader = reader
        self._guard = guard
        self.poll = reader.poll  # unguarded: if it fails, the source ends the flow by itself
        self.pause, self.resume = reader.pause, reader.resume
        self.positions, self.ends = reader.positions, reader.ends
        self.unavailable_reason = reader.unavailable_reason
        self.partition_counts = reader.partition_counts

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        self._guard.call_unless_failed(self._reader.commit, positions)

    def close(self) -> None:
        self._guard.call_unless_failed(self._reader.close)
