"""Notices that an output topic was deleted under the run that publishes to it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from anabranch.dataflows.bus import Bus, BusError, UnreachableError

_DELETED_AFTER_S = 3.0  # a broker that is starting may not know its topics yet


class OutputTopics:
    """The output topics as they were when a run started.

    Kafka may create a topic again, empty and with its default number of partitions, as soon as
    something is published to it. So it is the topic's id that is compared.

    Args:
        bus, topics: what is watched; the topics exist.
        deleted_after_s: how long a topic must be missing before it counts as deleted.
    """

    def __init__(
        self, bus: Bus, topics: Sequence[str], deleted_after_s: float = _DELETED_AFTER_S
    ) -> None:
        self._bus = bus
        self._topics = topics
        self._deleted_after_s = deleted_after_s
        self.ids = bus.topic_ids(topics)
        self._missing_since: dict[str, float] = {}

    def check(self) -> None:
        """Raise unless all of them are still there.

        Raises:
            BusError: one was deleted, whether or not it was created again.
            UnreachableError: one is missing at present, or the bus does not respond.
        """
        ids = self._bus.topic_ids(self._topics)
        # Of topics without an id only the name is known.
        present = ids if ids.keys() >= set(self._topics) else self._bus.topics()
        for topic in self._topics:
            if ids.get(topic, "") != self.ids.get(topic, "") and topic in ids:
                raise output_deleted(topic)
            if topic in present:
                self._missing_since.pop(topic, None)
                continue
            since = self._missing_since.setdefault(topic, time.monotonic())
            if time.monotonic() - since >= self._deleted_after_s:
                raise output_deleted(topic)
            raise UnreachableError(f"topic {topic} is not there at present")


def output_deleted(topic: str) -> BusError:
    """The error for an output topic that was deleted under the run."""
    return BusError(
        f"output topic {topic} was deleted while the run was publishing to it, and what it held is "
        "gone: start again with --on-offset-out-of-range earliest to continue on a new one, or "
        "from scratch with another --state"
    )
