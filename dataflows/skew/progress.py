"""The progress callback of a long check."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[str, int, int | None], None]
"""Called with the name of a task, the units done, and the total (None: unknown)."""


def ignore_progress(task: str, done: int, total: int | None) -> None:
    """Do nothing."""
