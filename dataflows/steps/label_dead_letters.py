"""Dead letters for labels that could not be learned, at once or after they were buffered."""

from __future__ import annotations

import msgspec

from anabranch.dataflows.batch.batch import Batch, LabelRows
from anabranch.dataflows.batch.dead_letters import payload_fields
from anabranch.dataflows.batch.row_ids import readable_row_id
from anabranch.dataflows.declaration.topics import Topics
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.messages.outputs import Cause, DeadLetter
from anabranch.models.prequential import outcome as reasons
from anabranch.models.prequential.outcome import ExpiredLabel, Outcome

_REASONS = {
    reasons.UNKNOWN_ID: DeadLetterReason.LABEL_WITHOUT_EVENT,
    reasons.EVENT_MISSING: DeadLetterReason.LABEL_WITHOUT_EVENT,
    reasons.BUFFER_FULL: DeadLetterReason.TOO_MANY_EARLY_LABELS,
    reasons.NO_VALUE: DeadLetterReason.LABEL_WITHOUT_VALUE,
    reasons.DUPLICATE: DeadLetterReason.DUPLICATE_LABEL,
    reasons.CONTRADICTS: DeadLetterReason.CONTRADICTING_LABEL,
    reasons.LATE: DeadLetterReason.LABEL_AFTER_TIMEOUT,
    reasons.TOO_OLD: DeadLetterReason.LABEL_TOO_OLD,
}


class _LabelContext(msgspec.Struct, array_like=True):
    """What a dead letter needs to know of a label whose event has not come yet."""

    id: str
    partition: int
    offset: int
    payload: bytes
    topic: str = ""  # of those stored before pipelines could have several: the only one


class LabelDeadLetters:
    """Makes dead letters for the labels of a pipeline with these ``topics``."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(_LabelContext)

    def context(self, labels: LabelRows, row: int) -> bytes:
        """What is stored with label ``row`` while it is buffered, in case its event never comes."""
        return self._encoder.encode(_context(labels, row))

    def id_of(self, context: bytes) -> str:
        """The id of the label with which ``context`` is stored."""
        return readable_row_id(self._decoder.decode(context).id)

    def of(self, batch: Batch, outcome: Outcome) -> list[DeadLetter]:
        """One for each label that was rejected, or has expired in the buffer."""
        rejected = [
            _dead_letter(self._topics, _context(batch.labels, row), _REASONS[reason], reason)
            for row, reason in outcome.rejected_labels
        ]
        return rejected + [self._expired(batch, each) for each in outcome.expired_labels]

    def _expired(self, batch: Batch, expired: ExpiredLabel) -> DeadLetter:
        reason = DeadLetterReason.MODEL_FAILED if expired.failed else _REASONS[expired.reason]
        context = self._decoder.decode(expired.context)
        letter = _dead_letter(self._topics, context, reason, expired.reason)
        topic_of, row = batch.rows.topic_of, expired.item
        partitions, offsets = batch.partitions, batch.offsets
        if row >= len(batch):
            topic_of, row = batch.labels.topic_of, row - len(batch)
            partitions, offsets = batch.labels.partitions, batch.labels.offsets
        letter.given_up = Cause(topic_of(row), int(partitions[row]), int(offsets[row]))
        return letter


def label_dead_letter(topics: Topics, labels: LabelRows, row: int, detail: str) -> DeadLetter:
    """For a label that the model failed on."""
    return _dead_letter(topics, _context(labels, row), DeadLetterReason.MODEL_FAILED, detail)


def _dead_letter(
    topics: Topics, context: _LabelContext, reason: DeadLetterReason, detail: str
) -> DeadLetter:
    return DeadLetter(
        topic=context.topic or topics.labels,
        partition=context.partition,
        offset=context.offset,
        reason=reason.value,
        detail=f"id {readable_row_id(context.id)!r}: {detail}",
        **payload_fields(context.payload),
    )


def _context(labels: LabelRows, row: int) -> _LabelContext:
    return _LabelContext(
        labels.ids[row],
        int(labels.partitions[row]),
        int(labels.offsets[row]),
        labels.payloads[row],
        labels.topic_of(row),
    )
