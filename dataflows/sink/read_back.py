"""Reads the outputs back from where the state left them, to find out what is published already."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anabranch.dataflows.batch.output_records import Provenance, SourceKey
from anabranch.dataflows.bus import Bus, Reader, Slice, TopicPartition, UnreachableError
from anabranch.dataflows.bus.read_to_end import ends_now, unread
from anabranch.dataflows.codec import Codec
from anabranch.dataflows.sink.delivery_retry import DeliveryRetry
from anabranch.dataflows.sink.published import Published
from anabranch.state.errors import StateError

LOG = logging.getLogger("anabranch.sink")
_LIMIT = 4096
_POLL_S = 1.0
_REPORT_EVERY_S = 2.0


@dataclass(slots=True)
class ReadBack:
    """How outputs are read back.

    Attributes:
        bus: where the outputs are.
        provenance: which rows their messages were made of.
        codec_of: the codec of each output topic.
        retry: waits for a bus that is unavailable.
        progress: called with a line every two seconds during a long read.
        accept_loss: whether an output that is shorter than the state says is read from its start;
            otherwise it is an error.
    """

    bus: Bus
    provenance: Provenance
    codec_of: Callable[[str], Codec]
    retry: DeliveryRetry = field(default_factory=DeliveryRetry)
    progress: Callable[[str], None] = LOG.info
    accept_loss: bool = False

    def published(self, partition: int, start: Mapping[str, int]) -> Published:
        """What is published on ``partition`` of every output, from ``start`` (by topic) to its end.

        Reads in small pieces and keeps only source keys. Messages that this pipeline cannot have
        written are ignored, and counted in the log.

        Raises:
            StateError: an output ends before its ``start``.
            BusError: the bus returned an error, or the flow was stopped while it was unavailable.
        """
        published = Published(self.provenance.inputs[0])
        places = [TopicPartition(topic, partition) for topic in start]
        ends = self.retry.call(lambda: ends_now(self.bus, places))
        positions = {at: self._first(at.topic, partition, start[at.topic], ends[at]) for at in ends}
        ends = unread(positions, ends)
        positions = {at: positions[at] for at in ends}
        if not positions:
            return published
        sources = {
            topic: self._offset(self.bus.end_offsets, topic, partition)
            for topic in self.provenance.inputs
        }
        collector = _Collector(self, partition, sources, published)
        reader = self.retry.call(lambda: self.bus.reader(positions))
        try:
            self._read(reader, positions, ends, collector)
        finally:
            reader.close()
        collector.log_foreign()
        return published

    def _read(
        self,
        reader: Reader,
        starts: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        collector: _Collector,
    ) -> None:
        left = dict(ends)
        total = sum(end - starts[at] for at, end in left.items())
        report_at = time.monotonic() + _REPORT_EVERY_S

        def poll() -> list[Slice]:
            before = reader.positions()
            slices = reader.poll(_LIMIT, _POLL_S)
            if not slices and reader.positions() == before:
                missing = ", ".join(f"{at.topic} partition {at.partition}" for at in left)
                raise UnreachableError(f"reading back what was published: nothing of {missing}")
            return slices

        while left:
            for piece in self.retry.call(poll):
                collector.add(piece, ends[TopicPartition(piece.topic, piece.partition)])
            positions = reader.positions()
            left = unread(positions, left)
            if time.monotonic() >= report_at:
                report_at += _REPORT_EVERY_S
                done = total - sum(end - positions[at] for at, end in left.items())
                self.progress(
                    f"partition {collector.partition}: reading back what was published, "
                    f"{done:,} of {total:,} messages"
                )

    def _offset(self, offsets: Callable[[str], list[int]], topic: str, partition: int) -> int:
        return self.retry.call(lambda: offsets(topic))[partition]

    def _first(self, topic: str, partition: int, wanted: int, end: int) -> int:
        """Where to start: at ``wanted``, or at the first offset that is left."""
        start = self._offset(self.bus.start_offsets, topic, partition)
        if wanted > end:
            problem = (
                f"topic {topic} partition {partition} ends at offset {end}, but this state left it "
                f"at {wanted}: it was recreated or lost messages"
            )
            if not self.accept_loss:
                raise StateError(
                    f"{problem}; use the bus that belongs to this state, or continue without the "
                    "lost messages with --on-offset-out-of-range earliest"
                )
            LOG.warning("%s; lost messages are not published again", problem)
            return start
        if start > wanted:
            LOG.warning(
                "topic %s partition %d keeps nothing before offset %d: whether its %d messages "
                "before that are published again can't be known",
                *(topic, partition, start, start - wanted),
            )
        return max(wanted, start)


class _Collector:
    """Adds the source keys of messages to `Published`, and counts messages of other writers."""

    def __init__(
        self, outputs: ReadBack, partition: int, ends: Mapping[str, int], published: Published
    ) -> None:
        self.partition = partition
        self._provenance = outputs.provenance
        self._ends = ends  # of the sources: what follows was never read
        self._published = published
        self._decoders = {
            topic: (codec.decoder(outputs.provenance.record_type(topic)), codec.errors)
            for topic in outputs.provenance.discriminators
            for codec in (outputs.codec_of(topic),)
        }
        self._foreign: dict[str, tuple[int, int]] = {}  # how many, and the first one's offset

    def add(self, piece: Slice, end: int) -> None:
        """Add the source keys of the messages before offset ``end``."""
        topic = piece.topic
        decode, errors = self._decoders[topic]
        names = self._provenance.discriminators[topic]
        keys: list[SourceKey] = []
        for value, offset in zip(piece.values, piece.offsets.tolist(), strict=True):
            if offset >= end:
                break
            try:
                key = self._source_key(decode(value), names)
            except errors:
                key = None
            if key is None:
                count, first = self._foreign.get(topic, (0, offset))
                self._foreign[topic] = count + 1, first
            else:
                keys.append(key)
        if names or len(self._provenance.events) > 1:
            self._published.add(topic, keys)
        else:
            self._published.add(topic, np.array([offset for _, offset, _ in keys], np.int64))

    def _source_key(self, record: Any, names: tuple[str, ...]) -> SourceKey | None:
        """The key of a message; None if this pipeline cannot have written it."""
        at = record.given_up or record
        if at.partition != self.partition or not 0 <= at.offset < self._ends.get(at.topic, 0):
            return None
        if not names and at.topic not in self._provenance.events:
            return None
        return at.topic, at.offset, tuple([getattr(record, name) for name in names])

    def log_foreign(self) -> None:
        """Log how many messages were ignored."""
        for topic, (count, first) in self._foreign.items():
            LOG.warning(
                "topic %s partition %d: ignored %d messages from offset %d on that this pipeline "
                "has not written; no other program should write there",
                *(topic, self.partition, count, first),
            )
