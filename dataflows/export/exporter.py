"""Follows output topics and writes them to a target, each message once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from anabranch.dataflows.bus import Bus, OnOutOfRange, Reader, Slice, TopicPartition
from anabranch.dataflows.bus.outage_log import OutageLog
from anabranch.dataflows.bus.protocol import UnreachableError
from anabranch.dataflows.bus.read_to_end import at_end, before_end, ends_now
from anabranch.dataflows.bus.topic_names import missing_topic
from anabranch.dataflows.export.output_tables import OutputTable, Rejected
from anabranch.dataflows.export.target import (
    Batch,
    ExportError,
    Position,
    TakenOverError,
    Target,
    TargetUnreachableError,
)

_LOG = logging.getLogger("anabranch.export")

_POLL_S = 0.2
_POLL_LIMIT = 10_000
_KEEP_S = 1.0
_RETRY_S = 1.0
_CHECK_PARTITIONS_S = 5.0
_MAX_REJECTED_LINES = 10


class Exporter:
    """The export of some outputs of a pipeline to a target.

    Args:
        target: is prepared by this.
        batch_size, interval_s: how many messages are written at once, and how long one may wait
            for others; None: as suits the target.
        on_out_of_range: what to do if messages were removed before they were exported, or a topic
            was created again.
        stop: ends `run` when it is set; what was read is still written if the target responds.

    Attributes:
        exported: how many messages were written, by output.
        rejected: how many were none of the pipeline's.

    Raises:
        ExportError: as `Target.prepare`; or a topic was created again.
        BusError: a topic does not exist, or its messages are gone.
    """

    def __init__(
        self,
        bus: Bus,
        pipeline: str,
        tables: Sequence[OutputTable],
        target: Target,
        *,
        batch_size: int | None = None,
        interval_s: float | None = None,
        on_out_of_range: OnOutOfRange = "stop",
        stop: threading.Event | None = None,
    ) -> None:
        self._bus, self._target = bus, target
        self._tables = {table.topic: table for table in tables}
        self._size = batch_size or target.batch_size
        self._interval_s = target.interval_s if interval_s is None else interval_s
        self._on_out_of_range = on_out_of_range
        self._stop = stop or threading.Event()
        self._outage = OutageLog(target.name)
        self.exported: dict[str, int] = dict.fromkeys((table.output for table in tables), 0)
        self.rejected = 0

        counts = bus.topics()
        for topic in self._tables:
            if topic not in counts:
                raise missing_topic(topic, bus.url)
        self._ids = dict.fromkeys(self._tables, "") | bus.topic_ids(list(self._tables))
        self._stored = dict(target.prepare(pipeline, tables))
        self._check_topics()
        self._next = self._start_offsets()
        self._reader: Reader = self._open_reader()
        self._pending: dict[str, list[Slice]] = {}
        self._count = 0
        self._since = 0.0
        self._next_keep = self._next_check = time.monotonic()

    def run(self, follow: bool) -> bool:
        """Export to the end that the topics have now, or with ``follow`` until it is stopped.

        Returns whether everything was exported that was to be.
        """
        ends = None if follow else ends_now(self._bus, list(self._next))
        while not self._stop.is_set() and not (ends is not None and at_end(self._next, ends)):
            self._read(ends)
            if self._due():
                self._write()
            self._keep()
            if follow:
                self._follow_new_partitions()
        return self._write()

    def close(self) -> None:
        """Close the reader; the target is its opener's. Idempotent."""
        self._reader.close()

    def _check_topics(self) -> None:
        """Check that what is stored is of the topics that exist now."""
        for topic, now in self._ids.items():
            stored = {at: p for at, p in self._stored.items() if at.topic == topic}
            ids = {position.topic_id for position in stored.values()}
            if not now or not ids - {now, ""}:
                continue
            if self._on_out_of_range == "stop":
                raise ExportError(
                    f"topic {topic} was deleted and created again since it was exported to "
                    f"{self._target.name}, or is that of another bus: export it to another "
                    "target, or continue with the messages of the new topic with "
                    "--on-offset-out-of-range earliest"
                )
            _LOG.warning("topic %s is a new one: exporting it from its first message on", topic)
            starts = dict(enumerate(self._bus.start_offsets(topic)))
            after = {at: Position(now, starts.get(at.partition, 0)) for at in stored}
            self._target.write(Batch([], stored, after))
            self._stored |= after

    def _start_offsets(self) -> dict[TopicPartition, int]:
        offsets = {}
        for topic in self._tables:
            for partition, first in enumerate(self._bus.start_offsets(topic)):
                at = TopicPartition(topic, partition)
                stored = self._stored.get(at)
                offsets[at] = first if stored is None else stored.offset
        return offsets

    def _open_reader(self) -> Reader:
        return self._bus.reader(self._next, on_out_of_range=self._on_out_of_range)

    def _read(self, ends: Mapping[TopicPartition, int] | None) -> None:
        limit = max(1, min(_POLL_LIMIT, self._size - self._count))
        for piece in self._reader.poll(limit, _POLL_S):
            kept = piece if ends is None else before_end(piece, ends)
            if kept is not None:
                if not self._count:
                    self._since = time.monotonic()
                self._pending.setdefault(kept.topic, []).append(kept)
                self._count += len(kept.values)
        positions = self._reader.positions()
        for at, position in positions.items():
            self._next[at] = position if ends is None else min(position, ends[at])

    def _due(self) -> bool:
        if not self._count:
            return False
        return self._count >= self._size or time.monotonic() - self._since >= self._interval_s

    def _write(self) -> bool:
        """Write what was read; False if it was stopped while the target did not respond."""
        after = {
            at: Position(self._ids[at.topic], offset)
            for at, offset in self._next.items()
            if at not in self._stored or self._stored[at].offset != offset
        }
        if not after:
            return True
        rejected: list[Rejected] = []
        rows = []
        for topic, pieces in self._pending.items():
            pieces.sort(key=lambda piece: piece.partition)  # stable: offsets rise
            while True:
                del rejected[:]
                try:
                    found = self._tables[topic].rows(pieces, self._ids[topic], rejected.append)
                    break
                except UnreachableError as error:  # a schema registry
                    if not self._wait(str(error)):
                        return False
            rows.append(found)
            self._tell(rejected)
        batch = Batch(rows, {at: self._stored[at] for at in after if at in self._stored}, after)
        if not self._store(batch):
            return False
        self._stored |= after
        for each in rows:
            self.exported[each.table.output] += each.size
        self._pending, self._count = {}, 0
        return True

    def _store(self, batch: Batch) -> bool:
        """Write a batch; waits for a target that is away. False if it was stopped meanwhile."""
        lost = False
        while True:
            try:
                if lost and self._is_stored(batch):
                    break
                self._target.write(batch)
                break
            except TargetUnreachableError as error:
                lost = True
                if not self._wait(str(error)):
                    return False
            except TakenOverError:
                # The target may have completed what this export took for lost.
                if not lost or not self._is_stored(batch):
                    raise
                break
        self._outage.answered()
        return True

    def _is_stored(self, batch: Batch) -> bool:
        stored = self._target.stored()
        return all(stored.get(at) == position for at, position in batch.after.items())

    def _wait(self, why: str) -> bool:
        """Wait before another try; False if the export was stopped."""
        self._outage.no_answer(why)
        return not self._stop.wait(_RETRY_S)

    def _keep(self) -> None:
        now = time.monotonic()
        if now < self._next_keep:
            return
        self._next_keep = now + _KEEP_S
        try:
            self._target.keep()
            self._outage.answered()
        except TargetUnreachableError as error:
            self._outage.no_answer(str(error))

    def _tell(self, rejected: Sequence[Rejected]) -> None:
        for each in rejected:
            self.rejected += 1
            if self.rejected <= _MAX_REJECTED_LINES:
                _LOG.warning(
                    "the message at offset %d of partition %d of topic %s is no output of the "
                    "pipeline, and is left out: %s",
                    each.offset,
                    each.partition,
                    each.topic,
                    each.why,
                )

    def _follow_new_partitions(self) -> None:
        """Read partitions that were added, from their first message on."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_PARTITIONS_S
        known = dict(self._reader.partition_counts())
        added = [
            TopicPartition(topic, partition)
            for topic in self._tables
            for partition in range(known.get(topic, 0))
            if TopicPartition(topic, partition) not in self._next
        ]
        if not added:
            return
        try:
            starts = {at: self._bus.start_offsets(at.topic)[at.partition] for at in added}
            reader = self._bus.reader(self._next | starts, on_out_of_range=self._on_out_of_range)
        except UnreachableError:
            return  # the next time
        for at in added:
            _LOG.info("topic %s has a new partition, %d", at.topic, at.partition)
        self._reader.close()
        self._next |= starts
        self._reader = reader
