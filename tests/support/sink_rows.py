"""Rows with known outputs, as the dataflow passes them to the sink."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from anabranch.dataflows.batch.outgoing import Marking, Marks, Outgoing
from anabranch.dataflows.messages.outputs import DeadLetter, DriftSignal, Prediction, RolloutMessage

EVENTS, LABELS, CONTROL = INPUTS = "toy.events", "toy.labels", "toy.control"
PREDICTIONS, DRIFT, DEAD = "toy.predictions", "toy.drift", "toy.dead-letters"
ROLLOUTS = "toy.rollouts"
OUTPUTS = (PREDICTIONS, DRIFT, DEAD, ROLLOUTS)
MARKING = Marking(
    INPUTS,
    {
        PREDICTIONS: (),
        DRIFT: ("subject", "detector"),
        DEAD: ("reason",),
        ROLLOUTS: ("action", "challenger", "rollout"),
    },
)


class Row(NamedTuple):
    """A message of the source and its outputs."""

    topic: str
    offset: int
    predicted: bool = True
    reasons: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()


def event(offset: int, **made: Any) -> Row:
    return Row(EVENTS, offset, **made)


def label(offset: int, **made: Any) -> Row:
    return Row(LABELS, offset, predicted=False, **made)


def control(offset: int, **made: Any) -> Row:
    return Row(CONTROL, offset, predicted=False, **made)


def messages_of(row: Row, partition: int, life: int) -> dict[str, list[Any]]:
    """Output topic → messages published for a row; their content differs between runs."""
    at = {"topic": row.topic, "partition": partition, "offset": row.offset}
    predictions = [
        Prediction(id=str(row.offset), ts=0, model="m", version=life, prediction=None, **at)
    ]
    return {
        PREDICTIONS: predictions if row.predicted else [],
        DRIFT: [
            DriftSignal(pipeline="toy", subject=subject, detector="d", ts=life, statistic={}, **at)
            for subject in row.subjects
        ],
        DEAD: [DeadLetter(reason=reason, detail=f"life {life}", **at) for reason in row.reasons],
        ROLLOUTS: [_decision(action, life, at) for action in row.actions],
    }


def _decision(action: str, life: int, at: dict[str, Any]) -> RolloutMessage:
    about = {"rollout": "toy-1", "challenger": "tree", "champion": "m", "policy": "Shadow"}
    return RolloutMessage(
        pipeline="toy", action=action, share=0.5, reason="", ts=life, evidence=None, guardrails={},
        **about, **at,
    )  # fmt: skip


def outgoing(rows: Iterable[Row], partition: int = 0, life: int = 0) -> Outgoing:
    """One item for the sink, with the outputs of these rows."""
    messages: dict[str, list[bytes]] = {}
    marks: dict[str, Marks] = {}
    for topic in OUTPUTS:
        made = [each for row in rows for each in messages_of(row, partition, life)[topic]]
        if made:
            messages[topic] = [msgspec.json.encode(each) for each in made]
            marks[topic] = [MARKING.mark(topic, each) for each in made]
    if PREDICTIONS in marks:
        marks[PREDICTIONS] = np.array([mark[1] for mark in marks[PREDICTIONS]], np.int64)
    reached: dict[str, int] = {}
    for row in rows:
        reached[row.topic] = max(row.offset, reached.get(row.topic, -1))
    published = np.zeros(len(messages.get(PREDICTIONS, ())), np.int64)
    return Outgoing(partition, messages, published, 0.0, marks, reached)


def expected(rows: Iterable[Row], partition: int = 0) -> Counter[tuple[Any, ...]]:
    """How often each provenance must be on the outputs."""
    return Counter(
        (topic, *MARKING.mark(topic, each))
        for row in rows
        for topic, made in messages_of(row, partition, 0).items()
        for each in made
    )


def on_outputs(values: dict[str, list[bytes]]) -> Counter[tuple[Any, ...]]:
    """How often each provenance is on the outputs."""
    found: Counter[tuple[Any, ...]] = Counter()
    for topic, messages in values.items():
        for message in messages:
            raw = msgspec.json.decode(message)
            rest = tuple(raw[name] for name in MARKING.fields[topic])
            found[topic, raw["topic"], raw["offset"], rest] += 1
    return found
