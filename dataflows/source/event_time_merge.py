"""Reads all input topics of a worker as one stream, merged in event time while there is a backlog.

This is what Flink calls watermark alignment. Each topic partition is buffered. A row is ready when
no partition that has a backlog could still bring an earlier one::

    events/0   ──●──●────●──●┄┄┄ backlog           rows up to the earliest "last buffered"
    labels/0   ────●─────────────●──●┄┄┄            time of partitions with a backlog are
    events/1   ──●──●  (caught up)                  merged; the rest waits in its buffer
                          ▲ bound

A partition that is caught up delays no other, so live traffic is never delayed. One that has a
backlog but delivers nothing delays the others for ``idle_timeout_s`` at most. Times within a
partition are made to rise, so that its own order is always kept, by a rule that one wrong clock
can't upset (`dataflows.source.rising_times`): the last few rows of a partition with a backlog wait
for those that follow them. On equal times topics go in the order in which they were given, events
before labels before control, and partitions by number. So a backlog has one order, whatever was
fetched when: by rising time, topic, partition, offset. A control message ends its batch, so that
no rows follow it there. A reader that starts in the middle keeps this order if it is given the
times reached by then (`latest`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import NO_ROWS, RawBatch, RawRows
from anabranch.dataflows.batch.columns import concat_rows
from anabranch.dataflows.bus import Bus, OnOutOfRange, Reader, Slice, TopicPartition
from anabranch.dataflows.source.rising_times import FOLLOWERS, NEVER, rising_times

Taken = tuple[TopicPartition, list[tuple[Slice, NDArray[np.int64]]]]
"""A topic partition, and the slices taken from it with their rising times."""

_FOLD_AFTER = 64  # batches
_NONE = np.zeros(0, np.int64)


class _Buffer:
    """Rows of one topic partition that were read but not handed over yet.

    Attributes:
        rank: the lower goes first on equal times.
        rows: how many rows have times that no later row changes.
        held: how many follow, whose times depend on rows that were not read yet.
        reached: the time reached with the rows handed over.
        latest: no row that is not ready has a rising time before this.
    """

    __slots__ = (
        "_bound_ms", "_clocks", "_handed", "_rising", "_slices", "_times", "held", "latest", "rank",
        "reached", "rows",
    )  # fmt: skip

    def __init__(self, rank: int, reached: int, bound_ms: int | None) -> None:
        self.rank = rank
        self._bound_ms = bound_ms
        self._slices: deque[Slice] = deque()
        self._times = self._rising = self._clocks = _NONE
        self._handed = _NONE  # times of the last rows handed over: those that follow confirm them
        self.rows = self.held = 0
        self.latest = self.reached = reached

    def add(self, piece: Slice) -> None:
        """Append rows; `settle` before anything is taken."""
        self._slices.append(piece)
        self._times = np.concatenate([self._times, piece.times])
        self.held += len(piece.values)

    def settle(self, complete: bool, now_ms: int) -> None:
        """Determine the rising times; ``complete`` if there are no rows to wait for."""
        handed = len(self._handed)
        times = np.concatenate([self._handed, self._times]) if handed else self._times
        rising, clocks = rising_times(times, self._bound_ms, self.reached, now_ms)
        self._rising, self._clocks = rising[handed:], clocks[handed:]
        total = len(self._times)
        wait = 0 if complete or self._bound_ms is None else min(FOLLOWERS, total)
        self.rows, self.held = total - wait, wait
        self.latest = int(self._rising[self.rows - 1]) if self.rows else self.reached

    def peek(self, count: int) -> NDArray[np.int64]:
        """Rising times of the first ``count`` rows that are ready."""
        return self._rising[: min(count, self.rows)]

    def take(self, count: int) -> list[tuple[Slice, NDArray[np.int64]]]:
        """Remove and return the first ``count`` rows, with their rising times."""
        taken, start = [], 0
        while start < count:
            piece = self._slices.popleft()
            size = len(piece.values)
            if size > count - start:
                self._slices.appendleft(_part(piece, count - start, None))
                piece, size = _part(piece, 0, count - start), count - start
            taken.append((piece, self._rising[start : start + size]))
            start += size
        if self._bound_ms is not None:
            seen = np.concatenate([self._handed, self._times[:count]])
            self._handed = seen[-FOLLOWERS:]
        self.reached = int(self._clocks[count - 1])
        self._times, self._rising = self._times[count:], self._rising[count:]
        self._clocks = self._clocks[count:]
        self.rows -= count
        return taken


class MergedReader:
    """Merges the partitions of several topics into batches of raw rows.

    `add` partitions, then `read`. `positions` are the offsets to be handed over next, and `latest`
    the times reached.

    Args:
        topics: the event topic, the label topic and ``control``, in that order, those that exist.
        worker_id: the worker that reads.
        control: the control topic.
        group: the consumer group that positions are reported to.
        on_out_of_range: see `Bus.reader`.
        limit: the most rows in a batch.
        idle_timeout_s: how long a partition with a backlog that delivers nothing is waited for.
        max_skew_ms: how far a message's time may be ahead of most that follow it in its partition;
            None: any time counts.

    Attributes:
        clock: the wall clock, in seconds since 1970.
        timer: seconds that are not set, by which partitions are waited for.
    """

    def __init__(
        self,
        bus: Bus,
        topics: Sequence[str],
        *,
        worker_id: str,
        control: str | None = None,
        group: str | None = None,
        on_out_of_range: OnOutOfRange = "stop",
        limit: int = 1000,
        idle_timeout_s: float = 5.0,
        max_skew_ms: int | None = None,
    ) -> None:
        self._bus = bus
        self._topics = list(topics)
        self._control = control
        self._worker_id = worker_id
        self._group = group
        self._on_out_of_range = on_out_of_range
        self._limit = limit
        self._idle_timeout_s = idle_timeout_s
        self._max_skew_ms = max_skew_ms
        self.clock: Callable[[], float] = time.time
        self.timer: Callable[[], float] = time.monotonic
        self._reader: Reader | None = None
        self._buffers: dict[TopicPartition, _Buffer] = {}
        self._only: TopicPartition | None = None  # if a single partition is read
        self._paused: set[TopicPartition] = set()
        self._idle_since: float | None = None
        self._sequence = 0
        # Views of these stand in every batch; making new arrays costs as much as some rows.
        self._ascending = np.arange(self._limit)
        self._same = np.zeros(self._limit, np.int64)
        self._rows, self._views = 0, (self._same[:0], self._ascending[:0])
        self.positions: dict[TopicPartition, int] = {}
        self._latest: dict[TopicPartition, int] = {}
        self._unfolded: list[NDArray[np.int64]] = []  # times of `_only` not in `_latest` yet

    def add(
        self,
        positions: Mapping[TopicPartition, int],
        latest: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        """Read these partitions too, from these offsets.

        ``latest`` is `latest` of a reader that stopped at ``positions``: with it the rows come in
        the order in which that reader would have continued.
        """
        self._fold()
        self._close_reader()
        self.positions.update(positions)
        self._latest.update(latest or {})

    @property
    def latest(self) -> dict[TopicPartition, int]:
        """The time (epoch ms) reached with the rows handed over, of each partition that had some.

        Rows before a restart count too.
        """
        self._fold()
        return self._latest

    def unavailable_reason(self) -> str | None:
        """What is waited for if the bus has not responded for 5 s, else None; from any thread."""
        reader = self._reader
        return None if reader is None else reader.unavailable_reason()

    def read(self, timeout_s: float = 0.0) -> RawBatch | None:
        """The next rows in order, ``limit`` at most; None if none is ready."""
        reader = self._reader or self._open()
        pieces = reader.poll(self._limit, timeout_s)
        only = self._only
        if only is not None and not self._buffers[only].rows and not self._buffers[only].held:
            if not pieces:
                self._on_empty_poll(reader)
                return None
            if len(pieces) == 1 and len(pieces[0].values) <= self._limit:
                return self._single_slice(only, pieces[0])
        self._fold()
        for piece in pieces:
            self._buffers[TopicPartition(piece.topic, piece.partition)].add(piece)
        self._settle(reader, patient=True)
        waiting = [(at, buffer) for at, buffer in self._buffers.items() if buffer.rows]
        if not waiting:
            if not any(buffer.held for buffer in self._buffers.values()):
                self._on_empty_poll(reader)
                return None
            if not self._is_idle():
                return None
            self._settle(reader, patient=False)
            waiting = [(at, buffer) for at, buffer in self._buffers.items() if buffer.rows]
        if len(self._buffers) == 1:
            counts: list[int] | None = [min(waiting[0][1].rows, self._limit)]
        else:
            bound = self._bound(reader)
            buffers = [buffer for _, buffer in waiting]
            counts = self._ready_counts(buffers, bound)
            if counts is not None and self._control is not None:
                controls = [at.topic == self._control for at, _ in waiting]
                if any(controls):
                    counts = _end_at_control(buffers, counts, controls)
            self._apply_backpressure(reader)
        if counts is None:
            return None
        taken = [(at, buffer.take(n)) for (at, buffer), n in zip(waiting, counts, strict=True) if n]
        for at, parts in taken:
            self.positions[at] = int(parts[-1][0].offsets[-1]) + 1
            if (reached := self._buffers[at].reached) > NEVER:
                self._latest[at] = reached
        self._sequence += 1
        return self._merge(taken)

    def _settle(self, reader: Reader, patient: bool) -> None:
        """Determine the times of rows that were read; ``patient``: rows still to come may count."""
        if not any(buffer.held for buffer in self._buffers.values()):
            return
        positions, ends = reader.positions(), reader.ends()
        now_ms, single = int(self.clock() * 1000), len(self._buffers) == 1
        for at, buffer in self._buffers.items():
            if buffer.held:
                buffer.settle(single or not patient or positions[at] >= ends[at], now_ms)

    def _is_idle(self) -> bool:
        """Whether a partition that delivers nothing has been waited for long enough."""
        now = self.timer()
        self._idle_since = self._idle_since or now
        return now - self._idle_since >= self._idle_timeout_s

    def _merge(self, taken: list[Taken]) -> RawBatch:
        topics = [topic for topic in self._topics if topic != self._control]
        events, event_times = _rows(topics[0], taken)
        labels, label_times = _rows(topics[1] if len(topics) > 1 else "", taken)
        controls = NO_ROWS if self._control is None else _rows(self._control, taken)[0]
        if len(taken) == 1:
            order = np.arange(len(events) + len(labels))
        else:
            order = np.argsort(np.concatenate([event_times, label_times]), kind="stable")
        now = self.clock()
        return RawBatch(self._worker_id, self._sequence - 1, events, labels, order, now, controls)

    def _single_slice(self, only: TopicPartition, piece: Slice) -> RawBatch:
        """The fast path for a single partition: nothing has to be merged."""
        values, offsets, times = piece.values, piece.offsets, piece.times
        rows = len(values)
        if rows != self._rows:  # the same views again, as long as batches are of one size
            self._rows, self._views = rows, (self._same[:rows], self._ascending[:rows])
        same, order = self._views
        events = RawRows(piece.topic, values, same, offsets, times, piece.partition)
        self.positions[only] = int(offsets[-1]) + 1
        self._unfolded.append(times)  # their maximum costs as much as a row
        if len(self._unfolded) >= _FOLD_AFTER:
            self._fold()
        sequence = self._sequence
        self._sequence = sequence + 1
        return RawBatch(self._worker_id, sequence, events, NO_ROWS, order, self.clock(), NO_ROWS)

    def _fold(self) -> None:
        """Bring `_latest`, and the buffer's, up to date with `_single_slice`."""
        if self._only is None or not self._unfolded:
            return
        times = np.concatenate(self._unfolded)
        now_ms = int(self.clock() * 1000)
        before = self._latest.get(self._only, NEVER)
        reached = int(rising_times(times, self._max_skew_ms, before, now_ms)[1][-1])
        # What follows has still to confirm the last ones.
        self._unfolded = [] if self._max_skew_ms is None else [times[-FOLLOWERS:]]
        if reached > NEVER:
            self._latest[self._only] = reached
        if (buffer := self._buffers.get(self._only)) is not None:
            buffer.latest = buffer.reached = max(reached, buffer.reached)

    def _on_empty_poll(self, reader: Reader) -> None:
        """All buffers are empty: take the bus reader's positions.

        They may have passed offsets that hold no message, or skipped a gap.
        """
        self._idle_since = None
        self.positions.update(reader.positions())

    def lag(self) -> dict[TopicPartition, int]:
        """Messages not handed over yet, by partition, as last reported by the bus."""
        if self._reader is None:
            return {}
        ends = self._reader.ends()
        return {at: max(ends.get(at, 0) - position, 0) for at, position in self.positions.items()}

    def partition_counts(self) -> dict[str, int]:
        """How many partitions each topic has, as last reported by the bus."""
        return {} if self._reader is None else self._reader.partition_counts()

    def commit(self) -> None:
        """Report positions to the bus, for lag tools."""
        if self._reader is not None and self._group is not None:
            self._reader.commit(self.positions)

    def close(self) -> None:
        """Commit, and close the reader of the bus."""
        if self._reader is not None:
            self.commit()
        self._close_reader()

    def _open(self) -> Reader:
        self._reader = self._bus.reader(self.positions, self._group, self._on_out_of_range)
        ranked = sorted(self.positions, key=lambda at: (self._topics.index(at.topic), at.partition))
        self._buffers = {
            at: _Buffer(rank, self._latest.get(at, NEVER), self._max_skew_ms)
            for rank, at in enumerate(ranked)
        }
        self._only = None
        if len(self._buffers) == 1:
            self._only = next(iter(self._buffers))
            self._same = np.full(self._limit, self._only.partition, np.int64)
            self._rows = 0
        self._paused = set()
        return self._reader

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None
        self._buffers = {}
        self._unfolded.clear()

    def _bound(self, reader: Reader) -> tuple[int, int] | None:
        """The time and rank up to which rows are ready; None for no bound."""
        ends, positions = reader.ends(), reader.positions()
        bound: tuple[int, int] | None = None
        unread = False
        for at, buffer in self._buffers.items():
            if not buffer.rows:  # it may have passed offsets that hold no message
                self.positions[at] = positions[at]
            if positions[at] < ends[at]:
                unread = unread or not buffer.rows
                latest = (int(buffer.latest), buffer.rank)
                bound = latest if bound is None else min(bound, latest)
        if not unread:
            self._idle_since = None
            return bound
        if not self._is_idle():
            return bound
        return min((int(b.latest), b.rank) for b in self._buffers.values() if b.rows)

    def _ready_counts(
        self, buffers: list[_Buffer], bound: tuple[int, int] | None
    ) -> list[int] | None:
        """How many rows of each buffer are ready; None if none is."""
        peeked = [buffer.peek(self._limit) for buffer in buffers]
        if bound is not None:
            # Another row with the bound's time may still come there: rows that follow it must wait.
            for i, (times, buffer) in enumerate(zip(peeked, buffers, strict=True)):
                side: Literal["left", "right"] = "right" if buffer.rank <= bound[1] else "left"
                peeked[i] = times[: int(np.searchsorted(times, bound[0], side=side))]
        counts = [len(times) for times in peeked]
        if sum(counts) > self._limit:
            cut = np.partition(np.concatenate(peeked), self._limit - 1)[self._limit - 1]
            counts = [int(np.searchsorted(times, cut, side="left")) for times in peeked]
            room = self._limit - sum(counts)
            for i, times in enumerate(peeked):
                ties = min(int(np.searchsorted(times, cut, side="right")) - counts[i], room)
                counts[i] += ties
                room -= ties
        return counts if any(counts) else None

    def _apply_backpressure(self, reader: Reader) -> None:
        """Pause partitions that are far ahead of the others, so that memory stays bounded."""
        full = {at for at, buffer in self._buffers.items() if buffer.rows >= 4 * self._limit}
        drained = {at for at in self._paused if self._buffers[at].rows < 2 * self._limit}
        if full - self._paused:
            reader.pause(sorted(full - self._paused))
        if drained:
            reader.resume(sorted(drained))
        self._paused = (self._paused | full) - drained


def _end_at_control(
    buffers: list[_Buffer], counts: list[int], controls: Sequence[bool]
) -> list[int]:
    """The counts cut so that no row follows the first control message among them.

    ``buffers`` are by rank, those of ``controls`` last, so that rows with its time precede it.
    """
    firsts = [
        (int(buffer.peek(1)[0]), index)
        for index, buffer in enumerate(buffers)
        if controls[index] and counts[index]
    ]
    if not firsts:
        return counts
    time, first = min(firsts)
    return [
        int(index == first)
        if controls[index]
        else int(np.searchsorted(buffer.peek(count), time, side="right"))
        for index, (buffer, count) in enumerate(zip(buffers, counts, strict=True))
    ]


def _part(piece: Slice, start: int, stop: int | None) -> Slice:
    cut = slice(start, stop)
    return Slice(
        piece.topic,
        piece.partition,
        piece.offsets[cut],
        piece.times[cut],
        piece.values[cut],
        piece.keys[cut],
    )


def _rows(topic: str, taken: list[Taken]) -> tuple[RawRows, NDArray[np.int64]]:
    """The rows of one topic in the order of their rising times, and those times."""
    pieces = [piece for at, pieces in taken if at.topic == topic for piece in pieces]
    if not pieces:
        return NO_ROWS, NO_ROWS.times
    if len(pieces) == 1:
        piece, rising = pieces[0]
        partitions = np.full(len(rising), piece.partition, np.int64)
        rows = RawRows(topic, piece.values, partitions, piece.offsets, piece.times, piece.partition)
        return rows, rising
    rows = RawRows(
        topic,
        concat_rows([piece.values for piece, _ in pieces]),
        np.concatenate([np.full(len(p.values), p.partition, np.int64) for p, _ in pieces]),
        np.concatenate([piece.offsets for piece, _ in pieces]),
        np.concatenate([piece.times for piece, _ in pieces]),
    )
    times = np.concatenate([rising for _, rising in pieces])
    if len({piece.partition for piece, _ in pieces}) == 1:
        return rows, times
    order = np.argsort(times, kind="stable")
    return rows.take(order), times[order]
