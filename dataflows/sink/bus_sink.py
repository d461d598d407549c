"""The sink operator: publishes what the flow made, each message once, and checks that it arrived.

An item is ``(partition number, Outgoing)``; one sink partition writes one partition number of every
output topic, so that each of those has one writer and keeps its order.

With recovery on, a sink partition remembers where its outputs ended when an epoch did. After a
crash the sources go back to the last confirmed epoch and the flow makes again what came after it.
So the sink reads its outputs back from those ends, and suppresses what is there already::

    outputs  ──●──●──●──┃──●──●──●            ┃ ends of the last confirmed epoch
    replay              ┃  ○  ○  ○  ●  ●      ○ suppressed

Until the flow has come past all that was read back, the old ends stay in the state: another crash
in between must find it again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from anabranch.dataflows.batch.outgoing import Marking, Outgoing
from anabranch.dataflows.bus import Bus, BusError, Publisher, TopicPartition, UnreachableError
from anabranch.dataflows.error_guard import ErrorGuard
from anabranch.dataflows.sink.delivery_retry import Patience
from anabranch.dataflows.sink.published import Published
from anabranch.dataflows.sink.read_back import ReadBack
from anabranch.dataflows.telemetry.latency import LatencyMetrics

Ends = dict[str, int]
"""Output topic → the offset up to which one partition of it is confirmed."""

LOG = logging.getLogger("anabranch.sink")
OnWritten = Callable[[Outgoing, float], None]
Call = Callable[..., Any]
_FLUSH_S = 1.0
_LAST_FLUSH_S = 10.0


class BusSink(FixedPartitionedSink[Outgoing, Ends | None]):
    """Publishes to the partition number that each item names.

    ``on_written`` is told of each item after it was handed to the bus, with the wall clock; of a
    replayed one only what was not published before. A bus that is away is waited for with
    ``patience``.

    With ``since``, recovery is on: the ends of the outputs when the state was made (a topic that is
    not there did not exist). A partition without state may have written all that lies behind. Then
    ``marking`` says how to read the outputs back; ``progress`` and ``accept_loss`` are those of
    `ReadBack`. ``guard`` watches for errors that the user should see alone. ``latency`` is
    told how long items took to be handed over.
    """

    def __init__(
        self,
        bus: Bus,
        partitions: int,
        on_written: OnWritten | None = None,
        *,
        marking: Marking | None = None,
        since: Mapping[TopicPartition, int] | None = None,
        patience: Patience | None = None,
        progress: Callable[[str], None] = LOG.info,
        accept_loss: bool = False,
        guard: ErrorGuard | None = None,
        latency: LatencyMetrics | None = None,
    ) -> None:
        self._latency = latency
        self._partitions = partitions
        self._on_written = on_written
        self._since = since
        self._call = _plainly if guard is None else guard.call
        self._guard = guard
        patience = patience or Patience()
        self._read_back: ReadBack | None = None
        if since is not None:
            if marking is None:
                raise ValueError("a sink with recovery needs the marking of its pipeline")
            self._read_back = ReadBack(bus, marking, patience, progress, accept_loss)
        outputs = () if self._read_back is None else tuple(self._read_back.marking.fields)
        self._writer = _Writer(bus, outputs, patience, guard)

    def list_parts(self) -> list[str]:
        return [part_name(number) for number in range(self._partitions)]

    def part_fn(self, item_key: str) -> int:
        return int(item_key)

    def build_part(
        self, step_id: str, for_part: str, resume_state: Ends | None
    ) -> StatefulSinkPartition[Outgoing, Ends | None]:
        part: _SinkPartition = self._call(self._build, int(for_part), resume_state)
        return part

    def _build(self, number: int, confirmed: Ends | None) -> _SinkPartition:
        start: Ends = {}
        aside: Ends = {}
        published = None
        if self._read_back is not None and self._since is not None:
            for topic in self._read_back.marking.fields:
                made_at = self._since.get(TopicPartition(topic, number), 0)
                start[topic] = (confirmed or {}).get(topic, made_at)
            published = self._read_back.published(number, start)
            aside = {t: end for t, end in (confirmed or {}).items() if t not in start}
        part = _SinkPartition(
            number,
            self._writer,
            self._on_written,
            published,
            start,
            aside,
            self._call,
            self._guard,
            self._latency,
        )
        self._writer.open_parts += 1
        return part


def _plainly(function: Call, *args: Any) -> Any:
    return function(*args)


@cache
def part_name(number: int) -> str:
    """Sink partitions are ordered by name, so numbers are padded."""
    return f"{number:06d}"


class _Writer:
    """The publisher that the partitions of one worker share, and where their outputs end."""

    def __init__(
        self, bus: Bus, outputs: tuple[str, ...], patience: Patience, guard: ErrorGuard | None
    ) -> None:
        self._bus = bus
        self._outputs = outputs
        self._patience = patience
        self._guard = guard
        self._publisher: Publisher | None = None
        self._ends: dict[str, list[int]] = {}
        self.open_parts = 0
        self.unconfirmed = True
        self.broken = False

    def publish(self, item: Outgoing) -> None:
        self.unconfirmed = True
        publisher = self._publisher
        if publisher is None:
            publisher = self._publisher = self._open()
        try:
            for topic, messages in item.messages.items():
                publisher.append(topic, messages, partitions=item.partition)
        except BaseException as error:
            self.broken = True
            if isinstance(error, UnreachableError):  # it was told to stop: this is the end
                raise BusError(str(error)) from error
            raise

    def _open(self) -> Publisher:
        stop = self._patience.stop
        return self._bus.publisher() if stop is None else self._bus.publisher(stop)

    def confirm(self) -> dict[str, list[int]]:
        """Wait until all is stored; the ends of the outputs then, by topic and partition.

        One flush serves all partitions of a worker: nothing is written between their snapshots.
        """
        if self.broken:
            raise BusError("nothing more can be confirmed: publishing has failed before")
        if self.unconfirmed:
            try:
                self._confirm()
            except BaseException:
                self.broken = True
                raise
            self.unconfirmed = False
        return self._ends

    def _confirm(self) -> None:
        publisher, insist = self._publisher, self._patience.insist
        if publisher is not None:
            insist(lambda: publisher.flush(_FLUSH_S))
        if self._guard is not None and self._guard.failed:  # then a watched flush does nothing
            raise BusError("nothing is confirmed: a step of the flow has failed")
        for topic in self._outputs:
            self._ends[topic] = insist(lambda topic=topic: self._bus.end_offsets(topic))  # type: ignore[misc]

    def leave(self) -> None:
        """The last partition to leave closes the publisher, unless the flow has failed.

        What is not confirmed then is left as it is: a resume finds out what arrived.
        """
        self.open_parts -= 1
        publisher = self._publisher
        if self.open_parts or publisher is None or self.broken:
            return
        if self.unconfirmed and self._outputs:
            return
        if self.unconfirmed:
            publisher.flush(_LAST_FLUSH_S)
        self._publisher = None
        publisher.close()


class _SinkPartition(StatefulSinkPartition[Outgoing, Ends | None]):
    def __init__(
        self,
        number: int,
        writer: _Writer,
        on_written: OnWritten | None,
        published: Published | None,
        start: Ends,
        aside: Ends,
        call: Call,
        guard: ErrorGuard | None,
        latency: LatencyMetrics | None,
    ) -> None:
        self._latency = latency
        self._number = number
        self._writer = writer
        self._on_written = on_written
        self._published = published or None  # empty: nothing to look at
        self._start = start
        self._aside = aside  # topics that are no outputs now, and may become ones again
        self._call = call
        self._guard = guard

    def write_batch(self, items: list[Outgoing]) -> None:
        latency = self._latency
        try:
            for item in items:
                if self._published is not None:
                    item = self._published.without(item)
                if latency is None or not latency.timed:
                    self._writer.publish(item)
                else:
                    began = time.perf_counter()
                    self._writer.publish(item)
                    latency.spent("publish", began)
                if self._on_written is not None:
                    self._on_written(item, time.time())
        except BaseException as error:
            if self._guard is not None:
                self._guard.record(error)
            raise

    def snapshot(self) -> Ends | None:
        ends: dict[str, list[int]] = self._call(self._writer.confirm)
        if not self._start:  # without recovery
            return None
        if self._published is not None:
            if not self._published.passed():
                return {**self._aside, **self._start}
            self._published = None
        return {**self._aside, **{topic: ends[topic][self._number] for topic in self._start}}

    def close(self) -> None:
        self._writer.leave()
