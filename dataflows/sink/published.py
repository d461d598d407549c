"""What an earlier run has published already, so that a replay does not publish it again."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.output_records import I64, OutputRecords, SourceKey, SourceKeys
from anabranch.dataflows.bus.headers import take_headers

_Kind = tuple[str, str, tuple[str, ...]]  # output topic, source topic, discriminators
_MERGE_AT = 256  # pieces added
_NONE: I64 = np.zeros(0, np.int64)


class OffsetRanges:
    """A set of offsets, kept as ranges: millions in a row take as much memory as one.

    >>> ranges = OffsetRanges()
    >>> ranges.add(np.array([4, 2, 3, 9]))
    >>> ranges.contains(np.array([1, 2, 4, 5, 9])).tolist()
    [False, True, True, False, True]
    """

    def __init__(self) -> None:
        self._firsts, self._lasts = _NONE, _NONE
        self._added: list[tuple[I64, I64]] = []

    def add(self, offsets: I64) -> None:
        """Add offsets, ``(n,) int64``, in any order, also repeatedly."""
        if len(offsets):
            unique = np.unique(offsets)
            cuts = np.flatnonzero(np.diff(unique) > 1)
            firsts = unique[np.concatenate([[0], cuts + 1])]
            lasts = unique[np.concatenate([cuts, [len(unique) - 1]])]
            self._added.append((firsts, lasts))
            if len(self._added) >= _MERGE_AT:
                self._merge()

    def contains(self, offsets: I64) -> NDArray[np.bool_]:
        """Which of these offsets are in the set, ``(n,) bool``."""
        self._merge()
        if not len(self._firsts):
            return np.zeros(len(offsets), np.bool_)
        index = np.searchsorted(self._firsts, offsets, side="right") - 1
        contained: NDArray[np.bool_] = (index >= 0) & (offsets <= self._lasts[index])
        return contained

    def _merge(self) -> None:
        if not self._added:
            return
        firsts = np.concatenate([self._firsts, *(each[0] for each in self._added)])
        lasts = np.concatenate([self._lasts, *(each[1] for each in self._added)])
        order = np.argsort(firsts, kind="stable")
        firsts, lasts = firsts[order], np.maximum.accumulate(lasts[order])
        separate = firsts[1:] > lasts[:-1] + 1
        self._firsts = firsts[np.concatenate([[True], separate])]
        self._lasts = lasts[np.concatenate([separate, [True]])]
        self._added.clear()


class Published:
    """The source keys of one partition that are on the outputs, and may be made again.

    Messages identified by their event alone are kept as a set of offsets. Of all others each key is
    counted, and suppresses as many messages.

    Args:
        events: the topic of the events.
    """

    def __init__(self, events: str) -> None:
        self._source = events
        self._events: dict[str, OffsetRanges] = {}
        self._others: dict[_Kind, Counter[int]] = {}
        self._furthest: dict[str, int] = {}
        self._reached: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._furthest)

    def add(self, topic: str, keys: SourceKeys) -> None:
        """Messages with these source keys are on the output ``topic``."""
        _follow(self._furthest, self._source, keys)
        if isinstance(keys, np.ndarray):
            self._events.setdefault(topic, OffsetRanges()).add(keys)
            return
        for source, offset, discriminators in keys:
            self._others.setdefault((topic, source, discriminators), Counter())[offset] += 1

    def without(self, item: OutputRecords) -> OutputRecords:
        """``item`` without what is published already; the keys that matched are used up.

        Raises:
            ValueError: a topic of ``item`` does not have one source key per message.
        """
        left = OutputRecords(item.partition, {}, item.published, item.read_at, {}, item.sources)
        for topic, payloads in item.messages.items():
            keys = item.source_keys[topic]
            if len(keys) != len(payloads):
                raise ValueError(f"{len(keys)} source keys for {len(payloads)} messages to {topic}")
            _follow(self._reached, self._source, keys)
            if isinstance(keys, np.ndarray):
                new = self._new_events(topic, keys)
                if len(item.published) == len(keys):
                    left.published = item.published[new]
                left.source_keys[topic] = keys[new]
            else:
                new = np.flatnonzero([not self._take(topic, key) for key in keys])
                left.source_keys[topic] = [keys[index] for index in new.tolist()]
            left.messages[topic] = [payloads[index] for index in new.tolist()]
            if topic in item.keys:
                left.keys[topic] = [item.keys[topic][index] for index in new.tolist()]
            if (headers := take_headers(item.headers.get(topic), new)) is not None:
                left.headers[topic] = headers
        for source, offset in item.reached().items():
            _raise(self._reached, source, offset)
        left.messages = {topic: payloads for topic, payloads in left.messages.items() if payloads}
        return left

    def passed(self) -> bool:
        """Whether the flow has passed every key, so that none can be made again.

        Meaningful at the end of an epoch: then all that was made of the rows read has arrived here.
        """
        reached = self._reached
        return all(reached.get(source, -1) >= offset for source, offset in self._furthest.items())

    def _new_events(self, topic: str, offsets: I64) -> I64:
        ranges = self._events.get(topic)
        if ranges is None:
            return np.arange(len(offsets))
        return np.flatnonzero(~ranges.contains(offsets))

    def _take(self, topic: str, key: SourceKey) -> bool:
        source, offset, discriminators = key
        counts = self._others.get((topic, source, discriminators))
        if counts is None or not counts.get(offset):
            return False
        counts[offset] -= 1
        return True


def _follow(offsets: dict[str, int], events: str, keys: SourceKeys) -> None:
    """Raise the greatest offset of each source topic to that of its keys."""
    if isinstance(keys, np.ndarray):
        if len(keys):
            _raise(offsets, events, int(keys.max()))
        return
    for source, offset, _ in keys:
        _raise(offsets, source, offset)


def _raise(offsets: dict[str, int], source: str, offset: int) -> None:
    if offset > offsets.get(source, -1):
        offsets[source] = offset
