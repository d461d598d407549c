"""What an earlier run has published already, so that a replay does not publish it again."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.outgoing import I64, Mark, Marks, Outgoing

_MERGE_AT = 256  # batches of added offsets

_Kind = tuple[str, str, tuple[str, ...]]  # output topic, source topic, rest of the mark


_NONE: I64 = np.zeros(0, np.int64)


class OffsetRuns:
    """Offsets that are added in any order, several times or once.

    >>> runs = OffsetRuns()
    >>> runs.add(np.array([4, 2, 3, 9]))
    >>> runs.holds(np.array([1, 2, 4, 5, 9])).tolist()
    [False, True, True, False, True]
    """

    def __init__(self) -> None:
        self._firsts, self._lasts = _NONE, _NONE
        self._added: list[tuple[I64, I64]] = []

    def add(self, offsets: I64) -> None:
        """Add ``(n,) int64``."""
        if len(offsets):
            known = np.unique(offsets)
            cuts = np.flatnonzero(np.diff(known) > 1)
            firsts = known[np.concatenate([[0], cuts + 1])]
            lasts = known[np.concatenate([cuts, [len(known) - 1]])]
            self._added.append((firsts, lasts))
            if len(self._added) >= _MERGE_AT:
                self._fold()

    def holds(self, offsets: I64) -> NDArray[np.bool_]:
        """``(n,) bool``: which of these are in the set."""
        self._fold()
        if not len(self._firsts):
            return np.zeros(len(offsets), np.bool_)
        run = np.searchsorted(self._firsts, offsets, side="right") - 1
        found: NDArray[np.bool_] = (run >= 0) & (offsets <= self._lasts[run])
        return found

    def _fold(self) -> None:
        if not self._added:
            return
        firsts = np.concatenate([self._firsts, *(each[0] for each in self._added)])
        lasts = np.concatenate([self._lasts, *(each[1] for each in self._added)])
        order = np.argsort(firsts, kind="stable")
        firsts, lasts = firsts[order], np.maximum.accumulate(lasts[order])
        apart = firsts[1:] > lasts[:-1] + 1
        self._firsts = firsts[np.concatenate([[True], apart])]
        self._lasts = lasts[np.concatenate([apart, [True]])]
        self._added.clear()


class Published:
    """The marks of one partition number that are on the outputs and may come again.

    What is told apart by its event alone is kept as a set; of all else each mark is kept as often
    as it was seen, and suppresses as many messages. ``events`` is the topic of the events.
    """

    def __init__(self, events: str) -> None:
        self._source = events
        self._events: dict[str, OffsetRuns] = {}
        self._others: dict[_Kind, Counter[int]] = {}
        self._furthest: dict[str, int] = {}
        self._reached: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._furthest)

    def add(self, topic: str, marks: Marks) -> None:
        """Messages with these marks are on the output ``topic``."""
        _follow(self._furthest, self._source, marks)
        if isinstance(marks, np.ndarray):
            self._events.setdefault(topic, OffsetRuns()).add(marks)
            return
        for source, offset, rest in marks:
            self._others.setdefault((topic, source, rest), Counter())[offset] += 1

    def without(self, item: Outgoing) -> Outgoing:
        """``item`` with only what is not published yet; the marks found are used up."""
        left = Outgoing(item.partition, {}, item.published, item.read_at, {}, item.sources)
        for topic, payloads in item.messages.items():
            marks = item.marks[topic]
            if len(marks) != len(payloads):
                raise ValueError(f"{len(marks)} marks for {len(payloads)} messages to {topic}")
            _follow(self._reached, self._source, marks)
            if isinstance(marks, np.ndarray):
                new = self._new_events(topic, marks)
                if len(item.published) == len(marks):
                    left.published = item.published[new]
                left.marks[topic] = marks[new]
            else:
                new = np.flatnonzero([not self._take(topic, mark) for mark in marks])
                left.marks[topic] = [marks[place] for place in new.tolist()]
            left.messages[topic] = [payloads[place] for place in new.tolist()]
        for source, offset in item.reached().items():
            _raise(self._reached, source, offset)
        left.messages = {topic: payloads for topic, payloads in left.messages.items() if payloads}
        return left

    def passed(self) -> bool:
        """Whether the flow has come past every mark, so that none can come again.

        To be asked at the end of an epoch: then all that was made of the rows read is here.
        """
        reached = self._reached
        return all(reached.get(source, -1) >= offset for source, offset in self._furthest.items())

    def _new_events(self, topic: str, offsets: I64) -> I64:
        runs = self._events.get(topic)
        return np.arange(len(offsets)) if runs is None else np.flatnonzero(~runs.holds(offsets))

    def _take(self, topic: str, mark: Mark) -> bool:
        source, offset, rest = mark
        counts = self._others.get((topic, source, rest))
        if counts is None or not counts.get(offset):
            return False
        counts[offset] -= 1
        return True


def _follow(offsets: dict[str, int], events: str, marks: Marks) -> None:
    """Raise the greatest offset of each source topic to that of its marks."""
    if isinstance(marks, np.ndarray):
        if len(marks):
            _raise(offsets, events, int(marks.max()))
        return
    for source, offset, _ in marks:
        _raise(offsets, source, offset)


def _raise(offsets: dict[str, int], source: str, offset: int) -> None:
    if offset > offsets.get(source, -1):
        offsets[source] = offset
