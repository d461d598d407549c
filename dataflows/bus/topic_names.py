"""Checks topic names and partition counts: on every bus what Kafka allows."""

from __future__ import annotations

import re

from anabranch.state.errors import BusError

MAX_PARTITIONS = 10_000
_LEGAL = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def check_topics(partitions_of: dict[str, int]) -> None:
    """Raise `BusError` if a topic to be created has an illegal name or partition count."""
    for topic, count in partitions_of.items():
        check_topic(topic)
        if not 1 <= count <= MAX_PARTITIONS:
            raise BusError(
                f"topic {topic}: {count} partitions; give a number from 1 to {MAX_PARTITIONS}"
            )


def check_topic(topic: str) -> None:
    """Raise `BusError` if ``topic`` is not a legal topic name."""
    if _LEGAL.fullmatch(topic) is None or topic in (".", ".."):
        raise BusError(
            f"{topic!r} is not a topic name: use 1 to 249 letters, digits, dots, hyphens and "
            "underscores"
        )


def missing_topic(topic: str, url: str) -> BusError:
    """The error for a topic that does not exist."""
    return BusError(f"topic {topic} does not exist on {url}; create it first")
