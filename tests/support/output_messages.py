"""Source rows with known outputs, as the flow hands them to the sink, and sinks for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from anabranch.dataflows.batch.output_records import OutputRecords, Provenance, SourceKeys
from anabranch.dataflows.bus import TopicPartition
from anabranch.dataflows.codec import CODECS
from anabranch.dataflows.messages.outputs import DeadLetter, DriftSignal, Prediction, RolloutMessage
from anabranch.dataflows.sink.bus_sink import SinkRecovery

EVENTS, LABELS, CONTROL = INPUTS = "toy.events", "toy.labels", "toy.control"
PREDICTIONS, DRIFT, DEAD = "toy.predictions", "toy.drift", "toy.dead-letters"
ROLLOUTS = "toy.rollouts"
OUTPUTS = (PREDICTIONS, DRIFT, DEAD, ROLLOUTS)
PROVENANCE = Provenance(
    INPUTS,
    {
        PREDICTIONS: (),
        DRIFT: ("subject", "detector"),
        DEAD: ("reason",),
        ROLLOUTS: ("action", "challenger", "rollout"),
    },
)


class Row(NamedTuple):
    """A source row, and what the flow makes of it."""

    topic: str
    offset: int
    predicted: bool = True
    reasons: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()


def event(offset: int, **outputs: Any) -> Row:
    return Row(EVENTS, offset, **outputs)


def label(offset: int, **outputs: Any) -> Row:
    return Row(LABELS, offset, predicted=False, **outputs)


def control(offset: int, **outputs: Any) -> Row:
    return Row(CONTROL, offset, predicted=False, **outputs)


def recovery(since: Mapping[TopicPartition, int], **options: Any) -> SinkRecovery:
    """The recovery of a sink for these outputs."""
    return SinkRecovery(since, PROVENANCE, lambda topic: CODECS["json"], **options)


def messages_of(row: Row, partition: int, run: int) -> dict[str, list[Any]]:
    """Output topic → what is published for a row; the contents differ from run to run."""
    at = {"topic": row.topic, "partition": partition, "offset": row.offset}
    predictions = [
        Prediction(id=str(row.offset), ts=0, model="m", version=run, prediction=None, **at)
    ]
    return {
        PREDICTIONS: predictions if row.predicted else [],
        DRIFT: [
            DriftSignal(pipeline="toy", subject=subject, detector="d", ts=run, statistic={}, **at)
            for subject in row.subjects
        ],
        DEAD: [DeadLetter(reason=reason, detail=f"run {run}", **at) for reason in row.reasons],
        ROLLOUTS: [_decision(action, run, at) for action in row.actions],
    }


def _decision(action: str, run: int, at: dict[str, Any]) -> RolloutMessage:
    about = {"rollout": "toy-1", "challenger": "tree", "champion": "m", "policy": "Shadow"}
    return RolloutMessage(
        pipeline="toy", action=action, share=0.5, reason="", ts=run, evidence=None, guardrails={},
        **about, **at,
    )  # fmt: skip


def output_of(rows: Iterable[Row], partition: int = 0, run: int = 0) -> OutputRecords:
    """What the flow makes of these rows, as one item."""
    messages: dict[str, list[bytes]] = {}
    keys: dict[str, SourceKeys] = {}
    for topic in OUTPUTS:
        own = [each for row in rows for each in messages_of(row, partition, run)[topic]]
        if own:
            messages[topic] = [msgspec.json.encode(each) for each in own]
            keys[topic] = [PROVENANCE.source_key(topic, each) for each in own]
    if PREDICTIONS in keys:
        keys[PREDICTIONS] = np.array([key[1] for key in keys[PREDICTIONS]], np.int64)
    reached: dict[str, int] = {}
    for row in rows:
        reached[row.topic] = max(row.offset, reached.get(row.topic, -1))
    published = np.zeros(len(messages.get(PREDICTIONS, ())), np.int64)
    return OutputRecords(partition, messages, published, 0.0, keys, reached)


def expected(rows: Iterable[Row], partition: int = 0) -> Counter[tuple[Any, ...]]:
    """How often each source key must be on the outputs."""
    return Counter(
        (topic, *PROVENANCE.source_key(topic, each))
        for row in rows
        for topic, own in messages_of(row, partition, 0).items()
        for each in own
    )


def on_outputs(values: dict[str, list[bytes]]) -> Counter[tuple[Any, ...]]:
    """How often each source key is among published messages (topic → messages)."""
    keys: Counter[tuple[Any, ...]] = Counter()
    for topic, messages in values.items():
        for message in messages:
            raw = msgspec.json.decode(message)
            discriminators = tuple(raw[name] for name in PROVENANCE.discriminators[topic])
            keys[topic, raw["topic"], raw["offset"], discriminators] += 1
    return keys
