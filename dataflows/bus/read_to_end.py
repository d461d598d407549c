"""Reading to the end that topics have now: where that is, and when it is reached.

An end is a position, not the offset after the last message: markers of transactions and removed
messages take offsets too. On Kafka nothing can be read after the beginning of an open transaction,
so that is the end, and it is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from anabranch.dataflows.bus.protocol import Bus, Reader, Slice, TopicPartition

__all__ = ["at_end", "before_end", "ends_now", "read_to_end", "unread"]

_LOG = logging.getLogger("anabranch.bus")
Offsets = Mapping[TopicPartition, int]


def ends_now(bus: Bus, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
    """The ends of these partitions as of now; logs where one is the beginning of a transaction.

    Raises:
        BusError: a topic does not exist, or the bus does not respond.
    """
    topics = {at.topic for at in partitions}
    offsets = {topic: bus.end_offsets(topic) for topic in topics}
    ends = {at: offsets[at.topic][at.partition] for at in partitions}
    opened = {topic: bus.open_transactions(topic) for topic in topics}
    for at, end in ends.items():
        if opened[at.topic].get(at.partition) == end:
            _LOG.warning(
                "topic %s partition %d is read to offset %d only: an open transaction begins "
                "there, and nothing after it can be read until it is committed or aborted",
                *(*at, end),
            )
    return ends


def unread(positions: Offsets, ends: Offsets) -> dict[TopicPartition, int]:
    """Those of ``ends`` that are not reached yet."""
    return {at: end for at, end in ends.items() if positions[at] < end}


def at_end(positions: Offsets, ends: Offsets) -> bool:
    """Whether all ``ends`` are reached."""
    for at, end in ends.items():  # noqa: SIM110  # called for every batch
        if positions[at] < end:
            return False
    return True


def before_end(piece: Slice, ends: Offsets) -> Slice | None:
    """The messages of a slice that are before the end; None if there are none."""
    count = int(np.searchsorted(piece.offsets, ends[TopicPartition(piece.topic, piece.partition)]))
    if count == len(piece.values):
        return piece if count else None
    if not count:
        return None
    return Slice(
        piece.topic,
        piece.partition,
        piece.offsets[:count],
        piece.times[:count],
        piece.values[:count],
        piece.keys[:count],
        None if piece.headers is None else piece.headers[:count],
    )


def read_to_end(
    reader: Reader,
    ends: Offsets | None,
    *,
    limit: int = 10_000,
    timeout_s: float = 0.1,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Slice]:
    """The messages before ``ends``, until all of those are reached; without ends for ever.

    Args:
        reader: reads those partitions; it is not closed.
        ends: see `ends_now`.
        limit, timeout_s: of each poll.
        stopped: called before each poll; once true, nothing more is read.

    Raises:
        BusError: as `Reader.poll`.
    """
    while not stopped() and (ends is None or not at_end(reader.positions(), ends)):
        for piece in reader.poll(limit, timeout_s):
            kept = piece if ends is None else before_end(piece, ends)
            if kept is not None:
                yield kept
