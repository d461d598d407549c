"""Reads messages by their coordinates: key, time and headers are in no dead letter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from anabranch.dataflows.batch.dead_letters import payload_fields
from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.bus.headers import MessageHeaders
from anabranch.dataflows.bus.read_to_end import read_to_end
from anabranch.dataflows.dead_letters.stored import StoredLetter

_GAP = 10_000  # messages that are read over rather than jumped over


@dataclass(frozen=True, slots=True)
class Original:
    """A message of an input topic.

    Attributes:
        value, key, headers: as they were published.
        time_ms: when, epoch ms.
    """

    value: bytes
    key: bytes | None
    time_ms: int
    headers: MessageHeaders


def read_originals(
    bus: Bus, wanted: Mapping[TopicPartition, Collection[int]]
) -> dict[tuple[TopicPartition, int], Original]:
    """The messages at these offsets, by partition and offset, as far as they are kept.

    Raises:
        BusError: the bus does not respond.
    """
    found: dict[tuple[TopicPartition, int], Original] = {}
    for at, offsets in wanted.items():
        first, end = bus.start_offsets(at.topic)[at.partition], bus.end_offsets(at.topic)
        kept = sorted({offset for offset in offsets if first <= offset < end[at.partition]})
        for run in _runs(kept):
            found |= _read(bus, at, run)
    return found


def is_of(original: Original, stored: StoredLetter) -> bool:
    """Whether a dead letter is of this message: the topic may have been created again since."""
    letter, own = stored.letter, payload_fields(original.value)
    text, base64 = own.get("payload"), own.get("payload_base64")
    if not stored.is_cut:
        return (letter.payload, letter.payload_base64) == (text, base64)
    beginning = letter.payload_base64 if base64 is not None else letter.payload
    return len(original.value) == letter.truncated_from and (base64 or text or "").startswith(
        beginning or ""
    )


def _runs(offsets: list[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for offset in offsets:
        if run and offset - run[-1] > _GAP:
            yield run
            run = []
        run.append(offset)
    if run:
        yield run


def _read(
    bus: Bus, at: TopicPartition, offsets: list[int]
) -> Iterator[tuple[tuple[TopicPartition, int], Original]]:
    wanted = set(offsets)
    reader = bus.reader({at: offsets[0]}, on_out_of_range="earliest", headers=True)
    try:
        for piece in read_to_end(reader, {at: offsets[-1] + 1}):
            for row, offset in enumerate(piece.offsets.tolist()):
                if offset in wanted:
                    headers = None if piece.headers is None else piece.headers[row]
                    yield (
                        (at, offset),
                        Original(
                            piece.values[row], piece.keys[row], int(piece.times[row]), headers
                        ),
                    )
    finally:
        reader.close()
