"""Makes messages of decisions about rollouts, with the row that caused each."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from msgspec import UNSET

from anabranch.dataflows.batch.batch import Batch, RawRows
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.control import Control
from anabranch.dataflows.messages.outputs import Cause, ComparedModels, RolloutMessage
from anabranch.models.rollout.decision import Decision, Evidence


def rollout_message(
    pipeline: str, decision: Decision, cause: Cause, request: Control | None = None
) -> RolloutMessage:
    """The message about a decision.

    The step within its batch is left out: nothing that is published depends on batches.

    Args:
        pipeline: its name.
        decision: to publish.
        cause: the row that caused it.
        request: the control message that requested it, if one did.
    """
    return RolloutMessage(
        pipeline=pipeline,
        action=decision.action,
        rollout=decision.rollout,
        challenger=decision.challenger,
        champion=decision.champion,
        share=_finite(decision.share),
        reason=decision.reason,
        ts=decision.time,
        policy=decision.policy,
        evidence=None if decision.evidence is None else _compared(decision.evidence),
        guardrails={name: _finite(value) for name, value in decision.guardrails.items()},
        topic=cause.topic,
        partition=cause.partition,
        offset=cause.offset,
        request_id=UNSET if request is None else request.id,
        requested_by=(request and request.requested_by) or UNSET,
    )


def cause_of_row(pipeline: Pipeline, batch: Batch, row: int) -> Cause:
    """The source of event ``row`` of a batch, or of label ``row - events``."""
    events = len(batch)
    if row < events:
        return Cause(batch.rows.topic_of(row), int(batch.partitions[row]), int(batch.offsets[row]))
    labels, row = batch.labels, row - events
    return Cause(labels.topic_of(row), int(labels.partitions[row]), int(labels.offsets[row]))


def cause_of_control(rows: RawRows) -> Cause:
    """The source of the control message that a batch ends with."""
    return Cause(rows.topic, int(rows.partitions[0]), int(rows.offsets[0]))


def _compared(evidence: Evidence) -> ComparedModels:
    values: dict[str, Any] = {each.name: getattr(evidence, each.name) for each in fields(evidence)}
    for name, value in values.items():
        if isinstance(value, float):
            values[name] = _finite(value)
    return ComparedModels(**values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
