"""Reads all input topics of a worker as one stream, merged in event time while there is a backlog.

This is what Flink calls watermark alignment. Each topic partition is buffered. A row is ready when
no partition that has a backlog could still bring an earlier one::

    events/0   ──●──●────●──●┄┄┄ backlog           rows up to the earliest "last buffered"
    labels/0   ────●─────────────●──●┄┄┄            time of partitions with a backlog are
    events/1   ──●──●  (caught up)                  merged; the rest waits in its buffer
                          ▲ bound

A partition that is caught up delays no other, so live traffic is never delayed. One that has a
backlog but delivers nothing delays the others for ``idle_timeout_s`` at most.

Of each partition the next row is compared with the next rows of the others, by merge times: those
of the messages, unless a clock was wrong (`bus.merge_times`). So a partition's own order is always
kept; on equal times topics go in the order in which they were given, events before labels
before control, and partitions by number. A backlog has one order, whatever was fetched when, and
a reader that starts in its middle continues it. A control message ends its batch, so that no rows
follow it there.
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
from anabranch.dataflows.bus.merge_times import NEVER, MergeTimes
from anabranch.dataflows.bus.slices import concat_headers, concat_keys

Taken = tuple[TopicPartition, list[tuple[Slice, NDArray[np.int64]]]]
"""A topic partition, and the slices taken from it with their rising merge times."""

_NOTHING_READY = (int(np.iinfo(np.int64).min), -1)
_NO_TIMES = np.zeros(0, np.int64)
_FOLD_AFTER = 64  # batches


class _Buffer:
    """Rows of one topic partition that were read but not handed over yet.

    Attributes:
        rank: the lower goes first on equal times.
        rows: how many rows have their merge times.
        held: the times of those that follow, which depend on rows that were not read yet.
        reached: the time reached with the rows handed over, see `MergeTimes`.
    """

    __slots__ = (
        "_merge", "_reached_with", "_rises", "_slices", "_times", "held", "rank", "reached", "rows",
    )  # fmt: skip

    def __init__(self, rank: int, tolerance_ms: int | None, reached: int) -> None:
        self.rank = rank
        self.rows = 0
        self.held = _NO_TIMES
        self.reached = reached
        self._slices: deque[Slice] = deque()
        self._times = MergeTimes(tolerance_ms, reached)
        self._merge = _NO_TIMES
        self._rises = True  # whether the merge times rise by themselves
        self._reached_with: NDArray[np.int64] | None = None  # None: with all rows, their maximum

    def __len__(self) -> int:
        return self.rows + len(self.held)

    def add(self, piece: Slice) -> None:
        """Append rows; `settle` gives them their merge times."""
        self._slices.append(piece)
        self.held = np.concatenate([self.held, piece.times]) if len(self.held) else piece.times

    def settle(self, complete: bool, latest_ms: int) -> None:
        """Determine merge times; ``complete`` if no rows are to be waited for."""
        if not len(self.held):
            return
        rows, before = self.rows, self._times.reached
        after = self.last() if rows else NEVER
        merge, reached = self.held, None
        own = self._times.are_own(merge, latest_ms, after)
        if own:
            self.held = _NO_TIMES
        else:
            merge, reached = self._times.determine(merge, complete, latest_ms)
            self.held = self.held[len(merge) :]
        if self._reached_with is not None or reached is not None:
            first = self._reached_with if self._reached_with is not None else self._maxima(rows)
            if reached is None:
                reached = np.maximum(np.maximum.accumulate(merge), before)
            self._reached_with = np.concatenate([first, reached])
        self._rises = self._rises and own > 1
        self._merge = np.concatenate([self._merge, merge]) if rows else merge
        self.rows = len(self._merge)

    def _maxima(self, rows: int) -> NDArray[np.int64]:
        """The time reached with each of the first rows, which are merged by their own times."""
        maxima: NDArray[np.int64] = np.maximum(self.peek(rows), self.reached)
        return maxima

    def skip(self, times: NDArray[np.int64], latest_ms: int) -> None:
        """Account for rows that were handed over without being buffered."""
        if not self._times.are_own(times, latest_ms, NEVER):
            self._times.determine(times, True, latest_ms)
        self.reached = self._times.reached

    def last(self) -> int:
        """What is read next is merged at this time at the earliest; there must be `rows`."""
        return int(self._merge[-1] if self._rises else self._merge.max())

    def peek(self, count: int) -> NDArray[np.int64]:
        """The merge times of the first ``count`` rows as seen from the first one: they rise."""
        first = self._merge[:count]
        if self._rises:
            return first
        rising: NDArray[np.int64] = np.maximum.accumulate(first)
        return rising

    def take(self, count: int) -> list[tuple[Slice, NDArray[np.int64]]]:
        """Remove and return the first ``count`` rows, with their rising merge times."""
        rising = self.peek(count)
        taken, start = [], 0
        while start < count:
            piece = self._slices.popleft()
            size = len(piece.values)
            if size > count - start:
                self._slices.appendleft(_part(piece, count - start, None))
                piece, size = _part(piece, 0, count - start), count - start
            taken.append((piece, rising[start : start + size]))
            start += size
        if self._reached_with is None:
            self.reached = max(self.reached, int(rising[-1]))
        else:
            self.reached = int(self._reached_with[count - 1])
            self._reached_with = self._reached_with[count:]
        self._merge = self._merge[count:]
        self.rows -= count
        if not self.rows:
            self._rises, self._reached_with = True, None
        return taken


class MergedReader:
    """Merges the partitions of several topics into batches of raw rows.

    `add` partitions, then `read`. `positions` are the offsets to be handed over next, and `latest`
    the times reached, by which jumps are judged.

    Args:
        topics: those of events, those of labels and ``control``, in that order, those that exist.
        event_topics: how many of them, the first, are of events.
        worker_id: the worker that reads.
        control: the control topic.
        group: the consumer group that positions are reported to.
        on_out_of_range: see `Bus.reader`.
        limit: the most rows in a batch.
        idle_timeout_s: how long a partition with a backlog that delivers nothing is waited for.
        tolerance_ms: see `MergeTimes`; None: every time counts.
        headers: whether headers of messages are read.

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
        event_topics: int = 1,
        control: str | None = None,
        group: str | None = None,
        on_out_of_range: OnOutOfRange = "stop",
        limit: int = 1000,
        idle_timeout_s: float = 5.0,
        tolerance_ms: int | None = None,
        headers: bool = False,
    ) -> None:
        self._bus = bus
        self._reader_options = {"headers": True} if headers else {}
        self._topics = list(topics)
        self._events = tuple(topics[:event_topics])
        self._labels = tuple(topic for topic in topics[event_topics:] if topic != control)
        self._control = control
        self._worker_id = worker_id
        self._group = group
        self._on_out_of_range = on_out_of_range
        self._limit = limit
        self._idle_timeout_s = idle_timeout_s
        self._tolerance_ms = tolerance_ms
        self.clock: Callable[[], float] = time.time
        self.timer: Callable[[], float] = time.monotonic
        self._reader: Reader | None = None
        self._buffers: dict[TopicPartition, _Buffer] = {}
        self._only: TopicPartition | None = None  # if a single partition, of events, is read
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

        ``latest`` is `latest` of a reader that stopped at ``positions``. Times ahead of the wall
        clock, which no message has reached, are not taken over.
        """
        self._close_reader()
        self.positions.update(positions)
        newest = self._newest_ms()
        self._latest.update({at: ms for at, ms in (latest or {}).items() if ms <= newest})

    @property
    def latest(self) -> dict[TopicPartition, int]:
        """The time reached (epoch ms) with the rows handed over, of each partition that had some.

        Rows before a restart count too.
        """
        self._fold()
        return self._latest

    def empty_batch(self) -> RawBatch:
        """A batch without rows, which is not one of those that are numbered."""
        return RawBatch(self._worker_id, -1, NO_ROWS, NO_ROWS, _NO_TIMES, self.clock(), NO_ROWS)

    def unavailable_reason(self) -> str | None:
        """What is waited for if the bus has not responded for 5 s, else None; from any thread."""
        reader = self._reader
        return None if reader is None else reader.unavailable_reason()

    def read(self, timeout_s: float = 0.0) -> RawBatch | None:
        """The next rows in order, ``limit`` at most; None if none is ready."""
        reader = self._reader or self._open()
        pieces = reader.poll(self._limit, timeout_s)
        only = self._only
        if only is not None and not self._buffers[only].rows:
            if not pieces:
                self._on_empty_poll(reader)
                return None
            if len(pieces) == 1 and len(pieces[0].values) <= self._limit:
                return self._single_slice(only, pieces[0])
        self._fold()
        for piece in pieces:
            self._buffers[TopicPartition(piece.topic, piece.partition)].add(piece)
        if not any(map(len, self._buffers.values())):
            self._on_empty_poll(reader)
            return None
        bound = self._settle(reader)
        waiting = [(at, buffer) for at, buffer in self._buffers.items() if buffer.rows]
        counts = self._counts(waiting, bound)
        if len(self._buffers) > 1:
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

    def _counts(
        self, waiting: list[tuple[TopicPartition, _Buffer]], bound: tuple[int, int] | None
    ) -> list[int] | None:
        """How many rows of each buffer are handed over next; None if none is ready."""
        buffers = [buffer for _, buffer in waiting]
        if len(self._buffers) == 1:
            return [min(buffers[0].rows, self._limit)]
        counts = self._ready_counts(buffers, bound)
        if counts is not None and self._control is not None:
            controls = [at.topic == self._control for at, _ in waiting]
            if any(controls):
                counts = _end_at_control(buffers, counts, controls)
        return counts

    def _newest_ms(self) -> int:
        """No message's clock was right that was ahead of this."""
        return int(self.clock() * 1000) + (self._tolerance_ms or 0)

    def _is_idle(self) -> bool:
        """Whether a partition that delivers nothing has been waited for long enough."""
        now = self.timer()
        self._idle_since = self._idle_since or now
        return now - self._idle_since >= self._idle_timeout_s

    def _merge(self, taken: list[Taken]) -> RawBatch:
        events, event_times = _rows(self._events, taken)
        labels, label_times = _rows(self._labels, taken)
        controls = NO_ROWS if self._control is None else _rows((self._control,), taken)[0]
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
        events = RawRows(
            piece.topic, values, same, offsets, times, piece.partition, piece.keys, piece.headers
        )
        self.positions[only] = int(offsets[-1]) + 1
        self._unfolded.append(times)  # their maximum costs as much as a row
        if len(self._unfolded) == _FOLD_AFTER:
            self._fold()
        sequence = self._sequence
        self._sequence = sequence + 1
        return RawBatch(self._worker_id, sequence, events, NO_ROWS, order, self.clock(), NO_ROWS)

    def _fold(self) -> None:
        """Bring `_latest`, and the buffer's time reached, up to date with `_single_slice`."""
        if self._only is None or not self._unfolded:
            return
        times = np.concatenate(self._unfolded)
        self._unfolded.clear()
        buffer = self._buffers[self._only]
        buffer.skip(times, self._newest_ms())
        if buffer.reached > NEVER:
            self._latest[self._only] = buffer.reached

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
        self._reader = self._bus.reader(
            self.positions, self._group, self._on_out_of_range, **self._reader_options
        )
        ranked = sorted(self.positions, key=lambda at: (self._topics.index(at.topic), at.partition))
        self._buffers = {
            at: _Buffer(rank, self._tolerance_ms, self._latest.get(at, NEVER))
            for rank, at in enumerate(ranked)
        }
        self._only = None
        if len(self._buffers) == 1 and ranked[0].topic == self._topics[0]:
            self._only = ranked[0]
            self._same = np.full(self._limit, self._only.partition, np.int64)
            self._rows = 0
        self._paused = set()
        return self._reader

    def _close_reader(self) -> None:
        self._fold()
        if self._reader is not None:
            self._reader.close()
        self._reader = None
        self._buffers = {}

    def _settle(self, reader: Reader) -> tuple[int, int] | None:
        """Determine the merge times of what was read.

        Returns the time and rank up to which rows are ready; None for no bound.
        """
        newest = self._newest_ms()
        if len(self._buffers) == 1:
            for buffer in self._buffers.values():
                buffer.settle(True, newest)
            return None
        ends, positions = reader.ends(), reader.positions()
        bound: tuple[int, int] | None = None
        silent = False
        for at, buffer in self._buffers.items():
            has_backlog = positions[at] < ends[at]
            if len(buffer.held):
                buffer.settle(not has_backlog, newest)
            elif not buffer.rows:  # it may have passed offsets that hold no message
                self.positions[at] = positions[at]
            if has_backlog:
                silent = silent or not buffer.rows
                last = (buffer.last(), buffer.rank) if buffer.rows else _NOTHING_READY
                bound = last if bound is None else min(bound, last)
        if not silent:
            self._idle_since = None
            return bound
        if not self._is_idle():
            return bound
        for buffer in self._buffers.values():
            if len(buffer.held):
                buffer.settle(True, newest)
        return min((buffer.last(), buffer.rank) for buffer in self._buffers.values() if buffer.rows)

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
        None if piece.headers is None else piece.headers[cut],
    )


def _rows(topics: tuple[str, ...], taken: list[Taken]) -> tuple[RawRows, NDArray[np.int64]]:
    """The rows of these topics in the order of their rising times, and those times."""
    pieces = [piece for at, pieces in taken if at.topic in topics for piece in pieces]
    if not pieces:
        return NO_ROWS, NO_ROWS.times
    if len(pieces) == 1:
        piece, rising = pieces[0]
        partitions = np.full(len(rising), piece.partition, np.int64)
        rows = RawRows(
            piece.topic, piece.values, partitions, piece.offsets, piece.times, piece.partition,
            piece.keys, piece.headers,
        )  # fmt: skip
        return rows, rising
    places = {(piece.topic, piece.partition) for piece, _ in pieces}
    numbers: NDArray[np.int64] | None = None
    if len({topic for topic, _ in places}) > 1:
        numbers = np.concatenate(
            [np.full(len(p.values), topics.index(p.topic), np.int64) for p, _ in pieces]
        )
    rows = RawRows(
        pieces[0][0].topic,
        concat_rows([piece.values for piece, _ in pieces]),
        np.concatenate([np.full(len(p.values), p.partition, np.int64) for p, _ in pieces]),
        np.concatenate([piece.offsets for piece, _ in pieces]),
        np.concatenate([piece.times for piece, _ in pieces]),
        keys=concat_keys([piece for piece, _ in pieces]),
        headers=concat_headers([piece for piece, _ in pieces]),
        topics=() if numbers is None else topics,
        topic_numbers=numbers,
    )
    times = np.concatenate([rising for _, rising in pieces])
    if len(places) == 1:
        return rows, times
    order = np.argsort(times, kind="stable")
    return rows.take(order), times[order]
