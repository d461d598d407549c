"""The record of which messages were published again, so that none is twice.

Each copy has a header with the coordinates of its original, so a message and its mark are stored
together or not at all. As headers would have to be looked for in the whole topic, and go with it
when old messages are removed, there is a small topic of marks beside the dead letters as well:

1. Before some copies are published, their marks and where the input topics end are written there,
   as an *intention*.
2. The copies are published, each with its mark in the header.
3. When they are stored, the marks are written as *done*.

An intention that nothing follows is that of a call that was killed: what it had published is found
by the headers behind the ends in the intention, and is written as done before anything else. A mark
is written after its dead letter, so it is kept for at least as long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import msgspec

from anabranch.dataflows.bus import Bus, TopicPartition
from anabranch.dataflows.bus.headers import MessageHeaders, header_of
from anabranch.dataflows.bus.protocol import Publisher
from anabranch.dataflows.bus.read_to_end import ends_now, read_to_end
from anabranch.dataflows.declaration.declaration import Declaration
from anabranch.dataflows.messages.outputs import DeadLetter
from anabranch.state.errors import InputError

HEADER = "anabranch-republished"
"""The header of a message that was published again: the mark of its original."""

_SUFFIX = ".republished"


class _Record(msgspec.Struct, omit_defaults=True):
    """A message of the topic of marks: marks that are done; with ``ends``, that are intended."""

    marks: list[str]
    ends: dict[str, list[int]] | None = None


_decode = msgspec.json.Decoder(_Record).decode


def marks_topic(pipeline: Declaration) -> str:
    """The topic of marks of a pipeline."""
    return f"{pipeline.topics.dead_letters}{_SUFFIX}"


def mark_of(letter: DeadLetter, payload: bytes) -> str:
    """The mark of a message: where it was read, and a digest of its payload.

    Several dead letters of one message have one mark. The digest tells messages apart that had the
    same place in a topic that was deleted and created again.
    """
    digest = hashlib.blake2b(payload, digest_size=8).hexdigest()
    return f"{letter.topic}/{letter.partition}/{letter.offset}/{digest}"


def with_mark(headers: MessageHeaders, mark: str) -> MessageHeaders:
    """The headers of a copy: those of its original, and its mark."""
    kept = [each for each in headers or () if each[0] != HEADER]
    return [*kept, (HEADER, mark.encode())]


class Marks:
    """The marks of a pipeline's messages.

    Attributes:
        done: of those that were published again.
        uncertain: how many of them may have been: a call was killed, and what it published would
            not be kept any more.

    Raises:
        InputError: something else is on the topic.
        BusError: the bus does not respond.
    """

    def __init__(self, bus: Bus, pipeline: Declaration) -> None:
        self.done: set[str] = set()
        self.uncertain = 0
        self._bus, self._topic = bus, marks_topic(pipeline)
        self._found_late: list[str] = []
        intention: _Record | None = None
        for record in self._records():
            if record.ends is None:
                self.done.update(record.marks)
                intention = None
            else:
                intention = record
        if intention is not None:
            self._found_late = sorted(self._published_since(intention))
            self.done.update(self._found_late)

    def open(self, publisher: Publisher) -> None:
        """Create the topic if it is missing, and write down what a killed call had published."""
        if self._topic not in self._bus.topics():
            self._bus.create_topics({self._topic: 1})
        self._write(publisher, _Record(self._found_late))

    def intend(self, publisher: Publisher, marks: Sequence[str], topics: Sequence[str]) -> None:
        """Write down that these are about to be published, on some of these topics."""
        ends = {topic: self._bus.end_offsets(topic) for topic in topics}
        self._write(publisher, _Record(list(marks), ends))

    def finish(self, publisher: Publisher, marks: Sequence[str]) -> None:
        """Write down that these are published and stored."""
        self._write(publisher, _Record(list(marks)))
        self.done.update(marks)

    def _write(self, publisher: Publisher, record: _Record) -> None:
        publisher.append(self._topic, [msgspec.json.encode(record)], partitions=0)
        publisher.flush()

    def _records(self) -> Iterator[_Record]:
        if self._topic not in self._bus.topics():
            return
        at = TopicPartition(self._topic, 0)
        reader = self._bus.reader({at: self._bus.start_offsets(self._topic)[0]})
        try:
            for piece in read_to_end(reader, ends_now(self._bus, [at])):
                for offset, value in zip(piece.offsets.tolist(), piece.values, strict=True):
                    try:
                        yield _decode(value)
                    except msgspec.MsgspecError:
                        raise InputError(
                            f"offset {offset} of topic {self._topic} is no record of "
                            "`anabranch dead-letters republish`: is the topic used for something "
                            "else?"
                        ) from None
        finally:
            reader.close()

    def _published_since(self, intention: _Record) -> set[str]:
        """Those of an intention that were published, or may have been."""
        assert intention.ends is not None
        intended = set(intention.marks)
        found: set[str] = set()
        topics = self._bus.topics()
        for topic, ends in intention.ends.items():
            if topic not in topics:
                continue
            first, last = self._bus.start_offsets(topic), self._bus.end_offsets(topic)
            starts = {
                TopicPartition(topic, number): end if first[number] <= end <= last[number] else
                first[number]
                for number, end in enumerate(ends)
                if number < len(first)
            }  # fmt: skip
            if any(first[at.partition] > ends[at.partition] for at in starts):
                self.uncertain = len(intended)
                return intended
            reader = self._bus.reader(starts, on_out_of_range="earliest", headers=True)
            try:
                for piece in read_to_end(reader, ends_now(self._bus, list(starts))):
                    found |= {mark for mark in marks_in(piece.headers) if mark in intended}
            finally:
                reader.close()
        return found


def marks_in(headers: Sequence[MessageHeaders] | None) -> Iterator[str]:
    """The marks of those messages that are copies."""
    for each in headers or ():
        value = header_of(each, HEADER)
        if value is not None:
            yield value.decode(errors="replace")
