"""Which worker of a cluster a process is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """One worker among all; one worker a process.

    ``addresses`` are ``host:port`` of all processes, in the same order everywhere; empty for a
    single one.
    """

    process: int = 0
    addresses: Sequence[str] = ()

    @property
    def workers(self) -> int:
        """How many workers the cluster has."""
        return max(len(self.addresses), 1)

    def __str__(self) -> str:
        return f"worker {self.process} of {self.workers}"


ALONE = Member()
"""The only worker."""
