"""Publishes batches to a bus: at full speed, at a rate, or at a multiple of event time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.bus import Bus, Publisher
from anabranch.producers.batch import Batch, Kind
from anabranch.state.errors import InputError

FLUSH_EVERY = 50_000
"""Messages after which delivery is checked when publishing at full speed."""

MAX_SLEEP_S = 0.25
STEP_S = 0.02
"""The granularity of a paced publisher: what is due within this time is published together."""


@dataclass(slots=True)
class PublishCounts:
    """How much was published.

    Attributes:
        events, labels: the number of messages, all of them delivered.
        last_ms: the last message's time, epoch ms.
        interrupted: whether Ctrl-C ended it.
    """

    events: int = 0
    labels: int = 0
    last_ms: int | None = None
    interrupted: bool = False

    @property
    def messages(self) -> int:
        """Events and labels together."""
        return self.events + self.labels


class Pace(Protocol):
    """A schedule: the second, from the start of publishing, at which each message is due."""

    def due_s(self, batch: Batch) -> NDArray[np.float64]:
        """Rising seconds, ``(n,) float64``, for the batch that follows those already seen."""


class RatePace:
    """A fixed number of messages per second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._sent = 0

    def due_s(self, batch: Batch) -> NDArray[np.float64]:
        due = (self._sent + np.arange(len(batch))) / self._rate
        self._sent += len(batch)
        return due


class EventPace:
    """The spacing of the messages' own times, ``speedup`` times as fast.

    A message whose time is before its predecessor's is due with its predecessor.
    """

    def __init__(self, speedup: float) -> None:
        self._speedup = speedup
        self._first_ms: int | None = None
        self._newest_ms = 0

    def due_s(self, batch: Batch) -> NDArray[np.float64]:
        if self._first_ms is None:
            self._first_ms = self._newest_ms = int(batch.times[0])
        newest = np.maximum(np.maximum.accumulate(batch.times), self._newest_ms)
        self._newest_ms = int(newest[-1])
        return (newest - self._first_ms) / (1000.0 * self._speedup)


def publish(
    bus: Bus,
    batches: Iterable[Batch],
    *,
    topics: Mapping[Kind, str],
    rate: float | None = None,
    speedup: float | None = None,
    on_progress: Callable[[PublishCounts], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> PublishCounts:
    """Publish ``batches`` to the ``topics`` of their kinds.

    With a rate or a speed-up it simulates live traffic: a message's time is when it is published.
    With neither it publishes history at full speed: each message keeps its own time, by which a
    reader merges topics. Ctrl-C ends it: what was appended by then is delivered and counted.

    Args:
        bus: where the topics are.
        batches: the messages.
        topics: the topic of each kind.
        rate: messages (events and labels) per second.
        speedup: how many times faster than the wall clock event time passes.
        on_progress: called with the counts after each step.
        clock, sleep: those of `time`, in seconds.

    Raises:
        InputError: both a rate and a speed-up are given, one is not positive, or labels have no
            topic.
        BusError: a topic does not exist, or a message was not delivered.
    """
    pace = _pace(rate, speedup)
    counts = PublishCounts()
    publisher = bus.publisher()
    try:
        if pace is None:
            _publish_at_once(publisher, batches, topics, counts, on_progress)
        else:
            _publish_paced(publisher, batches, topics, counts, on_progress, pace, clock, sleep)
        publisher.flush()
    except KeyboardInterrupt:
        counts.interrupted = True
        publisher.flush()
    except BaseException:
        with suppress(Exception):  # the first error is the one to report
            publisher.close()
        raise
    publisher.close()
    if on_progress is not None:
        on_progress(counts)
    return counts


def _pace(rate: float | None, speedup: float | None) -> Pace | None:
    if rate is not None and speedup is not None:
        raise InputError("a rate and a speed-up were both given: choose one of them")
    for name, value in (("rate", rate), ("speed-up", speedup)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"a {name} of {value:g} can't be kept: give a number above 0")
    if rate is not None:
        return RatePace(rate)
    return EventPace(speedup) if speedup is not None else None


def _publish_at_once(
    publisher: Publisher,
    batches: Iterable[Batch],
    topics: Mapping[Kind, str],
    counts: PublishCounts,
    on_progress: Callable[[PublishCounts], None] | None,
) -> None:
    flushed = 0
    for batch in batches:
        _append(publisher, batch, topics, counts, live=False)
        if counts.messages - flushed >= FLUSH_EVERY:
            publisher.flush()
            flushed = counts.messages
        if on_progress is not None:
            on_progress(counts)


def _publish_paced(
    publisher: Publisher,
    batches: Iterable[Batch],
    topics: Mapping[Kind, str],
    counts: PublishCounts,
    on_progress: Callable[[PublishCounts], None] | None,
    pace: Pace,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    began = clock()
    for batch in batches:
        due = pace.due_s(batch) if len(batch) else np.empty(0)
        sent = 0
        while sent < len(batch):
            ready = int(np.searchsorted(due, clock() - began + STEP_S, side="right"))
            if ready > sent:
                _append(publisher, batch.part(sent, ready), topics, counts, live=True)
                sent = ready
                publisher.flush()  # a reader is waiting for it
                if on_progress is not None:
                    on_progress(counts)
            if sent < len(batch):
                wait = float(due[sent]) - (clock() - began)
                sleep(min(max(wait, STEP_S), MAX_SLEEP_S))


def _append(
    publisher: Publisher,
    batch: Batch,
    topics: Mapping[Kind, str],
    counts: PublishCounts,
    *,
    live: bool,
) -> None:
    """Append a batch by kind, with its own times or the current one, and count it."""
    for kind in ("events", "labels"):
        part = batch.only(kind)
        if not len(part):
            continue
        if kind not in topics:
            raise InputError(f"there are {kind} to publish, but no topic was given for them")
        times = None if live else part.times
        publisher.append(topics[kind], part.values, keys=part.keys, times=times)
        if kind == "events":
            counts.events += len(part)
        else:
            counts.labels += len(part)
    if len(batch):
        counts.last_ms = int(batch.times[-1])
