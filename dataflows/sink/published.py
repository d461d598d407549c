"""What an earlier run has published already, so that a replay does not publish it again."""

from __future__ import annotations

from collections import Counter

import numpy as np

from anabranch.dataflows.batch.outgoing import I64, Mark, Marks, Outgoing
from anabranch.dataflows.sink.offset_runs import OffsetRuns

_Kind = tuple[str, str, tuple[str, ...]]  # output topic, source topic, rest of the mark


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
