"""Logs that Kafka does not take the positions of a group: rarely, and why.

Positions are reported for lag tools alone. A group whose partitions are assigned manually, as they
are here, can't have members beside: Kafka refuses its positions for as long as there are any.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError
from confluent_kafka import TopicPartition as KafkaPosition

from anabranch.dataflows.bus.kafka.settings import NO_LEADER

__all__ = ["PASSING", "CommitLog"]

_LOG = logging.getLogger("anabranch.bus")
_AGAIN_S = 600.0
_OTHER_MEMBER = {
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_MEMBER_EPOCH,
    KafkaError.STALE_MEMBER_EPOCH,
}
PASSING = {
    *NO_LEADER,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.REQUEST_TIMED_OUT,
}
"""Errors of a group's coordinator that pass soon."""


class CommitLog:
    """The responses to one group's commits; ``clock`` gives seconds.

    It logs a warning when they are refused, one every 10 min from then on, and a line when they are
    taken again.
    """

    def __init__(self, group: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._group = group
        self._clock = clock
        self._next_line = 0.0
        self._refused = False

    def on_commit(self, error: KafkaError | None, positions: Sequence[KafkaPosition]) -> None:
        """librdkafka's ``on_commit``."""
        error = error or next((each.error for each in positions if each.error is not None), None)
        if error is None:
            self._accepted()
        elif error.code() >= 0 and error.code() not in PASSING:  # an outage is logged elsewhere
            self._on_refusal(error)

    def _on_refusal(self, error: KafkaError) -> None:
        now = self._clock()
        if self._refused and now < self._next_line:
            return
        self._refused, self._next_line = True, now + _AGAIN_S
        why = error.str()
        if error.code() in _OTHER_MEMBER:
            why = "another consumer is a member of that group: let it use another one"
        _LOG.warning(
            "positions of group %s can't be reported to Kafka, so lag tools show old ones (the run "
            "itself does not need them): %s",
            self._group,
            why,
        )

    def _accepted(self) -> None:
        if self._refused:
            self._refused = False
            _LOG.info("positions of group %s are reported to Kafka again", self._group)
