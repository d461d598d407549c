"""Ids of the rows of a ranking event, one per candidate: the event's id and the candidate's."""

from __future__ import annotations

from typing import Final

_SEPARATOR: Final = "\x1f"


def contains_separator(text: str) -> bool:
    """Whether a text cannot be an id or a candidate, as it contains the separator."""
    return _SEPARATOR in text


def row_id(event: str, candidate: str) -> str:
    """The id by which a candidate of an event is joined with its label."""
    return f"{event}{_SEPARATOR}{candidate}"


def event_id(row: str) -> str:
    """The id of the event.

    >>> event_id(row_id("e1", "a"))
    'e1'
    """
    return row.partition(_SEPARATOR)[0]


def candidate(row: str) -> str:
    """The candidate.

    >>> candidate(row_id("e1", "a"))
    'a'
    """
    return row.partition(_SEPARATOR)[2]


def readable_row_id(row: str) -> str:
    """The row id as a message shows it.

    >>> readable_row_id(row_id("e1", "a"))
    'e1: a'
    """
    return row.replace(_SEPARATOR, ": ")
