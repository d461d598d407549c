"""The ids of rows of which an event has several: its own id, and the candidate's."""

from __future__ import annotations

from typing import Final

_BETWEEN: Final = "\x1f"


def parts_ids(text: str) -> bool:
    """Whether neither an id nor a candidate can be this: it holds what stands between them."""
    return _BETWEEN in text


def row_id(event: str, candidate: str) -> str:
    """By which a candidate of an event waits for its label."""
    return f"{event}{_BETWEEN}{candidate}"


def event_id(row: str) -> str:
    """The event's own.

    >>> event_id(row_id("e1", "a"))
    'e1'
    """
    return row.partition(_BETWEEN)[0]


def candidate(row: str) -> str:
    """The candidate's.

    >>> candidate(row_id("e1", "a"))
    'a'
    """
    return row.partition(_BETWEEN)[2]


def told(row: str) -> str:
    """The same, for people.

    >>> told(row_id("e1", "a"))
    'e1: a'
    """
    return row.replace(_BETWEEN, ": ")
