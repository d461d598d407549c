"""When the offset to be read is not there: stop with a sentence, or go on behind the gap."""

from __future__ import annotations

import logging

from anabranch.dataflows.bus import Lost, TopicPartition
from anabranch.state.errors import BusError

__all__ = ["behind_end", "made_anew", "next_offset", "topic_deleted"]

_LOG = logging.getLogger("anabranch.dataflows.bus")


def next_offset(at: TopicPartition, wanted: int, start: int, end: int, lost: Lost) -> int:
    """Where to read on when ``wanted`` is to be read and offsets ``start`` up to ``end`` are kept.

    Raises:
        BusError: ``wanted`` lies behind ``end``; or before ``start``, and ``lost`` is ``stop``.
    """
    if wanted > end:
        raise behind_end(at, wanted, end)
    if wanted >= start:
        return wanted
    if lost == "stop":
        raise BusError(
            f"topic {at.topic} partition {at.partition} keeps nothing before offset {start}, but "
            f"offset {wanted} was to be read: {start - wanted} messages are gone; keep messages "
            "for longer, and go on without those with --on-offset-out-of-range earliest"
        )
    _LOG.warning(
        "topic %s partition %d keeps nothing before offset %d: going on from there without the "
        "%d messages from offset %d on",
        *at,
        start,
        start - wanted,
        wanted,
    )
    return start


def behind_end(at: TopicPartition, wanted: int, end: int) -> BusError:
    """The error for an offset that lies behind the end."""
    return BusError(
        f"topic {at.topic} partition {at.partition} ends at offset {end}, before offset {wanted} "
        "that was to be read: it was made anew or lost messages; bring them back, or begin again "
        "without the state that was kept of it"
    )


def made_anew(topic: str) -> BusError:
    """The error for a topic that is another one than when its reader began."""
    return BusError(
        f"topic {topic} was deleted and made anew while it was read: its offsets mean other "
        "messages now; begin again without the state that was kept of it"
    )


def topic_deleted(topic: str) -> BusError:
    """The error for a topic that was deleted under a reader or publisher."""
    return BusError(f"topic {topic} no longer exists; create it, then start again")
