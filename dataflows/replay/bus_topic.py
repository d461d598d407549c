"""A topic of a bus, from its first message to the end that it had when the replay began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anabranch.dataflows.bus import Bus, BusError, OnOutOfRange, Reader, Slice, TopicPartition
from anabranch.dataflows.bus.read_to_end import ends_now


class BusTopic:
    """``source`` on ``bus``, in the place of the topic ``name``.

    Attributes:
        starts, ends, counts: as those of `FileTopic`; ``counts`` are at most so many.

    Raises:
        BusError: it is not there, or the bus does not answer.
    """

    def __init__(self, name: str, bus: Bus, source: str) -> None:
        self.name = name
        self.source = source
        self._bus = bus
        if source not in bus.topics():
            raise BusError(
                f"topic {source!r} does not exist on {bus.url}, and no file is called that: "
                "`anabranch topics` lists what is there"
            )
        self.starts = bus.start_offsets(source)
        places = [TopicPartition(source, number) for number in range(len(self.starts))]
        self.ends = list(ends_now(bus, places).values())
        self.counts = [end - start for start, end in zip(self.starts, self.ends, strict=True)]

    def reader(
        self, positions: Mapping[TopicPartition, int], on_out_of_range: OnOutOfRange
    ) -> Reader:
        """A reader of these partitions from these offsets."""
        if self.source == self.name:
            return self._bus.reader(positions, None, on_out_of_range)
        renamed = {
            TopicPartition(self.source, at.partition): offset for at, offset in positions.items()
        }
        return _Renamed(self._bus.reader(renamed, None, on_out_of_range), self.source, self.name)


class _Renamed:
    """A reader that calls its topic by another name."""

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
        found = self._reader.positions()
        return {at._replace(topic=self._name): offset for at, offset in found.items()}

    def ends(self) -> dict[TopicPartition, int]:
        found = self._reader.ends()
        return {at._replace(topic=self._name): offset for at, offset in found.items()}

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """A replay is no consumer: its offsets are nobody's."""
