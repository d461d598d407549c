"""Client of a running pipeline's rollouts: reads decisions, and sends commands."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from anabranch.dataflows.bus import Bus, Slice, TopicPartition
from anabranch.dataflows.bus.read_to_end import ends_now, read_to_end
from anabranch.dataflows.codec import codec_of
from anabranch.dataflows.declaration.pipeline import Pipeline
from anabranch.dataflows.messages.control import Control
from anabranch.dataflows.messages.outputs import RolloutMessage
from anabranch.state.errors import InputError

_POLL_MESSAGES = 1000
_POLL_S = 0.1
_FOLLOW_UP_S = 0.3  # for the rest of a response of several messages


class RolloutLog:
    """Messages on a pipeline's rollouts topic, oldest first; a context manager.

    With ``tail`` it starts at most this number of messages before the end of each partition.

    Raises:
        InputError: the pipeline has no rollouts, or has not run yet.
        BusError: the bus does not respond.
    """

    def __init__(self, pipeline: Pipeline, bus: Bus, tail: int | None = None) -> None:
        check_controlled(pipeline, bus)
        topic = pipeline.topics.rollouts
        starts = bus.start_offsets(topic)
        offsets = {TopicPartition(topic, number): start for number, start in enumerate(starts)}
        self._ends = ends_now(bus, offsets)
        if tail is not None:
            offsets = {at: max(start, self._ends[at] - tail) for at, start in offsets.items()}
        self._reader = bus.reader(offsets)
        codec = codec_of(pipeline, topic)
        self._decode, self._undecodable = codec.decoder(RolloutMessage), codec.errors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reader.close()

    def history(self, stop: threading.Event | None = None) -> list[RolloutMessage]:
        """All messages up to the end that the topic had when this was opened, or until ``stop``."""
        timed: list[tuple[int, RolloutMessage]] = []
        stopped = (lambda: False) if stop is None else stop.is_set
        for piece in read_to_end(self._reader, self._ends, limit=_POLL_MESSAGES, stopped=stopped):
            timed += self._decoded(piece)
        timed.sort(key=lambda each: each[0])  # stable: a partition keeps its order
        return [message for _, message in timed]

    def poll(self, timeout_s: float = _POLL_S) -> list[RolloutMessage]:
        """New messages, after waiting for ``timeout_s`` seconds at most."""
        timed: list[tuple[int, RolloutMessage]] = []
        for piece in self._reader.poll(_POLL_MESSAGES, timeout_s):
            timed += self._decoded(piece)
        timed.sort(key=lambda each: each[0])
        return [message for _, message in timed]

    def _decoded(self, piece: Slice) -> list[tuple[int, RolloutMessage]]:
        timed = []
        for at, value in zip(piece.times.tolist(), piece.values, strict=True):
            try:
                timed.append((at, self._decode(value)))
            except self._undecodable:
                continue  # not written by a run, which logs such messages
        return timed


def check_controlled(pipeline: Pipeline, bus: Bus) -> None:
    """Check that the pipeline has rollouts that can be controlled.

    Raises:
        InputError: it has none, or has not run yet.
    """
    if not pipeline.has_rollouts:
        raise InputError(
            f"pipeline {pipeline.name!r} has no rollouts: declare challengers={{…}}, or a policy "
            "such as rollout=Shadow(), and start it again"
        )
    existing = bus.topics()
    for topic in (pipeline.topics.control, pipeline.topics.rollouts):
        if topic not in existing:
            raise InputError(
                f"topic {topic!r} does not exist on {bus.url}: the pipeline has not run there with "
                "rollouts yet; start it with `anabranch run`"
            )


def send_command(
    pipeline: Pipeline, bus: Bus, control: Control, timeout_s: float
) -> list[RolloutMessage]:
    """Publish a control message and wait for the run's response; empty without one in time.

    Raises:
        InputError: the pipeline has no rollouts, or has not run yet.
        BusError: the bus does not respond.
    """
    with RolloutLog(pipeline, bus, tail=0) as log:
        publisher = bus.publisher()
        try:
            payload = codec_of(pipeline, pipeline.topics.control).encode(control)
            publisher.append(pipeline.topics.control, [payload], partitions=0)
            publisher.flush(timeout_s)
        finally:
            publisher.close()
        responses: list[RolloutMessage] = []
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            messages = log.poll(min(left, _POLL_S))
            new = [message for message in messages if message.request_id == control.id]
            if new and not responses:
                until = time.monotonic() + _FOLLOW_UP_S
            responses += new
        return responses
