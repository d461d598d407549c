"""What an export writes to: rows and positions that are stored together, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.export.output_tables import OutputTable, TableRows
from anabranch.state.errors import InputError


class ExportError(InputError):
    """A target that can't be used: another's, in use, or one that refuses what is written."""


class TargetUnreachableError(ExportError):
    """The target does not respond at present: the same call may succeed later."""


class InUseError(ExportError):
    """Another export is writing to the target."""


class TakenOverError(ExportError):
    """Positions are not those that this export has stored: another one has changed them."""


class Position(NamedTuple):
    """How far a topic partition is in a target: the next offset, of the topic with this id."""

    topic_id: str
    offset: int


Positions = Mapping[TopicPartition, Position]


class Batch(msgspec.Struct):
    """What is written at once.

    Attributes:
        rows: by output, in the order of the topic partitions.
        before: what the target must have stored, of the partitions that it has stored.
        after: what it has stored afterwards, of the partitions that have moved.
    """

    rows: Sequence[TableRows]
    before: Positions
    after: Positions


class Target(Protocol):
    """Where rows are written. One export at a time uses it for a pipeline, from `prepare` on.

    Attributes:
        name: for people; it has no password.
        batch_size: how many messages are best written at once.
        interval_s: how long a message may wait for others.
    """

    name: str
    batch_size: int
    interval_s: float

    def prepare(self, pipeline: str, tables: Sequence[OutputTable]) -> Positions:
        """Get ready for rows of these tables; returns the positions that are stored.

        Raises:
            ExportError: the target, or a table of that name, is not ours; another export of the
                pipeline writes to it; or an output can't be written to such a target.
        """

    def stored(self) -> Positions:
        """The positions that are stored now, after a connection was lost.

        Raises:
            TargetUnreachableError: the target does not respond.
        """

    def write(self, batch: Batch) -> None:
        """Store rows and positions, both or neither.

        Raises:
            TargetUnreachableError: the target does not respond; whether the batch is stored is what
                `stored` says.
            TakenOverError: another export has written meanwhile.
            ExportError: the target refuses.
        """

    def keep(self) -> None:
        """Called every second or so while there is nothing to write."""

    def close(self) -> None:
        """Close. Idempotent."""


def taken_over(name: str) -> TakenOverError:
    """The error for positions that another export has changed."""
    return TakenOverError(
        f"another export has written the same topics to {name} meanwhile: nothing was written "
        "twice; let one of them run"
    )


def in_use(name: str, who: str = "") -> InUseError:
    """The error for a target that another export is writing to."""
    return InUseError(
        f"another export of this pipeline{f' ({who})' if who else ''} writes to {name}: stop that "
        "first, or name another target with --to"
    )
