"""A load on every core, for tests that must hold on a busy machine (``make test-stress``)."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager


def _burn(parent: int) -> None:
    """Compute until the process ``parent`` is gone."""
    while os.getppid() == parent:
        sum(range(100_000))


@contextmanager
def cpu_load(processes: int | None = None) -> Iterator[None]:
    """Keep ``processes`` cores busy (by default all of them) inside a ``with`` block.

    The processes end with the block, or within milliseconds of this process if that is killed.
    """
    context = multiprocessing.get_context("spawn")
    burners = [
        context.Process(target=_burn, args=(os.getpid(),), daemon=True)
        for _ in range(processes or os.cpu_count() or 1)
    ]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.join()
