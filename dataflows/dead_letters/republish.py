"""Publishes dead letters again that the current declaration takes, each once.

What the declaration takes is what the decoder of a run takes (`source.decoder`). A copy goes to the
topic and partition of its original, with its key, headers and time; `dead_letters.marks` says how
none is published twice, whenever a call ends.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from anabranch.dataflows.batch.batch import NO_ROWS, RawBatch, RawRows
from anabranch.dataflows.batch.candidates import Candidates
from anabranch.dataflows.bus import AdminBus, Bus, BusError, TopicPartition
from anabranch.dataflows.bus.headers import MessageHeaders, header_of
from anabranch.dataflows.bus.protocol import Publisher
from anabranch.dataflows.bus.read_to_end import read_to_end
from anabranch.dataflows.dead_letters.marks import HEADER, Marks, mark_of, with_mark
from anabranch.dataflows.dead_letters.originals import is_of, read_originals
from anabranch.dataflows.dead_letters.stored import LetterReader, StoredLetter, check_reasons
from anabranch.dataflows.declaration.input_topics import resolve_topics
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason as Reason
from anabranch.dataflows.source.decoder import BatchDecoder
from anabranch.state.durations import format_duration_ms, parse_duration_ms
from anabranch.state.errors import InputError

BY_DECLARATION = frozenset(
    each.value
    for each in (
        Reason.MALFORMED,
        Reason.NOT_JSON,
        Reason.UNKNOWN_SCHEMA,
        Reason.TYPE_MISMATCH,
        Reason.INVALID_TIME,
        Reason.TIME_AHEAD,
        Reason.NUMBER_TOO_LARGE,
        Reason.NO_CANDIDATES,
        Reason.TOO_MANY_CANDIDATES,
        Reason.REPEATED_CANDIDATE,
        Reason.CONTROL_CHARACTER,
        Reason.CANDIDATE_MISMATCH,
    )
)
"""Reasons that the message itself and the declaration decide; others have to be asked for."""

_NEVER = {
    Reason.OUTPUT_TOO_LARGE.value: "such messages were used, only what they led to is missing",
    Reason.NOT_A_CONTROL_MESSAGE.value: "commands to rollouts are given with `anabranch rollout`",
}
_OWNER = "anabranch dead-letters republish"
_HEADER_BYTES = 128  # more than the record of a message and of the header have
_LOOK_BACK = 200


@dataclass(slots=True)
class HeldBack:
    """Dead letters that are not published again for one reason.

    Attributes:
        reason: why not: a reason of dead letters, or a few words.
        count: how many.
        detail, place, payload: of the first of them.
    """

    reason: str
    count: int
    detail: str
    place: str
    payload: str


@dataclass(slots=True)
class Republished:
    """What `republish` did, or would do.

    Attributes:
        pipeline: whose dead letters they are.
        dry_run: whether nothing was published.
        considered: how many dead letters have one of the reasons.
        published: how many messages were published, or would be, by topic.
        already: how many had been published again before.
        repeated: how many are of a message with another dead letter.
        unreadable: how many messages on the topic are no dead letters.
        without_original: of ``published``, those whose original is not kept any more: they have
            neither key nor headers, and the time of their dead letter.
        uncertain: how many may have been published by a call that was killed, and are not again.
        held_back: why others are not published, the most frequent first.
    """

    pipeline: str
    dry_run: bool
    considered: int = 0
    published: dict[str, int] = field(default_factory=dict)
    already: int = 0
    repeated: int = 0
    unreadable: int = 0
    without_original: int = 0
    uncertain: int = 0
    held_back: list[HeldBack] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many were published, or would be."""
        return sum(self.published.values())

    def hold_back(self, stored: StoredLetter, reason: str, detail: str) -> None:
        """Count one that is not published; those that do not fit, by the decoder's sentence."""
        by_detail = reason == Reason.TYPE_MISMATCH.value
        for each in self.held_back:
            if each.reason == reason and (not by_detail or each.detail == detail):
                each.count += 1
                return
        self.held_back.append(HeldBack(reason, 1, detail, stored.place, stored.shown_payload))


@dataclass(slots=True)
class _Copy:
    """A message that may be published again."""

    stored: StoredLetter
    mark: str
    value: bytes
    key: bytes | None
    time_ms: int
    headers: MessageHeaders
    has_original: bool


def republish(
    bus: AdminBus,
    pipeline: Pipeline,
    reasons: Sequence[str] | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Republished:
    """Publish dead letters again that the declaration takes now.

    Args:
        bus: where the pipeline's topics are.
        pipeline: as it is declared now.
        reasons: of which dead letters; None: of those in `BY_DECLARATION`.
        limit: publish at most so many.
        dry_run: only say what would be done.
        say: gets a line when something takes a while.

    Raises:
        InputError: a reason does not exist, or its messages are never published again.
        BusError: there are no dead letters, another call is at work, or the bus does not respond.
            What was published until then is not published again.
    """
    wanted = check_reasons(reasons) or BY_DECLARATION
    for reason in sorted(wanted & _NEVER.keys()):
        raise InputError(f"dead letters {reason!r} are not published again: {_NEVER[reason]}")
    reader = LetterReader(bus, pipeline)
    resolve_topics(pipeline, bus)
    existing = bus.topics()
    topics = [topic for topic in _inputs(pipeline) if topic in existing]
    if dry_run:
        return _Republishing(bus, pipeline, topics, wanted, limit, None).run(reader)
    with _alone(bus, pipeline, topics, say):
        publisher = bus.publisher()
        try:
            return _Republishing(bus, pipeline, topics, wanted, limit, publisher).run(reader)
        finally:
            publisher.close()


class _Republishing:
    """One call of `republish`; without a publisher it is a dry run."""

    def __init__(
        self,
        bus: Bus,
        pipeline: Pipeline,
        topics: Sequence[str],
        wanted: frozenset[str],
        limit: int | None,
        publisher: Publisher | None,
    ) -> None:
        self._bus, self._pipeline, self._topics = bus, pipeline, topics
        self._wanted, self._limit, self._publisher = wanted, limit, publisher
        self._partitions = {topic: bus.topics()[topic] for topic in topics}
        self._most = {topic: bus.limits(topic).max_message_bytes for topic in topics}
        self._marks = Marks(bus, pipeline)
        self._decoder = BatchDecoder(pipeline)
        self._candidates = None if pipeline.candidates is None else Candidates(pipeline)
        self._newest_ms = self._newest()
        self._lateness_ms = parse_duration_ms(pipeline.allowed_lateness)
        self._seen: set[str] = set()
        self._report = Republished(pipeline.name, publisher is None)

    def run(self, reader: LetterReader) -> Republished:
        report = self._report
        report.uncertain = self._marks.uncertain
        if self._publisher is not None:
            self._marks.open(self._publisher)
        for letters in reader.batches():
            if self._limit is not None and report.count >= self._limit:
                break
            wanted = [each for each in letters if each.letter.reason in self._wanted]
            report.considered += len(wanted)
            copies = self._fitting(self._new(self._copies(wanted)))
            if self._limit is not None:
                copies = copies[: self._limit - report.count]
            self._publish(copies)
        report.unreadable = reader.unreadable
        report.held_back.sort(key=lambda each: -each.count)
        return report

    def _copies(self, letters: Sequence[StoredLetter]) -> Iterator[_Copy]:
        """What would be published for each; one that can't be is held back."""
        places: dict[TopicPartition, list[int]] = {}
        usable = []
        for stored in letters:
            letter = stored.letter
            if letter.partition >= self._partitions.get(letter.topic, 0):
                detail = f"pipeline {self._pipeline.name!r} reads {' and '.join(self._topics)}"
                self._report.hold_back(stored, "of another topic", detail)
                continue
            usable.append(stored)
            at = TopicPartition(letter.topic, letter.partition)
            places.setdefault(at, []).append(letter.offset)
        originals = read_originals(self._bus, places)
        for stored in usable:
            letter = stored.letter
            original = originals.get(
                (TopicPartition(letter.topic, letter.partition), letter.offset)
            )
            if original is not None and is_of(original, stored):
                mark = mark_of(letter, original.value)
                yield _Copy(
                    stored, mark, original.value, original.key, original.time_ms,
                    original.headers, True,
                )  # fmt: skip
            elif stored.is_cut:
                self._report.hold_back(
                    stored,
                    "cut",
                    f"only the beginning of the payload of {letter.truncated_from:,} bytes is in "
                    "the dead letter, and the message is not kept any more",
                )
            else:
                value = stored.payload
                mark = mark_of(letter, value)
                key = getattr(value, "key", None)
                yield _Copy(stored, mark, value, key, stored.time_ms, None, False)

    def _new(self, copies: Iterator[_Copy]) -> list[_Copy]:
        """Those that were not published again yet, each message once."""
        new = []
        for copy in copies:
            if copy.mark in self._marks.done and copy.mark not in self._seen:
                self._report.already += 1
            elif copy.mark in self._seen:
                self._report.repeated += 1
            else:
                new.append(copy)
            self._seen.add(copy.mark)
        return new

    def _fitting(self, copies: list[_Copy]) -> list[_Copy]:
        """Those that a run would take now; the others are held back."""
        kept: list[_Copy] = []
        for topic in self._topics:
            kept += self._fitting_of(topic, [c for c in copies if c.stored.letter.topic == topic])
        return kept

    def _fitting_of(self, topic: str, copies: list[_Copy]) -> list[_Copy]:
        if not copies:
            return []
        count = len(copies)
        rows = RawRows(
            topic,
            [copy.value for copy in copies],
            np.zeros(count, np.int64),
            np.arange(count),
            np.array([copy.time_ms for copy in copies], np.int64),
            keys=[copy.key for copy in copies],
            headers=[copy.headers for copy in copies],
        )
        events, labels, faults = self._decoded(rows)
        fitting = []
        for row, copy in enumerate(copies):
            too_late = self._late_by(events[row]) if row in events else None
            size = len(copy.value) + len(copy.key or b"") + len(copy.mark) + _HEADER_BYTES
            if row in faults:
                self._report.hold_back(copy.stored, *faults[row])
            elif row not in events and row not in labels:
                self._report.hold_back(
                    copy.stored, "skipped", "the format counts and skips such messages"
                )
            elif too_late is not None:
                self._report.hold_back(copy.stored, Reason.LATE.value, too_late)
            elif size > self._most[topic]:
                detail = f"with its mark it is larger than topic {topic} takes"
                self._report.hold_back(copy.stored, "too large", detail)
            else:
                fitting.append(copy)
        return fitting

    def _decoded(
        self, rows: RawRows
    ) -> tuple[dict[int, int], set[int], dict[int, tuple[str, str]]]:
        """What a run would make of messages of one topic, by row.

        The times of events, the rows that are labels, and reason and detail of dead letters. Rows
        are known by their offsets, which count from 0.
        """
        are_events = rows.topic in self._pipeline.topics.all_events
        events, labels = (rows, NO_ROWS) if are_events else (NO_ROWS, rows)
        read_at = float(rows.times.max()) / 1000
        raw = RawBatch("republish", 0, events, labels, np.arange(len(rows)), read_at)
        batch = self._decoder.decode(raw)
        if are_events and self._candidates is not None:
            batch = self._candidates.check(batch)
        faults = {each.offset: (each.reason, each.detail) for each in batch.dead_letters}
        times = batch.times.tolist() if are_events else []
        of_events = dict(zip(batch.rows.offsets.tolist(), times, strict=True)) if times else {}
        return of_events, set(batch.labels.offsets.tolist()), faults

    def _late_by(self, time_ms: int) -> str | None:
        """Why an event would be late again; None if it would not be."""
        if self._newest_ms is None:
            return None
        behind = self._newest_ms - time_ms
        if behind <= self._lateness_ms:
            return None
        return (
            f"its event time is {format_duration_ms(behind)} behind the newest, and "
            f"allowed_lateness is {format_duration_ms(self._lateness_ms)}: a run would refuse it"
        )

    def _publish(self, copies: list[_Copy]) -> None:
        """Publish copies, in three steps; see `dead_letters.marks`."""
        if not copies:
            return
        publisher = self._publisher
        marks = [copy.mark for copy in copies]
        copies = sorted(copies, key=lambda copy: (_place(copy), copy.stored.letter.offset))
        if publisher is not None:
            self._marks.intend(publisher, marks, self._topics)
            for at, group in groupby(copies, _place):
                of_partition = list(group)
                publisher.append(
                    at.topic,
                    [copy.value for copy in of_partition],
                    keys=[copy.key for copy in of_partition],
                    partitions=at.partition,
                    times=[copy.time_ms for copy in of_partition],
                    headers=[with_mark(copy.headers, copy.mark) for copy in of_partition],
                )
            publisher.flush()
            self._marks.finish(publisher, marks)
        for copy in copies:
            topic = copy.stored.letter.topic
            self._report.published[topic] = self._report.published.get(topic, 0) + 1
            self._report.without_original += not copy.has_original

    def _newest(self) -> int | None:
        """The newest event time near the ends of the topics, copies left out; None without any."""
        newest: list[int] = []
        for topic in self._topics:
            if topic not in self._pipeline.topics.all_events:
                continue
            starts, ends = self._bus.start_offsets(topic), self._bus.end_offsets(topic)
            for number, end in enumerate(ends):
                at, count = TopicPartition(topic, number), _LOOK_BACK
                while True:
                    first = max(starts[number], end - count)
                    found = self._newest_between(at, first, end)
                    if found is not None or first == starts[number]:
                        break
                    count *= 8
                newest += [] if found is None else [found]
        return max(newest, default=None)

    def _newest_between(self, at: TopicPartition, first: int, end: int) -> int | None:
        """The newest event time between two offsets."""
        if first >= end:
            return None
        newest: list[int] = []
        reader = self._bus.reader({at: first}, on_out_of_range="earliest", headers=True)
        try:
            for piece in read_to_end(reader, {at: end}):
                headers = piece.headers or [None] * len(piece.values)
                own = [n for n, each in enumerate(headers) if header_of(each, HEADER) is None]
                if not own:
                    continue
                rows = RawRows(
                    at.topic,
                    [piece.values[row] for row in own],
                    np.zeros(len(own), np.int64),
                    np.arange(len(own)),
                    piece.times[own],
                    keys=[piece.keys[row] for row in own],
                    headers=[headers[row] for row in own],
                )
                newest += self._decoded(rows)[0].values()
        finally:
            reader.close()
        return max(newest, default=None)


def _place(copy: _Copy) -> TopicPartition:
    return TopicPartition(copy.stored.letter.topic, copy.stored.letter.partition)


def _inputs(pipeline: Pipeline) -> list[str]:
    topics = pipeline.topics
    labels = topics.all_labels if pipeline.has_label_topic else ()
    return list(dict.fromkeys([*topics.all_events, *labels]))


@contextmanager
def _alone(
    bus: AdminBus, pipeline: Pipeline, topics: Sequence[str], say: Callable[[str], None]
) -> Iterator[None]:
    """Keep other calls out, and the outputs of pipelines: those may not have a second writer.

    Raises:
        BusError: another call is at work, or an input is an output of a pipeline.
    """
    if pipeline.topics.labels_bus is not None:  # outputs, and so claims, are on the other one
        topics = [topic for topic in topics if topic in pipeline.topics.all_events]
    try:
        claims = bus.claim_outputs(topics, _OWNER, str(uuid.uuid4()), say)
    except BusError as error:
        raise BusError(
            f"dead letters of pipeline {pipeline.name!r} can't be published again now: {error}"
        ) from None
    with claims:
        yield
    with suppress(BusError):  # the next call has them already
        bus.release_outputs(topics)
