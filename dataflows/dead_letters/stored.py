"""Reads the dead letters of a pipeline with their place in the topic, and counts them by reason."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from anabranch.dataflows.bus import Bus, BusError, TopicPartition
from anabranch.dataflows.bus.protocol import Tombstone
from anabranch.dataflows.bus.read_to_end import ends_now, read_to_end
from anabranch.dataflows.codec import codec_of
from anabranch.dataflows.declaration.declaration import Declaration
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.dataflows.messages.similar_names import similar_name
from anabranch.state.errors import InputError

_SHOWN = 120


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter, and where and when it was published.

    Attributes:
        letter: the message.
        partition, offset: its place in the topic of dead letters.
        time_ms: when it was published, epoch ms.
    """

    letter: DeadLetter
    partition: int
    offset: int
    time_ms: int

    @property
    def place(self) -> str:
        """Where the message is that could not be used, for people."""
        letter = self.letter
        return f"{letter.topic}, partition {letter.partition}, offset {letter.offset}"

    @property
    def is_cut(self) -> bool:
        """Whether it has only the beginning of the payload."""
        return self.letter.truncated_from is not msgspec.UNSET

    @property
    def payload(self) -> bytes:
        """The payload, as far as it is in the dead letter."""
        letter = self.letter
        if letter.key is not msgspec.UNSET:
            return Tombstone.of(letter.key.encode())
        if letter.key_base64 is not msgspec.UNSET:
            return Tombstone.of(base64.b64decode(letter.key_base64))
        if letter.payload_base64 is not None:
            return base64.b64decode(letter.payload_base64)
        return (letter.payload or "").encode()

    @property
    def shown_payload(self) -> str:
        """The payload as text, shortened."""
        text = self.letter.payload
        text = self.letter.payload_base64 or "" if text is None else text
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@dataclass(slots=True)
class ReasonSummary:
    """The dead letters with one reason.

    Attributes:
        reason: the reason.
        count: how many.
        topics: how many by the topic that the message came from.
        first, last: when the first and the last was published, epoch ms.
        detail, place, payload: of the last.
    """

    reason: str
    count: int
    topics: dict[str, int]
    first: int
    last: int
    detail: str
    place: str
    payload: str


@dataclass(slots=True)
class Listing:
    """The dead letters of a pipeline by reason, the most frequent first.

    Attributes:
        pipeline, topic: whose they are, and where.
        read: how many were read.
        unreadable: how many messages of the topic are no dead letters.
        reasons: by reason.
    """

    pipeline: str
    topic: str
    read: int
    unreadable: int
    reasons: list[ReasonSummary]


class LetterReader:
    """Reads the dead letters that a pipeline has now, in batches.

    Args:
        bus: where they are.
        pipeline: whose they are.
        newest: read only so many of the newest; None: all.

    Raises:
        BusError: there is no topic of dead letters.
    """

    def __init__(self, bus: Bus, pipeline: Declaration, newest: int | None = None) -> None:
        topic = pipeline.topics.dead_letters
        if topic not in bus.topics():
            raise BusError(
                f"topic {topic!r} does not exist on {bus.url}: pipeline {pipeline.name!r} has not "
                "run there, and has no dead letters"
            )
        self.unreadable = 0
        self._bus = bus
        self._codec = codec_of(pipeline, topic)
        starts = dict(enumerate(bus.start_offsets(topic)))
        self._ends = ends_now(bus, [TopicPartition(topic, number) for number in starts])
        self._starts = {
            at: starts[at.partition] if newest is None else max(starts[at.partition], end - newest)
            for at, end in self._ends.items()
        }
        self._newest = newest

    def batches(self) -> Iterator[list[StoredLetter]]:
        """The dead letters; those of a partition in order."""
        if self._newest is None:
            yield from self._all()
            return
        letters = [each for batch in self._all() for each in batch]
        letters.sort(key=lambda each: each.time_ms)
        yield letters[max(len(letters) - self._newest, 0) :]

    def _all(self) -> Iterator[list[StoredLetter]]:
        decode = self._codec.decoder(DeadLetter)
        reader = self._bus.reader(self._starts, on_out_of_range="earliest")
        try:
            for piece in read_to_end(reader, self._ends, limit=1000):
                letters = []
                rows = zip(piece.offsets.tolist(), piece.times.tolist(), piece.values, strict=True)
                for offset, time_ms, value in rows:
                    try:
                        letter = decode(value)
                    except self._codec.errors:
                        self.unreadable += 1
                        continue
                    letters.append(StoredLetter(letter, piece.partition, offset, time_ms))
                yield letters
        finally:
            reader.close()


def list_letters(
    bus: Bus,
    pipeline: Declaration,
    reasons: Sequence[str] | None = None,
    newest: int | None = None,
) -> Listing:
    """Count the dead letters of a pipeline by reason.

    Args:
        bus, pipeline: where and whose they are.
        reasons: only these; None: all.
        newest: only so many of the newest; None: all.

    Raises:
        InputError: a reason does not exist.
        BusError: there is no topic of dead letters, or it can't be read.
    """
    wanted = check_reasons(reasons)
    reader = LetterReader(bus, pipeline, newest)
    found: dict[str, ReasonSummary] = {}
    for batch in reader.batches():
        for each in batch:
            letter = each.letter
            if wanted is not None and letter.reason not in wanted:
                continue
            summary = found.get(letter.reason)
            if summary is None:
                summary = found[letter.reason] = ReasonSummary(
                    letter.reason, 0, {}, each.time_ms, each.time_ms, "", "", ""
                )
            summary.count += 1
            summary.topics[letter.topic] = summary.topics.get(letter.topic, 0) + 1
            summary.first = min(summary.first, each.time_ms)
            if each.time_ms >= summary.last:
                summary.last = each.time_ms
                summary.detail, summary.place = letter.detail, each.place
                summary.payload = each.shown_payload
    return Listing(
        pipeline.name,
        pipeline.topics.dead_letters,
        sum(each.count for each in found.values()),
        reader.unreadable,
        sorted(found.values(), key=lambda each: -each.count),
    )


def check_reasons(reasons: Collection[str] | None) -> frozenset[str] | None:
    """The reasons as a set, all of which exist; None for all.

    Raises:
        InputError: one does not exist.
    """
    if not reasons:
        return None
    known = [each.value for each in DeadLetterReason]
    for reason in reasons:
        if reason not in known:
            similar = similar_name(reason, known)
            hint = f": did you mean {similar!r}?" if similar else f": one of {', '.join(known)}"
            raise InputError(f"there is no reason {reason!r} of dead letters{hint}")
    return frozenset(reasons)
