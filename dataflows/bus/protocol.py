"""Where topics live: one small protocol, and two implementations behind one URL.

``sqlite:PATH`` is the embedded bus (`dataflows.bus.embedded.bus`), ``kafka://HOST:PORT[,HOST:PORT…]``
is a Kafka cluster (`dataflows.bus.kafka.bus`). Nothing else in the program knows which one it
talks to.

A topic has a fixed number of partitions. Inside a partition messages have rising offsets and keep
their order. A message is bytes, an optional key, and a time (epoch ms) that its publisher gives it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.state.errors import BusError

__all__ = [
    "Bus",
    "BusError",
    "Lost",
    "Publisher",
    "Reader",
    "Slice",
    "TopicPartition",
    "UnreachableError",
]

Lost = Literal["stop", "earliest"]
"""What a reader does when the offset to be read is no longer kept: raise, or go on behind the gap.

A position behind the end is an error either way: the topic was made anew, or lost messages.
"""


class UnreachableError(BusError):
    """The bus does not answer for now: what was asked may succeed later. Nothing is lost yet."""


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


class Slice(msgspec.Struct):
    """A run of messages of one topic partition, oldest first, as a reader hands them over.

    ``offsets`` and ``times`` are ``(n,) int64`` (times in epoch ms, as published), ``values`` the
    ``n`` payloads, ``keys`` the ``n`` keys. Offsets rise but need not be contiguous.
    """

    topic: str
    partition: int
    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    values: Sequence[bytes]
    keys: list[bytes | None]


class Publisher(Protocol):
    """Appends messages to topics. Nothing is certain before `flush` has returned."""

    def append(
        self,
        topic: str,
        values: Sequence[bytes],
        *,
        keys: Sequence[bytes | None] | None = None,
        partitions: Sequence[int] | int | None = None,
        times: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> None:
        """Add ``values`` in order.

        ``partitions`` is one number for all, one per message, or None: then a message goes where
        its key says (`partition_of_key`), or round-robin without one. ``times`` defaults to now.
        A bus that is away or slow is waited for, and the log says so.

        Raises:
            UnreachableError: this publisher was told to stop while the bus did not answer; some of
                ``values`` may have been taken.
            BusError: the topic does not exist, or the bus refused the messages.
        """

    def flush(self, timeout_s: float = 30.0) -> None:
        """Return when everything appended is stored.

        Raises:
            UnreachableError: some of it is still being tried; another `flush` may succeed.
            BusError: something was refused for good; the message says how many and why.
        """

    def close(self) -> None:
        """Flush and let go, within about 30 s whatever the bus does. Idempotent.

        Raises:
            BusError: as `flush`; what was not stored by then is dropped.
        """


class Reader(Protocol):
    """Reads given partitions from given offsets. Never blocks for longer than ``timeout_s``."""

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        """At most about ``limit`` messages that are there now, grouped by topic partition.

        While the bus is away there are none; the log says so, and `trouble`.

        Raises:
            BusError: an offset is no longer kept (unless the reader was told to go on), or lies
                behind the end; a topic is gone, was made anew, or is forbidden.
        """

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Hand over nothing more from these partitions until `resume`."""

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Undo `pause`."""

    def positions(self) -> dict[TopicPartition, int]:
        """The offset that each partition will be read from next; behind a gap, once it is known."""

    def ends(self) -> dict[TopicPartition, int]:
        """The offset behind each partition's last message, as last heard (cheap, may be old)."""

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Tell the bus how far this reader's group has come, for lag tools. Never read back."""

    def trouble(self) -> str | None:
        """What is waited for, in one sentence, when the bus has been silent for 5 s; else None.

        It may be asked from any thread.
        """

    def close(self) -> None:
        """Let go. Idempotent."""


class Bus(Protocol):
    """A set of topics behind one URL."""

    url: str

    def create_topics(self, partitions: Mapping[str, int]) -> list[str]:
        """Create the topics that do not exist yet; return their names.

        Raises:
            BusError: one exists with another partition count.
        """

    def topics(self) -> dict[str, int]:
        """Every topic (internal ones left out) and its partition count."""

    def start_offsets(self, topic: str) -> list[int]:
        """The first offset still kept, by partition."""

    def end_offsets(self, topic: str) -> list[int]:
        """The offset behind the last message, by partition, asked of the bus now."""

    def publisher(self, stop: threading.Event | None = None) -> Publisher:
        """A new publisher; close it when done.

        ``stop`` ends its waiting: once set, `Publisher.append` raises `UnreachableError` when the
        bus has been silent for 5 s, and `Publisher.close` does not wait for such a bus.
        """

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        group: str | None = None,
        lost: Lost = "stop",
    ) -> Reader:
        """A reader of these partitions from these offsets; ``group`` is what `commit` reports to.

        ``lost`` says what happens, now or later, when retention removed an offset to be read.

        Raises:
            BusError: a topic or partition does not exist, an offset is no longer kept and ``lost``
                is ``stop``, or an offset lies behind the end.
        """

    def close(self) -> None:
        """Let go of the bus. Idempotent."""
