"""What a topic may be called, on every bus: what Kafka allows."""

from __future__ import annotations

import re

from anabranch.state.errors import BusError

MOST_PARTITIONS = 10_000
_LEGAL = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def check_topics(partitions_of: dict[str, int]) -> None:
    """Raise `BusError` when a topic to be created has no legal name or no legal partition count."""
    for topic, count in partitions_of.items():
        check_topic(topic)
        if not 1 <= count <= MOST_PARTITIONS:
            raise BusError(
                f"topic {topic}: {count} partitions; give a number from 1 to {MOST_PARTITIONS}"
            )


def check_topic(topic: str) -> None:
    """Raise `BusError` when ``topic`` is no legal topic name."""
    if _LEGAL.fullmatch(topic) is None or topic in (".", ".."):
        raise BusError(
            f"{topic!r} is no topic name: use 1 to 249 letters, digits, dots, underscores, hyphens"
        )


def missing_topic(topic: str, url: str) -> BusError:
    """The error for a topic that nobody has created."""
    return BusError(f"topic {topic} does not exist on {url}; create it first")
