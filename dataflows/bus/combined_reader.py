"""Readers of several topics, or buses, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anabranch.dataflows.bus.protocol import Reader, Slice, TopicPartition


class CombinedReader:
    """A `Reader` of topics that are read by several.

    Args:
        readers: topic → its reader; one reader may have several topics.
        live: whether there is a group to report to, and partitions may be added; a replay has
            neither.
    """

    def __init__(self, readers: Mapping[str, Reader], live: bool = False) -> None:
        self._readers = readers
        self._all = list(dict.fromkeys(readers.values()))
        self._live = live

    def poll(self, limit: int, timeout_s: float = 0.0) -> list[Slice]:
        slices: list[Slice] = []
        for reader in self._all:
            slices += reader.poll(limit, 0.0 if slices else timeout_s)
        return slices

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        for reader, own in self._by_reader(dict.fromkeys(partitions, 0)):
            reader.pause(list(own))

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        for reader, own in self._by_reader(dict.fromkeys(partitions, 0)):
            reader.resume(list(own))

    def positions(self) -> dict[TopicPartition, int]:
        return {at: n for reader in self._all for at, n in reader.positions().items()}

    def ends(self) -> dict[TopicPartition, int]:
        return {at: n for reader in self._all for at, n in reader.ends().items()}

    def partition_counts(self) -> dict[str, int]:
        if not self._live:
            return {}
        return {topic: n for each in self._all for topic, n in each.partition_counts().items()}

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        if self._live:
            for reader, own in self._by_reader(positions):
                reader.commit(own)

    def unavailable_reason(self) -> str | None:
        reasons = (reader.unavailable_reason() for reader in self._all)
        return next((reason for reason in reasons if reason is not None), None)

    def close(self) -> None:
        for reader in self._all:
            reader.close()

    def _by_reader(
        self, positions: Mapping[TopicPartition, int]
    ) -> list[tuple[Reader, dict[TopicPartition, int]]]:
        found = []
        for reader in self._all:
            own = {at: n for at, n in positions.items() if self._readers[at.topic] is reader}
            if own:
                found.append((reader, own))
        return found
