"""What leaves the flow: messages for one partition, with the provenance of each.

A message's *source key* is the source row that it was made of, and what distinguishes the messages
of one row. (Of an early label that expired: the row at which it did.) A replay makes messages with
the same source keys, whatever they contain, so what is published already is recognised by its key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anabranch.dataflows.batch.batch import RawBatch
from anabranch.dataflows.bus.headers import Headers
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.outputs import Cause

I64 = NDArray[np.int64]

SourceKey = tuple[str, int, tuple[str, ...]]
"""Source topic, offset, and what distinguishes the messages made of that row."""

SourceKeys = I64 | list[SourceKey]
"""One per message: its event's offset, ``(n,) int64``; keys where events have several messages or
topics."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """How the messages on a pipeline's output topics name the rows they were made of.

    Attributes:
        inputs: the input topics, events first.
        discriminators: output topic → the text fields that distinguish messages of one row; none
            where an event has a single message.
        event_topics: how many of the inputs are of events.
    """

    inputs: tuple[str, ...]
    discriminators: Mapping[str, tuple[str, ...]]
    event_topics: int = 1

    @property
    def events(self) -> tuple[str, ...]:
        """The topics of events."""
        return self.inputs[: self.event_topics]

    @classmethod
    def of(cls, pipeline: Pipeline) -> Provenance:
        """The provenance of all outputs of ``pipeline``."""
        topics = pipeline.topics
        discriminators: dict[str, tuple[str, ...]] = {
            topics.predictions: (),
            topics.drift: ("subject", "detector"),
            topics.dead_letters: ("reason",),
        }
        if pipeline.has_rollouts:
            discriminators[topics.rollouts] = ("action", "challenger", "rollout")
        return cls(pipeline.inputs, discriminators, len(topics.all_events))

    def source_key(self, topic: str, message: Any) -> SourceKey:
        """The source key of a message for the output ``topic``."""
        values = tuple(getattr(message, name) for name in self.discriminators[topic])
        cause = message.cause
        return cause.topic, cause.offset, values

    def record_type(self, topic: str) -> type[Any]:
        """A struct with the fields of a message on ``topic`` that make its source key.

        They are ``topic``, ``partition``, ``offset``, the discriminators, and ``given_up``: that of
        a `DeadLetter`, None where there is none.
        """
        columns: list[Any] = [("topic", str), ("partition", int), ("offset", int)]
        columns += [(name, str) for name in self.discriminators[topic]]
        columns.append(("given_up", Cause | None, None))
        return msgspec.defstruct("Record", columns, gc=False)


_NONE = np.zeros(0, np.int64)


class OutputRecords(msgspec.Struct):
    """Messages for one partition of the output topics.

    Attributes:
        partition: the partition number.
        messages: topic → payloads, in order.
        published: when the events were published, ``(events,) int64`` epoch ms; for metrics.
        read_at: when they were read, in seconds since 1970; for metrics.
        source_keys: topic → the source keys of its messages.
        sources: the rows that were read for the messages, valid or not; or `reached` of them.
        event_times: the events' own times, ``(events,) int64`` epoch ms; for metrics.
        keys: topic → the keys of its messages; a topic whose messages have none is left out.
        headers: topic → the headers of its messages.
    """

    partition: int
    messages: dict[str, list[bytes]]
    published: I64 = msgspec.field(default_factory=lambda: _NONE)
    read_at: float = 0.0
    source_keys: dict[str, SourceKeys] = msgspec.field(default_factory=dict)
    sources: RawBatch | Mapping[str, int] | None = None
    event_times: I64 = msgspec.field(default_factory=lambda: _NONE)
    keys: dict[str, Sequence[bytes | None]] = msgspec.field(default_factory=dict)
    headers: dict[str, Headers] = msgspec.field(default_factory=dict)

    def reached(self) -> Mapping[str, int]:
        """Source topic → the greatest offset that was read of this partition.

        Computed on demand: only a replay asks for it.
        """
        sources = self.sources
        if isinstance(sources, RawBatch):
            return sources.reached(self.partition)
        return sources or {}

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes only what `reached` needs of the sources."""
        arguments = (
            self.partition, self.messages, self.published, self.read_at, self.source_keys,
            self.reached(), self.event_times, self.keys, self.headers,
        )  # fmt: skip
        return OutputRecords, arguments
