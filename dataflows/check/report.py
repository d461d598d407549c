"""The report of a check: of a sample of events, of one of labels, and of how they join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from anabranch.dataflows.check.fields import FieldsReport, check_fields, values_at
from anabranch.dataflows.check.labels import JoinReport, join
from anabranch.dataflows.check.sample import Sample
from anabranch.dataflows.check.verdicts import Refused, Verdicts, as_json, verdicts
from anabranch.dataflows.codec import CODECS, codec_of
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.messages.inputs import Delayed
from anabranch.dataflows.messages.time_unit_check import unit_advice
from anabranch.producers.batch import Kind

_SHOWN = 120


@dataclass(slots=True)
class ReasonCount:
    """Messages that would be dead letters for one reason.

    Attributes:
        reason: as in dead letters.
        count: how many.
        detail, place, payload: of the first of them.
    """

    reason: str
    count: int
    detail: str
    place: str
    payload: str


@dataclass(slots=True)
class TimesReport:
    """The event times of the messages that fit.

    Attributes:
        earliest, latest: epoch ms.
        unit: the unit in which they would be of today, if they are not as read.
        advice: the sentence about it.
        out_of_order: how many are earlier than one before them.
        behind_ms: the most that one is behind the newest before it.
        arrival_ms: of a topic, the median time from the event to its publishing.
    """

    earliest: int
    latest: int
    unit: str | None
    advice: str | None
    out_of_order: int
    behind_ms: int
    arrival_ms: int | None


@dataclass(slots=True)
class RepeatedId:
    """An id that several messages have.

    Attributes:
        ids: how many ids are repeated.
        example: one of them.
        places: where it is first and next.
    """

    ids: int
    example: str
    places: tuple[str, str]


@dataclass(slots=True)
class MessagesReport:
    """What a sample of messages holds.

    Attributes:
        source: the file or topic.
        kind: events or labels.
        skipped: how many are none of the pipeline's, by its filter.
        read, total: how many messages were read, and how many there are; None if not known.
        fit: how many would be used.
        reasons: why the others would be dead letters, the most frequent first.
        fields: the fields.
        times: of the messages that fit; None if none does.
        repeated: ids that occur more than once; None if there are none.
    """

    source: str
    kind: Kind
    read: int
    total: int | None
    fit: int
    skipped: int
    reasons: list[ReasonCount]
    fields: FieldsReport
    times: TimesReport | None
    repeated: RepeatedId | None


@dataclass(slots=True)
class CheckReport:
    """The result of a check; ``ok`` is false if a message would be a dead letter."""

    pipeline: str
    ok: bool
    events: MessagesReport
    labels: MessagesReport | None
    join: JoinReport | None


def check(pipeline: Pipeline, events: Sample, labels: Sample | None) -> CheckReport:
    """Check a sample of events, and one of labels, against a pipeline."""
    event_pipeline = as_json(pipeline) if events.is_file else pipeline
    of_events = verdicts(event_pipeline, "events", events)
    event_report = _messages(event_pipeline, "events", events, of_events)
    if labels is None:
        return CheckReport(
            pipeline.name, not event_report.reasons, event_report, labels=None, join=None
        )
    label_pipeline = as_json(pipeline) if labels.is_file else pipeline
    of_labels = verdicts(label_pipeline, "labels", labels)
    label_report = _messages(label_pipeline, "labels", labels, of_labels)
    codec = codec_of(event_pipeline, event_pipeline.topics.events)
    refused_rows = [each.row for each in of_events.refused]
    refused_ids = values_at(codec, pipeline.event, pipeline.id, events, refused_rows)
    joined = join(pipeline, of_events, of_labels, events.is_whole, refused_ids)
    ok = not event_report.reasons and not label_report.reasons and not joined.refused
    return CheckReport(pipeline.name, ok, event_report, label_report, joined)


def reason_counts(sample: Sample, refused: Sequence[Refused]) -> list[ReasonCount]:
    """The refused messages of a sample by reason, the most frequent first.

    Those that do not fit the type are counted by what the decoder says as well.
    """
    counts: dict[tuple[str, str], ReasonCount] = {}
    for each in refused:
        by_detail = each.reason == DeadLetterReason.TYPE_MISMATCH.value
        key = each.reason, each.detail if by_detail else ""
        found = counts.get(key)
        if found is None:
            payload = sample.values[each.row].decode(errors="backslashreplace")
            shown = payload if len(payload) <= _SHOWN else f"{payload[:_SHOWN]}…"
            found = ReasonCount(each.reason, 0, each.detail, sample.place(each.row), shown)
            counts[key] = found
        found.count += 1
    return sorted(counts.values(), key=lambda each: -each.count)


def _messages(pipeline: Pipeline, kind: Kind, sample: Sample, found: Verdicts) -> MessagesReport:
    label, topics = pipeline.label, pipeline.topics
    message: type[msgspec.Struct] = pipeline.event
    time, topic = pipeline.time, topics.events
    if kind == "labels":
        assert isinstance(label, Delayed)
        message, time, topic = label.type, label.time, topics.labels
    is_label = kind == "labels"
    codec = CODECS["json"] if sample.is_file else codec_of(pipeline, topic, is_label)
    return MessagesReport(
        source=sample.source,
        kind=kind,
        read=len(sample),
        total=sample.total,
        fit=len(found.rows),
        skipped=len(sample) - len(found.rows) - len(found.refused),
        reasons=reason_counts(sample, found.refused),
        fields=check_fields(codec, message, time, sample),
        times=_times(sample, found),
        repeated=_repeated(sample, found) if kind == "events" else None,
    )


def _times(sample: Sample, found: Verdicts) -> TimesReport | None:
    times = found.times
    if not len(times):
        return None
    behind = np.maximum.accumulate(times) - times
    delays = sample.times[found.rows] - times
    unit = found.time_unit
    return TimesReport(
        earliest=int(times.min()),
        latest=int(times.max()),
        unit=unit,
        advice=None if unit is None else unit_advice(sample.source, unit),
        out_of_order=int((behind > 0).sum()),
        behind_ms=int(behind.max()),
        arrival_ms=None if sample.is_file else int(np.median(delays)),
    )


def _repeated(sample: Sample, found: Verdicts) -> RepeatedId | None:
    """Ids that are repeated among the messages that fit: farther apart than ids are remembered."""
    first: dict[str, int] = {}
    again: dict[str, int] = {}
    for name, row in zip(found.ids, found.rows.tolist(), strict=True):
        if name in first:
            again.setdefault(name, row)
        else:
            first[name] = row
    if not again:
        return None
    example = next(iter(again))
    places = sample.place(first[example]), sample.place(again[example])
    return RepeatedId(len(again), example, places)
