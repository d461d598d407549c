"""An input of a replay that is a topic: read to the end that it had when the replay started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anabranch.dataflows.bus import Bus, BusError, OnOutOfRange, Reader, Slice, TopicPartition
from anabranch.dataflows.bus.read_to_end import ends_now


class BusTopic:
    """The topic ``source`` on ``bus``, read as the pipeline's input topic ``name``.

    Attributes:
        starts, ends: first offset and end offset by partition.
        counts: messages by partition; upper bounds, as a compacted topic has fewer.

    Raises:
        BusError: the topic does not exist, or the bus does not respond.
    """

    def __init__(self, name: str, bus: Bus, source: str) -> None:
        self.name = name
        self.source = source
        self._bus = bus
        if source not in bus.topics():
            raise BusError(
                f"topic {source!r} does not exist on {bus.url}, and there is no file of that name: "
                "`anabranch topics` lists the topics"
            )
        self.starts = bus.start_offsets(source)
        places = [TopicPartition(source, number) for number in range(len(self.starts))]
        self.ends = list(ends_now(bus, places).values())
        self.counts = [end - start for start, end in zip(self.starts, self.ends, strict=True)]

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        on_out_of_range: OnOutOfRange,
        headers: bool = False,
    ) -> Reader:
        """A reader of the partitions of ``positions``, from the given offsets."""
        if self.source == self.name:
            return self._bus.reader(positions, None, on_out_of_range, headers)
        renamed = {
            TopicPartition(self.source, at.partition): offset for at, offset in positions.items()
        }
        reader = self._bus.reader(renamed, None, on_out_of_range, headers)
        return _Renamed(reader, self.source, self.name)


class _Renamed:
    """A reader whose topic appears under another name."""

    def __init__(self, reader: Reader, source: str, name: str) -> None:
        self._reader = reader
        self._source = source
        self._name = name
        self.unavailable_reason, self.close = reader.unavailable_reason, reader.close

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        slices = self._reader.poll(limit, timeout_s)
        for piece in slices:
            piece.topic = self._name
        return slices

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._reader.pause([at._replace(topic=self._source) for at in partitions])

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._reader.resume([at._replace(topic=self._source) for at in partitions])

    def positions(self) -> dict[TopicPartition, int]:
        own = self._reader.positions()
        return {at._replace(topic=self._name): offset for at, offset in own.items()}

    def ends(self) -> dict[TopicPartition, int]:
        own = self._reader.ends()
        return {at._replace(topic=self._name): offset for at, offset in own.items()}

    def partition_counts(self) -> dict[str, int]:
        """None: a replay reads what was there when it started."""
        return {}

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Does nothing: a replay belongs to no consumer group."""
