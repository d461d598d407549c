"""What leaves the flow: messages of one partition number, and what each of them was made of.

A *mark* says which source row a message comes from (of a label that was held in vain: the one at
which it was given up), and which of that row's messages it is. A replay makes the same marks,
whatever the contents are, so that what was published before is known by its mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import RawBatch
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.outputs import Cause

I64 = NDArray[np.int64]

Mark = tuple[str, int, tuple[str, ...]]
"""Source topic, offset, and what tells the messages of one row apart."""

Marks = I64 | list[Mark]
"""One per message: offsets of events, ``(n,) int64``, where a row has one message; else marks."""


@dataclass(frozen=True, slots=True)
class Marking:
    """How the messages on a pipeline's outputs tell what they were made of.

    ``inputs`` are the topics that it reads, events first. ``fields`` names each output topic, and
    the text fields that tell messages of one row apart; without any, an event has one message.
    """

    inputs: tuple[str, ...]
    fields: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, pipeline: Pipeline) -> Marking:
        """The marking of all outputs of ``pipeline``."""
        topics = pipeline.topics
        fields: dict[str, tuple[str, ...]] = {
            topics.predictions: (),
            topics.drift: ("subject", "detector"),
            topics.dead_letters: ("reason",),
        }
        if pipeline.has_rollouts:
            fields[topics.rollouts] = ("action", "challenger", "rollout")
        return cls(pipeline.inputs, fields)

    def mark(self, topic: str, message: Any) -> Mark:
        """The mark of a message that goes to the output ``topic``."""
        rest = tuple(getattr(message, name) for name in self.fields[topic])
        cause = message.cause
        return cause.topic, cause.offset, rest

    def decoder(self, topic: str) -> msgspec.json.Decoder[Any]:
        """Reads of a message on ``topic`` its coordinates and the fields of its mark.

        ``given_up`` is that of a `DeadLetter`, None where there is none.
        """
        columns: list[Any] = [("topic", str), ("partition", int), ("offset", int)]
        columns += [(name, str) for name in self.fields[topic]]
        columns.append(("given_up", Cause | None, None))
        return msgspec.json.Decoder(msgspec.defstruct("Marked", columns, gc=False))


_NONE = np.zeros(0, np.int64)


class Outgoing(msgspec.Struct):
    """Messages for one partition number: topic → payloads, in order.

    ``published``, ``event_times`` and ``read_at`` are for the latency metrics: when the events were
    published, and their own times (epoch ms, ``(n,) int64``), and when they were read (seconds).
    ``marks`` has the marks of each topic's messages. ``sources`` are the rows that were read for
    them, good and bad.
    """

    partition: int
    messages: dict[str, list[bytes]]
    published: I64 = msgspec.field(default_factory=lambda: _NONE)
    read_at: float = 0.0
    marks: dict[str, Marks] = msgspec.field(default_factory=dict)
    sources: RawBatch | Mapping[str, int] | None = None
    event_times: I64 = msgspec.field(default_factory=lambda: _NONE)

    def reached(self) -> Mapping[str, int]:
        """By source topic, the greatest offset that was read of its partition.

        Computed when asked, for it is asked during a replay only.
        """
        sources = self.sources
        if isinstance(sources, RawBatch):
            return sources.reached(self.partition)
        return sources or {}

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process only what `reached` needs of the sources goes along."""
        kept = (
            self.messages, self.published, self.read_at, self.marks, self.reached(),
            self.event_times,
        )  # fmt: skip
        return Outgoing, (self.partition, *kept)
