"""Dead letters of rows as they were read."""

from __future__ import annotations

import base64
from typing import TypedDict

from anabranch.dataflows.batch.batch import RawRows
from anabranch.dataflows.messages.outputs import DeadLetter


def dead_letter(rows: RawRows, row: int, reason: str, detail: str) -> DeadLetter:
    """The dead letter of one row as it was read."""
    return DeadLetter(
        topic=rows.topic,
        partition=int(rows.partitions[row]),
        offset=int(rows.offsets[row]),
        reason=reason,
        detail=detail,
        **payload_fields(rows.values[row]),
    )


class PayloadFields(TypedDict, total=False):
    """The fields of a `DeadLetter` that hold what was read; one of them."""

    payload: str
    payload_base64: str


def payload_fields(payload: bytes) -> PayloadFields:
    """The payload as text where it is UTF-8, else as base64."""
    try:
        return {"payload": payload.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload).decode()}
