"""Reads the outputs back from where the state left them, for the marks of what was published."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from anabranch.dataflows.batch.outgoing import Mark, Marking
from anabranch.dataflows.bus import Bus, Reader, Slice, TopicPartition, UnreachableError
from anabranch.dataflows.sink.delivery_retry import Patience
from anabranch.dataflows.sink.published import Published
from anabranch.state.errors import StateError

LOG = logging.getLogger(__name__)
_LIMIT = 4096
_POLL_S = 1.0
_TELL_EVERY_S = 2.0
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(slots=True)
class ReadBack:
    """How outputs are read back: whose they are, and who is told.

    ``progress`` gets a line every two seconds while a lot is read. ``accept_loss``: an output that
    is shorter than the state says is read from its start; else it is an error.
    """

    bus: Bus
    marking: Marking
    patience: Patience = field(default_factory=Patience)
    progress: Callable[[str], None] = LOG.info
    accept_loss: bool = False

    def published(self, partition: int, start: Mapping[str, int]) -> Published:
        """The marks on every output's ``partition``, from ``start`` (by topic) to its end now.

        Reads in small pieces and keeps only marks. A message that this pipeline can't have written
        is passed over, and counted in the log.

        Raises:
            StateError: an output ends before its ``start``.
            BusError: the bus refused, or the flow was stopped while it was away.
        """
        published = Published(self.marking.inputs[0])
        ends = {topic: self._ask(self.bus.end_offsets, topic, partition) for topic in start}
        positions = {
            TopicPartition(topic, partition): self._first(topic, partition, offset, ends[topic])
            for topic, offset in start.items()
        }
        positions = {at: offset for at, offset in positions.items() if offset < ends[at.topic]}
        if not positions:
            return published
        sources = {
            topic: self._ask(self.bus.end_offsets, topic, partition)
            for topic in self.marking.inputs
        }
        collector = _Collector(self.marking, partition, sources, published)
        reader = self.patience.insist(lambda: self.bus.reader(positions))
        try:
            self._read(reader, positions, ends, collector)
        finally:
            reader.close()
        collector.report()
        return published

    def _read(
        self,
        reader: Reader,
        starts: Mapping[TopicPartition, int],
        ends: Mapping[str, int],
        collector: _Collector,
    ) -> None:
        left = {at: ends[at.topic] for at in starts}
        total = sum(end - starts[at] for at, end in left.items())
        tell_at = time.monotonic() + _TELL_EVERY_S

        def poll() -> list[Slice]:
            slices = reader.poll(_LIMIT, _POLL_S)
            if not slices:
                missing = ", ".join(f"{at.topic} partition {at.partition}" for at in left)
                raise UnreachableError(f"reading back what was published: nothing of {missing}")
            return slices

        while left:
            for piece in self.patience.insist(poll):
                collector.take(piece, ends[piece.topic])
            positions = reader.positions()
            left = {at: end for at, end in left.items() if positions[at] < end}
            if time.monotonic() >= tell_at:
                tell_at += _TELL_EVERY_S
                done = total - sum(end - positions[at] for at, end in left.items())
                self.progress(
                    f"partition {collector.partition}: reading back what was published, "
                    f"{done:,} of {total:,} messages"
                )

    def _ask(self, question: Callable[[str], list[int]], topic: str, partition: int) -> int:
        return self.patience.insist(lambda: question(topic))[partition]

    def _first(self, topic: str, partition: int, wanted: int, end: int) -> int:
        """Where to begin: ``wanted``, or what is left of it."""
        kept = self._ask(self.bus.start_offsets, topic, partition)
        if wanted > end:
            sentence = (
                f"topic {topic} partition {partition} ends at offset {end}, but this state left it "
                f"at {wanted}: it was made anew or lost messages"
            )
            if not self.accept_loss:
                raise StateError(
                    f"{sentence}; use the bus that belongs to this state, or go on without what "
                    "is gone with --on-offset-out-of-range earliest"
                )
            LOG.warning("%s; what was lost is not published again", sentence)
            return kept
        if kept > wanted:
            LOG.warning(
                "topic %s partition %d keeps nothing before offset %d: whether its %d messages "
                "before that are published again can't be known",
                *(topic, partition, kept, kept - wanted),
            )
        return max(wanted, kept)


class _Collector:
    """Puts the marks of messages into `Published`, and counts the messages of strangers."""

    def __init__(
        self, marking: Marking, partition: int, ends: Mapping[str, int], published: Published
    ) -> None:
        self.partition = partition
        self._marking = marking
        self._ends = ends  # of the sources: what lies behind was never read
        self._published = published
        self._decoders = {topic: marking.decoder(topic) for topic in marking.fields}
        self._strangers: dict[str, tuple[int, int]] = {}  # how many, and the first one's offset

    def take(self, piece: Slice, end: int) -> None:
        """Take the marks of what lies before ``end``."""
        topic = piece.topic
        decode, fields = self._decoders[topic].decode, self._marking.fields[topic]
        marks: list[Mark] = []
        for value, offset in zip(piece.values, piece.offsets.tolist(), strict=True):
            if offset >= end:
                break
            mark = self._mark(decode, fields, value)
            if mark is None:
                count, first = self._strangers.get(topic, (0, offset))
                self._strangers[topic] = count + 1, first
            else:
                marks.append(mark)
        if fields:
            self._published.add(topic, marks)
        else:
            self._published.add(topic, np.array([offset for _, offset, _ in marks], np.int64))

    def _mark(self, decode: Any, fields: tuple[str, ...], value: bytes) -> Mark | None:
        try:
            found = decode(value)
        except _UNREADABLE:
            return None
        at = found.given_up or found
        if at.partition != self.partition or not 0 <= at.offset < self._end(at.topic):
            return None
        if not fields and at.topic != self._marking.inputs[0]:
            return None
        return at.topic, at.offset, tuple([getattr(found, name) for name in fields])

    def _end(self, source: str) -> int:
        return self._ends.get(source, 0)

    def report(self) -> None:
        """Say in the log what was passed over."""
        for topic, (count, first) in self._strangers.items():
            LOG.warning(
                "topic %s partition %d: %d messages from offset %d on are not of this pipeline and "
                "were passed over; nobody else should write there",
                *(topic, self.partition, count, first),
            )
