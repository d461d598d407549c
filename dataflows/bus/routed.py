"""Two buses as one: some topics are on another bus than the rest.

Labels often come from another cluster than events: of another team, in another network. Everything
that a pipeline writes is on the bus of its events.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.bus.claims import OutputClaims
from anabranch.dataflows.bus.combined_reader import CombinedReader
from anabranch.dataflows.bus.headers import Headers
from anabranch.dataflows.bus.protocol import (
    AdminBus,
    OnOutOfRange,
    Publisher,
    Reader,
    TopicLimits,
    TopicPartition,
)


class RoutedBus:
    """The topics of ``bus``, and of ``other`` those for which ``is_other`` is true.

    Closing it closes neither.
    """

    def __init__(self, bus: AdminBus, other: AdminBus, is_other: Callable[[str], bool]) -> None:
        self.url = f"{bus.url} and {other.url}"
        self._bus, self._other, self._is_other = bus, other, is_other

    def create_topics(self, partitions: Mapping[str, int]) -> list[str]:
        created: list[str] = []
        for bus, topics in self._routes(partitions):
            created += bus.create_topics({topic: partitions[topic] for topic in topics})
        return created

    def add_partitions(self, topic: str, count: int) -> None:
        self._of(topic).add_partitions(topic, count)

    def delete_topics(self, names: Sequence[str]) -> None:
        for name in names:
            self._of(name).end_offsets(name)  # raises if one does not exist
        for bus, topics in self._routes(names):
            bus.delete_topics(topics)

    def topics(self) -> dict[str, int]:
        own = {t: n for t, n in self._bus.topics().items() if not self._is_other(t)}
        return own | {t: n for t, n in self._other.topics().items() if self._is_other(t)}

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        return {t: i for bus, own in self._routes(topics) for t, i in bus.topic_ids(own).items()}

    def start_offsets(self, topic: str) -> list[int]:
        return self._of(topic).start_offsets(topic)

    def end_offsets(self, topic: str) -> list[int]:
        return self._of(topic).end_offsets(topic)

    def offsets_at(self, topic: str, time_ms: int) -> list[int]:
        return self._of(topic).offsets_at(topic, time_ms)

    def open_transactions(self, topic: str) -> dict[int, int]:
        return self._of(topic).open_transactions(topic)

    def limits(self, topic: str) -> TopicLimits:
        return self._of(topic).limits(topic)

    def set_retention(self, topic: str, kept_ms: int | None) -> None:
        self._of(topic).set_retention(topic, kept_ms)

    def publisher(self, stop: threading.Event | None = None) -> RoutedPublisher:
        return RoutedPublisher(
            lambda: self._bus.publisher(stop), lambda: self._other.publisher(stop), self._is_other
        )

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        group: str | None = None,
        on_out_of_range: OnOutOfRange = "stop",
        headers: bool = False,
    ) -> Reader:
        readers: dict[str, Reader] = {}
        for bus, topics in self._routes({at.topic for at in positions}):
            own = {at: offset for at, offset in positions.items() if at.topic in topics}
            readers |= dict.fromkeys(topics, bus.reader(own, group, on_out_of_range, headers))
        distinct = set(map(id, readers.values()))
        return next(iter(readers.values())) if len(distinct) == 1 else CombinedReader(readers, True)

    def claim_outputs(
        self, topics: Sequence[str], pipeline: str, run: str, say: Callable[[str], None]
    ) -> OutputClaims:
        return self._bus.claim_outputs(topics, pipeline, run, say)

    def release_outputs(self, topics: Sequence[str]) -> None:
        self._bus.release_outputs(topics)

    def close(self) -> None:
        """Does nothing: the buses belong to who opened them."""

    def _of(self, topic: str) -> AdminBus:
        return self._other if self._is_other(topic) else self._bus

    def _routes(self, topics: Collection[str]) -> list[tuple[AdminBus, list[str]]]:
        own = [topic for topic in topics if not self._is_other(topic)]
        others = [topic for topic in topics if self._is_other(topic)]
        return [(bus, of) for bus, of in ((self._bus, own), (self._other, others)) if of]


class RoutedPublisher:
    """A `Publisher` of both buses; each is opened for the first message to it."""

    def __init__(
        self,
        open_own: Callable[[], Publisher],
        open_other: Callable[[], Publisher],
        is_other: Callable[[str], bool],
    ) -> None:
        self._open = {False: open_own, True: open_other}
        self._is_other = is_other
        self._publishers: dict[bool, Publisher] = {}

    def append(
        self,
        topic: str,
        values: Sequence[bytes],
        *,
        keys: Sequence[bytes | None] | None = None,
        partitions: Sequence[int] | int | None = None,
        times: Sequence[int] | NDArray[np.int64] | None = None,
        headers: Headers | None = None,
    ) -> None:
        route = self._is_other(topic)
        publisher = self._publishers.get(route)
        if publisher is None:
            publisher = self._publishers[route] = self._open[route]()
        publisher.append(
            topic, values, keys=keys, partitions=partitions, times=times, headers=headers
        )

    def flush(self, timeout_s: float = 30.0) -> None:
        for publisher in self._publishers.values():
            publisher.flush(timeout_s)

    def close(self) -> None:
        publishers, self._publishers = self._publishers, {}
        for publisher in publishers.values():
            publisher.close()
