"""How a long check tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Watch = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is, and how much there is (None: not known)."""


def unwatched(what: str, done: int, total: int | None) -> None:
    """Nobody looks."""
