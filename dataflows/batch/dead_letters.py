"""Makes dead letters of rows that could not be used.

Which rows are is decided in `source.decoder` (with `codec` and `batch.placed_fields`),
`source.late_and_duplicate` and `batch.candidates`, in the stages `feature_guard`, `model_failures`
and `learning` of the model step, and in `sink.size_limits`. To read and republish those that were
written is the part of `dataflows.dead_letters`.
"""

from __future__ import annotations

import base64
from typing import TypedDict

from anabranch.dataflows.batch.batch import RawRows
from anabranch.dataflows.bus.protocol import Tombstone
from anabranch.dataflows.messages.dead_letter_reasons import DeadLetterReason
from anabranch.dataflows.messages.outputs import DeadLetter

Fault = tuple[DeadLetterReason, str]
"""Why a message cannot be used: the reason, and a sentence with the details."""


def dead_letter(rows: RawRows, row: int, reason: DeadLetterReason, detail: str) -> DeadLetter:
    """The dead letter of one row as it was read."""
    return DeadLetter(
        topic=rows.topic_of(row),
        partition=int(rows.partitions[row]),
        offset=int(rows.offsets[row]),
        reason=reason.value,
        detail=detail,
        **payload_fields(rows.values[row]),
    )


class PayloadFields(TypedDict, total=False):
    """The fields of a `DeadLetter` that hold the payload: as text or as bytes.

    Those of the key are there if the message has no payload but a key.
    """

    payload: str
    payload_base64: str
    key: str
    key_base64: str


def payload_fields(payload: bytes) -> PayloadFields:
    """The payload as text if it is UTF-8, else as base64; of a tombstone, its key likewise."""
    if isinstance(payload, Tombstone) and payload.key is not None:
        try:
            return {"payload": "", "key": payload.key.decode()}
        except UnicodeDecodeError:
            return {"payload": "", "key_base64": base64.b64encode(payload.key).decode()}
    try:
        return {"payload": payload.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload).decode()}
