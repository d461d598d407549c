"""Errors for offsets out of range: stop with a message, or continue after the gap."""

from __future__ import annotations

import logging

from anabranch.dataflows.bus.protocol import OnOutOfRange, TopicPartition
from anabranch.state.errors import BusError

__all__ = ["next_offset", "offset_past_end", "topic_deleted", "topic_recreated"]

_LOG = logging.getLogger("anabranch.bus")


def next_offset(
    at: TopicPartition, wanted: int, start: int, end: int, on_out_of_range: OnOutOfRange
) -> int:
    """Where to continue when ``wanted`` is next, and offsets from ``start`` to ``end`` are kept.

    Raises:
        BusError: ``wanted`` is past ``end``; or before ``start``, and ``on_out_of_range`` is
            ``stop``.
    """
    if wanted > end:
        raise offset_past_end(at, wanted, end)
    if wanted >= start:
        return wanted
    if on_out_of_range == "stop":
        raise BusError(
            f"topic {at.topic} partition {at.partition} keeps nothing before offset {start}, but "
            f"offset {wanted} is next: {start - wanted} messages are gone; retain messages for "
            "longer, and continue without those with --on-offset-out-of-range earliest"
        )
    _LOG.warning(
        "topic %s partition %d keeps nothing before offset %d: continuing there without the "
        "%d messages from offset %d on",
        *at,
        start,
        start - wanted,
        wanted,
    )
    return start


def offset_past_end(at: TopicPartition, wanted: int, end: int) -> BusError:
    """The error for an offset past the end."""
    return BusError(
        f"topic {at.topic} partition {at.partition} ends at offset {end}, before offset {wanted} "
        "that is next: it was recreated or lost messages; restore them, or start again without the "
        "state that was kept of it"
    )


def topic_recreated(topic: str) -> BusError:
    """The error for a topic that was deleted and created again under a reader or publisher."""
    return BusError(
        f"topic {topic} was deleted and recreated while it was used: its offsets mean other "
        "messages now; start again without the state that was kept of it"
    )


def topic_deleted(topic: str) -> BusError:
    """The error for a topic that was deleted under a reader or publisher."""
    return BusError(f"topic {topic} no longer exists; create it, then start again")
