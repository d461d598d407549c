"""Dead letters of labels that could not be learned, at once or after they were held for a while."""

from __future__ import annotations

import msgspec

from anabranch.dataflows.batch.batch import Batch, LabelRows
from anabranch.dataflows.batch.dead_letters import payload_fields
from anabranch.dataflows.batch.row_ids import told
from anabranch.dataflows.declaration.declaration import Topics
from anabranch.dataflows.messages.outputs import Cause, DeadLetter
from anabranch.models.prequential import outcome as reasons
from anabranch.models.prequential.outcome import ExpiredLabel, Outcome

SHORT = {
    reasons.UNKNOWN_ID: "label without event",
    reasons.EVENT_MISSING: "label without event",
    reasons.BUFFER_FULL: "too many early labels",
    reasons.NO_VALUE: "label without value",
    reasons.DUPLICATE: "duplicate label",
    reasons.CONTRADICTS: "contradicting label",
    reasons.LATE: "label after its wait",
    reasons.TOO_OLD: "label too old",
}
"""Why a label was not learned: the sentence to the short word that is counted."""


class _Note(msgspec.Struct, array_like=True):
    """All that a dead letter will want of a label that is held."""

    id: str
    partition: int
    offset: int
    payload: bytes


class LabelTrouble:
    """Makes dead letters of the labels of a pipeline with these ``topics``."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(_Note)

    def note(self, labels: LabelRows, row: int) -> bytes:
        """What must be known of label ``row`` should it be held in vain."""
        return self._encoder.encode(_note(labels, row))

    def letters(self, batch: Batch, outcome: Outcome) -> list[DeadLetter]:
        """One for each label that was refused or given up."""
        letters = [
            self._letter(_note(batch.labels, row), reason)
            for row, reason in outcome.rejected_labels
        ]
        return letters + [self._too_late(batch, each) for each in outcome.expired_labels]

    def _too_late(self, batch: Batch, given_up: ExpiredLabel) -> DeadLetter:
        letter = self._letter(self._decoder.decode(given_up.context), given_up.reason)
        topic, row = self._topics.events, given_up.item
        partitions, offsets = batch.partitions, batch.offsets
        if row >= len(batch):
            topic, row = self._topics.labels, row - len(batch)
            partitions, offsets = batch.labels.partitions, batch.labels.offsets
        letter.given_up = Cause(topic, int(partitions[row]), int(offsets[row]))
        return letter

    def _letter(self, note: _Note, reason: str) -> DeadLetter:
        return DeadLetter(
            topic=self._topics.labels,
            partition=note.partition,
            offset=note.offset,
            reason=SHORT[reason],
            detail=f"id {told(note.id)!r}: {reason}",
            **payload_fields(note.payload),
        )


def _note(labels: LabelRows, row: int) -> _Note:
    return _Note(
        labels.ids[row], int(labels.partitions[row]), int(labels.offsets[row]), labels.payloads[row]
    )
