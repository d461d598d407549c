"""Publishes batches to a bus: at full speed, at a rate, or at a multiple of event time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.bus import Bus, Publisher
from anabranch.producers.batch import Batch, Kind
from anabranch.state.errors import InputError

LOG = logging.getLogger("anabranch.bus")
FLUSH_EVERY = 50_000
"""Messages after which delivery is checked when publishing at full speed."""

MAX_SLEEP_S = 0.25
STEP_S = 0.02
"""The granularity of a paced publisher: what is due within this time is published together."""


class AheadOfClock(NamedTuple):
    """A message whose time is later than the clock's: the ``number``-th of its kind, from 1."""

    kind: Kind
    number: int
    time_ms: int


@dataclass(slots=True)
class PublishCounts:
    """How much was published.

    Attributes:
        events, labels: the number of messages, all of them delivered.
        last_ms: the last message's time, epoch ms.
        interrupted: whether Ctrl-C ended it.
        ahead: how many messages of history were ahead of the clock, and so have the time at which
            they were published.
        first_ahead: the first of them.
    """

    events: int = 0
    labels: int = 0
    last_ms: int | None = None
    interrupted: bool = False
    ahead: int = 0
    first_ahead: AheadOfClock | None = None

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
    reader merges topics. One that is ahead of the clock gets the current time, as Kafka refuses
    others. Ctrl-C ends it: what was appended by then is delivered and counted.

    Args:
        bus: where the topics are.
        batches: the messages.
        topics: the topic of each kind.
        rate: messages (events and labels) per second.
        speedup: how many times faster than the wall clock event time passes.
        on_progress: called with the counts after each step.
        clock, sleep: those of `time`, in seconds.

    Raises:
        InputError: both a rate and a speed-up are given, one is not positive, labels have no
            topic, or a topic would not keep the history (then nothing is published).
        BusError: a topic does not exist, or a message was not delivered.
    """
    pace = _pace(rate, speedup)
    counts = PublishCounts()
    publisher = bus.publisher()
    try:
        if pace is None:
            history = _History(bus, topics)
            _publish_at_once(publisher, batches, topics, counts, on_progress, history)
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


class _History:
    """Checks that topics take messages with times of the past, and stamps those of the future."""

    def __init__(self, bus: Bus, topics: Mapping[Kind, str]) -> None:
        self._retention_ms = {topic: bus.limits(topic).retention_ms for topic in topics.values()}
        self._first = True

    def check_retention(self, batch: Batch) -> None:
        """Raise if the first batch is older than a topic keeps messages; warn of a later one."""
        if not len(batch):
            return
        oldest_ms, first = int(batch.times.min()), self._first
        self._first = False
        for topic, kept_ms in list(self._retention_ms.items()):
            if kept_ms is None or _now_ms() - oldest_ms <= kept_ms:
                continue
            problem = (
                f"topic {topic} keeps messages for {kept_ms / 86_400_000:.3g} days (its "
                f"retention.ms is {kept_ms}), and messages of {_time_text(oldest_ms)}"
            )
            if first:
                raise InputError(
                    f"{problem} would be deleted soon after they are published: set retention.ms "
                    "of the topic to -1, or publish them as live traffic, with --rate or --speedup"
                )
            LOG.warning("%s will be deleted soon; set retention.ms of the topic to -1", problem)
            del self._retention_ms[topic]  # once

    def stamped(self, batch: Batch, counts: PublishCounts) -> Batch:
        """The batch, with no time ahead of the clock; counts those that were."""
        now_ms = _now_ms()
        ahead = batch.times > now_ms
        if not ahead.any():
            return batch
        row = int(np.argmax(ahead))
        if counts.first_ahead is None:
            kind: Kind = "labels" if batch.labels[row] else "events"
            before = counts.labels if batch.labels[row] else counts.events
            number = before + int((batch.labels[: row + 1] == batch.labels[row]).sum())
            counts.first_ahead = AheadOfClock(kind, number, int(batch.times[row]))
        counts.ahead += int(ahead.sum())
        return replace(batch, times=np.minimum(batch.times, now_ms))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _time_text(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError):
        return f"{time_ms} ms"


def ahead_text(ahead: int, first: AheadOfClock) -> str:
    """A sentence on messages that were ahead of the clock."""
    kind, number, time_ms = first
    which = f"{kind[:-1]} {number}, of {_time_text(time_ms)}"
    subject = (
        f"{which}, is ahead of the clock and was"
        if ahead == 1
        else f"{ahead:,} messages are ahead of the clock and were"
    )
    listed = "" if ahead == 1 else f" (the first is {which})"
    return (
        f"{subject} stamped with the time of publishing{listed}: more than max_clock_skew ahead, "
        "`run` makes a dead letter of it, `event time ahead`"
    )


def _publish_at_once(
    publisher: Publisher,
    batches: Iterable[Batch],
    topics: Mapping[Kind, str],
    counts: PublishCounts,
    on_progress: Callable[[PublishCounts], None] | None,
    history: _History,
) -> None:
    flushed = 0
    for batch in batches:
        history.check_retention(batch)
        _append(publisher, history.stamped(batch, counts), topics, counts, live=False)
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
