"""What a bus is: topics, and how to publish to them and read from them.

To add a bus, write a class with the methods of `AdminBus`, whose publisher and reader have those of
`Publisher` and `Reader`, and give it a URL in `dataflows.bus.open_bus`.

A topic has a number of partitions, which may grow. Within a partition messages have rising offsets
and keep their order. A message is bytes, an optional key, and a time (epoch ms) that its publisher
gives it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.bus.claims import OutputClaims
from anabranch.dataflows.bus.headers import Headers
from anabranch.state.errors import BusError

OnOutOfRange = Literal["stop", "earliest"]
"""What a reader does when the next offset is no longer kept: raise, or continue after the gap.

A position past the end is an error either way: the topic was recreated, or lost messages.
"""


class UnreachableError(BusError):
    """The bus does not respond at present: the call may succeed later, and nothing is lost yet."""


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


class TopicLimits(NamedTuple):
    """What a topic takes, and for how long it keeps it.

    Attributes:
        max_message_bytes: the most that key and payload of one message may have together.
        retention_ms: how long after its time a message is kept; None: forever, or as long after
            it arrived.
    """

    max_message_bytes: int
    retention_ms: int | None = None


class Tombstone(bytes):
    """The payload of a message that has none: empty bytes that know the message's ``key``."""

    key: bytes | None

    @classmethod
    def of(cls, key: bytes | None) -> Tombstone:
        """The payload of a message with this key."""
        empty = cls()
        empty.key = key
        return empty


def with_tombstones(values: list[bytes], keys: Sequence[bytes | None]) -> list[bytes]:
    """The payloads, those that are empty as a `Tombstone`."""
    if all(values):
        return values
    return [value or Tombstone.of(key) for value, key in zip(values, keys, strict=True)]


class Slice(msgspec.Struct):
    """Consecutive messages of one topic partition, oldest first, as a reader returns them.

    Attributes:
        topic, partition: where they are.
        offsets: ``(n,) int64``, rising but not always contiguous.
        times: when each was published, ``(n,) int64`` epoch ms.
        values: the ``n`` payloads; one that is empty is a `Tombstone`.
        keys: the ``n`` keys, None for none.
        headers: the headers of each, if the reader was asked for them; else, and where no message
            has any, None.
    """

    topic: str
    partition: int
    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    values: Sequence[bytes]
    keys: list[bytes | None]
    headers: Headers | None = None


class Publisher(Protocol):
    """Appends messages to topics. Nothing is guaranteed to be stored before `flush` returns."""

    def append(
        self,
        topic: str,
        values: Sequence[bytes],
        *,
        keys: Sequence[bytes | None] | None = None,
        partitions: Sequence[int] | int | None = None,
        times: Sequence[int] | NDArray[np.int64] | None = None,
        headers: Headers | None = None,
    ) -> None:
        """Add ``values`` in order.

        ``partitions`` is one number for all, one per message, or None: then the partition follows
        from the key (`partition_of_key`), or is chosen round-robin without one. ``times`` (epoch
        ms) default to now. Waits for a bus that is unavailable or slow, and logs that.

        Raises:
            UnreachableError: the publisher was stopped while the bus did not respond; some of
                ``values`` may have been appended.
            BusError: the topic does not exist, or the bus rejected the messages.
        """

    def flush(self, timeout_s: float = 30.0) -> None:
        """Return when everything appended is stored.

        Raises:
            UnreachableError: some messages are still being sent; another `flush` may succeed.
            BusError: messages were rejected permanently; it says how many and why.
        """

    def close(self) -> None:
        """Flush and close, within about 30 s whatever the bus does. Idempotent.

        Raises:
            BusError: as `flush`; messages not stored by then are dropped.
        """


class Reader(Protocol):
    """Reads given partitions from given offsets. Never blocks for longer than ``timeout_s``."""

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        """At most about ``limit`` messages that are there now, grouped by topic partition.

        While the bus is away there are none; the log says so, and `unavailable_reason`.

        Raises:
            BusError: an offset is past the end or no longer kept (unless the reader continues after
                gaps); a topic is gone, was recreated, or is forbidden.
        """

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Return nothing more from these partitions until `resume`."""

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Undo `pause`."""

    def positions(self) -> dict[TopicPartition, int]:
        """The next offset of each partition.

        It moves over offsets without a message (removed ones, markers of transactions) once the bus
        has reported them: also while `poll` returns nothing.
        """

    def ends(self) -> dict[TopicPartition, int]:
        """The offset after what can be read of each partition, as last reported.

        Cheap, and may be old.
        """

    def partition_counts(self) -> dict[str, int]:
        """How many partitions each topic has, as last reported; topics not known are left out."""

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Report the positions of this reader's group, for lag tools. They are never read back."""

    def unavailable_reason(self) -> str | None:
        """Why there are no messages if the bus has not responded for 5 s, else None.

        May be called from any thread.
        """

    def close(self) -> None:
        """Close. Idempotent."""


class Bus(Protocol):
    """A set of topics behind one URL."""

    url: str

    def create_topics(self, partitions: Mapping[str, int]) -> list[str]:
        """Create the topics that do not exist yet; return their names.

        Raises:
            BusError: one exists with another partition count.
        """

    def add_partitions(self, topic: str, count: int) -> None:
        """Raise the partition count of a topic to ``count``; does nothing if it has that.

        Raises:
            BusError: the topic does not exist, has more, or the bus refuses.
        """

    def topics(self) -> dict[str, int]:
        """Every topic (internal ones left out) and its partition count."""

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        """The id of each of these topics that exists: a topic that is created again has another.

        Left out are those of which the bus does not know one.
        """

    def start_offsets(self, topic: str) -> list[int]:
        """The first offset still kept, by partition."""

    def end_offsets(self, topic: str) -> list[int]:
        """The offset after what can be read, by partition, as of now.

        A message of a transaction that is open can't be read, nor what follows it.
        """

    def offsets_at(self, topic: str, time_ms: int) -> list[int]:
        """The first offset whose message was published at ``time_ms`` or later, by partition.

        The end of a partition that has none.

        Raises:
            BusError: the topic does not exist.
        """

    def open_transactions(self, topic: str) -> dict[int, int]:
        """Where the first transaction that is still open begins, by partition that has one."""

    def limits(self, topic: str) -> TopicLimits:
        """What the topic takes, as of now.

        Raises:
            BusError: the topic does not exist.
        """

    def publisher(self, stop: threading.Event | None = None) -> Publisher:
        """A new publisher; close it when done.

        Once ``stop`` is set, `Publisher.append` raises `UnreachableError` if the bus has not
        responded for 5 s, and `Publisher.close` does not wait for such a bus.
        """

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        group: str | None = None,
        on_out_of_range: OnOutOfRange = "stop",
        headers: bool = False,
    ) -> Reader:
        """A reader of these partitions from these offsets; ``group`` is what `commit` reports to.

        ``on_out_of_range``: what to do, now or later, when retention removed unread messages.
        ``headers``: whether slices have the headers of messages.

        Raises:
            BusError: a topic or partition does not exist, an offset is past the end, or it is
                no longer kept and ``on_out_of_range`` is ``stop``.
        """

    def close(self) -> None:
        """Close the bus. Idempotent."""


class AdminBus(Bus, Protocol):
    """A bus whose topics can be deleted and changed."""

    def delete_topics(self, names: Sequence[str]) -> None:
        """Delete topics with all their messages.

        Raises:
            BusError: one does not exist, in which case none is deleted, or the bus refuses.
        """

    def set_retention(self, topic: str, kept_ms: int | None) -> None:
        """Keep messages of the topic for that long after their time; None: forever.

        Raises:
            BusError: the topic does not exist, or the bus refuses.
        """

    def claim_outputs(
        self, topics: Sequence[str], pipeline: str, run: str, say: Callable[[str], None]
    ) -> OutputClaims:
        """Claim topics, which exist, for a run of a pipeline (`dataflows.bus.claims`).

        ``run`` identifies it, and the next run from its state. ``say`` gets a line when something
        takes a while.

        Raises:
            BusError: another pipeline, or another run, writes one of them.
        """

    def release_outputs(self, topics: Sequence[str]) -> None:
        """Let other pipelines claim these topics; those that are not claimed stay as they are.

        Raises:
            BusError: a run is writing one of them; then none is released.
        """
